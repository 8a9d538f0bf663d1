package themis

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Source hands out the policy that holds now. Who judges a request asks once
// and keeps to that value.
type Source struct {
	path   string // "" for the built-in policy
	active atomic.Pointer[Policy]
	reload sync.Mutex // one Reload at a time
}

// OpenSource reads the policy file at path, or takes the built-in policy when
// path is "".
func OpenSource(path string) (*Source, error) {
	s := &Source{path: path}
	if _, err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Active is the policy that holds now.
func (s *Source) Active() *Policy { return s.active.Load() }

// Reload reads the policy again and tells whether it changed. After an error
// the policy that held goes on to hold.
func (s *Source) Reload() (changed bool, err error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	text := []byte(defaultText)
	if s.path != "" {
		if text, err = readPolicyFile(s.path); err != nil {
			return false, err
		}
	}
	p, err := Parse(text)
	if err != nil {
		return false, fmt.Errorf("reading policy %s: %w", s.path, err)
	}
	old := s.active.Swap(p)
	return old == nil || old.version != p.version, nil
}

// readPolicyFile follows no symbolic link out of the file's folder. (Within
// it they are how a mounted ConfigMap changes in one step.)
func readPolicyFile(path string) ([]byte, error) {
	b, err := readInFolder(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no policy file %s", path).
			WithHint("Give the path of a policy file, or none to use the built-in policy.")
	case err != nil:
		return nil, fmt.Errorf("reading policy %s: %w", path, err)
	}
	return b, nil
}

func readInFolder(path string) ([]byte, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := root.Stat(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is no plain file")
	}
	f, err := root.Open(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxPolicyBytes+1)) // Parse refuses the byte too many
}
