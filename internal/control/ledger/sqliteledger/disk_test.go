package sqliteledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var epoch0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func request(n int) sandbox.Admitted {
	return sandbox.Admitted{
		Record: sandbox.Record{
			ID: sandbox.MakeID(fmt.Sprintf("%026d", n)), Tenant: fmt.Sprintf("t%d", n%10), CreatedAt: epoch0,
			Request: sandbox.Resolved{
				Template: "base", Command: []string{"sh", "-c", "echo hello"}, WorkingDir: "/work", User: "sandbox",
				TemplateDigest: sandbox.Digest("sha256:" + strings.Repeat("a", 64)), Labels: map[string]string{"team": "ci"},
				Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64, Processes: 64},
			},
			Verdict: sandbox.Verdict{Decision: sandbox.Allow, PolicyVersion: strings.Repeat("b", 64)},
		},
		Limits:  sandbox.Limits{Live: 1 << 30, Running: 1 << 30, VCPUs: 1 << 30, MemoryMiB: 1 << 40, DiskMiB: 1 << 40},
		Verdict: bytes.Repeat([]byte("v"), 900),
		Secrets: bytes.Repeat([]byte("s"), 300),
	}
}

func admit(ctx context.Context, l *Ledger, a sandbox.Admitted) error {
	_, _, err := l.Admit(ctx, a, sandbox.AuditEntry{Time: epoch0, Tenant: a.Record.Tenant, Action: "run", Sandbox: a.Record.ID}, ledger.IdempotencyKey{})
	return err
}

func openLedger(t testing.TB, cfg Config) *Ledger {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "ledger.db")
	}
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// disk is a file system that can be full or broken, and counts.
type disk struct {
	vfs.VFSFilename
	fail  atomic.Pointer[error] // of every write and sync
	syncs atomic.Int64
	dirty atomic.Int64 // writes to the log since its last sync
}

type diskFile struct {
	vfs.File
	d   *disk
	log bool
}

func newDisk(t *testing.T, name string) *disk {
	d := &disk{VFSFilename: vfs.Find("os").(vfs.VFSFilename)}
	vfs.Register(name, d)
	t.Cleanup(func() { vfs.Unregister(name) })
	return d
}

func (d *disk) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := d.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return f, flags, err
	}
	return &diskFile{f, d, flags&vfs.OPEN_WAL != 0}, flags, nil
}

func (f *diskFile) SharedMemory() vfs.SharedMemory {
	return f.File.(vfs.FileSharedMemory).SharedMemory()
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.fail.Load(); err != nil {
		return 0, *err
	}
	if f.log {
		f.d.dirty.Add(1)
	}
	return f.File.WriteAt(p, off)
}

func (f *diskFile) Sync(flags vfs.SyncFlag) error {
	if err := f.d.fail.Load(); err != nil {
		return *err
	}
	f.d.syncs.Add(1)
	if f.log {
		f.d.dirty.Store(0)
	}
	return f.File.Sync(flags)
}

// TestAnAnswerComesAfterTheDisk has every step that must be durable be synced
// before it is answered.
func TestAnAnswerComesAfterTheDisk(t *testing.T) {
	d := newDisk(t, "counting")
	l := openLedger(t, Config{vfs: "counting"})
	ctx := t.Context()
	synced := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := d.dirty.Load(); n != 0 {
			t.Errorf("%s was answered with %d writes not synced", what, n)
		}
		if d.syncs.Swap(0) == 0 {
			t.Errorf("%s was answered without a sync", what)
		}
	}
	epoch, err := l.Join(ctx, sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 9, MemoryMiB: 9999, DiskMiB: 9999}})
	synced("Join", err)
	synced("Admit", admit(ctx, l, request(1)))
	c, ok, err := l.Claim(ctx, "s", epoch0, time.Minute, nil)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	a, err := l.Place(ctx, c, "n1", epoch, epoch0)
	synced("Place", err)
	synced("Accept", l.Accept(ctx, a, epoch0))
	_, err = l.End(ctx, a, sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}})
	synced("End", err)
}

// TestABrokenDisk has every write fail for a while: what is answered with an
// error has not happened, and what was answered before is there.
func TestABrokenDisk(t *testing.T) {
	for name, code := range map[string]error{"full": sqlite3.FULL, "broken": sqlite3.IOERR_WRITE} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, name)
			path := filepath.Join(t.TempDir(), "ledger.db")
			l, err := Open(t.Context(), Config{Path: path, vfs: name})
			if err != nil {
				t.Fatal(err)
			}
			var good atomic.Int64
			batch := func(from int, want bool) {
				var wg sync.WaitGroup
				for i := range 20 {
					wg.Go(func() {
						switch err := admit(t.Context(), l, request(from+i)); {
						case (err == nil) != want:
							t.Errorf("Admit returned %v", err)
						case err == nil:
							good.Add(1)
						case !fault.Is(err, fault.Unavailable):
							t.Errorf("Admit returned %v, of kind %s", err, fault.KindOf(err))
						}
					})
				}
				wg.Wait()
			}
			batch(1, true)
			d.fail.Store(&code)
			batch(101, false)
			if _, err := l.Get(t.Context(), request(1).Record.ID); err != nil {
				t.Errorf("reading on a disk that is %s: %v", name, err)
			}
			d.fail.Store(nil)
			batch(201, true)
			batch(101, true) // none of them was there
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			checkStore(t, path, int(good.Load()))
		})
	}
}

// checkStore opens a store again and insists that it is sound and has n
// records with an audit entry each.
func checkStore(t *testing.T, path string, n int) {
	t.Helper()
	l := openLedger(t, Config{Path: path})
	var verdict string
	var records, live, sealed int64
	err := l.read(t.Context(), func(c *conn) (err error) {
		if _, err = c.first(func(s *sqlite3.Stmt) error { verdict = s.ColumnText(0); return nil }, `PRAGMA integrity_check`); err != nil {
			return err
		}
		if records, err = c.number(`SELECT count(*) FROM records`); err != nil {
			return err
		}
		if live, err = c.number(`SELECT count(*) FROM live`); err != nil {
			return err
		}
		sealed, err = c.number(`SELECT count(*) FROM sealed`)
		return err
	})
	if err != nil || verdict != "ok" {
		t.Errorf("the store is %q, %v", verdict, err)
	}
	if records != int64(n) || live != records || sealed != records {
		t.Errorf("there are %d records, %d live, %d sealed; want %d of each", records, live, sealed, n)
	}
	var all []sandbox.AuditEntry
	for {
		part, err := l.AuditEntries(t.Context(), ledger.AuditQuery{After: int64(len(all)), Limit: ledger.MaxPage})
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
		all = append(all, part...)
	}
	if len(all) != n {
		t.Errorf("there are %d audit entries, want %d", len(all), n)
	}
	if err := ledger.VerifyAudit(nil, all); err != nil {
		t.Error(err)
	}
}

// TestAFullStoreLosesItsTransaction has SQLite itself give up a transaction in
// the middle of a step.
func TestAFullStoreLosesItsTransaction(t *testing.T) {
	l := openLedger(t, Config{})
	ctx := t.Context()
	if err := admit(ctx, l, request(1)); err != nil {
		t.Fatal(err)
	}
	if err := l.step(ctx, func(t *txn) error { return t.db.Exec(`PRAGMA max_page_count = 60`) }); err != nil {
		t.Fatal(err)
	}
	big := request(2)
	big.Secrets = make([]byte, 1<<20)
	if err := admit(ctx, l, big); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("Admit on a full store returned %v", err)
	}
	if err := admit(ctx, l, request(3)); err != nil {
		t.Fatalf("a small one after it: %v", err)
	}
	// In one transaction with others: each is told what came of it.
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.step(ctx, func(*txn) error { close(held); <-hold; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-held
	told := make([]error, 12)
	for i := range told {
		wg.Go(func() {
			a := request(100 + i)
			if i%4 == 3 {
				a.Secrets = big.Secrets
			}
			told[i] = admit(ctx, l, a)
		})
	}
	close(hold)
	wg.Wait()
	for i, err := range told {
		_, there := l.Get(ctx, request(100+i).Record.ID)
		if (err == nil) != (there == nil) || err != nil && !fault.Is(err, fault.Unavailable) || i%4 == 3 && err == nil {
			t.Errorf("request %d was answered %v, and Get says %v", i, err, there)
		}
	}
	if err := l.step(ctx, func(t *txn) error { return t.db.Exec(`PRAGMA max_page_count = 1000000`) }); err != nil {
		t.Fatal(err)
	}
	if err := admit(ctx, l, big); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

// TestAStepThatFailsFailsAlone has steps in one transaction with one that
// errs after it has written.
func TestAStepThatFailsFailsAlone(t *testing.T) {
	l := openLedger(t, Config{})
	ctx := t.Context()
	oops := errors.New("oops")
	// The first holds the writer until the others wait.
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.step(ctx, func(*txn) error { close(held); <-hold; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-held
	var runs atomic.Int64
	for i := range 10 {
		wg.Go(func() {
			err := l.step(ctx, func(t *txn) error {
				runs.Add(1)
				if err := t.audit(sandbox.AuditEntry{Action: fmt.Sprint(i)}); err != nil || i != 5 {
					return err
				}
				return oops
			})
			if (i == 5) != errors.Is(err, oops) {
				t.Errorf("step %d returned %v", i, err)
			}
		})
	}
	canceled, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		cancel()
		if err := l.step(canceled, func(*txn) error { t.Error("a canceled step ran"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a canceled step returned %v", err)
		}
	})
	close(hold)
	wg.Wait()
	all, err := l.AuditEntries(ctx, ledger.AuditQuery{})
	if err != nil || len(all) != 9 || runs.Load() != 10 {
		t.Errorf("%d steps ran and left %d entries, %v", runs.Load(), len(all), err)
	}
	if err := ledger.VerifyAudit(nil, all); err != nil {
		t.Error(err)
	}
}

// TestSecretsAreGoneFromEveryFile looks for the sealed secrets of a sandbox in
// all files of the store, before and after its end.
func TestSecretsAreGoneFromEveryFile(t *testing.T) {
	dir := t.TempDir()
	l := openLedger(t, Config{Path: filepath.Join(dir, "ledger.db"), WipeAfter: 10 * time.Millisecond})
	ctx := t.Context()
	marker := []byte("a marker that is nowhere else")
	for i := range 40 {
		a := request(i)
		if i == 20 {
			a.Secrets = bytes.Repeat(marker, 1000) // many pages
		}
		if i == 21 {
			a.Secrets = marker // inside one
		}
		if err := admit(ctx, l, a); err != nil {
			t.Fatal(err)
		}
	}
	if found(t, dir, marker) == "" {
		t.Fatal("the secrets are not stored in a form that this test can find")
	}
	for _, i := range []int{20, 21} {
		a := sandbox.Assignment{Sandbox: request(i).Record.ID}
		if _, err := l.End(ctx, a, sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}}); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for file := found(t, dir, marker); file != ""; file = found(t, dir, marker) {
		if time.Now().After(deadline) {
			t.Fatalf("%s still has the secrets", file)
		}
		time.Sleep(5 * time.Millisecond) // nothing tells when the log has been emptied
	}
}

// found is a file in dir that contains b.
func found(t *testing.T, dir string, b []byte) string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 2 {
		t.Fatalf("%d files in the folder, %v", len(files), err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, b) {
			return f.Name()
		}
	}
	return ""
}

func TestFilesAreTheirOwnersOnly(t *testing.T) {
	old := syscall.Umask(0) // no test of this package runs beside another
	defer syscall.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, Config{Path: path})
	if err := admit(t.Context(), l, request(1)); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("the folder has %v, %v", files, err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), info.Mode())
		}
	}
}
