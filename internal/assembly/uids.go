package assembly

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hecatoncheir"
	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

// User IDs for VMMs, with root: each VMM that runs has one that no other has.
// The range is the host's; its processes take blocks of it, by lock files that
// whoever uses the range shares. A few large blocks are for servers, many small
// ones for runs in processes of their own.
const (
	uidsDefault  = "200000-225999"
	uidsLeast    = 64 // in a range
	uidsOfLocal  = 16 // in a small block
	upBlocks     = 4
	upShare      = 10.0 / 26 // of the range, for the large ones together
	lowestUID    = 1000      // below are a distribution's own
	highestUID   = 1<<31 - 2
	uidLockNames = "uids-%d.lock"
	uidLockFiles = "uids-*.lock"
)

// parseUIDs reads FIRST-LAST.
func parseUIDs(text string) (hecatoncheir.UIDRange, error) {
	if text == "" {
		text = uidsDefault
	}
	a, b, ok := strings.Cut(text, "-")
	first, err1 := strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || first < lowestUID || last > highestUID || last-first+1 < uidsLeast {
		return hecatoncheir.UIDRange{}, fault.Invalid("vmm-uids", fmt.Sprintf("give FIRST-LAST, at least %d from %d on that nothing else on the host has, such as %s", uidsLeast, lowestUID, uidsDefault),
			"%q is no range of user IDs", text)
	}
	return hecatoncheir.UIDRange{First: first, Count: last - first + 1}, nil
}

// blocks are the parts of a range that processes take, for servers or for runs
// in processes of their own.
func blocks(all hecatoncheir.UIDRange, local bool) []hecatoncheir.UIDRange {
	large := int(float64(all.Count)*upShare) / upBlocks
	size, first, end := large, all.First, all.First+upBlocks*large
	if local {
		size, first, end = uidsOfLocal, end, all.First+all.Count
	}
	var out []hecatoncheir.UIDRange
	for ; first+size <= end; first += size {
		out = append(out, hecatoncheir.UIDRange{First: first, Count: size})
	}
	return out
}

// takeUIDs reserves user IDs for this process's VMMs; not as an ordinary user.
func (e *embedded) takeUIDs() error {
	all, err := parseUIDs(e.cfg.VMM.UIDs)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	for _, block := range blocks(all, e.cfg.Local && e.cfg.Beside == 0) {
		if block.Count <= e.cfg.Beside {
			return fault.Invalid("vmm-uids", fmt.Sprintf("leave it at %s", uidsDefault), "this range of user IDs is too small for what shall run at once")
		}
		lock, err := hostlock.Try(filepath.Join(hostlock.Dir, fmt.Sprintf(uidLockNames, block.First)))
		if err != nil {
			return err
		}
		if lock != nil {
			e.later(lock.Drop)
			e.uids = hecatoncheir.UIDRange{First: block.First, Count: block.Count - e.cfg.Beside}
			e.beside = hecatoncheir.UIDRange{First: block.First + e.uids.Count, Count: e.cfg.Beside}
			e.sweepUIDs()
			return nil
		}
	}
	return fault.New(fault.Unavailable, "other processes of this host have taken all user IDs for VMMs").
		WithHint("end some of them, or widen the range with --vmm-uids, for all processes alike")
}

// sweepUIDs removes the lock files that killed processes left: whoever comes
// later may take another block, and never come by them.
func (e *embedded) sweepUIDs() {
	files, err := filepath.Glob(filepath.Join(hostlock.Dir, uidLockFiles))
	if err != nil {
		return
	}
	for _, f := range files {
		if lock, err := hostlock.Try(f); err == nil && lock != nil { // nobody's
			if err := lock.Drop(); err != nil {
				e.log.Warn("a lock that was left could not be removed", "file", f, "error", err)
			}
		}
	}
}
