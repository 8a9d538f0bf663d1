package nodewire

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const anID = sandbox.ID("sb-01jd0000000000000000000000")

func TestEndTravels(t *testing.T) {
	code := 3
	want := sandbox.End{
		At: time.Date(2026, 11, 23, 21, 0, 0, 7, time.UTC),
		Exit: sandbox.ExitRecord{
			Cause: sandbox.Exited, Source: sandbox.FromGuest, Code: &code,
			LimitsHit: []sandbox.LimitHit{{Limit: "memory", Count: 2}},
		},
		LogDigest: sandbox.Digest("sha256:" + strings.Repeat("a", 64)),
		Progress:  sandbox.Progress{State: sandbox.Running, VMReady: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	b, err := EncodeEnd(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeEnd(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	node := func(b []byte) error { _, err := DecodeNode(b); return err }
	progress := func(b []byte) error { _, err := DecodeProgress(b); return err }
	end := func(b []byte) error { _, err := DecodeEnd(b); return err }
	for _, c := range []struct {
		name   string
		decode func([]byte) error
		in     string
		want   fault.Kind
	}{
		{"nothing", node, "", fault.InvalidArgument},
		{"unknown field", node, `{"id":"a","secret":1}`, fault.InvalidArgument},
		{"second value", node, `{"id":"a"} {}`, fault.InvalidArgument},
		{"rubbish behind", node, `{"id":"a"}x`, fault.InvalidArgument},
		{"too large", node, `{"id":"` + strings.Repeat("a", MaxNounBytes) + `"}`, fault.TooLarge},
		{"state of the control plane", progress, `{"state":"queued"}`, fault.InvalidArgument},
		{"ended by progress", progress, `{"state":"succeeded"}`, fault.InvalidArgument},
		{"invented cause", progress, `{"state":"stopping","cause":"bored"}`, fault.InvalidArgument},
		{"end without a cause", end, `{"at":"2026-01-01T00:00:00Z"}`, fault.InvalidArgument},
		{"malformed log digest", end, `{"exit":{"cause":"exited"},"log_digest":"md5:1"}`, fault.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.decode([]byte(c.in)); !fault.Is(err, c.want) {
				t.Errorf("got %v, want kind %v", err, c.want)
			}
		})
	}
}

func TestAssignmentTravels(t *testing.T) {
	want := sandbox.Assignment{Sandbox: anID, Attempt: 2, Node: "n1", Epoch: 7}
	got, err := DecodeAssignment(EncodeAssignment(want))
	if err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
	for name, m := range map[string]*nodev1.Assignment{
		"nil": nil, "empty": {},
		"no attempt": {Sandbox: string(anID), Node: "n1"},
		"no node":    {Sandbox: string(anID), Attempt: 1},
		"path as ID": {Sandbox: "../../etc", Attempt: 1, Node: "n1"},
	} {
		if _, err := DecodeAssignment(m); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestErrorsTravel(t *testing.T) {
	for _, row := range fault.Table() {
		e := fault.New(row.Kind, "what happened")
		e.Hint, e.Field, e.Sandbox, e.RetryAfter = "do this", "files[2].path", string(anID), 1500*time.Millisecond
		got := FromStatus(StatusOf(fmt.Errorf("assigning: %w", e)))
		var f *fault.Error
		if !errors.As(got, &f) {
			t.Fatalf("%v: no fault: %v", row.Code, got)
		}
		if f.Kind != e.Kind || f.Hint != e.Hint || f.Field != e.Field || f.Sandbox != e.Sandbox || f.RetryAfter != e.RetryAfter {
			t.Errorf("%s: got %+v, want %+v", row.Code, f, e)
		}
		if f.Message != "assigning: what happened" {
			t.Errorf("%s: message %q", row.Code, f.Message)
		}
	}
}

func TestConflictIsFailedPrecondition(t *testing.T) {
	if c := status.Code(StatusOf(fault.New(fault.Conflict, "overtaken"))); c != codes.FailedPrecondition {
		t.Errorf("code %v", c)
	}
	if err := FromStatus(status.Error(codes.FailedPrecondition, "overtaken")); !fault.Is(err, fault.Conflict) {
		t.Errorf("without details: %v", err)
	}
}

func TestCausesStayBehind(t *testing.T) {
	for _, err := range []error{
		errors.New("password=hunter2"),
		fault.Wrap(fault.Unavailable, errors.New("password=hunter2"), "the store is away"),
	} {
		if got := StatusOf(err).Error(); strings.Contains(got, "hunter2") {
			t.Errorf("the cause travelled: %s", got)
		}
	}
}

func TestTransportErrorsAreUnavailable(t *testing.T) {
	for _, c := range []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.DataLoss} {
		if err := FromStatus(status.Error(c, "x")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v: %v", c, err)
		}
	}
	if err := FromStatus(status.FromContextError(context.DeadlineExceeded).Err()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end of the context is not to be seen in %v", err)
	}
	if StatusOf(nil) != nil || FromStatus(nil) != nil {
		t.Error("nil is not nil")
	}
}

func TestProgressTravels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(0, 4e18)
		p := sandbox.Progress{
			State:   rapid.SampledFrom([]sandbox.State{"", sandbox.Running, sandbox.Stopping}).Draw(t, "state"),
			At:      time.Unix(0, at.Draw(t, "at")).UTC(),
			VMReady: time.Unix(0, at.Draw(t, "ready")).UTC(),
			Runtime: sandbox.Runtime{Driver: rapid.String().Draw(t, "driver"), Attempt: rapid.Int().Draw(t, "attempt")},
		}
		b, err := EncodeProgress(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeProgress(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, want %+v", got, p)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-01T00:00:00Z","exit":{"cause":"exited","code":0}}`))
	f.Add([]byte(`{"state":"running"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := DecodeEnd(b); err == nil {
			if _, err := EncodeEnd(e); err != nil && !fault.Is(err, fault.TooLarge) {
				t.Errorf("an end that was read cannot be written: %v", err)
			}
		}
		if p, err := DecodeProgress(b); err == nil {
			if _, err := EncodeProgress(p); err != nil && !fault.Is(err, fault.TooLarge) {
				t.Errorf("progress that was read cannot be written: %v", err)
			}
		}
	})
}

// The ID of a request travels as it is; what could not be logged as it is
// does not.
func TestRequestID(t *testing.T) {
	arrived := func(id string) string {
		md, _ := metadata.FromOutgoingContext(WithRequestID(context.Background(), id))
		return RequestID(metadata.NewIncomingContext(context.Background(), md))
	}
	if got := arrived("req-abc234"); got != "req-abc234" {
		t.Errorf("arrived as %q", got)
	}
	if got := arrived(strings.Repeat("a", 65)); got != "" {
		t.Errorf("one that is too long arrived as %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.String().Draw(t, "id")
		if got := arrived(id); got != "" && (got != id || len(got) > 64 || strings.ContainsAny(got, "\n\"= ")) {
			t.Fatalf("%q arrived as %q", id, got)
		}
	})
	if got := RequestID(context.Background()); got != "" {
		t.Errorf("without one: %q", got)
	}
}
