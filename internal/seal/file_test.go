package seal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signing.key")
	k, err := seal.LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	again, err := seal.LoadOrCreateKey(path)
	if err != nil || again.ID() != k.ID() || !again.Public().Equal(k.Public()) {
		t.Errorf("loaded key %v, %v; want %v", again, err, k.ID())
	}
	for _, junk := range []string{"", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.LoadOrCreateKey(path); !fault.Is(err, fault.Conflict) {
			t.Errorf("a file of %q: %v", junk, err)
		}
		if _, err := seal.LoadOrCreateBox(path); !fault.Is(err, fault.Conflict) {
			t.Errorf("a box of %q: %v", junk, err)
		}
	}
}

func TestBoxFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "box.key")
	box, err := seal.LoadOrCreateBox(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := box.Seal(firstID, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.LoadOrCreateBox(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := again.Open(firstID, sealed); err != nil || string(b) != "x" {
		t.Errorf("opened %q, %v", b, err)
	}
}

func TestSecretFileRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode, size int) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, bytes.Repeat([]byte("x"), size), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return p
	}
	good := file("good", 0o600, 1)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		file("group", 0o640, 1):     "0640",
		file("world", 0o604, 1):     "0604",
		file("large", 0o600, 5<<10): "more than",
		link:                        "symbolic link",
		fifo:                        "plain file",
		dir:                         "plain file",
	}
	if os.Geteuid() == 0 {
		p := file("theirs", 0o600, 1)
		if err := os.Chown(p, 4242, 4242); err != nil {
			t.Fatal(err)
		}
		cases[p] = "user 4242 owns it"
	}
	made := func() ([]byte, error) { t.Error("a file was made over another"); return nil, nil }
	for path, part := range cases {
		_, err := seal.ReadOrCreateFile(path, made)
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v; want conflict with %q", path, err, part)
		}
	}
	if b, err := seal.ReadOrCreateFile(good, made); err != nil || string(b) != "x" {
		t.Errorf("good: %q, %v", b, err)
	}
}

func TestManyCreateOne(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	var wg sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		wg.Go(func() {
			k, err := seal.LoadOrCreateKey(path)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = k.ID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("different keys: %v", ids)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}
