// Package fcget is the installer of Firecracker: it downloads the official
// release, or takes it from a file, verifies it and puts Firecracker and its
// jailer into a folder.
//
// A download that was interrupted goes on where it stopped. Nothing that did
// not verify is ever unpacked, nor left behind.
package fcget

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Release is one release for one architecture.
type Release struct {
	Version string
	Arch    string // as Firecracker names it
	URL     string
	SHA256  string // of the archive
}

// releases are the pinned ones, by GOARCH.
var releases = map[string]Release{
	"amd64": {
		Version: "1.17.0", Arch: "x86_64",
		URL:    "https://github.com/firecracker-microvm/firecracker/releases/download/v1.17.0/firecracker-v1.17.0-x86_64.tgz",
		SHA256: "06094a1108ae9e82aa4c23a775aa92758f53f1175d422270d9d6162cb9ade558",
	},
}

// Pinned is the release that this version of Tartarus runs on this machine.
func Pinned() (Release, error) {
	r, ok := releases[runtime.GOARCH]
	if !ok {
		return Release{}, fault.New(fault.Unsupported, "no release of Firecracker is pinned for %s yet", runtime.GOARCH).
			WithHint("run Tartarus on x86-64")
	}
	return r, nil
}

// Config says what to install and where.
type Config struct {
	Release Release
	Dir     string // gets a folder of the release's version; made if need be
	From    string // an archive that is here already; "" downloads it

	HTTP     *http.Client                  // nil: the default
	Progress func(done int64, total int64) // of the download, in bytes; nil: nobody
}

// Installed are the paths of the programs.
type Installed struct {
	Firecracker string
	Jailer      string
}

// maxArchive bounds a release's archive, and maxProgram one program in it.
const (
	maxArchive = 512 << 20
	maxProgram = 128 << 20
)

// Find is what is installed of a release; ok is false if nothing is.
func Find(dir string, r Release) (in Installed, ok bool) {
	home := filepath.Join(dir, r.Version)
	in = Installed{filepath.Join(home, "firecracker"), filepath.Join(home, "jailer")}
	for _, p := range []string{in.Firecracker, in.Jailer} {
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() {
			return Installed{}, false
		}
	}
	return in, true
}

// Install installs the release, unless it is there. Only one process does at a
// time; another gets fault.Conflict.
func Install(ctx context.Context, cfg Config) (Installed, error) {
	in, err := install(ctx, cfg)
	if err != nil {
		return Installed{}, fmt.Errorf("installing firecracker %s: %w", cfg.Release.Version, err)
	}
	return in, nil
}

func install(ctx context.Context, cfg Config) (Installed, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return Installed{}, err
	}
	lock, err := lock(filepath.Join(cfg.Dir, ".lock"))
	if err != nil {
		return Installed{}, err
	}
	defer lock.Close() // closing it unlocks
	if in, ok := Find(cfg.Dir, cfg.Release); ok {
		return in, nil
	}
	archive := cfg.From
	if archive == "" {
		archive = filepath.Join(cfg.Dir, ".download-"+cfg.Release.Version+"-"+cfg.Release.Arch)
		if err := download(ctx, cfg, archive); err != nil {
			return Installed{}, err
		}
	}
	f, err := verified(ctx, archive, cfg)
	if err != nil {
		return Installed{}, err
	}
	defer f.Close()
	if err := unpack(ctx, f, cfg); err != nil {
		return Installed{}, err
	}
	if cfg.From == "" {
		if err := os.Remove(archive); err != nil {
			return Installed{}, err
		}
	}
	in, ok := Find(cfg.Dir, cfg.Release)
	if !ok {
		return Installed{}, errors.New("it vanished while it was installed")
	}
	return in, nil
}

func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.Wrap(fault.Conflict, err, "another process is installing it").WithHint("wait for that one")
	}
	return f, nil
}

// verified opens an archive that is what the release says. A download that is
// not is removed; a file of the caller's stays.
func verified(ctx context.Context, path string, cfg Config) (_ *os.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Invalid("from", "name the release's archive", "the archive cannot be opened: %v", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(reader{ctx, f}, maxArchive+1)); err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); !strings.EqualFold(got, cfg.Release.SHA256) {
		if cfg.From != "" {
			return nil, fault.Invalid("from", "take "+cfg.Release.URL, "%s is not the release: its SHA-256 is %s, not %s", path, got, cfg.Release.SHA256)
		}
		err := fault.New(fault.Unavailable, "what was downloaded is not the release: its SHA-256 is %s, not %s", got, cfg.Release.SHA256).
			WithHint("try again; if it happens again, something on the way alters it: take the archive from elsewhere, with --from")
		return nil, errors.Join(err, os.Remove(path))
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
