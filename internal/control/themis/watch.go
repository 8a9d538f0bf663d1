package themis

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Run takes over new versions until ctx ends. It is told of changes by the
// kernel, and looks by itself every Poll besides: a watch sees neither a change
// behind a link, nor one on a file system of another machine.
func (s *Source) Run(ctx context.Context) error {
	if s.cfg.Path == "" {
		return nil
	}
	w := newWatch(s)
	defer w.close()
	poll := time.NewTicker(s.cfg.Poll)
	defer poll.Stop()
	settle := time.NewTimer(0) // what changed before the watch stood
	defer settle.Stop()
	var first time.Time // of the events that wait to be over; zero if none do
	watching := false
	events, errs := w.channels()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errs:
			s.cfg.Logger.WarnContext(ctx, "watching the policy failed; it is looked at from time to time", "error", err)
			continue
		case e := <-events:
			if !w.concerns(e) {
				continue
			}
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			settle.Reset(min(s.cfg.Settle, time.Until(first.Add(mostSettles*s.cfg.Settle))))
			continue
		case <-poll.C:
		case <-settle.C:
		}
		first = time.Time{}
		w.arm(ctx)
		if _, err := s.Reload(ctx); errors.Is(err, errMoving) {
			settle.Reset(s.cfg.Settle)
		}
		if !watching {
			watching = true
			s.cfg.Logger.DebugContext(ctx, "the policy is watched", "folder", w.folder)
		}
	}
}

// watch is what the kernel is asked to tell of: the policy's folder, and the
// folder around it, in which that may be replaced as a whole.
type watch struct {
	s        *Source
	notify   *fsnotify.Watcher // nil: the kernel tells nothing
	folder   string            // with the policy in it
	watching map[string]os.FileInfo
}

func newWatch(s *Source) *watch {
	w := &watch{s: s, folder: s.cfg.Path, watching: map[string]os.FileInfo{}}
	if st, err := os.Stat(s.cfg.Path); err != nil || !st.IsDir() {
		w.folder = filepath.Dir(s.cfg.Path)
	}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		s.cfg.Logger.Warn("the policy cannot be watched; it is looked at from time to time", "error", err)
		return w
	}
	w.notify = n
	return w
}

func (w *watch) channels() (<-chan fsnotify.Event, <-chan error) {
	if w.notify == nil {
		return nil, nil
	}
	return w.notify.Events, w.notify.Errors
}

// concerns reports whether e may be a change of the policy.
func (w *watch) concerns(e fsnotify.Event) bool {
	return filepath.Dir(e.Name) == w.folder || e.Name == w.folder
}

// arm watches the folders that have these names now.
func (w *watch) arm(ctx context.Context) {
	if w.notify == nil {
		return
	}
	for _, dir := range []string{w.folder, filepath.Dir(w.folder)} {
		st, err := os.Stat(dir)
		if err != nil {
			delete(w.watching, dir)
			continue // Reload says so
		}
		if old := w.watching[dir]; old != nil && os.SameFile(old, st) {
			continue
		}
		_ = w.notify.Remove(dir) // the one that had its name
		if err := w.notify.Add(dir); err != nil {
			w.s.cfg.Logger.WarnContext(ctx, "a folder of the policy cannot be watched; it is looked at from time to time", "folder", dir, "error", err)
			continue
		}
		w.watching[dir] = st
	}
}

func (w *watch) close() {
	if w.notify != nil {
		_ = w.notify.Close() // nothing depends on it any more
	}
}
