package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Unix socket's address has room for 107 bytes and a folder's path for many
// more, so sockets are named through a descriptor of their folder.
func withSocketName(path string, do func(name string) error) error {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir) // an O_PATH descriptor holds nothing back
	return do("/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path))
}

// listen makes a listening socket at path, in place of whatever was left
// there. The file it returns is to be handed to QEMU, which accepts on it.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = withSocketName(path, func(name string) error {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.Chmod(name, 0o600)
	})
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 4))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return f, nil
}

// connect opens a stream to the socket at path. It does not wait for somebody
// to listen.
func connect(ctx context.Context, path string) (net.Conn, error) {
	var conn net.Conn
	err := withSocketName(path, func(name string) error {
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return conn, nil
}
