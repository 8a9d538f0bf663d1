package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
)

// savedDummy is a snapshot of a VM of the stand-in.
func savedDummy(t *testing.T) *tartarus.SnapshotFiles {
	t.Helper()
	d, err := New(t.Context(), scripted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSpec(t)
	fillDummy(t, &s)
	s.Save = drivertest.EmptySnapshot(t, t.TempDir())
	v := started(t, d, s)
	if err := v.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s.Save
}

// TestSnapshotIsSparse: what the guest never touched takes no room, and the
// VMM's files are gone with it.
func TestSnapshotIsSparse(t *testing.T) {
	var st unix.Stat_t
	memory := savedDummy(t).Memory
	if err := unix.Fstat(int(memory.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	const pages = 127 // that the stand-in's guest touched
	if st.Size != 128<<20 || st.Blocks*512 > 2*pages*4096 || st.Uid != uint32(os.Getuid()) {
		t.Errorf("a file of %d bytes takes %d and is user %d's", st.Size, st.Blocks*512, st.Uid)
	}
}

// callsToGoOn is how many calls a start from a snapshot makes after it asked
// for the version, and callsToSave how many a save does.
const (
	callsToGoOn = 2
	callsToSave = 2
)

// TestEachCallOfASnapshot: whatever happens at whichever call of a save or of
// a start from what was saved, the error says so and nothing is left.
func TestEachCallOfASnapshot(t *testing.T) {
	saved := savedDummy(t)
	for what, words := range map[string]string{"fail": "the script says no", "die": "", "mute": "deadline", "garbage": "malformed"} {
		patience := time.Minute
		if what == "mute" {
			patience = 300 * time.Millisecond
		}
		for n := 1; n <= callsToGoOn; n++ {
			t.Run(fmt.Sprintf("go on %s-%d", what, n), func(t *testing.T) {
				t.Parallel()
				d := misbehaving(t, what, n)
				d.cfg.StartTimeout = patience
				s := newSpec(t)
				fillDummy(t, &s)
				s.Restore = drivertest.Stored(t, saved)
				v, err := d.Start(t.Context(), s)
				if err == nil {
					t.Error("it started")
					err = v.Kill(t.Context())
				}
				tells(t, err, words, string(s.ID))
				clean(t, s)
			})
		}
		for n := callsToBoot + 1; n <= callsToBoot+callsToSave; n++ {
			t.Run(fmt.Sprintf("save %s-%d", what, n), func(t *testing.T) {
				t.Parallel()
				d := misbehaving(t, what, n)
				s := newSpec(t)
				fillDummy(t, &s)
				s.Save = drivertest.EmptySnapshot(t, t.TempDir())
				v := started(t, d, s)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				tells(t, v.Save(ctx), words, string(s.ID))
				if err := v.Kill(t.Context()); err != nil {
					t.Error(err)
				}
				clean(t, s)
			})
		}
	}
}

// tells asserts that an error has these words.
func tells(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not tell %q", err, w)
		}
	}
}

func misbehaving(t *testing.T, what string, n int) *Driver {
	t.Helper()
	d, err := New(t.Context(), scripted(t, fmt.Sprintf("%s-%d", what, n)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestFalseSnapshot: what a VMM wrote that cannot be a snapshot is not taken
// for one.
func TestFalseSnapshot(t *testing.T) {
	for script, words := range map[string]string{"short-memory": "memory has", "long-state": "state has"} {
		d, err := New(t.Context(), scripted(t, script))
		if err != nil {
			t.Fatal(err)
		}
		s := newSpec(t)
		fillDummy(t, &s)
		s.Save = drivertest.EmptySnapshot(t, t.TempDir())
		tells(t, started(t, d, s).Save(t.Context()), words)
	}
}

// TestWhoSaves: a VM that was not started for it cannot be saved, nor one that
// has ended.
func TestWhoSaves(t *testing.T) {
	d, err := New(t.Context(), scripted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSpec(t)
	fillDummy(t, &s)
	if err := started(t, d, s).Save(t.Context()); !fault.Is(err, fault.Unsupported) {
		t.Errorf("%v", err)
	}
	s = newSpec(t)
	fillDummy(t, &s)
	s.Save = drivertest.EmptySnapshot(t, t.TempDir())
	v := started(t, d, s)
	if err := v.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Save(t.Context()); !errors.Is(err, errEnded) {
		t.Errorf("%v", err)
	}
}

// TestSnapshotOutOfPlace: a snapshot that was removed or replaced, or that the
// VMM's user could not read, is refused and never changed.
func TestSnapshotOutOfPlace(t *testing.T) {
	d, err := New(t.Context(), scripted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	saved := savedDummy(t)
	refused := func(what string, from *tartarus.SnapshotFiles) {
		s := newSpec(t)
		fillDummy(t, &s)
		s.Restore = from
		v, err := d.Start(t.Context(), s)
		if err == nil {
			t.Errorf("%s: it started", what)
			err = v.Kill(t.Context())
		}
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field != "snapshot" || f.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
		clean(t, s)
	}
	from := drivertest.Stored(t, saved)
	if os.Getuid() == 0 {
		if err := saved.State.Chmod(0o400); err != nil {
			t.Fatal(err)
		}
		refused("unreadable", from)
		if st, err := saved.State.Stat(); err != nil || st.Mode().Perm() != 0o400 {
			t.Errorf("it was changed: %v, %v", st.Mode(), err)
		}
		from = drivertest.Stored(t, saved)
	}
	if err := os.Remove(saved.State.Name()); err != nil {
		t.Fatal(err)
	}
	refused("removed", from)
	if err := os.WriteFile(saved.State.Name(), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	refused("replaced", from)
}

// TestMachine: a snapshot is for one model of CPU, whatever else the kernel
// tells of it.
func TestMachine(t *testing.T) {
	of := func(text string) string {
		path := filepath.Join(t.TempDir(), "cpuinfo")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return machine(path)
	}
	const cpu = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\nmicrocode\t: 0x1000065\ncpu MHz\t\t: 2000.0\nflags\t\t: fpu vme\n"
	one := of(cpu)
	if one != "format=1 cpu family=23 microcode=0x1000065 model=1 stepping=2 vendor_id=AuthenticAMD" {
		t.Errorf("%q", one)
	}
	if same := of(strings.Replace(cpu, "2000.0", "2100.0", 1) + "\nprocessor\t: 1\nmodel\t: 9\n"); same != one {
		t.Errorf("%q and %q", one, same)
	}
	for _, change := range [][2]string{{"AuthenticAMD", "GenuineIntel"}, {": 23", ": 25"}, {"model\t\t: 1", "model\t\t: 2"}, {"stepping\t: 2", "stepping\t: 3"}, {"0x1000065", "0x1000066"}} {
		if other := of(strings.Replace(cpu, change[0], change[1], 1)); other == one || other == "" {
			t.Errorf("%v makes no difference: %q", change, other)
		}
	}
	if m := of("Processor\t: something else\n"); m != "" {
		t.Errorf("%q", m)
	}
	if m := machine("/nonexistent/cpuinfo"); m != "" {
		t.Errorf("%q", m)
	}
}
