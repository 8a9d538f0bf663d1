package mnemosyne

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// Finding is something that is not as it was written.
type Finding struct {
	Place string // an entry, or a line of the checkpoints
	What  string
}

// Report is what a Verifier found.
type Report struct {
	Entries     int64
	Head        sandbox.Digest // of the last entry
	Checkpoints int            // that hold, of this log
	Others      int            // that hold, of other logs
	Foreign     int            // lines that hold no checkpoint: a syslog has more than ours
	Covered     int64          // entries that a checkpoint vouches for
	CoveredAt   time.Time      // when it was made; zero without one
	Findings    []Finding
	More        int    // findings beyond those told
	Unknown     string // what nobody can tell from what there is
}

// maxFindings bounds what is told: who rewrote a log changed all that follows.
const maxFindings = 20

// Verifier checks a log: first it is given the checkpoints, then every entry
// in order, then it is asked for its Report. It decides and reads nothing.
type Verifier struct {
	writer string
	ring   *seal.Ring

	made   []kept
	byHead map[int64][]kept
	chain  ledger.AuditChain
	report Report
	unfit  *kept // the checkpoint of the earliest entry that does not fit
}

// kept is a checkpoint and where it was found.
type kept struct {
	seal.Checkpoint
	place string
}

// NewVerifier makes one for the log of writer. ring has the keys that its
// checkpoints are signed with; nil without checkpoints.
func NewVerifier(writer string, ring *seal.Ring) *Verifier {
	if ring == nil {
		ring = &seal.Ring{} // no key is known
	}
	return &Verifier{writer: writer, ring: ring, byHead: map[int64][]kept{}, report: Report{Findings: []Finding{}}}
}

func (v *Verifier) found(place, format string, args ...any) {
	if len(v.report.Findings) == maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, Finding{place, fmt.Sprintf(format, args...)})
}

const (
	maxLine        = 64 << 10
	checkpointMark = `{"checkpoint":`
)

// ReadCheckpoints takes the checkpoints out of lines as sinks keep them; name
// is where they come from. What stands before a checkpoint on its line, as
// syslog puts it there, does not matter.
func (v *Verifier) ReadCheckpoints(name string, lines io.Reader) error {
	s := bufio.NewScanner(lines)
	s.Buffer(nil, maxLine)
	n := 0
	for s.Scan() {
		n++
		if line := bytes.TrimSpace(s.Bytes()); len(line) > 0 {
			v.checkpoint(fmt.Sprintf("%s:%d", name, n), line)
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fault.Invalid("checkpoints", "Name the file that --audit-sink wrote, or what syslog kept of it.", "line %d of %s is longer than a checkpoint is", n+1, name)
	} else if err != nil {
		return fmt.Errorf("reading checkpoints: %w", err)
	}
	return nil
}

func (v *Verifier) checkpoint(place string, line []byte) {
	if i := bytes.Index(line, []byte(checkpointMark)); i >= 0 {
		line = line[i:]
	} else if line[0] != '{' {
		v.report.Foreign++
		return
	}
	c, err := v.ring.OpenCheckpoint(line)
	switch {
	case err != nil:
		v.found(place, "%s", messageOf(err))
		return
	case c.Writer != v.writer:
		v.report.Others++
		return
	}
	k := kept{c, place}
	if n := len(v.made); n > 0 && v.made[n-1].Count > c.Count {
		last := v.made[n-1]
		v.found(place, "the log had %d entries at %s, after %d at %s (%s): in between its end was cut off, or an older copy was put in its place",
			c.Count, stamp(c.Time), last.Count, stamp(last.Time), last.place)
	}
	v.made = append(v.made, k)
	v.byHead[c.Count] = append(v.byHead[c.Count], k)
	v.report.Checkpoints++
}

// Entry is given the next row of the log.
func (v *Verifier) Entry(row ledger.AuditRow) {
	if _, err := v.chain.Next(row); err != nil {
		v.found(fmt.Sprintf("entry %d", row.Seq), "%s", messageOf(err))
	}
	v.report.Entries++
	head := v.chain.Head()
	for _, k := range v.byHead[head.Seq] {
		switch {
		case k.Head == head.Digest && v.unfit == nil:
			v.report.Covered, v.report.CoveredAt = k.Count, k.Time
		case k.Head != head.Digest && v.unfit == nil:
			v.unfit = &k
		}
	}
	delete(v.byHead, head.Seq)
}

// Report says what was found in all.
func (v *Verifier) Report() Report {
	r := &v.report
	r.Head = v.chain.Head().Digest
	if k := v.unfit; k != nil {
		v.found(fmt.Sprintf("entry %d", k.Count), "it is not the one that stood there at %s (%s): the log was rewritten, or an older copy went on, from %s",
			stamp(k.Time), k.place, after(r.Covered))
	}
	var longest *kept
	for _, k := range v.made {
		if k.Count > v.chain.Head().Seq && (longest == nil || k.Count > longest.Count) {
			longest = &k
		}
	}
	if longest != nil {
		v.found(fmt.Sprintf("entry %d", v.chain.Head().Seq), "the log ends here, but had %d entries at %s (%s): its end was cut off, or an older copy was put in its place",
			longest.Count, stamp(longest.Time), longest.place)
	}
	r.Unknown = r.unknown(v.chain.Head().Seq)
	return *r
}

// unknown says what this log and these checkpoints cannot show.
func (r *Report) unknown(end int64) string {
	switch {
	case r.Checkpoints == 0:
		return "Without checkpoints it cannot be known whether the log was rewritten from some entry on, cut off at its end, or replaced by an older copy."
	case r.Covered == 0:
		return "No checkpoint vouches for any entry that is there."
	case end > r.Covered:
		return fmt.Sprintf("No checkpoint vouches for what follows entry %d: whether it was rewritten, or its end cut off, cannot be known.", r.Covered)
	}
	return fmt.Sprintf("Whether entries followed after the last checkpoint (%s), and were cut off, cannot be known.", stamp(r.CoveredAt))
}

// after is from where on a log is not what it was.
func after(covered int64) string {
	if covered == 0 {
		return "some entry on"
	}
	return fmt.Sprintf("some entry after %d on", covered)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// messageOf is what an error says, without the places that it went through.
func messageOf(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Message
	}
	return err.Error()
}
