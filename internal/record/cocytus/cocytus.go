// Package cocytus is the exit and failure records: what ended a sandbox, whose
// word that is, and what it used.
//
// Everything here is pure: facts in, a record out. Nothing is guessed; what is
// not known stays zero.
package cocytus

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Facts are what is known at the end of a sandbox.
type Facts struct {
	Cause   sandbox.Cause // the first one; it stays
	Message string        // with Cause; for users, so without a secret
	Guest   *GuestWord    // nil when the guest never said how the command ended
	Host    HostWord
	Log     LogFacts
}

// GuestWord is what the guest says of the end of the command: a claim.
type GuestWord struct {
	Code             int
	Signal           int // 0 unless a signal ended the command
	MemoryKills      int64
	ProcessLimitHits int64
	DiskFull         int64
	MemoryPeakBytes  int64
	CPUSeconds       float64
}

// HostWord is what the host saw the VM use. Zero fields were not seen.
type HostWord struct {
	CPUSeconds       float64
	MemoryPeakBytes  int64
	DiskWrittenBytes int64
	NetworkRxBytes   int64 // what the sandbox received
	NetworkTxBytes   int64
}

// LogFacts are the log's own.
type LogFacts struct {
	Bytes     int64
	Truncated bool
}

// MaxMessage bounds the message of a record.
const MaxMessage = 1024

// The limits of sandbox.LimitHit.
const (
	LimitDisk      = "disk"
	LimitProcesses = "processes"
	LimitMemory    = "memory"
)

// Compose makes the exit record. The cause is the one that came first,
// whatever the guest says; code and signal are only there when the cause is
// the command's own end. Exited or Signaled without the guest's word is a
// fault of ours and recorded as one.
func Compose(f Facts) sandbox.ExitRecord {
	r := sandbox.ExitRecord{Cause: f.Cause, Message: f.Message}
	own := f.Cause == sandbox.Exited || f.Cause == sandbox.Signaled
	switch {
	case !f.Cause.Valid():
		r.Cause, r.Message = sandbox.Internal, fmt.Sprintf("it ended with the unknown cause %q", f.Cause)
	case own && f.Guest == nil:
		r.Cause, r.Message = sandbox.Internal, "it ended without the guest's word on how"
	case own && f.Guest.Signal != 0:
		r.Cause, r.Signal = sandbox.Signaled, f.Guest.Signal
	case own:
		code := f.Guest.Code
		r.Cause, r.Code = sandbox.Exited, &code
	}
	r.Source = r.Cause.Source()
	if r.Message == "" {
		r.Message = message(r)
	}
	r.Message = clip(r.Message)
	r.LimitsHit = limitsHit(f.Guest)
	r.Usage = usage(f)
	return r
}

// message is the sentence for a cause that came without one.
func message(r sandbox.ExitRecord) string {
	switch r.Cause {
	case sandbox.Exited:
		return fmt.Sprintf("the command exited with code %d", *r.Code)
	case sandbox.Signaled:
		return fmt.Sprintf("the command died of signal %d", r.Signal)
	}
	for _, c := range sandbox.Causes() {
		if c.Cause == r.Cause {
			return strings.TrimSuffix(strings.SplitN(c.Meaning, ";", 2)[0], ".")
		}
	}
	return ""
}

// clip bounds s without cutting a character in two.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxMessage {
		return s
	}
	n := MaxMessage - len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func limitsHit(g *GuestWord) []sandbox.LimitHit {
	if g == nil {
		return nil
	}
	var hits []sandbox.LimitHit
	for _, h := range []sandbox.LimitHit{
		{Limit: LimitDisk, Count: g.DiskFull},
		{Limit: LimitProcesses, Count: g.ProcessLimitHits},
		{Limit: LimitMemory, Count: g.MemoryKills},
	} {
		if h.Count > 0 {
			hits = append(hits, h)
		}
	}
	return hits
}

// usage takes the guest's word only for what the host did not see.
func usage(f Facts) sandbox.Usage {
	u := sandbox.Usage{
		CPUSeconds: f.Host.CPUSeconds, MemoryPeakBytes: f.Host.MemoryPeakBytes,
		DiskWrittenBytes: f.Host.DiskWrittenBytes,
		NetworkRxBytes:   f.Host.NetworkRxBytes,
		NetworkTxBytes:   f.Host.NetworkTxBytes,
		LogBytes:         f.Log.Bytes, LogTruncated: f.Log.Truncated,
	}
	if f.Guest == nil {
		return u
	}
	if u.CPUSeconds == 0 {
		u.CPUSeconds = max(0, f.Guest.CPUSeconds)
	}
	if u.MemoryPeakBytes == 0 {
		u.MemoryPeakBytes = max(0, f.Guest.MemoryPeakBytes)
	}
	return u
}

// Retention says how long the records of ended sandboxes are kept. The zero
// value keeps everything.
type Retention struct {
	Age   time.Duration // 0: for ever
	Count int           // 0: any number
}

// DefaultRetention keeps a week, and no more than ten thousand.
func DefaultRetention() Retention { return Retention{Age: 7 * 24 * time.Hour, Count: 10000} }

// Validate refuses what would remove records nobody could have read.
func (r Retention) Validate() error {
	if r.Age < 0 || (r.Age > 0 && r.Age < time.Minute) {
		return fault.Invalid("records.keep_age", "give at least a minute, or 0 to keep them for ever", "records cannot be kept for %v", r.Age)
	}
	if r.Count < 0 {
		return fault.Invalid("records.keep_count", "give a number above 0, or 0 for any number", "%d records cannot be kept", r.Count)
	}
	return nil
}
