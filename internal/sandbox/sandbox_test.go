package sandbox_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestIDForm(t *testing.T) {
	good := sandbox.MakeID("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	if good != "sb-01arz3ndektsv4rrffq69g5fav" || !good.Valid() {
		t.Errorf("MakeID: got %q", good)
	}
	for _, bad := range []sandbox.ID{
		"", "sb-", "01arz3ndektsv4rrffq69g5fav", good + "0", good[:len(good)-1],
		"sb-01ARZ3NDEKTSV4RRFFQ69G5FAV", "sb-../../../../../etc/passwd",
		"sb-01arz3ndektsv4rrffq69g5fai", "sb-01arz3ndektsv4rrffq69g5fa\x00",
	} {
		if bad.Valid() {
			t.Errorf("%q counts as valid", bad)
		}
	}
}

func TestDigestForm(t *testing.T) {
	good := sandbox.Digest("sha256:" + strings.Repeat("0a", 32))
	if !good.Valid() {
		t.Errorf("%q is not valid", good)
	}
	for _, bad := range []sandbox.Digest{"", "sha256:", good + "0", "md5:" + good[7:], sandbox.Digest(strings.ToUpper(string(good))), "sha256:" + sandbox.Digest(strings.Repeat("../a", 16))} {
		if bad.Valid() {
			t.Errorf("%q counts as valid", bad)
		}
	}
}

// The table of states is closed, has no way back out of an end, and the road
// can be walked.
func TestStateTable(t *testing.T) {
	for _, s := range sandbox.States() {
		for _, n := range s.Next {
			if !n.Valid() {
				t.Errorf("%s may become %q, which is no state", s.State, n)
			}
		}
		if s.State.Live() != (len(s.Next) > 0) {
			t.Errorf("%s: Live is %v", s.State, s.State.Live())
		}
		if s.State.Live() && !s.State.May(sandbox.Failed) {
			t.Errorf("%s is live and may not fail", s.State)
		}
		if s.State.Accepted() && (s.State.May(sandbox.Queued) || s.State.May(sandbox.Assigned)) {
			t.Errorf("%s was accepted and may run again", s.State)
		}
	}
	road := []sandbox.State{sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Running, sandbox.Stopping, sandbox.Succeeded}
	for i := 1; i < len(road); i++ {
		if !road[i-1].May(road[i]) {
			t.Errorf("%s may not become %s", road[i-1], road[i])
		}
	}
}

func TestOnlyExitCodeZeroSucceeds(t *testing.T) {
	zero, one := 0, 1
	for _, c := range sandbox.Causes() {
		for _, code := range []*int{nil, &zero, &one} {
			got := sandbox.ExitRecord{Cause: c.Cause, Code: code}.State()
			want := sandbox.Failed
			if c.Cause == sandbox.Exited && code == &zero {
				want = sandbox.Succeeded
			}
			if got != want {
				t.Errorf("%s with code %v: %s, want %s", c.Cause, code, got, want)
			}
		}
	}
}

func TestMemoryClass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mib := rapid.Int64Range(0, 1<<20).Draw(t, "mib")
		c := sandbox.MemoryClass(mib)
		if c < mib || c < 128 || c%128 != 0 || (c/128)&(c/128-1) != 0 {
			t.Fatalf("MemoryClass(%d) = %d", mib, c)
		}
		if c > 128 && c/2 >= mib {
			t.Fatalf("MemoryClass(%d) = %d is not the smallest class", mib, c)
		}
	})
}
