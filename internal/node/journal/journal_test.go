package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func idOf(n int) sandbox.ID { return sandbox.MakeID(fmt.Sprintf("%026d", n)) }

func entryOf(n, attempt int) Entry {
	return Entry{
		Assignment: sandbox.Assignment{Sandbox: idOf(n), Attempt: attempt, Node: "n1", Epoch: 4},
		Verdict:    "sha256:00", Expires: time.Now().Add(time.Hour).UTC().Round(0),
		Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128}, AssignedAt: time.Now().UTC().Round(0),
	}
}

func open(t testing.TB, dir string) (*Journal, []Entry) {
	t.Helper()
	j, entries, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, entries
}

// reopen is what an agent sees that comes back after a SIGKILL.
func reopen(t testing.TB, j *Journal) (*Journal, []Entry) {
	t.Helper()
	_ = j.Close()
	return open(t, j.dir)
}

func TestAnEntryLivesThroughItsSteps(t *testing.T) {
	j, left := open(t, filepath.Join(t.TempDir(), "journal"))
	if len(left) != 0 {
		t.Fatalf("a new journal has %v", left)
	}
	want := entryOf(1, 1)
	if err := j.Assign(want); err != nil {
		t.Fatal(err)
	}
	code := 3
	for _, change := range []func(*Entry){
		func(*Entry) {},
		func(e *Entry) { e.AcceptedAt = time.Unix(5, 0).UTC() },
		func(e *Entry) { e.VM = tartarus.Handle{Driver: "d", Pid: 7, StartTime: 8, BootID: "b"}; e.UID = 9 },
		func(e *Entry) { e.StartedAt = time.Unix(6, 0).UTC() },
		func(e *Entry) {
			e.End = &sandbox.End{At: time.Unix(7, 0).UTC(), Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Code: &code}}
		},
	} {
		change(&want)
		if err := j.Update(want.Assignment.Sandbox, change); err != nil {
			t.Fatal(err)
		}
		var entries []Entry
		if j, entries = reopen(t, j); len(entries) != 1 || !reflect.DeepEqual(entries[0], want) {
			t.Fatalf("after a restart %+v\nwant %+v", entries, want)
		}
	}
	if err := j.Remove(want.Assignment.Sandbox); err != nil {
		t.Fatal(err)
	}
	if err := j.Remove(want.Assignment.Sandbox); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	if _, entries := reopen(t, j); len(entries) != 0 {
		t.Errorf("after its removal %v", entries)
	}
}

func TestWhatWasHadIsNotLetInAgain(t *testing.T) {
	j, _ := open(t, t.TempDir())
	accepted, refused := entryOf(1, 1), entryOf(2, 2)
	for _, e := range []Entry{accepted, refused} {
		if err := j.Assign(e); err != nil {
			t.Fatal(err)
		}
		if err := j.Assign(e); !fault.Is(err, fault.Conflict) {
			t.Errorf("while it is here: %v", err)
		}
	}
	if err := j.Update(idOf(1), func(e *Entry) { e.AcceptedAt = time.Now() }); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 2; n++ {
		if err := j.Remove(idOf(n)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // before and after a restart
		for _, e := range []Entry{entryOf(1, 1), entryOf(1, 2), entryOf(2, 1), entryOf(2, 2)} {
			if err := j.Assign(e); !fault.Is(err, fault.Conflict) {
				t.Errorf("%+v: %v", e.Assignment, err)
			}
		}
		j, _ = reopen(t, j)
	}
	if err := j.Assign(entryOf(2, 3)); err != nil {
		t.Errorf("a later attempt of one that was never accepted: %v", err)
	}
}

func TestGhostsGoWithTheirVerdict(t *testing.T) {
	j, _ := open(t, t.TempDir())
	for n := range 20 {
		e := entryOf(n, 1)
		if n%2 == 0 {
			e.Expires = time.Now().Add(-time.Second)
		}
		if err := j.Assign(e); err != nil {
			t.Fatal(err)
		}
		if err := j.Remove(idOf(n)); err != nil {
			t.Fatal(err)
		}
	}
	j, _ = reopen(t, j)
	if n := len(j.had.ghosts); n != 10 {
		t.Errorf("%d ghosts are kept, want 10", n)
	}
}

func TestTheFileOfGhostsDoesNotGrowForEver(t *testing.T) {
	m, err := openMemory(filepath.Join(t.TempDir(), hadFile), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	m.frames = compactAbove // as after so many
	for n := range 3 {
		if err := m.add(ghost{Sandbox: idOf(n), Attempt: 1, Expires: time.Now().Add(time.Hour)}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if m.frames != 3 {
		t.Errorf("%d frames, want 3: it was not written anew", m.frames)
	}
	again, err := openMemory(m.path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if len(again.ghosts) != 3 {
		t.Errorf("%d ghosts after a restart, want 3", len(again.ghosts))
	}
}

// TestTornWritesLoseAStepAndNotTheEntry cuts the file at every byte.
func TestTornWritesLoseAStepAndNotTheEntry(t *testing.T) {
	j, _ := open(t, t.TempDir())
	if err := j.Assign(entryOf(1, 1)); err != nil {
		t.Fatal(err)
	}
	path := j.path(idOf(1))
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Update(idOf(1), func(e *Entry) { e.UID = 77 }); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		if err := os.WriteFile(path, append(bytes.Clone(whole[:n]), make([]byte, n%5)...), 0o600); err != nil {
			t.Fatal(err)
		}
		again, entries := reopen(t, j)
		switch {
		case n < len(first) && len(entries) != 0:
			t.Fatalf("cut at %d: %+v out of nothing", n, entries)
		case n >= len(first) && (len(entries) != 1 || entries[0].UID != map[bool]int{true: 77}[n == len(whole)]):
			t.Fatalf("cut at %d: %+v", n, entries)
		}
		if len(entries) == 1 { // and it goes on from there
			if err := again.Update(idOf(1), func(e *Entry) { e.UID = 78 }); err != nil {
				t.Fatal(err)
			}
			if _, entries = reopen(t, again); len(entries) != 1 || entries[0].UID != 78 {
				t.Fatalf("cut at %d, then a step: %+v", n, entries)
			}
		}
	}
}

func TestAnotherVersionIsNotTouched(t *testing.T) {
	j, _ := open(t, t.TempDir())
	path := j.path(idOf(1))
	if err := os.WriteFile(path, []byte("tartarus journal 2\nwhatever is in it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(j.dir, nil); !fault.Is(err, fault.Unsupported) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the file of another version is gone")
	}
}

func TestFilesAreTheAgentsOwn(t *testing.T) {
	j, _ := open(t, t.TempDir())
	if err := j.Assign(entryOf(1, 1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{string(idOf(1)), hadFile} {
		if st, err := os.Stat(filepath.Join(j.dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestAJournalThatCannotBeWritten(t *testing.T) {
	j, _ := open(t, t.TempDir())
	if err := j.Assign(entryOf(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(j.path(idOf(1))); err != nil {
		t.Fatal(err)
	}
	if err := j.Update(idOf(1), func(e *Entry) { e.UID = 5 }); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a step that is not durable: %v", err)
	}
	if e, _ := j.Get(idOf(1)); e.UID != 0 {
		t.Error("a step that is not durable counts")
	}
	if err := os.RemoveAll(j.dir); err != nil {
		t.Fatal(err)
	}
	if err := j.Assign(entryOf(2, 1)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
	if _, ok := j.Get(idOf(2)); ok {
		t.Error("an entry that is not durable counts")
	}
}

func TestManyAtOnce(t *testing.T) {
	j, _ := open(t, t.TempDir())
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			if err := j.Assign(entryOf(n, 1)); err != nil {
				t.Error(err)
			}
			if err := j.Update(idOf(n), func(e *Entry) { e.AcceptedAt = time.Now() }); err != nil {
				t.Error(err)
			}
			if n%2 == 0 {
				if err := j.Remove(idOf(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	j, entries := reopen(t, j)
	if len(entries) != 50 || len(j.had.ghosts) != 50 {
		t.Errorf("%d entries and %d ghosts, want 50 of each", len(entries), len(j.had.ghosts))
	}
}

// TestStepsOfOneEntryAtOnce: none may overwrite another.
func TestStepsOfOneEntryAtOnce(t *testing.T) {
	j, _ := open(t, t.TempDir())
	if err := j.Assign(entryOf(1, 1)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := j.Update(idOf(1), func(e *Entry) { e.UID++ }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, entries := reopen(t, j); entries[0].UID != 50 {
		t.Errorf("%d steps of 50 are left", entries[0].UID)
	}
}

// TestAgainstAModel makes any steps with restarts between them.
func TestAgainstAModel(t *testing.T) {
	root := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		j, _, err := Open(filepath.Join(root, fmt.Sprint(n)), nil)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		live, had := map[sandbox.ID]Entry{}, map[sandbox.ID]Entry{}
		id := rapid.Custom(func(t *rapid.T) int { return rapid.IntRange(1, 4).Draw(t, "n") })
		rt.Repeat(map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				e := entryOf(id.Draw(t, "id"), rapid.IntRange(1, 3).Draw(t, "attempt"))
				_, here := live[e.Assignment.Sandbox]
				old, gone := had[e.Assignment.Sandbox]
				ok := !here && (!gone || (old.AcceptedAt.IsZero() && e.Assignment.Attempt > old.Assignment.Attempt))
				if err := j.Assign(e); (err == nil) != ok {
					t.Fatalf("assign %+v: %v, want ok %v", e.Assignment, err, ok)
				}
				if ok {
					live[e.Assignment.Sandbox] = e
				}
			},
			"accept": func(t *rapid.T) {
				i := idOf(id.Draw(t, "id"))
				e, ok := live[i]
				e.AcceptedAt = time.Unix(1, 0).UTC()
				if err := j.Update(i, func(e *Entry) { e.AcceptedAt = time.Unix(1, 0).UTC() }); (err == nil) != ok {
					t.Fatal(err)
				}
				if ok {
					live[i] = e
				}
			},
			"remove": func(t *rapid.T) {
				i := idOf(id.Draw(t, "id"))
				if err := j.Remove(i); err != nil {
					t.Fatal(err)
				}
				if e, ok := live[i]; ok {
					had[i] = e
					delete(live, i)
				}
			},
			"restart": func(t *rapid.T) {
				_ = j.Close()
				if j, _, err = Open(j.dir, nil); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				got := map[sandbox.ID]Entry{}
				for _, e := range j.Entries() {
					got[e.Assignment.Sandbox] = e
				}
				if !reflect.DeepEqual(got, live) {
					t.Fatalf("got %+v\nwant %+v", got, live)
				}
			},
		})
	})
}

func FuzzDecodeFrames(f *testing.F) {
	b, _ := appendFrame([]byte(magic), entryOf(1, 1))
	f.Add(b)
	f.Add(append(b, b[len(magic):]...))
	f.Add(append(b, 1, 2, 3))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		good := decodeFrames(b, func(payload []byte) bool {
			var e Entry
			if decodeStrict(payload, &e) != nil {
				return false
			}
			if _, err := appendFrame(nil, e); err != nil {
				t.Errorf("an entry that was read cannot be written: %v", err)
			}
			again = append(again, payload...)
			return true
		})
		if good > len(b) || good < len(again) {
			t.Errorf("%d good bytes of %d with %d of payload", good, len(b), len(again))
		}
	})
}
