package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Floor is what the raw floor is made of: the same as the VMs of the Tartarus
// that is measured.
type Floor struct {
	Driver                  tartarus.Driver
	Kernel, Initrd, Cmdline string
	Root                    string // the template's disk
	Memory, State           string // files of the snapshot that VMs go on from; "" where there is none: they boot
	Scratch                 *lethe.Store
	Dir                     string // each VM's folder is made in it
	FirstUID                int    // of MaxConcurrency that VMMs run as; 0: the driver's choice
	Lifeline                *os.File
}

// floor is the raw floor: VMs by a bare loop over the driver and the guest's
// protocol, with no API, judges, ledger, queue, scheduler and node agent.
type floor struct {
	Floor
	shape Shape
}

// How VMs of the floor start, as records say it.
const (
	startCold     = "cold"
	startRestored = "restored"
)

// killTimeout bounds the end of a VM.
const killTimeout = 20 * time.Second

// restored reports whether VMs go on from a snapshot; else they boot.
func (f *floor) restored() bool { return f.Memory != "" }

// openSnapshot opens the files that a VM goes on from; done closes them.
func (f *floor) openSnapshot() (_ *tartarus.SnapshotFiles, done func(), err error) {
	memory, err := os.Open(f.Memory)
	if err != nil {
		return nil, nil, err
	}
	state, err := os.Open(f.State)
	if err != nil {
		memory.Close()
		return nil, nil, err
	}
	return &tartarus.SnapshotFiles{Memory: memory, State: state}, func() { memory.Close(); state.Close() }, nil
}

func kill(ctx context.Context, vm tartarus.VM) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return vm.Kill(ctx)
}

func (f *floor) contender() contender {
	how := "a VM that boots for it, for the driver makes no snapshots here"
	if f.restored() {
		how = "a VM restored from the same snapshot, which was made before"
	}
	return contender{
		name: ofFloor,
		includes: "the same driver, confinement, guest, template, disk and command by a bare loop, with no API, judges, ledger, queue, scheduler and node agent, in " + how +
			": scratch disk, VM, setup of the guest, until the command's first byte; the rate counts until the VM is gone",
		worker: func(ctx context.Context, n int) (func() started, func()) {
			return func() started { return f.once(ctx, n) }, func() {}
		},
	}
}

// place is where the files of one VM are.
type place struct{ dir, scratch string }

// prepare makes the files of a VM, and says what it will be. The worker's
// number chooses its user.
func (f *floor) prepare(ctx context.Context, worker int) (p place, s tartarus.Spec, err error) {
	id := sandbox.MakeID(strings.ToLower(ulid.Make().String()))
	p = place{dir: filepath.Join(f.Dir, string(id))}
	p.scratch = filepath.Join(p.dir, "scratch")
	s = tartarus.Spec{
		ID: id, Dir: filepath.Join(p.dir, "vm"), Kernel: f.Kernel, Initrd: f.Initrd, Cmdline: f.Cmdline, Root: f.Root, Scratch: p.scratch,
		VCPUs: f.shape.VCPUs, MemoryMiB: f.shape.MemoryMiB, Lifeline: f.Lifeline,
	}
	if f.FirstUID > 0 {
		s.UID = f.FirstUID + worker
		s.GID = s.UID
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return p, s, err
	}
	if err := f.Scratch.Create(ctx, p.scratch, f.shape.DiskMiB); err != nil {
		return p, s, errors.Join(err, f.remove(p))
	}
	return p, s, nil
}

func (f *floor) remove(p place) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	return errors.Join(f.Scratch.Wipe(ctx, p.scratch), os.RemoveAll(p.dir))
}

// bareVM is one with a guest that was set up.
type bareVM struct {
	tartarus.VM
	guest *guestdial.Session
	place place
	f     *floor
}

// boot makes a VM, or has one go on from the snapshot.
func (f *floor) boot(ctx context.Context, worker int) (_ *bareVM, err error) {
	p, spec, err := f.prepare(ctx, worker)
	if err != nil {
		return nil, err
	}
	v := &bareVM{place: p, f: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.end(ctx))
		}
	}()
	if f.restored() {
		files, done, err := f.openSnapshot()
		if err != nil {
			return nil, err
		}
		defer done()
		spec.Restore = files
	}
	connect := func(ctx context.Context, vm tartarus.VM) (err error) {
		v.guest, err = guestdial.Open(ctx, guestdial.Config{Dial: vm.Dial})
		return err
	}
	if v.VM, _, err = tartarus.Boot(ctx, f.Driver, spec, connect, tartarus.BootPolicy{}); err != nil {
		return nil, err
	}
	var entropy [256]byte
	var machine [16]byte
	rand.Read(entropy[:]) // never fails
	rand.Read(machine[:])
	err = v.guest.Setup(ctx, guestwire.Setup{
		Hostname: string(spec.ID), WallClock: time.Now().UnixNano(), Entropy: entropy[:], MachineID: hex.EncodeToString(machine[:]),
		User: floorUser, MemoryBytes: (f.shape.MemoryMiB - guestReserveMiB) << 20, Processes: int64(f.shape.Processes),
	})
	return v, err
}

// As the node agent says it to guests.
const (
	floorUser       = "sandbox"
	guestReserveMiB = 24
)

// end kills it and removes its files.
func (v *bareVM) end(ctx context.Context) error {
	var err error
	if v.guest != nil {
		err = v.guest.Close()
	}
	if v.VM != nil {
		err = errors.Join(err, kill(ctx, v.VM))
	}
	return errors.Join(err, v.f.remove(v.place))
}

// firstOutput starts a command, and returns when its first output was here.
func (v *bareVM) firstOutput(ctx context.Context, command []string) (time.Time, *guestdial.Process, error) {
	first := make(chan time.Time, 1)
	p, err := v.guest.Start(ctx, guestwire.Start{Proc: 1, Argv: command, Cwd: "/work", MakeCwd: true, User: floorUser},
		func(guestwire.Flow, int64, []byte) {
			select {
			case first <- time.Now():
			default:
			}
		})
	if err != nil {
		return time.Time{}, nil, err
	}
	select {
	case at := <-first:
		return at, p, nil
	case <-v.guest.Done():
		return time.Time{}, nil, fmt.Errorf("before its output: %w", v.guest.Err())
	case <-ctx.Done():
		return time.Time{}, nil, ctx.Err()
	}
}

// once starts one and ends it.
func (f *floor) once(ctx context.Context, worker int) (s started) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	v, err := f.boot(ctx, worker)
	if err != nil {
		return started{err: err}
	}
	at, p, err := v.firstOutput(ctx, f.shape.Command)
	if err == nil {
		s.ms = milliseconds(at.Sub(began))
		_, err = p.Wait(ctx)
	}
	s.err = errors.Join(err, v.end(ctx))
	s.how = startCold
	if f.restored() {
		s.how = startRestored
	}
	return s
}
