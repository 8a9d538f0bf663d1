package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
	"github.com/tartarus-vm/tartarus/internal/sparse"
)

// A VM that will be saved has two files of its own for Firecracker to write,
// in runFolder of its folder; what is in them then is copied to the caller's,
// which no VMM ever gets to write. Firecracker writes every page of the memory:
// what the copy leaves out are those that the guest never touched.
//
// A restored VM finds the snapshot's files where it works, read-only. It maps
// the memory privately, so all that go on from it share what they do not
// change. The state names disks and sockets, by paths that are the same in
// every VM.

// maxState bounds the state of a VM's CPUs and devices, which takes some 20 kB
// a CPU.
const maxState = 16 << 20

// snapshotFormat is part of what a snapshot is valid for: it changes with what
// configure makes of a VM, and with the names of its files.
const snapshotFormat = 1

// machine is what a snapshot's host and that of those who go on from it must
// have in common: the model of their CPUs, as the kernel tells it. "" where it
// tells nothing.
func machine(cpuinfo string) string {
	var cpu []string
	text, err := os.Open(cpuinfo)
	if err != nil {
		return ""
	}
	defer text.Close()                                                         // only read
	for lines := bufio.NewScanner(text); lines.Scan() && lines.Text() != ""; { // of the first CPU
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch key = strings.TrimSpace(key); key {
		case "vendor_id", "cpu family", "model", "stepping", "microcode":
			cpu = append(cpu, key+"="+strings.TrimSpace(value))
		}
	}
	if len(cpu) == 0 {
		return ""
	}
	return fmt.Sprintf("format=%d %s", snapshotFormat, strings.Join(slices.Sorted(slices.Values(cpu)), " "))
}

// pathOf is where an open file lies, for who takes it by path alone.
func pathOf(f *os.File) (string, error) {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", fmt.Errorf("finding a file of the snapshot: %w", err)
	}
	held, err1 := f.Stat()
	there, err2 := os.Stat(path)
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(held, there) {
		return "", fault.Invalid("snapshot", "leave its files in their place until the VM has started", "a file of the snapshot is not where it was opened")
	}
	return path, nil
}

// snapshotPaths are where the files lie that a VM goes on from. The VMM opens
// them as the user that it is.
func (d *Driver) snapshotPaths(b boot) (memory, state string, err error) {
	for _, f := range []struct {
		file *os.File
		path *string
	}{{b.spec.Restore.Memory, &memory}, {b.spec.Restore.State, &state}} {
		if *f.path, err = pathOf(f.file); err != nil {
			return "", "", err
		}
		if !d.readable(*f.path) {
			return "", "", fault.Invalid("snapshot", "make its files readable for everyone, in a folder that is not: chmod 0444", "the VMM's user cannot read the snapshot")
		}
	}
	return memory, state, nil
}

// makeRoom makes runFolder, and in it the files of a VM that will be saved.
func (d *Driver) makeRoom(b boot) (run string, err error) {
	run = filepath.Join(b.spec.Dir, runFolder)
	if err := os.RemoveAll(run); err != nil {
		return "", fmt.Errorf("removing what was left: %w", err)
	}
	if err := os.Mkdir(run, 0o700); err != nil {
		return "", err
	}
	if b.spec.Save == nil {
		return run, nil
	}
	for _, name := range []string{memoryFile, stateFile} {
		f, err := os.OpenFile(filepath.Join(run, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil && d.jailer != "" {
			err = f.Chown(b.spec.UID, b.spec.GID)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return "", fmt.Errorf("making room for the snapshot: %w", err)
		}
	}
	return run, nil
}

// files are those that a VM finds where Firecracker works.
func (d *Driver) files(b boot) ([]launcher.JailFile, error) {
	if !b.disks {
		return nil, nil
	}
	s := b.spec
	out := []launcher.JailFile{{From: s.Root, Name: rootFile}, {From: s.Scratch, Name: scratchFile, Writable: true}}
	if s.Restore != nil {
		memory, state, err := d.snapshotPaths(b)
		return append(out, launcher.JailFile{From: memory, Name: memoryFile}, launcher.JailFile{From: state, Name: stateFile}), err
	}
	out = append(out, launcher.JailFile{From: s.Kernel, Name: kernelFile}, launcher.JailFile{From: s.Initrd, Name: initrdFile})
	if s.Save != nil {
		for _, name := range []string{memoryFile, stateFile} {
			out = append(out, launcher.JailFile{From: filepath.Join(s.Dir, runFolder, name), Name: name, Writable: true})
		}
	}
	return out, nil
}

// goOn has a Firecracker go on from a snapshot: it may have been told of
// nothing before but where its metrics go and how much the console may take.
func (v *vm) goOn(ctx context.Context) []step {
	return []step{v.addMetrics(ctx), v.limitConsole(ctx), {"going on from the snapshot", func() error {
		return v.api.LoadSnapshot(ctx, fcapi.SnapshotLoad{
			Memory: fcapi.MemoryBackend{Type: fcapi.MemoryFile, Path: memoryFile}, State: stateFile, Resume: true,
		})
	}}}
}

// Save stops the vCPUs and writes Spec.Save.
func (v *vm) Save(ctx context.Context) error {
	if v.boot.spec.Save == nil {
		return fault.New(fault.Unsupported, "vm %q was not started to be saved", v.boot.spec.ID)
	}
	return v.command(ctx, func(ctx context.Context) error {
		return follow([]step{
			{"stopping the vCPUs", func() error { return v.api.Pause(ctx) }},
			{"writing the snapshot", func() error {
				return v.api.PutSnapshot(ctx, fcapi.Snapshot{Memory: memoryFile, State: stateFile, Type: fcapi.SnapshotFull})
			}},
			{"taking the snapshot", v.takeSnapshot},
		})
	})
}

// takeSnapshot copies what Firecracker wrote.
func (v *vm) takeSnapshot() error {
	d, err := openDir(filepath.Join(v.boot.spec.Dir, runFolder))
	if err != nil {
		return err
	}
	defer d.close()
	size := v.boot.spec.MemoryMiB << 20
	if err := d.copyOut(memoryFile, v.boot.spec.Save.Memory, size, size); err != nil {
		return err
	}
	return d.copyOut(stateFile, v.boot.spec.Save.State, 1, maxState)
}

// copyOut copies a file of the folder that has a size from least to most.
func (d *folder) copyOut(name string, to *os.File, least, most int64) error {
	f, err := d.open(name, unix.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < least || st.Size() > most {
		return fmt.Errorf("%s has %d bytes, where %d to %d belong", name, st.Size(), least, most)
	}
	return sparse.Copy(to, f, st.Size())
}
