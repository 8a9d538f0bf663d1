package sqliteledger

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// TestReserve: on a disk without room ends and audit entries are written, and
// nothing new is admitted until there is room again.
func TestReserve(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs the right to mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses it: %v", err)
		}
	})
	const whole = 16 << 20
	l := openLedger(t, Config{Path: filepath.Join(dir, "ledger.db"), Reserve: whole})
	ctx := t.Context()
	for i := range 200 {
		if err := admit(ctx, l, request(i)); err != nil {
			t.Fatal(err)
		}
	}

	filler := filepath.Join(dir, "filler")
	fill := func() {
		t.Helper()
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		for size := 1 << 20; size > 0; {
			if _, err := f.Write(make([]byte, size)); err != nil {
				size /= 2
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	for i := range 200 {
		a := sandbox.Assignment{Sandbox: request(i).Record.ID}
		if _, err := l.End(ctx, a, sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}}); err != nil {
			t.Fatalf("end %d on a full disk: %v", i, err)
		}
		if err := l.Audit(ctx, sandbox.AuditEntry{Time: epoch0, Action: "kill"}); err != nil {
			t.Fatalf("audit entry %d on a full disk: %v", i, err)
		}
		fill() // whatever was given and is free is taken too
	}
	if err := admit(ctx, l, request(1000)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a new one on a full disk: %v", err)
	}
	all, err := l.AuditEntries(ctx, ledger.AuditQuery{Limit: 2000})
	if err != nil || len(all) != 400 {
		t.Fatalf("%d audit entries, %v", len(all), err)
	}
	if err := ledger.VerifyAudit(nil, all); err != nil {
		t.Error(err)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := admit(ctx, l, request(1001)); err != nil {
		t.Errorf("a new one when there is room: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, "ledger.db.reserve")); err != nil || st.Size() != whole {
		t.Errorf("the reserve is not whole again: %v, %v", st, err)
	}
}
