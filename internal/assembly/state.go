package assembly

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// stateVersion is the version of the layout below. 1: the first.
const stateVersion = 1

// paths is the layout of a state folder.
//
//	version      the layout's version
//	blobs/       images and ended logs, shared by every process on the folder
//	nyx/         names of templates, the guest bundle
//	lethe/       empty disks to clone
//	admin-token  the first token
//	kvm.json     what the trial boot on KVM said
//	up/          what an up keeps (home)
//	local/ID/    what one run --local or bench keeps (home), removed at its end
type paths struct{ root string }

func (p paths) version() string     { return filepath.Join(p.root, "version") }
func (p paths) blobs() string       { return filepath.Join(p.root, "blobs") }
func (p paths) nyx() string         { return filepath.Join(p.root, "nyx") }
func (p paths) lethe() string       { return filepath.Join(p.root, "lethe") }
func (p paths) firecracker() string { return filepath.Join(p.root, "firecracker") }
func (p paths) kvm() string         { return filepath.Join(p.root, "kvm.json") }
func (p paths) up() home            { return home{filepath.Join(p.root, "up")} }
func (p paths) locals() string      { return filepath.Join(p.root, "local") }
func (p paths) adminToken() string  { return filepath.Join(p.root, "admin-token") }

// home is what one process keeps: the book, the keys, the node.
type home struct{ root string }

func (h home) lock() string   { return filepath.Join(h.root, "lock") }
func (h home) ledger() string { return filepath.Join(h.root, "ledger.db") }
func (h home) key() string    { return filepath.Join(h.root, "signing.key") }
func (h home) public() string { return filepath.Join(h.root, "signing.pub") }
func (h home) box() string    { return filepath.Join(h.root, "secrets.key") }
func (h home) node() string   { return filepath.Join(h.root, "node") }
func (h home) saves() string  { return filepath.Join(h.node(), "saves") } // of VMs that become snapshots
func (h home) logs() string   { return filepath.Join(h.root, "logs") }
func (h home) run() string    { return filepath.Join(h.root, "run") }
func (h home) socket() string { return filepath.Join(h.run(), "api.sock") }

// newLocal makes the home of one command, locked. remove takes it away; should
// this process die before, whoever comes next sweeps it.
func (p paths) newLocal() (_ home, remove func() error, err error) {
	h := home{filepath.Join(p.locals(), newULID())}
	if err := privateDir(h.root); err != nil {
		return home{}, nil, err
	}
	lock, err := tryLock(h.lock())
	if err != nil {
		return home{}, nil, err
	}
	// The lock is held until the end: nobody else sweeps what goes away here.
	return h, func() error { return errors.Join(os.RemoveAll(h.root), lock.Close()) }, nil
}

// DefaultState is the state folder of this user.
func DefaultState(uid int, getenv func(string) string) (string, error) {
	if dir := getenv("TARTARUS_STATE"); dir != "" {
		return filepath.Abs(dir)
	}
	if uid == 0 {
		return "/var/lib/tartarus", nil
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tartarus"), nil
	}
	if dir := getenv("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, ".local", "state", "tartarus"), nil
	}
	return "", fault.New(fault.InvalidArgument, "there is no place for the state: neither HOME nor XDG_STATE_HOME is set").
		WithHint("name a folder with --state")
}

// openState makes the state folder if it is not there, and checks what is:
// private, ours, and of a version that this program knows.
func openState(root string) (paths, error) {
	p := paths{root}
	for _, dir := range []string{root, p.locals()} {
		if err := privateDir(dir); err != nil {
			return paths{}, err
		}
	}
	b, err := os.ReadFile(p.version())
	if errors.Is(err, os.ErrNotExist) {
		return p, writeFile(p.version(), []byte(strconv.Itoa(stateVersion)+"\n"))
	}
	if err != nil {
		return paths{}, fmt.Errorf("reading the state's version: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || v != stateVersion {
		return paths{}, fault.New(fault.Conflict, "state folder %s has version %q, and this program knows %d", root, strings.TrimSpace(string(b)), stateVersion).
			WithHint("use the program that made it, or another folder with --state")
	}
	return p, nil
}

// privateDir makes dir with mode 0700, or checks that it is that and ours.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the folder %s cannot be made", dir).WithHint("name another state folder with --state, or mend its permissions")
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if !st.IsDir() {
		return fault.New(fault.Conflict, "%s is not a folder", dir)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fault.New(fault.Conflict, "the folder %s is open to others (mode %04o)", dir, st.Mode().Perm()).WithHint("chmod 0700 %s", dir)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return fault.New(fault.Conflict, "the folder %s belongs to user %d", dir, sys.Uid).WithHint("run as that user, or name another folder with --state")
	}
	return nil
}

// writeFile writes a small file whole or not at all.
func writeFile(name string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return os.Rename(tmp.Name(), name)
}

// errHeld says that another process holds the lock.
var errHeld = errors.New("another process holds it")

// tryLock takes the lock file, or fails with errHeld. The kernel gives it back
// when the process ends, however that happens.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", name, errHeld)
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return f, nil
}
