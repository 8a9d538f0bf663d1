package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
)

// listDate is when the lists below were last looked over.
const listDate = "2026-11-23"

// Pinned is the version that `tartarus setup firecracker` installs.
var Pinned = fcapi.Version{Major: 1, Minor: 17, Patch: 0}

// allowed are the versions that may run: released, patched, and tested with.
var allowed = []fcapi.Version{Pinned}

// testOnly are those that this driver is tested with and nobody should use.
var testOnly = []fcapi.Version{{Major: 1, Minor: 12, Patch: 1}}

// refused are ranges of versions that must not run, each with why. The first
// that holds is told.
var refused = []struct {
	from, to fcapi.Version // both included
	why      string
}{
	{fcapi.Version{Major: 1, Minor: 16, Patch: 0}, fcapi.Version{Major: 1, Minor: 16, Patch: 0}, "its vsock breaks after a restore and hangs after pause and resume"},
	{fcapi.Version{Major: 1, Minor: 16, Patch: 1}, fcapi.Version{Major: 1, Minor: 16, Patch: 1}, "its vsock hangs after pause and resume"},
	{fcapi.Version{Major: 1, Minor: 13, Patch: 0}, fcapi.Version{Major: 1, Minor: 14, Patch: 3}, "CVE-2026-5747: a guest can write out of bounds in the VMM through virtio-pci"},
	{fcapi.Version{Major: 1, Minor: 15, Patch: 0}, fcapi.Version{Major: 1, Minor: 15, Patch: 0}, "CVE-2026-5747: a guest can write out of bounds in the VMM through virtio-pci"},
	{fcapi.Version{}, fcapi.Version{Major: 1, Minor: 13, Patch: 1}, "CVE-2026-1386: its jailer follows links to files outside the jail"},
}

// judge says whether a version may run.
func judge(v fcapi.Version, insecure bool) error {
	for _, a := range allowed {
		if a == v {
			return nil
		}
	}
	isTest := false
	for _, a := range testOnly {
		isTest = isTest || a == v
	}
	if insecure && isTest {
		return nil
	}
	why := fmt.Sprintf("it is not among the versions known to be safe on %s", listDate)
	for _, r := range refused {
		if !v.Before(r.from) && !r.to.Before(v) {
			why = r.why
			break
		}
	}
	hint := fmt.Sprintf("install %v: `tartarus setup firecracker`", Pinned)
	if isTest {
		hint += "; for tests alone there is --insecure-test-vmm"
	}
	return fault.New(fault.Unsupported, "Firecracker %v must not run: %s", v, why).WithHint("%s", hint)
}

// findProgram resolves the path of a program and sees that it could run.
func findProgram(name, what string) (string, error) {
	if name == "" {
		name = what
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return "", fault.Wrap(fault.Unsupported, err, "%s cannot be executed", name).WithHint("make it executable: chmod 0755")
	case err != nil:
		return "", fault.Wrap(fault.Unsupported, err, "there is no %s here", what).
			WithHint("install it: `tartarus setup firecracker`, or name its path")
	}
	return path, nil
}

// versionTimeout bounds `--version`, which takes milliseconds.
const versionTimeout = 20 * time.Second

// versionOf asks a program for its version: "Firecracker v1.17.0", and more
// lines.
func versionOf(ctx context.Context, path, title string) (fcapi.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	cmd.Stdout = &limited{w: &out, left: 4 << 10}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return fcapi.Version{}, fault.Wrap(fault.Unsupported, err, "%s is no program for this machine", path).
			WithHint("install the one for this architecture: `tartarus setup firecracker`")
	case err != nil:
		return fcapi.Version{}, fault.Wrap(fault.Unsupported, err, "%s does not tell its version", path).
			WithHint("install one that runs: `tartarus setup firecracker`")
	}
	first, _, _ := strings.Cut(out.String(), "\n")
	text, ok := strings.CutPrefix(first, title+" ")
	if !ok {
		return fcapi.Version{}, fault.New(fault.Unsupported, "%s is not %s: it says %.80q", path, title, first).
			WithHint("name the path of %s", strings.ToLower(title))
	}
	v, err := fcapi.ParseVersion(text)
	if err != nil {
		return fcapi.Version{}, fault.Wrap(fault.Unsupported, err, "%s must not run", path).
			WithHint("install %v: `tartarus setup firecracker`", Pinned)
	}
	return v, nil
}

// limited drops what is beyond its bound.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
