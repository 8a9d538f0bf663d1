package olympus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// origin is what a connection says of who calls.
type origin struct {
	name    string // unix or local; empty for TCP
	trusted bool
}

type originKey struct{}

// Trusted marks a listener of this very process (in memory): whoever calls
// through it is Config.Local.
func Trusted(l net.Listener) net.Listener { return trustedListener{l} }

type trustedListener struct{ net.Listener }

func (l trustedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return trustedConn{c}, nil
}

type trustedConn struct{ net.Conn }

// originOf asks a new connection who it is, once.
func originOf(ctx context.Context, c net.Conn) context.Context {
	switch c := c.(type) {
	case trustedConn:
		return context.WithValue(ctx, originKey{}, origin{name: "local", trusted: true})
	case *net.UnixConn:
		uid, err := peerUID(c)
		own := err == nil && (uid == 0 || uid == uint32(os.Getuid()))
		return context.WithValue(ctx, originKey{}, origin{name: "unix", trusted: own})
	}
	return ctx
}

// peerUID is the user at the other end of a Unix socket, as the kernel says.
func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}

// checkListener refuses to speak plain HTTP beyond this host.
func checkListener(l net.Listener) error {
	if _, ok := l.(secure); ok {
		return nil
	}
	if addr, ok := l.Addr().(*net.TCPAddr); ok && !addr.IP.IsLoopback() {
		return fault.New(fault.Unsupported, "plain HTTP on %s would show tokens to the network", addr).
			WithHint("Listen on 127.0.0.1 or on a Unix socket, or give it a certificate (--tls-cert, --tls-key).")
	}
	return nil
}

// ListenTCP listens on a loopback address, as in 127.0.0.1:7777.
func ListenTCP(ctx context.Context, addr string) (net.Listener, error) {
	l, err := listenTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	if err := checkListener(l); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fault.Wrap(fault.Conflict, err, "%s is in use", addr).WithHint("Another server may be running; stop it, or choose another address.")
		}
		return nil, fault.Wrap(fault.InvalidArgument, err, "%s cannot be listened on", addr).WithHint("Give an address of this host, as in 127.0.0.1:7777.")
	}
	return l, nil
}

// maxSocketPath is what fits into sockaddr_un.
const maxSocketPath = 107

// ListenUnix listens on a socket in a folder that is its owner's alone: it
// makes the folder 0700, and refuses one that others may enter. A socket that
// nobody listens on any more is removed first.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fault.New(fault.InvalidArgument, "the socket's path has %d bytes, and at most %d fit", len(path), maxSocketPath).
			WithHint("Choose a shorter state folder.")
	}
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", path, err), l.Close())
	}
	return l, nil
}

func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the socket's folder: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("looking at the socket's folder: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || owner.Uid != uint32(os.Getuid()) {
		return fault.New(fault.Conflict, "the socket's folder %s is open to others, or theirs", dir).
			WithHint("Make it private: chmod 700 %s", dir)
	}
	return nil
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fault.New(fault.Conflict, "%s is there, and is no socket", path).WithHint("Move it away.")
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fault.New(fault.Conflict, "somebody listens on %s", path).
			WithHint("A server of the same state folder runs already."), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("trying %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	return nil
}
