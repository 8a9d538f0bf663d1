package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// versionTimeout bounds `qemu --version`, which takes milliseconds.
const versionTimeout = 20 * time.Second

// oldest is the first version that has all that this driver asks for, and the
// oldest it is tested with.
var oldest = version{7, 2, 0}

type version [3]int

// String is the version as QEMU writes it.
func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) before(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

var versionText = regexp.MustCompile(`\bversion (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

func parseVersion(text string) (version, error) {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("%.100q tells no version", text)
	}
	var v version
	for i, s := range m[1:] {
		if s != "" {
			v[i], _ = strconv.Atoi(s) // digits only, by the expression
		}
	}
	return v, nil
}

// findBinary resolves the path of QEMU.
func findBinary(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.Wrap(fault.Unsupported, err, "there is no QEMU here").
			WithHint("install %s: apt-get install qemu-system-x86", name)
	}
	return path, nil
}

// checkVersion asks the binary for its version and refuses one too old.
func checkVersion(ctx context.Context, binary string) (version, error) {
	out, err := output(ctx, binary, "--version")
	if err != nil {
		return version{}, fault.Wrap(fault.Unsupported, err, "%s does not tell its version", binary).
			WithHint("install a QEMU that runs: apt-get install qemu-system-x86")
	}
	v, err := parseVersion(out)
	if err != nil {
		return version{}, fault.Wrap(fault.Unsupported, err, "%s does not tell its version", binary)
	}
	if v.before(oldest) {
		return version{}, fault.New(fault.Unsupported, "QEMU %s is too old", v).
			WithHint("install QEMU %s or later", oldest)
	}
	return v, nil
}

// dataDirs are the folders that QEMU reads its firmware from.
func dataDirs(ctx context.Context, binary string) ([]string, error) {
	out, err := output(ctx, binary, "-L", "help")
	if err != nil {
		return nil, fmt.Errorf("asking %s for its folders: %w", binary, err)
	}
	return strings.Fields(out), nil
}

// output runs QEMU for what it prints, at most 64 KiB of it.
func output(ctx context.Context, binary string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = environment()
	cmd.Stdout = &limited{w: &stdout, left: 64 << 10}
	cmd.Stderr = &limited{w: &stderr, left: 1 << 10}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			err = errors.Join(err, errors.New(text))
		}
		return "", err
	}
	return stdout.String(), nil
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

// environment is all that QEMU gets to see of ours.
func environment() []string { return []string{"PATH=/usr/bin:/bin", "LC_ALL=C"} }
