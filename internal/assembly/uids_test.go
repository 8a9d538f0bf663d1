package assembly

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hecatoncheir"
	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

func TestParseUIDs(t *testing.T) {
	for text, want := range map[string]hecatoncheir.UIDRange{
		"": {First: 200_000, Count: 26_000}, "5000-5063": {First: 5000, Count: 64},
	} {
		if got, err := parseUIDs(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"5000", "5000-", "-6000", "0-9999", "999-9999", "5000-5062", "6000-5000", "5000-2147483647", "a-b", "5000-6000-7000", " 5000-6000"} {
		if got, err := parseUIDs(text); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// No ID is in two blocks, and all are of the range.
func TestUIDBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := hecatoncheir.UIDRange{First: rapid.IntRange(lowestUID, 1<<20).Draw(t, "first"), Count: rapid.IntRange(uidsLeast, 100_000).Draw(t, "count")}
		owner := map[int]bool{}
		for _, local := range []bool{false, true} {
			list := blocks(all, local)
			if len(list) == 0 {
				t.Fatalf("no block for local %v", local)
			}
			for _, b := range list {
				for uid := b.First; uid < b.First+b.Count; uid++ {
					if owner[uid] || uid < all.First || uid >= all.First+all.Count {
						t.Fatalf("%d is in %+v, and elsewhere", uid, b)
					}
					owner[uid] = true
				}
				if b.Count < 1 {
					t.Fatalf("block %+v", b)
				}
			}
		}
	})
}

// Processes of one host never get the same IDs, whatever their state folders;
// who finds none left is told so.
func TestUIDsAreOnesOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user has none to give")
		return
	}
	const few = "1950000-1950063" // nobody else's on this host
	var all []*embedded
	defer func() {
		for _, e := range all {
			must(t, e.close())
		}
	}()
	had := map[int]bool{}
	for {
		e := &embedded{cfg: Config{Local: true}}
		e.cfg.VMM.UIDs = few
		err := e.takeUIDs()
		if fault.Is(err, fault.Unavailable) {
			break
		}
		must(t, err)
		all = append(all, e)
		if had[e.uids.First] {
			t.Fatalf("%+v is given twice", e.uids)
		}
		had[e.uids.First] = true
	}
	if len(all) < 2 {
		t.Errorf("%d blocks", len(all))
	}
}

// A lock file that a killed process left goes with the next start, though that
// takes another block.
func TestLocksOfTheDeadAreSwept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user has none")
		return
	}
	const few = "1940000-1940063" // nobody else's on this host
	all, err := parseUIDs(few)
	must(t, err)
	list := blocks(all, true)
	left := filepath.Join(hostlock.Dir, fmt.Sprintf(uidLockNames, list[len(list)-1].First))
	dead, err := hostlock.Try(left)
	must(t, err)
	must(t, dead.Close())
	e := &embedded{cfg: Config{Local: true}}
	e.cfg.VMM.UIDs = few
	must(t, e.takeUIDs())
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	own := filepath.Join(hostlock.Dir, fmt.Sprintf(uidLockNames, e.uids.First))
	if _, err := os.Lstat(own); err != nil {
		t.Errorf("its own: %v", err)
	}
	must(t, e.close())
}
