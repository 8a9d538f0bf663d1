package assembly

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

func TestMain(m *testing.M) {
	launcher.Main()
	os.Exit(m.Run())
}

func TestStateFolder(t *testing.T) {
	t.Run("is made private, and opened again", func(t *testing.T) {
		root := filepath.Join(t.TempDir(), "a", "state")
		for range 2 {
			if _, err := openState(root); err != nil {
				t.Fatal(err)
			}
		}
		st, err := os.Stat(root)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	})
	refused := func(name, want string, spoil func(t *testing.T, root string)) {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "state")
			if _, err := openState(root); err != nil {
				t.Fatal(err)
			}
			spoil(t, root)
			_, err := openState(root)
			if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
			var e *fault.Error
			if errors.As(err, &e) && e.Hint == "" {
				t.Error("the error does not say what to do")
			}
		})
	}
	refused("open to others", "open to others", func(t *testing.T, root string) { must(t, os.Chmod(root, 0o755)) })
	refused("of a newer version", `version "2"`, func(t *testing.T, root string) {
		must(t, os.WriteFile(paths{root}.version(), []byte("2\n"), 0o600))
	})
	refused("of no version", `version "soup"`, func(t *testing.T, root string) {
		must(t, os.WriteFile(paths{root}.version(), []byte("soup"), 0o600))
	})
	if os.Geteuid() == 0 {
		refused("another's", "belongs to user 65534", func(t *testing.T, root string) { must(t, os.Chown(root, 65534, 65534)) })
	}
	t.Run("that cannot be made", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(file, nil, 0o600))
		if _, err := openState(filepath.Join(file, "state")); err == nil {
			t.Error("made below a file")
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLockIsHeldOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	first, err := tryLock(name)
	must(t, err)
	if _, err := tryLock(name); !errors.Is(err, errHeld) {
		t.Errorf("the second got %v", err)
	}
	must(t, first.Close())
	again, err := tryLock(name)
	must(t, err)
	must(t, again.Close())
}

func TestDefaultState(t *testing.T) {
	env := func(kv ...string) func(string) string {
		return func(k string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == k {
					return kv[i+1]
				}
			}
			return ""
		}
	}
	for _, tc := range []struct {
		uid  int
		env  func(string) string
		want string
	}{
		{0, env("HOME", "/root"), "/var/lib/tartarus"},
		{1000, env("HOME", "/home/a"), "/home/a/.local/state/tartarus"},
		{1000, env("HOME", "/home/a", "XDG_STATE_HOME", "/home/a/s"), "/home/a/s/tartarus"},
		{1000, env("HOME", "/home/a", "XDG_STATE_HOME", "relative"), "/home/a/.local/state/tartarus"},
		{0, env("TARTARUS_STATE", "/srv/t"), "/srv/t"},
	} {
		got, err := DefaultState(tc.uid, tc.env)
		if err != nil || got != tc.want {
			t.Errorf("user %d: %q, %v; want %q", tc.uid, got, err, tc.want)
		}
	}
	if _, err := DefaultState(1000, env()); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("without HOME: %v", err)
	}
}
