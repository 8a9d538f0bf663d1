package assembly

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/control/mnemosyne"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// auditWriter names the log of an up in its checkpoints. It is the same for
// any log that is put into the state folder, so that an exchanged one shows.
const auditWriter = "up"

func (e *embedded) newCheckpoints() (*mnemosyne.Keeper, error) {
	cfg := mnemosyne.Config{Book: e.book, Key: e.key, Writer: auditWriter, Metrics: e.metrics, Logger: e.log}
	for _, text := range e.cfg.AuditSinks {
		sink, err := mnemosyne.OpenSink(text)
		if err != nil {
			return nil, err
		}
		cfg.Sinks = append(cfg.Sinks, sink)
	}
	return mnemosyne.New(cfg)
}

// verifyAudit checks an audit log. The checkpoints are read first: a log that
// goes on meanwhile has what they say all the same.
func verifyAudit(ctx context.Context, o cli.VerifyAuditOptions) (cli.AuditReport, error) {
	root, err := stateRoot(o.StateDir)
	if err != nil {
		return cli.AuditReport{}, err
	}
	h := paths{root}.up()
	v, err := newVerifier(h, o)
	if err != nil {
		return cli.AuditReport{}, err
	}
	if o.Rows == nil {
		rows, done, err := storedRows(ctx, h)
		if err != nil {
			return cli.AuditReport{}, err
		}
		o.Rows = rows
		defer func() { _ = done() }() // nothing was written
	}
	for after := int64(math.MinInt64); ; {
		rows, err := o.Rows(ctx, after)
		if err != nil {
			return cli.AuditReport{}, err
		}
		if len(rows) == 0 {
			return reportOf(v.Report()), nil
		}
		for _, r := range rows {
			v.Entry(ledger.AuditRow(r))
		}
		if last := rows[len(rows)-1].Seq; last > after {
			after = last
			continue
		}
		return cli.AuditReport{}, fault.New(fault.Internal, "the log is not told in order")
	}
}

// newVerifier has the checkpoints that o names, checked with o's keys.
func newVerifier(h home, o cli.VerifyAuditOptions) (*mnemosyne.Verifier, error) {
	if o.Checkpoints == "" {
		return mnemosyne.NewVerifier(auditWriter, nil), nil
	}
	keys, err := publicKeys(h, o.Keys)
	if err != nil {
		return nil, err
	}
	ring, err := seal.NewRing(keys...)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(o.Checkpoints)
	if err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, err, "the checkpoints cannot be read: %v", err).WithHint("name the file that --audit-sink wrote, or what syslog kept of it")
	}
	defer f.Close()
	v := mnemosyne.NewVerifier(auditWriter, ring)
	return v, v.ReadCheckpoints(o.Checkpoints, f)
}

// publicKeys reads keys, each a key itself or the file of one.
func publicKeys(h home, named []string) ([]ed25519.PublicKey, error) {
	if len(named) == 0 {
		named = []string{h.public()}
		if _, err := os.Stat(h.public()); err != nil {
			return nil, fault.Wrap(fault.InvalidArgument, err, "the public key of the log's writer is not known: there is no %s", h.public()).
				WithHint("name it with --key: up keeps it in its state folder as up/signing.pub")
		}
	}
	var keys []ed25519.PublicKey
	for _, name := range named {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			text, err = []byte(name), nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		key, err := seal.ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// storedRows reads the log in the state folder, whether an up runs on it or
// not.
func storedRows(ctx context.Context, h home) (func(context.Context, int64) ([]cli.AuditRow, error), func() error, error) {
	if _, err := os.Stat(h.ledger()); err != nil {
		return nil, nil, fault.Wrap(fault.NotFound, err, "there is no audit log in %s", h.root).
			WithHint("name the state folder of an up with --state, or its server with --server")
	}
	book, err := sqliteledger.Open(ctx, sqliteledger.Config{Path: h.ledger(), Readers: 1})
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, after int64) (out []cli.AuditRow, err error) {
		rows, err := book.AuditRows(ctx, after, ledger.MaxPage)
		for _, r := range rows {
			out = append(out, cli.AuditRow(r))
		}
		return out, err
	}, book.Close, nil
}

func reportOf(r mnemosyne.Report) cli.AuditReport {
	out := cli.AuditReport{
		Entries: r.Entries, Head: string(r.Head), Checkpoints: r.Checkpoints, Others: r.Others, Foreign: r.Foreign,
		Covered: r.Covered, CoveredAt: r.CoveredAt, Findings: []cli.AuditFinding{}, More: r.More, Unknown: r.Unknown,
	}
	for _, f := range r.Findings {
		out.Findings = append(out.Findings, cli.AuditFinding(f))
	}
	return out
}
