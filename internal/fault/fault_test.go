package fault_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestTableIsWhole(t *testing.T) {
	codes := map[string]bool{}
	for k := fault.Internal; k <= fault.Unavailable; k++ {
		r := k.Row()
		if r.Kind != k {
			t.Errorf("kind %d has no row", k)
		}
		if codes[r.Code] {
			t.Errorf("code %q stands twice", r.Code)
		}
		codes[r.Code] = true
		if fault.KindOfCode(r.Code) != k {
			t.Errorf("%q does not lead back to kind %d", r.Code, k)
		}
	}
	if len(codes) != len(fault.Table()) {
		t.Errorf("%d kinds, %d rows", len(codes), len(fault.Table()))
	}
}

func TestWrappingKeepsTheKind(t *testing.T) {
	base := fault.Invalid("files[0].path", "make it absolute", "%q is relative", "a/b")
	err := fmt.Errorf("resolving: %w", base)
	var e *fault.Error
	if !errors.As(err, &e) || e.Field != "files[0].path" || e.Hint != "make it absolute" || fault.KindOf(err) != fault.InvalidArgument {
		t.Errorf("got %+v", e)
	}
	if fault.KindOf(errors.New("plain")) != fault.Internal || fault.Is(errors.New("plain"), fault.Internal) {
		t.Error("an error without a kind counts as Internal, and Is says of it nothing")
	}
	if w := base.WithHint("another"); base.Hint != "make it absolute" || w.Hint != "another" {
		t.Error("WithHint changed the error it was given")
	}
	cause := errors.New("disk on fire")
	if w := fault.Wrap(fault.Unavailable, cause, "cannot store it"); !errors.Is(w, cause) || w.Message != "cannot store it" {
		t.Errorf("got %+v", w)
	}
}
