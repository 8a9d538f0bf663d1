package journal

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ghost is a sandbox that the node had.
type ghost struct {
	Sandbox  sandbox.ID `json:"sandbox"`
	Attempt  int        `json:"attempt"`
	Accepted bool       `json:"accepted,omitempty"`
	Expires  time.Time  `json:"expires"` // of its verdict
}

// memory keeps ghosts in one file, which is written anew when most of it is
// of no use any more.
type memory struct {
	path string

	mu      sync.Mutex
	f       *os.File
	ghosts  map[sandbox.ID]ghost
	size    int64
	frames  int   // in the file
	written int64 // grows with every add
	synced  int64 // the adds up to it are durable
	syncing bool
	done    sync.Cond // a sync ended
}

const tempSuffix = ".tmp"

// compactAbove is how many frames a file has before it is written anew.
const compactAbove = 4096

func openMemory(path string, now time.Time) (*memory, error) {
	m := &memory{path: path, ghosts: map[sandbox.ID]ghost{}}
	m.done.L = &m.mu
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	decodeFrames(b, func(payload []byte) bool {
		var g ghost
		if decodeStrict(payload, &g) != nil || !g.Sandbox.Valid() {
			return false
		}
		m.ghosts[g.Sandbox] = g
		return true
	})
	return m, m.rewrite(now)
}

// forbids reports whether an attempt must not be let in again.
func (m *memory) forbids(id sandbox.ID, attempt int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.ghosts[id]
	return ok && (g.Accepted || attempt <= g.Attempt)
}

// add remembers a ghost, durably. Many at once share one sync.
func (m *memory) add(g ghost, now time.Time) error {
	frame, err := appendFrame(nil, g)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f == nil {
		return os.ErrClosed
	}
	for m.frames >= compactAbove && m.frames > 2*m.alive(now) {
		if m.syncing {
			m.done.Wait()
			continue
		}
		if err := m.rewrite(now); err != nil {
			return err
		}
	}
	if _, err := m.f.WriteAt(frame, m.size); err != nil {
		return err // the next one overwrites what got there
	}
	m.size += int64(len(frame))
	m.frames++
	m.written++
	m.ghosts[g.Sandbox] = g
	return m.sync(m.written)
}

// sync makes the adds up to n durable; m.mu is held.
func (m *memory) sync(n int64) error {
	for m.synced < n {
		if m.syncing {
			m.done.Wait()
			continue
		}
		m.syncing = true
		upTo, f := m.written, m.f
		m.mu.Unlock()
		err := f.Sync()
		m.mu.Lock()
		m.syncing = false
		m.done.Broadcast()
		if err != nil {
			return err
		}
		m.synced = max(m.synced, upTo)
	}
	return nil
}

// alive counts the ghosts whose verdict lives, and lets go of the others.
func (m *memory) alive(now time.Time) int {
	for id, g := range m.ghosts {
		if !now.Before(g.Expires) {
			delete(m.ghosts, id)
		}
	}
	return len(m.ghosts)
}

// rewrite puts a new file with what is alive in the place of the old one.
func (m *memory) rewrite(now time.Time) error {
	m.alive(now)
	b := []byte(magic)
	for _, g := range m.ghosts {
		var err error
		if b, err = appendFrame(b, g); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(m.path+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(m.path+tempSuffix, m.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(m.path))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if m.f != nil {
		_ = m.f.Close() // it is no longer the file
	}
	m.f, m.size, m.frames, m.synced = f, int64(len(b)), len(m.ghosts), m.written
	return nil
}

func (m *memory) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f == nil {
		return nil
	}
	err := m.f.Close()
	m.f = nil
	return err
}
