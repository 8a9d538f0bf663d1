package seal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// maxSecretFile bounds what a secret file may hold; ours have one line or one
// PEM block.
const maxSecretFile = 4 << 10

// ReadOrCreateFile reads the secret file at path, or creates it with what
// make returns, mode 0600. Of any number of processes that create it at once
// one wins, and all return its content. A file that others may read or write,
// that another user owns, or that is no plain file is refused.
func ReadOrCreateFile(path string, make func() ([]byte, error)) ([]byte, error) {
	b, err := readSecretFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	content, err := make()
	if err != nil {
		return nil, fmt.Errorf("making the content of %s: %w", path, err)
	}
	if err := createSecretFile(path, content); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("creating %s: %w", path, err)
	}
	return readSecretFile(path)
}

func readSecretFile(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO in its place must not make us wait.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return nil, refuseFile(path, "it is a symbolic link")
		}
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, refuseFile(path, "it is no plain file")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, refuseFile(path, fmt.Sprintf("its mode is %#o, so that others may reach it", st.Mode().Perm()))
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return nil, refuseFile(path, fmt.Sprintf("user %d owns it", sys.Uid))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxSecretFile {
		return nil, refuseFile(path, fmt.Sprintf("it has more than %d bytes", maxSecretFile))
	}
	return b, nil
}

func refuseFile(path, why string) error {
	return fault.New(fault.Conflict, "the secret file %s is refused: %s", path, why).
		WithHint("If it is yours: chown it to the user that runs Tartarus and chmod it to 0600. If others may have read it, remove it, so that a new one is made.")
}

// createSecretFile makes the file whole or not at all: it is written under
// another name, made durable, and then linked, which fails with fs.ErrExist if
// another process was faster.
func createSecretFile(path string, content []byte) (err error) {
	var suffix [8]byte
	rand.Read(suffix[:]) // never fails
	tmp := path + ".tmp-" + hex.EncodeToString(suffix[:])
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp)) }()
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
