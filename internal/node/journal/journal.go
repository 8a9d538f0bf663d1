// Package journal is the node's durable book: what it was assigned, whether it
// may execute, which VM is whose, and ends that are not acknowledged yet.
//
// There is one file a sandbox, appended to and synced before a step is
// answered; each frame in it is the whole entry, and the last whole one
// counts, so a torn write loses a step and never the entry. Sandboxes that are
// gone are remembered in one more file for as long as their verdict lives, so
// that an order cannot be played again. No secret is ever written.
package journal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Entry is one sandbox of the node.
type Entry struct {
	Assignment sandbox.Assignment `json:"assignment"`
	Verdict    sandbox.Digest     `json:"verdict"`
	Expires    time.Time          `json:"expires"` // of the verdict
	Template   sandbox.Digest     `json:"template"`
	Guest      sandbox.Digest     `json:"guest"`
	Resources  sandbox.Resources  `json:"resources"`
	AssignedAt time.Time          `json:"assigned_at"`
	AcceptedAt time.Time          `json:"accepted_at,omitzero"` // the leave to execute came
	StartedAt  time.Time          `json:"started_at,omitzero"`  // the order to execute is about to leave
	VM         tartarus.Handle    `json:"vm"`                   // zero until it runs
	Start      string             `json:"start,omitempty"`      // how it began, as in the record's runtime
	UID        int                `json:"uid,omitempty"`
	Card       string             `json:"card,omitempty"` // the port of its network card
	End        *sandbox.End       `json:"end,omitempty"`  // not acknowledged yet
}

// check refuses an entry that no node could have written.
func (e Entry) check() error {
	if !e.Assignment.Sandbox.Valid() || e.Assignment.Attempt < 1 {
		return errors.New("it names no assignment")
	}
	return nil
}

// held is an entry in the journal's hands. Changing e takes both locks, step
// first.
type held struct {
	step sync.Mutex // held through a step, so that none overwrites another
	e    Entry
}

// Journal is the book of one node. All methods may be called at once.
type Journal struct {
	dir string
	log *slog.Logger
	had *memory

	mu      sync.Mutex // guards entries, and reading what is in them
	entries map[sandbox.ID]*held
}

const hadFile = "had"

// Open opens the journal in dir, which it makes if need be, and returns what
// an earlier process left in it, oldest first. dir is this process's alone.
// logger may be nil.
func Open(dir string, logger *slog.Logger) (*Journal, []Entry, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	j := &Journal{dir: dir, log: logger, entries: map[sandbox.ID]*held{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("opening the journal: %w", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the journal: %w", err)
	}
	for _, n := range names {
		if id := sandbox.ID(n.Name()); id.Valid() {
			if err := j.load(id); err != nil {
				return nil, nil, fmt.Errorf("opening the journal: %w", err)
			}
		} else if strings.HasSuffix(n.Name(), tempSuffix) {
			_ = os.Remove(filepath.Join(dir, n.Name())) // half made; made again when needed
		}
	}
	if j.had, err = openMemory(filepath.Join(dir, hadFile), time.Now()); err != nil {
		return nil, nil, fmt.Errorf("opening the journal: %w", err)
	}
	return j, j.Entries(), nil
}

// load reads one file and cuts its torn end off.
func (j *Journal) load(id sandbox.ID) error {
	path := j.path(id)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var last *Entry
	good := decodeFrames(b, func(payload []byte) bool {
		var e Entry
		if decodeStrict(payload, &e) != nil || e.check() != nil || e.Assignment.Sandbox != id {
			return false
		}
		last = &e
		return true
	})
	if last == nil {
		if versioned(b) {
			return fault.New(fault.Unsupported, "the journal of %q is of another version", id).
				WithHint("run the version of tartarus that wrote it until its sandboxes have ended")
		}
		// Its first write was torn: the assignment was never answered.
		j.log.Warn("an entry of the journal has nothing whole in it and is removed", "sandbox", id)
		return os.Remove(path)
	}
	if good < len(b) {
		j.log.Warn("the journal of a sandbox had a torn end, which is cut off", "sandbox", id, "bytes", len(b)-good)
		if err := os.Truncate(path, int64(good)); err != nil {
			return err
		}
	}
	j.entries[id] = &held{e: *last}
	return nil
}

// otherVersion is the first line of a journal that this code did not write.
var otherVersion = regexp.MustCompile(`^tartarus journal [0-9]{1,9}\n`)

func versioned(b []byte) bool {
	return otherVersion.Match(b) && !strings.HasPrefix(string(b), magic)
}

func (j *Journal) path(id sandbox.ID) string { return filepath.Join(j.dir, string(id)) }

// Assign writes a new entry, durably. It is a Conflict when the node has the
// sandbox already, or had it: then only a later attempt of one that was never
// accepted is let in.
func (j *Journal) Assign(e Entry) error {
	if err := e.check(); err != nil {
		return fault.Wrap(fault.InvalidArgument, err, "the assignment cannot be kept")
	}
	id := e.Assignment.Sandbox
	h := &held{e: e}
	h.step.Lock()
	defer h.step.Unlock()
	j.mu.Lock()
	_, here := j.entries[id]
	had := j.had.forbids(id, e.Assignment.Attempt)
	if !here && !had {
		j.entries[id] = h // claimed; taken back when it cannot be written
	}
	j.mu.Unlock()
	switch {
	case here:
		return fault.New(fault.Conflict, "the node has sandbox %q already", id)
	case had:
		return fault.New(fault.Conflict, "the node has had sandbox %q: it never runs again here", id)
	}
	if err := j.create(&e); err != nil {
		j.mu.Lock()
		delete(j.entries, id)
		j.mu.Unlock()
		return fault.Wrap(fault.Unavailable, err, "the node's journal cannot be written")
	}
	return nil
}

func (j *Journal) create(e *Entry) error {
	b, err := appendFrame([]byte(magic), e)
	if err != nil {
		return err
	}
	path := j.path(e.Assignment.Sandbox)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Update changes an entry, durably. change must not change the assignment.
func (j *Journal) Update(id sandbox.ID, change func(*Entry)) error {
	h, old, ok := j.take(id)
	if !ok {
		return fault.New(fault.NotFound, "the journal has no sandbox %q", id)
	}
	defer h.step.Unlock()
	e := old
	change(&e)
	if e.Assignment != old.Assignment {
		return fault.New(fault.Internal, "an assignment cannot be changed")
	}
	if err := j.append(&e); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the node's journal cannot be written")
	}
	j.mu.Lock()
	h.e = e
	j.mu.Unlock()
	return nil
}

// take returns an entry with its step locked.
func (j *Journal) take(id sandbox.ID) (*held, Entry, bool) {
	j.mu.Lock()
	h, ok := j.entries[id]
	j.mu.Unlock()
	if !ok {
		return nil, Entry{}, false
	}
	h.step.Lock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.entries[id] != h { // it went while its step was under way
		h.step.Unlock()
		return nil, Entry{}, false
	}
	return h, h.e, true
}

func (j *Journal) append(e *Entry) error {
	b, err := appendFrame(nil, e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path(e.Assignment.Sandbox), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync()); err != nil {
		// Frames behind a torn one would never be read.
		err = errors.Join(err, f.Truncate(end))
	}
	return errors.Join(err, f.Close())
}

// Remove ends the keeping of an entry, and remembers that the node had it. It
// is no error when there is none.
func (j *Journal) Remove(id sandbox.ID) error {
	h, e, ok := j.take(id)
	if !ok {
		return nil
	}
	defer h.step.Unlock()
	err := j.had.add(ghost{
		Sandbox: id, Attempt: e.Assignment.Attempt, Accepted: !e.AcceptedAt.IsZero(), Expires: e.Expires,
	}, time.Now())
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the node's journal cannot be written")
	}
	if err := os.Remove(j.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "the node's journal cannot be written")
	}
	j.mu.Lock()
	delete(j.entries, id)
	j.mu.Unlock()
	return nil
}

// Get is a copy of an entry.
func (j *Journal) Get(id sandbox.ID) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if h, ok := j.entries[id]; ok {
		return h.e, true
	}
	return Entry{}, false
}

// Entries are copies of all entries, oldest first.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]Entry, 0, len(j.entries))
	for _, h := range j.entries {
		all = append(all, h.e)
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return strings.Compare(string(a.Assignment.Sandbox), string(b.Assignment.Sandbox))
	})
	return all
}

// Close gives the journal's files up. No step may be under way.
func (j *Journal) Close() error { return j.had.close() }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
