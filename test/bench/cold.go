package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
)

const hello = `{"command": ["echo", "hello"], "max_duration": "120s"}`

// coldStart is from the request to the first byte of output, on a real VM that
// boots for it, beside the same QEMU started by hand.
func coldStart(ctx context.Context, b *bench) (_ []measure.Row, err error) {
	state, err := b.realState(ctx)
	if err != nil {
		return nil, err
	}
	u, err := b.startUp(state, policy(8), true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	by, err := b.byHand(ctx, u)
	if err != nil {
		return nil, err
	}
	var stages []record
	pairs, err := measure.Alternate(ctx, b.rounds,
		func(ctx context.Context) (float64, error) {
			took, rec, err := u.firstOutput(ctx)
			stages = append(stages, rec)
			return took, err
		},
		func(ctx context.Context) (float64, error) { return by.firstOutput(ctx) })
	if err != nil {
		return nil, err
	}
	rows := []measure.Row{measure.Of(measure.Row{
		Name: "cold start to first output", Unit: "ms", Goals: []measure.Goal{measure.RatioAtMost(1.3)},
		Includes: "POST /sandbox/run of `echo hello` in a VM that boots for it, until the first byte of the followed log is at the caller: all of the road, and the confinement of the VMM",
		FloorOf:  "the same QEMU with the same arguments, kernel, init, disks and command, started by a bare loop with no confinement, until the command's first output",
	}, pairs)}
	for _, s := range []struct {
		name, what string
		of         func(record) float64
	}{
		{"judged", "to its verdict", func(r record) float64 { return r.Timings.Judged }},
		{"queued", "to the claim", func(r record) float64 { return r.Timings.Queued }},
		{"placed", "to the binding", func(r record) float64 { return r.Timings.Placed }},
		{"VM ready", "to a guest that was set up", func(r record) float64 { return r.Timings.VMReady }},
		{"first output", "to the first output at the node", func(r record) float64 { return r.Timings.FirstOutput }},
		{"total", "to the end: the VM is gone and all is recorded", func(r record) float64 { return r.Timings.Total }},
	} {
		var p []measure.Pair
		for _, rec := range stages[1:] { // the first does not count
			p = append(p, measure.Pair{Value: s.of(rec)})
		}
		rows = append(rows, measure.Of(measure.Row{Name: "- " + s.name, Unit: "ms", Includes: "of the same runs, by their records, from the request " + s.what}, p))
	}
	return rows, nil
}

// realState is a state folder with guest bundle and template. They are kept in
// the user's cache, where the tests of the whole road keep theirs: the kernel
// is a download.
func (b *bench) realState(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	kept := filepath.Join(cache, "tartarus", "e2e-base")
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return "", err
	}
	if err := assembly.Inside().Setup(ctx, cli.SetupOptions{StateDir: kept, Templates: []string{"base"}}); err != nil {
		return "", err
	}
	state := filepath.Join(b.dir, "real")
	if out, err := exec.CommandContext(ctx, "cp", "-a", kept, state).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copying %s: %w: %s", kept, err, out)
	}
	return state, nil
}

// firstOutput runs hello, and tells how many ms it took until its output was
// here, and what the record says in the end.
func (u *up) firstOutput(ctx context.Context) (ms float64, rec record, err error) {
	c, err := u.dial(ctx)
	if err != nil {
		return 0, rec, err
	}
	defer c.conn.Close()
	began := time.Now()
	body, err := c.call(http.MethodPost, "/sandbox/run", hello, http.StatusAccepted)
	if err != nil {
		return 0, rec, err
	}
	if rec, err = decodeRecord(body); err != nil {
		return 0, rec, err
	}
	resp, err := c.open(http.MethodGet, "/sandbox/"+rec.ID+"/logs?follow=true&stream=stdout", "")
	if err != nil {
		return 0, rec, err
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		return 0, rec, fmt.Errorf("no output: %w", err)
	}
	ms = float64(time.Since(began)) / float64(time.Millisecond)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, rec, err
	}
	rec, err = u.ended(ctx, rec.ID)
	return ms, rec, err
}

// ended waits for the end.
func (u *up) ended(ctx context.Context, id string) (record, error) {
	if _, err := u.one(ctx, http.MethodGet, "/sandbox/"+id+"/events?follow=true", "", http.StatusOK); err != nil {
		return record{}, err
	}
	b, err := u.one(ctx, http.MethodGet, "/sandbox/"+id, "", http.StatusOK)
	if err != nil {
		return record{}, err
	}
	rec, err := decodeRecord(b)
	if err == nil && rec.State != "succeeded" {
		err = fmt.Errorf("it %s: %s", rec.State, b)
	}
	return rec, err
}

// byHand starts VMs as Tartarus did, without it.
type byHand struct {
	dir     string
	args    []string // of QEMU, with its path
	root    string
	scratch *lethe.Store
	mib     int64 // of a scratch disk
	n       int
}

// byHand looks how a VM of u was started.
func (b *bench) byHand(ctx context.Context, u *up) (*byHand, error) {
	body, err := u.one(ctx, http.MethodPost, "/sandbox/run", `{"command": ["sleep", "100"], "max_duration": "120s"}`, http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	rec, err := decodeRecord(body)
	if err != nil {
		return nil, err
	}
	h := &byHand{dir: filepath.Join(b.dir, "by-hand"), mib: 256}
	for { // until it runs
		body, err := u.one(ctx, http.MethodGet, "/sandbox/"+rec.ID, "", http.StatusOK)
		if err != nil {
			return nil, err
		}
		if rec, err = decodeRecord(body); err != nil {
			return nil, err
		}
		if rec.State == "running" {
			break
		}
		if rec.State == "failed" {
			return nil, fmt.Errorf("no VM starts here: %s", body)
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.driver = strings.Join([]string{rec.Runtime.Driver, rec.Runtime.Version, rec.Runtime.Accelerator}, " ")
	if rec.Runtime.Driver != "qemu" {
		return nil, fmt.Errorf("the bare loop is written for QEMU, and VMs run in %s here", rec.Runtime.Driver)
	}
	if err := h.copy("guest=" + rec.ID); err != nil {
		return nil, err
	}
	if h.scratch, err = lethe.Open(lethe.Config{Dir: filepath.Join(h.dir, "masters")}); err != nil {
		return nil, err
	}
	_, err = u.one(ctx, http.MethodDelete, "/sandbox/"+rec.ID+"?grace=0s", "", http.StatusOK)
	return h, err
}

// copy takes the command line and the root disk of the process that has the
// word in its command line.
func (h *byHand) copy(word string) error {
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, proc := range pids {
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		if err != nil || !slices.Contains(args, word) || !strings.Contains(args[0], "qemu") {
			continue
		}
		if h.root, err = openBlob(proc); err != nil {
			return err
		}
		for _, a := range args {
			if a != "-S" { // nobody is at its monitor to let it go
				h.args = append(h.args, a)
			}
		}
		return nil
	}
	return fmt.Errorf("there is no QEMU with %s", word)
}

// openBlob is the blob that a process has open: the root disk.
func openBlob(proc string) (string, error) {
	fds, err := filepath.Glob(filepath.Join(proc, "fd", "*"))
	if err != nil {
		return "", err
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "/blobs/") {
			return to, nil
		}
	}
	return "", fmt.Errorf("%s has no root disk", proc)
}

// firstOutput starts a VM, has it run the command, and ends it: how many ms
// passed until its output was here.
func (h *byHand) firstOutput(ctx context.Context) (ms float64, err error) {
	h.n++
	dir := filepath.Join(h.dir, strconv.Itoa(h.n))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	scratch := filepath.Join(dir, "scratch")
	if err := h.scratch.Create(ctx, scratch, h.mib); err != nil {
		return 0, err
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, h.args[0], h.args[1:]...)
	var said bytes.Buffer
	cmd.Stderr = &said
	guest, err := h.files(cmd, dir, scratch)
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	closeAll(cmd.ExtraFiles)
	ms, err = sayHello(ctx, guest, began)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if err != nil {
		err = fmt.Errorf("%w: %s", err, said.String())
	}
	return ms, errors.Join(err, os.RemoveAll(dir))
}

// files opens what QEMU is born with; guest is where its channel listens.
func (h *byHand) files(cmd *exec.Cmd, dir, scratch string) (guest string, err error) {
	for _, name := range []string{"qmp.sock", "guest.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			return "", err
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err = errors.Join(err, l.Close()); err != nil {
			return "", err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	root, err := os.Open(h.root)
	if err != nil {
		return "", err
	}
	disk, err := os.OpenFile(scratch, os.O_RDWR, 0)
	cmd.ExtraFiles = append(cmd.ExtraFiles, root, disk)
	return filepath.Join(dir, "guest.sock"), err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // the child has them
	}
}

// sayHello speaks to a guest as the node does.
func sayHello(ctx context.Context, socket string, began time.Time) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := guestdial.Open(ctx, guestdial.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var entropy [256]byte
	var machine [16]byte
	rand.Read(entropy[:]) // never fails
	rand.Read(machine[:])
	if err := s.Setup(ctx, guestwire.Setup{
		Hostname: "by-hand", WallClock: time.Now().UnixNano(), Entropy: entropy[:], MachineID: hex.EncodeToString(machine[:]),
		User: "sandbox", MemoryBytes: 100 << 20, Processes: 256,
	}); err != nil {
		return 0, err
	}
	first := make(chan time.Time, 1)
	p, err := s.Start(ctx, guestwire.Start{Proc: 1, Argv: []string{"echo", "hello"}, Cwd: "/work", MakeCwd: true, User: "sandbox"},
		func(guestwire.Flow, int64, []byte) {
			select {
			case first <- time.Now():
			default:
			}
		})
	if err != nil {
		return 0, err
	}
	if _, err := p.Wait(ctx); err != nil {
		return 0, err
	}
	select {
	case at := <-first:
		return float64(at.Sub(began)) / float64(time.Millisecond), nil
	default:
		return 0, errors.New("the command ended without output")
	}
}
