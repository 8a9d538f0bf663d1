package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// folder is the VMM's own, held by a descriptor. Whoever took the VMM over may
// have put anything into it.
type folder struct{ f *os.File }

var errNotYet = errors.New("the jail is not entered yet")

// openFolder opens the VMM's folder: of a jail the root, which only the
// process itself leads to.
func (v *vm) openFolder() (*folder, error) {
	if v.d.jailer == "" {
		return openDir(filepath.Join(v.boot.spec.Dir, runFolder))
	}
	id := v.proc.VMM()
	d, err := openDir("/proc/" + strconv.Itoa(id.Pid) + "/root")
	if err != nil {
		return nil, fmt.Errorf("finding the jail: %w", err)
	}
	// Until the jailer has entered the jail, its root is ours; and the pid is
	// known to be the VMM's only while that lives.
	inside, err := d.apart()
	if err == nil && !id.Alive() {
		err = errEnded
	}
	if err == nil && !inside {
		err = errNotYet
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func openDir(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &folder{os.NewFile(uintptr(fd), path)}, nil
}

// apart reports whether the folder is on another file system than our root.
func (d *folder) apart() (bool, error) {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &theirs); err != nil {
		return false, err
	}
	if err := unix.Stat("/", &ours); err != nil {
		return false, err
	}
	return theirs.Dev != ours.Dev, nil
}

func (d *folder) close() { _ = d.f.Close() }

// open opens what bears that name in the folder, if it is of that kind: not a
// link, nor anything that a link leads to, nor a mount.
func (d *folder) open(name string, flags int, kind uint32) (*os.File, error) {
	fd, err := unix.Openat2(int(d.f.Fd()), name, &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != kind {
		_ = f.Close()
		return nil, fmt.Errorf("%s in the VMM's folder is not what it should be: mode %o", name, st.Mode)
	}
	return f, nil
}

// connect opens a stream to a socket in the folder. It does not wait for
// somebody to listen.
func (d *folder) connect(ctx context.Context, name string) (net.Conn, error) {
	// Opened as a path, nothing has happened to it; connecting through the
	// descriptor reaches that very socket, however long its path.
	f, err := d.open(name, unix.O_PATH, unix.S_IFSOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close() // an O_PATH descriptor holds nothing back
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", name, err)
	}
	return conn, nil
}

// connect opens a stream to one of the VMM's sockets.
func (v *vm) connect(ctx context.Context, name string) (net.Conn, error) {
	d, err := v.openFolder()
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.connect(ctx, name)
}

// notThere reports whether an error says that nobody listens yet.
func notThere(err error) bool {
	return errors.Is(err, errNotYet) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}
