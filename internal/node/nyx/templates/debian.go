package templates

import (
	"context"
	"errors"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

// debianPackages are what template debian has beyond the smallest Debian.
var debianPackages = []string{"python3", "ca-certificates"}

// debianOptions leave out what nobody reads in a sandbox.
var debianOptions = []string{
	"--dpkgopt=path-exclude=/usr/share/man/*",
	"--dpkgopt=path-exclude=/usr/share/info/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*",
	"--dpkgopt=path-exclude=/usr/share/doc/*",
	"--dpkgopt=path-include=/usr/share/doc/*/copyright",
}

// debianTree is a minimal Debian with Python.
func debianTree(ctx context.Context, c Config, t *treeWriter) (string, error) {
	mode, err := debootstrapMode()
	if err != nil {
		return "", err
	}
	suite := c.Host.DebianSuite()
	args := append([]string{"--variant=minbase", "--mode=" + mode, "--format=tar",
		"--include=" + strings.Join(debianPackages, ",")}, debianOptions...)
	args = append(args, suite, "-")
	if c.Mirror != "" {
		args = append(args, c.Mirror)
	}
	cmd, err := distro.Command(ctx, "mmdebstrap", args...)
	if err != nil {
		return "", err
	}
	tmp, done, err := debianScratch(ctx, c, mode)
	if err != nil {
		return "", err
	}
	defer done(ctx)
	// With SOURCE_DATE_EPOCH Python would compile its modules so that it reads
	// and hashes their source at every start; so no file here has its time set
	// by it (see copyTar).
	cmd.Env = append(slices.DeleteFunc(cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, "SOURCE_DATE_EPOCH=") }), "TMPDIR="+tmp)
	steps := newStepReader(c.Progress)
	cmd.Stderr = steps
	r, w := io.Pipe()
	cmd.Stdout = w
	copied := make(chan error, 1)
	go func() {
		err := t.copyTar(r, time.Now().UTC().Truncate(24*time.Hour))
		r.CloseWithError(err)
		copied <- err
	}()
	runErr := distro.Finish(ctx, cmd)
	w.CloseWithError(runErr)
	copyErr := <-copied
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case runErr != nil && errors.Is(copyErr, runErr): // the copy ended because of it, not the other way round
		return "", fault.Wrap(fault.Unavailable, runErr, "mmdebstrap failed").
			WithHint("its last words are in the log; it needs Debian's archive, and mode %s to work here", mode)
	case copyErr != nil:
		return "", copyErr
	}
	return "debian " + suite + " minbase, " + strings.Join(debianPackages, ", "), nil
}

// debianScratch is the folder that the new system grows in.
func debianScratch(ctx context.Context, c Config, mode string) (dir string, done func(context.Context), err error) {
	if mode != "unshare" {
		dir, err = os.MkdirTemp(c.Dir, "debian-*")
		return dir, func(context.Context) { os.RemoveAll(dir) }, err
	}
	// Its owner is one of the user's subordinate IDs, who may not pass the
	// private folders above c.Dir.
	sweepSubordinate(ctx, c)
	if dir, err = os.MkdirTemp("", subordinatePrefix+"*"); err != nil {
		return "", nil, err
	}
	held, err := os.Open(dir)
	if err == nil {
		err = errors.Join(syscall.Flock(int(held.Fd()), syscall.LOCK_EX), os.Chmod(dir, 0o711))
	}
	done = func(ctx context.Context) {
		removeSubordinate(ctx, c, dir)
		held.Close()
	}
	if err != nil {
		done(ctx)
		return "", nil, err
	}
	return dir, done, nil
}

const subordinatePrefix = "tartarus-debian-"

// sweepSubordinate removes what killed builds of this user left. A build
// holds a lock on its folder; one that is very new may not have it yet.
func sweepSubordinate(ctx context.Context, c Config) {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), subordinatePrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
			continue // somebody else's: the folder is for all
		}
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			removeSubordinate(ctx, c, dir)
		}
		f.Close()
	}
}

// removeSubordinate removes a folder in which an interrupted mmdebstrap may
// have left what only the subordinate IDs can remove.
func removeSubordinate(ctx context.Context, c Config, dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err == nil && len(left) > 0 {
		_, err = distro.Run(ctx, "mmdebstrap", append([]string{"--unshare-helper", "rm", "-rf", "--one-file-system", "--"}, left...)...)
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		c.Log.Warn("what mmdebstrap left could not be removed", "dir", dir, "error", err)
	}
}

// debootstrapMode is how mmdebstrap can act as root of the new system: as
// root, in a user namespace, or by libraries that pretend.
func debootstrapMode() (string, error) {
	if os.Geteuid() == 0 {
		return "root", nil
	}
	_, uidmap := distro.Look("newuidmap")
	if uidmap == nil && hasSubIDs() && userNamespaces() {
		return "unshare", nil
	}
	_, chroot := distro.Look("fakechroot")
	_, root := distro.Look("fakeroot")
	if chroot == nil && root == nil {
		return "fakechroot", nil
	}
	e := fault.New(fault.Unsupported, "an ordinary user cannot build template debian here")
	switch {
	case uidmap != nil:
		return "", e.WithHint("sudo apt-get install uidmap")
	case !hasSubIDs():
		return "", e.WithHint("give the user subordinate IDs: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER")
	}
	return "", e.WithHint("user namespaces are off here: sudo apt-get install fakechroot fakeroot, or build it as root")
}

// hasSubIDs reports whether the user may use IDs that are not his own.
func hasSubIDs() bool {
	me, err := user.Current()
	if err != nil {
		return false
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		found := false
		for line := range strings.Lines(string(text)) {
			name, _, _ := strings.Cut(line, ":")
			found = found || name == me.Username || name == me.Uid
		}
		if !found {
			return false
		}
	}
	return true
}

// userNamespaces reports whether the kernel lets an ordinary user have a user
// namespace, as far as its settings tell.
func userNamespaces() bool {
	for _, s := range []struct{ file, off string }{
		{"kernel/unprivileged_userns_clone", "0"},
		{"user/max_user_namespaces", "0"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1"}, // Ubuntu 24.04
	} {
		text, err := os.ReadFile(filepath.Join("/proc/sys", s.file))
		if err == nil && strings.TrimSpace(string(text)) == s.off {
			return false
		}
	}
	return true
}

// debianSteps are the lines of mmdebstrap that are worth telling, in order.
var debianSteps = []struct{ line, step string }{
	{"running apt-get update", "fetching package lists"},
	{"downloading packages", "downloading packages"},
	{"extracting archives", "unpacking packages"},
	{"installing essential", "installing essential packages"},
	{"installing remaining", "installing the other packages"},
	{"cleaning", "cleaning up"},
	{"creating tarball", "making the image"},
}

// stepReader makes steps out of mmdebstrap's lines, "I: what it does now...".
type stepReader struct {
	progress func(step string, done, total int64)
	line     []byte
}

func newStepReader(progress func(string, int64, int64)) *stepReader {
	return &stepReader{progress: progress}
}

// maxStep bounds a line.
const maxStep = 512

// Write implements io.Writer; it never fails.
func (s *stepReader) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != '\n' && b != '\r' {
			if len(s.line) < maxStep {
				s.line = append(s.line, b)
			}
			continue
		}
		s.tell(string(s.line))
		s.line = s.line[:0]
	}
	return len(p), nil
}

func (s *stepReader) tell(line string) {
	line, ok := strings.CutPrefix(line, "I: ")
	if !ok {
		return
	}
	for i, known := range debianSteps {
		if strings.HasPrefix(line, known.line) {
			s.progress(known.step, int64(i), int64(len(debianSteps)))
			return
		}
	}
}
