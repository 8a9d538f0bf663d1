package distro_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

const bookworm = `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION_CODENAME=bookworm
ID=debian
`

const noble = `PRETTY_NAME="Ubuntu 24.04.1 LTS"
VERSION_ID="24.04"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
`

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, id, version, codename, suite, meta string
		modules                                  bool
	}{
		{bookworm, "debian", "12", "bookworm", "bookworm", "linux-image-cloud-amd64", false},
		{strings.ReplaceAll(bookworm, "bookworm", "trixie"), "debian", "12", "trixie", "trixie", "linux-image-cloud-amd64", false},
		{noble, "ubuntu", "24.04", "noble", "bookworm", "linux-image-virtual", true},
		{"ID=mint\nID_LIKE='ubuntu debian'\n", "mint", "", "", "bookworm", "linux-image-virtual", true},
		{"ID=fedora\n", "fedora", "", "", "bookworm", "", false},
		{"", "", "", "", "bookworm", "", false},
	} {
		h := distro.Parse(strings.NewReader(c.text))
		h.Arch = "amd64"
		if h.ID != c.id || h.Version != c.version || h.Codename != c.codename || h.DebianSuite() != c.suite {
			t.Errorf("%q: %+v, suite %s", c.text, h, h.DebianSuite())
		}
		k, err := h.Kernel()
		if c.meta == "" {
			if !fault.Is(err, fault.Unsupported) {
				t.Errorf("%s: %+v, %v", c.id, k, err)
			}
			continue
		}
		if err != nil || k.Meta != c.meta || (k.Modules != "") != c.modules {
			t.Errorf("%s: %+v, %v", c.id, k, err)
		}
	}
}

func TestTools(t *testing.T) {
	t.Parallel()
	names := func(tools []distro.Tool) string {
		var out []string
		for _, x := range tools {
			if x.Package == "" || x.For == "" {
				t.Errorf("incomplete: %+v", x)
			}
			out = append(out, x.Name)
		}
		return strings.Join(out, " ")
	}
	debian := distro.Host{ID: "debian", Arch: "amd64"}
	if got := names(debian.Tools(true)); strings.Contains(got, "newuidmap") || strings.Contains(got, "keyring") || !strings.Contains(got, "qemu-system-x86_64") {
		t.Errorf("root on Debian: %s", got)
	}
	if got := names(debian.Tools(false)); !strings.Contains(got, "newuidmap") {
		t.Errorf("an ordinary user on Debian: %s", got)
	}
	if got := names(distro.Host{ID: "ubuntu", Like: []string{"debian"}, Arch: "arm64"}.Tools(true)); !strings.Contains(got, "keyring") || !strings.Contains(got, "aarch64") {
		t.Errorf("Ubuntu on arm64: %s", got)
	}
	command := distro.InstallCommand([]distro.Tool{{Package: "b"}, {Package: "a"}, {Package: "b"}})
	if command != "apt-get install --no-install-recommends a b" {
		t.Errorf("install command %q", command)
	}
	if got := distro.InstallCommand(nil); got != "" {
		t.Errorf("nothing to install: %q", got)
	}
}

func TestLook(t *testing.T) {
	// Debian's ordinary users have no sbin on their PATH.
	t.Setenv("PATH", "/nowhere")
	for _, name := range []string{"mke2fs", "/etc/passwd"} {
		if p, err := distro.Look(name); err != nil || !filepath.IsAbs(p) {
			t.Errorf("%s: %q, %v", name, p, err)
		}
	}
	var e *fault.Error
	_, err := distro.Look("mmdebstrap")
	if !errors.As(err, &e) || e.Kind != fault.Unsupported || !strings.Contains(e.Hint, "install --no-install-recommends mmdebstrap") {
		t.Errorf("what is not there: %v, %+v", err, e)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	out, err := distro.Run(t.Context(), "sh", "-c", "echo out; echo err >&2")
	if err != nil || string(out) != "out\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = distro.Run(t.Context(), "sh", "-c", "yes x | head -c 100000 >&2; echo the last words >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), "the last words") || len(err.Error()) > 5000 {
		t.Errorf("a failure: %.200v", err)
	}
}

// The end of the context ends the program and all that it started.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var pid string // of the shell's child, which ignores the polite signal
	wg.Go(func() {
		text, _ := os.ReadFile(fifo) // until the child has written it
		pid = strings.TrimSpace(string(text))
		cancel()
	})
	began := time.Now()
	_, err := distro.Run(ctx, "sh", "-c", "trap '' TERM; sh -c 'echo $$ >"+fifo+"; exec sleep 100'; true")
	wg.Wait()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("after its context ended: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("its child told no number: %q", pid)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); ready != 1 {
		t.Errorf("its child %d is still there: %v", n, err)
	}
}
