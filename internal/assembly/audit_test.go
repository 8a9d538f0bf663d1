package assembly

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// auditLog is a state folder with an audit log of ten entries, and checkpoints
// of it after five and after eight.
type auditLog struct {
	state, checkpoints string
	home               home
}

func newAuditLog(t *testing.T) *auditLog {
	t.Helper()
	dir := t.TempDir()
	a := &auditLog{state: filepath.Join(dir, "state"), checkpoints: filepath.Join(dir, "checkpoints")}
	p, err := openState(a.state)
	must(t, err)
	a.home = p.up()
	must(t, privateDir(a.home.root))
	key, err := seal.LoadOrCreateKey(a.home.key())
	must(t, err)
	public, err := key.PublicPEM()
	must(t, err)
	must(t, writeFile(a.home.public(), public))
	var lines bytes.Buffer
	for i := range 10 {
		a.append(t, fmt.Sprint("action ", i))
		if i == 4 || i == 7 {
			line, err := key.SignCheckpoint(a.checkpoint(t))
			must(t, err)
			lines.Write(append(line, '\n'))
		}
	}
	must(t, os.WriteFile(a.checkpoints, lines.Bytes(), 0o600))
	return a
}

func (a *auditLog) book(t *testing.T) *sqliteledger.Ledger {
	t.Helper()
	b, err := sqliteledger.Open(t.Context(), sqliteledger.Config{Path: a.home.ledger()})
	must(t, err)
	return b
}

func (a *auditLog) append(t *testing.T, action string) {
	t.Helper()
	b := a.book(t)
	must(t, b.Audit(t.Context(), sandbox.AuditEntry{Time: time.Now(), Tenant: "acme", Action: action, Decision: sandbox.Allow}))
	must(t, b.Close())
}

func (a *auditLog) checkpoint(t *testing.T) seal.Checkpoint {
	t.Helper()
	b := a.book(t)
	head, err := b.AuditHead(t.Context())
	must(t, err)
	must(t, b.Close())
	return seal.Checkpoint{Writer: auditWriter, Count: head.Seq, Head: head.Digest, Time: time.Now()}
}

// sql changes the file as somebody does who has it.
func (a *auditLog) sql(t *testing.T, statements string) {
	t.Helper()
	db, err := sqlite3.Open(a.home.ledger())
	must(t, err)
	must(t, db.Exec(statements))
	must(t, db.Close())
}

func (a *auditLog) verify(t *testing.T, checkpoints string) cli.AuditReport {
	t.Helper()
	r, err := verifyAudit(t.Context(), cli.VerifyAuditOptions{StateDir: a.state, Checkpoints: checkpoints})
	must(t, err)
	return r
}

// TestAuditVerify changes the log in its file: each change is found, with
// checkpoints or by the chain itself, or it is said that it cannot be.
func TestAuditVerify(t *testing.T) {
	const rechain = "go on from an old copy"
	for name, c := range map[string]struct {
		sql   string
		chain string // what is found without checkpoints; "": that it cannot be
		kept  string // what is found with them
	}{
		"nothing": {"", "", ""},
		"edited": {`UPDATE audit SET doc = replace(doc, 'action 2', 'action x') WHERE seq = 3`,
			"entry 3 or entry 4 was edited", "entry 3 or entry 4 was edited"},
		"edited so that nobody would see": {`UPDATE audit SET doc = json_insert(doc, '$.note', 'x') WHERE seq = 3`,
			"entry 3 was edited: it is not in the form", "entry 3 was edited: it is not in the form"},
		"hidden from its tenant": {`UPDATE audit SET tenant = 'other' WHERE seq = 3`,
			"entry 3 was edited: it is kept as number 3 of tenant \"other\"", "entry 3 was edited"},
		"removed": {`DELETE FROM audit WHERE seq = 3`, "entries 3 to 3 are missing", "entries 3 to 3 are missing"},
		"removed, and those behind it moved up": {`DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = -seq WHERE seq > 3; UPDATE audit SET seq = -seq - 1 WHERE seq < 0`,
			"entry 4 was edited: it is kept as number 3", "entry 4 was edited: it is kept as number 3"},
		"reordered": {`UPDATE audit SET seq = 100 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4; UPDATE audit SET seq = 4 WHERE seq = 100`,
			"entry 4 was edited: it is kept as number 3", "entry 4 was edited: it is kept as number 3"},
		"put before the first": {`INSERT INTO audit SELECT -5, tenant, doc FROM audit WHERE seq = 3`,
			"entry 3 was edited: it is kept as number -5", "entry 3 was edited"},
		"the first removed": {`DELETE FROM audit WHERE seq = 1`, "entries 1 to 1 are missing", "entries 1 to 1 are missing"},
		"truncated":         {`DELETE FROM audit WHERE seq > 6`, "", "the log ends here, but had 8 entries"},
		"emptied":           {`DELETE FROM audit`, "", "the log ends here, but had 8 entries"},
		"rolled back":       {rechain, "", "it is not the one that stood there"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuditLog(t)
			if c.sql == rechain {
				a.sql(t, `DELETE FROM audit WHERE seq > 6`)
				for i := range 6 {
					a.append(t, fmt.Sprint("other ", i))
				}
			} else if c.sql != "" {
				a.sql(t, c.sql)
			}
			for checkpoints, want := range map[string]string{"": c.chain, a.checkpoints: c.kept} {
				r := a.verify(t, checkpoints)
				if found := len(r.Findings) > 0; found != (want != "") || found && !strings.Contains(r.Findings[0].What, want) {
					t.Errorf("with checkpoints %q: found %+v, want %q", checkpoints, r.Findings, want)
				}
				if says := strings.Contains(r.Unknown, "cannot be known whether the log was rewritten"); says != (checkpoints == "") {
					t.Errorf("with checkpoints %q: it says %q", checkpoints, r.Unknown)
				}
			}
		})
	}
}

// An auditor keeps the writer's public key: checkpoints that somebody else
// signed do not help a forged log.
func TestAuditVerifyKeys(t *testing.T) {
	a, forged := newAuditLog(t), newAuditLog(t)
	verify := func(l *auditLog, keys ...string) (cli.AuditReport, error) {
		return verifyAudit(t.Context(), cli.VerifyAuditOptions{StateDir: l.state, Checkpoints: l.checkpoints, Keys: keys})
	}
	r, err := verify(forged)
	if err != nil || len(r.Findings) > 0 {
		t.Errorf("by the key beside it: %+v, %v", r, err)
	}
	if r, err = verify(forged, a.home.public()); err != nil || len(r.Findings) != 2 || r.Checkpoints != 0 {
		t.Errorf("by the key that was kept: %+v, %v", r, err)
	}
	public, err := os.ReadFile(a.home.public())
	must(t, err)
	if r, err = verify(a, forged.home.public(), strings.Split(string(public), "\n")[1]); err != nil || len(r.Findings) > 0 || r.Covered != 8 {
		t.Errorf("by one of two keys, itself: %+v, %v", r, err)
	}
	if _, err = verify(a, "none"); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("by no key: %v", err)
	}
	must(t, os.Remove(a.home.public()))
	if _, err = verify(a); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("by a key that is gone: %v", err)
	}
}

// A server whose log never ends, or is told in circles, is given up.
func TestAuditVerifyOfALyingServer(t *testing.T) {
	a := newAuditLog(t)
	o := cli.VerifyAuditOptions{StateDir: a.state, Rows: func(context.Context, int64) ([]cli.AuditRow, error) {
		return []cli.AuditRow{{Seq: 7}}, nil
	}}
	if _, err := verifyAudit(t.Context(), o); !fault.Is(err, fault.Internal) {
		t.Errorf("got %v", err)
	}
}
