package assembly

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Housekeeping removes what nothing names, once it is old, and nothing else.
func TestHousekeeping(t *testing.T) {
	ctx := t.Context()
	p, err := openState(filepath.Join(t.TempDir(), "state"))
	must(t, err)
	must(t, privateDir(p.up().root))
	e := &embedded{paths: p, home: p.up(), log: slog.New(slog.DiscardHandler)}
	e.images, e.blobs, err = openImages(p, nyx.Config{})
	must(t, err)
	e.logs, err = dirblobs.Open(dirblobs.Config{Dir: e.home.logs()})
	must(t, err)
	e.book, err = sqliteledger.Open(ctx, sqliteledger.Config{Path: e.home.ledger()})
	must(t, err)
	defer e.book.Close()

	base, err := e.images.EnsureTemplate(ctx, "base", nil)
	must(t, err)
	oldImage, err := e.blobs.Put(ctx, strings.NewReader("an image nobody names"))
	must(t, err)
	oldLog, err := e.logs.Put(ctx, strings.NewReader("a log nobody names"))
	must(t, err)
	namedLog, err := e.logs.Put(ctx, strings.NewReader("a log"))
	must(t, err)
	makeOld(t, p.blobs(), e.home.logs())
	newLog, err := e.logs.Put(ctx, strings.NewReader("a log whose record comes in a moment"))
	must(t, err)

	id := sandbox.MakeID("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	rec := sandbox.Record{ID: id, Tenant: "t", State: sandbox.Queued, CreatedAt: time.Now(), Request: sandbox.Resolved{TemplateDigest: oldImage}}
	_, _, err = e.book.Admit(ctx, sandbox.Admitted{Record: rec, Limits: sandbox.Limits{Live: 1}}, sandbox.AuditEntry{Time: time.Now(), Tenant: "t", Action: "run"}, ledger.IdempotencyKey{})
	must(t, err)

	// A live sandbox was promised an image that has lost its name: it stays.
	must(t, e.clean(ctx, time.Now()))
	has := func(s *dirblobs.Store, d sandbox.Digest, want bool) {
		t.Helper()
		if _, err := s.Stat(ctx, d); (err == nil) != want || err != nil && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v, want it there: %v", d, err, want)
		}
	}
	has(e.blobs, oldImage, true)
	has(e.logs, oldLog, false)
	has(e.logs, newLog, true)

	_, err = e.book.End(ctx, sandbox.Assignment{Sandbox: id}, sandbox.End{At: time.Now(), LogDigest: newLog, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}})
	must(t, err)
	makeOld(t, p.blobs(), e.home.logs())
	must(t, e.clean(ctx, time.Now()))
	has(e.blobs, oldImage, false)
	has(e.blobs, base.Digest, true)
	has(e.logs, namedLog, false)
	has(e.logs, newLog, true) // by the record
}

// makeOld gives every blob an age beyond every grace.
func makeOld(t *testing.T, dirs ...string) {
	t.Helper()
	old := time.Now().Add(-2 * imageGrace)
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.Chtimes(path, old, old)
		}))
	}
}
