package cocytus

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestTheCommandsOwnEnd(t *testing.T) {
	r := Compose(Facts{Cause: sandbox.Exited, Guest: &GuestWord{Code: 3}})
	if r.Cause != sandbox.Exited || r.Source != sandbox.FromGuest || r.Code == nil || *r.Code != 3 || r.Signal != 0 {
		t.Errorf("exited: %+v", r)
	}
	if r.Message != "the command exited with code 3" || r.State() != sandbox.Failed {
		t.Errorf("exited: %+v", r)
	}
	r = Compose(Facts{Cause: sandbox.Exited, Guest: &GuestWord{}})
	if r.State() != sandbox.Succeeded {
		t.Errorf("code 0: %+v", r)
	}
	r = Compose(Facts{Cause: sandbox.Exited, Guest: &GuestWord{Signal: 9}})
	if r.Cause != sandbox.Signaled || r.Code != nil || r.Signal != 9 {
		t.Errorf("signaled: %+v", r)
	}
}

func TestTheHostBeatsTheGuest(t *testing.T) {
	r := Compose(Facts{
		Cause: sandbox.MaxDuration,
		Guest: &GuestWord{Code: 0, CPUSeconds: 1e9, MemoryPeakBytes: 1 << 60, MemoryKills: 2, DiskFull: -1},
		Host:  HostWord{CPUSeconds: 2, MemoryPeakBytes: 100, DiskWrittenBytes: 7, NetworkRxBytes: 8, NetworkTxBytes: 9},
		Log:   LogFacts{Bytes: 5, Truncated: true},
	})
	if r.Cause != sandbox.MaxDuration || r.Source != sandbox.FromHost || r.Code != nil || r.State() != sandbox.Failed {
		t.Errorf("%+v", r)
	}
	want := sandbox.Usage{CPUSeconds: 2, MemoryPeakBytes: 100, DiskWrittenBytes: 7, NetworkRxBytes: 8, NetworkTxBytes: 9, LogBytes: 5, LogTruncated: true}
	if r.Usage != want {
		t.Errorf("usage %+v, want %+v", r.Usage, want)
	}
	if len(r.LimitsHit) != 1 || r.LimitsHit[0] != (sandbox.LimitHit{Limit: "memory", Count: 2}) {
		t.Errorf("limits hit %+v", r.LimitsHit)
	}
}

func TestNothingIsGuessed(t *testing.T) {
	for _, f := range []Facts{{Cause: sandbox.Exited}, {Cause: sandbox.Signaled}, {}, {Cause: "bored"}} {
		if r := Compose(f); r.Cause != sandbox.Internal || r.Code != nil || r.Message == "" {
			t.Errorf("%+v: %+v", f, r)
		}
	}
}

// TestRecordsAreWellFormed composes from any facts.
func TestRecordsAreWellFormed(t *testing.T) {
	var causes []sandbox.Cause
	for _, c := range sandbox.Causes() {
		causes = append(causes, c.Cause)
	}
	rapid.Check(t, func(t *rapid.T) {
		f := Facts{Cause: rapid.SampledFrom(causes).Draw(t, "cause"), Message: rapid.StringN(0, 3000, -1).Draw(t, "message")}
		if rapid.Bool().Draw(t, "guest spoke") {
			f.Guest = &GuestWord{Code: rapid.Int().Draw(t, "code"), Signal: rapid.IntRange(0, 64).Draw(t, "signal"), MemoryKills: rapid.Int64().Draw(t, "kills")}
		}
		r := Compose(f)
		own := r.Cause == sandbox.Exited || r.Cause == sandbox.Signaled
		switch {
		case !own && f.Cause != sandbox.Exited && f.Cause != sandbox.Signaled && r.Cause != f.Cause:
			t.Fatalf("the cause changed: %+v", r)
		case (r.Code != nil) != (r.Cause == sandbox.Exited), (r.Signal != 0) != (r.Cause == sandbox.Signaled):
			t.Fatalf("code or signal without its cause: %+v", r)
		case r.Source != r.Cause.Source(), r.Message == "", len(r.Message) > MaxMessage, !utf8.ValidString(r.Message):
			t.Fatalf("%+v", r)
		}
		for _, h := range r.LimitsHit {
			if h.Count <= 0 {
				t.Fatalf("a limit that was not hit: %+v", r)
			}
		}
	})
}

func TestMessages(t *testing.T) {
	for _, c := range sandbox.Causes() {
		r := Compose(Facts{Cause: c.Cause, Guest: &GuestWord{}})
		if r.Message == "" || strings.HasSuffix(r.Message, ".") {
			t.Errorf("%s: %q", c.Cause, r.Message)
		}
	}
}

func TestRetention(t *testing.T) {
	if err := DefaultRetention().Validate(); err != nil {
		t.Error(err)
	}
	for _, r := range []Retention{{Age: -1}, {Age: time.Second}, {Count: -1}} {
		if err := r.Validate(); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
