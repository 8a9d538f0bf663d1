package nyx_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// role makes this test binary play another process on the same folder.
const role = "NYX_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		goleak.VerifyTestMain(m)
	case "maker":
		os.Exit(maker(os.Args[1], func(nyx.Step) {}))
	case "stuck":
		os.Exit(maker(os.Args[1], func(s nyx.Step) {
			if s.Name == "storing the image" {
				fmt.Println("stuck")
				select {}
			}
		}))
	}
}

// maker makes template base and prints every step.
func maker(dir string, then func(nyx.Step)) int {
	s, err := open(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	t, err := s.EnsureTemplate(context.Background(), "base", func(step nyx.Step) {
		fmt.Println(step.Name)
		then(step)
	})
	if err == nil {
		_, err = s.RootDisk(context.Background(), t.Digest)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func open(dir string) (*nyx.Store, error) { return openWith(dir, nyx.Config{}) }

func openWith(dir string, c nyx.Config) (*nyx.Store, error) {
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		return nil, err
	}
	c.Dir, c.Blobs = filepath.Join(dir, "nyx"), blobs
	return nyx.Open(c)
}

func mustOpen(t *testing.T, dir string, c nyx.Config) *nyx.Store {
	t.Helper()
	s, err := openWith(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func play(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], dir)
	cmd.Env = append(os.Environ(), role+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func hint(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{})
	if _, err := s.Template(t.Context(), "base"); !fault.Is(err, fault.NotFound) || !strings.Contains(hint(err), "tartarus template ls") {
		t.Errorf("nothing there yet: %v, hint %q", err, hint(err))
	}
	if all, err := s.Templates(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("nothing there yet: %v, %v", all, err)
	}
	var steps []nyx.Step
	made, err := s.EnsureTemplate(t.Context(), "base", func(step nyx.Step) { steps = append(steps, step) })
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) == 0 || steps[0].Of != "template base" {
		t.Errorf("steps: %v", steps)
	}
	other := mustOpen(t, dir, nyx.Config{}) // another process sees it
	got, err := other.EnsureTemplate(t.Context(), "base", func(step nyx.Step) { t.Errorf("made again: %v", step) })
	if err != nil || got != made {
		t.Errorf("%+v, %v; made was %+v", got, err, made)
	}
	if all, err := other.Templates(t.Context()); err != nil || len(all) != 1 || all[0] != made {
		t.Errorf("%v, %v", all, err)
	}
	disk, err := other.RootDisk(t.Context(), made.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(disk); err != nil || st.Mode() != 0o444 || st.Size() != made.Bytes {
		t.Errorf("%v, %v", st, err)
	}
	if keep, err := s.Referenced(t.Context()); err != nil || !keep[made.Digest] {
		t.Errorf("referenced: %v, %v", keep, err)
	}
	if err := s.Remove(t.Context(), "base"); err != nil {
		t.Fatal(err)
	}
	if err := other.Remove(t.Context(), "base"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if keep, err := s.Referenced(t.Context()); err != nil || len(keep) != 0 {
		t.Errorf("referenced after removal: %v, %v", keep, err)
	}
	for _, n := range []string{"nonsense", "../base", "", "Base"} {
		if _, err := s.EnsureTemplate(t.Context(), n, nil); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: %v", n, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "nyx", "cache", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A template whose image is gone, or was put aside, is made again.
func TestLostImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{})
	made, err := s.EnsureTemplate(t.Context(), "base", nil)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := s.RootDisk(t.Context(), made.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(disk, 0o600), os.WriteFile(disk, make([]byte, made.Bytes), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RootDisk(t.Context(), made.Digest); !fault.Is(err, fault.Conflict) {
		t.Errorf("a damaged root disk: %v", err)
	}
	again, err := s.EnsureTemplate(t.Context(), "base", nil)
	if err != nil || again.Digest != made.Digest {
		t.Fatalf("%+v, %v", again, err)
	}
	if _, err := s.RootDisk(t.Context(), made.Digest); err != nil {
		t.Error(err)
	}
}

// However many ask, in one process or several, one makes it.
func TestOneMaker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var mu sync.Mutex
	made := 0
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			out, err := play(t, "maker", dir).Output()
			mu.Lock()
			defer mu.Unlock()
			made += strings.Count(string(out), "taking busybox")
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
		wg.Go(func() {
			s, err := open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			_, err = s.EnsureTemplate(context.Background(), "base", func(step nyx.Step) {
				mu.Lock()
				defer mu.Unlock()
				made += strings.Count(step.Name, "taking busybox")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("it was made %d times", made)
	}
}

// A maker that was killed leaves nothing half made, and blocks nobody; a
// waiter that is called off goes.
func TestKilledMaker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := play(t, "stuck", dir)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for !strings.Contains(said.String(), "stuck\n") {
		if _, err := io.CopyN(&said, out, 1); err != nil {
			t.Fatal(err)
		}
	}
	s := mustOpen(t, dir, nyx.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	waited := false
	_, err = s.EnsureTemplate(ctx, "base", func(step nyx.Step) {
		waited = waited || strings.HasPrefix(step.Name, "waiting")
		cancel()
	})
	if !errors.Is(err, context.Canceled) || !waited {
		t.Errorf("while another process makes it: %v, waited %v", err, waited)
	}
	if _, err := s.Template(t.Context(), "base"); !fault.Is(err, fault.NotFound) {
		t.Errorf("half made, and there: %v", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := other.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	if _, err := s.EnsureTemplate(t.Context(), "base", nil); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "nyx", "cache", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// kernel is an ELF file with the note of a kernel that can be booted.
func kernel(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Phnum: 1, Phoff: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	err := errors.Join(binary.Write(&b, binary.LittleEndian, h),
		binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: 20}),
		binary.Write(&b, binary.LittleEndian, []uint32{4, 4, 18}))
	b.WriteString("Xen\x00\x00\x00\x00\x00" + text)
	name := filepath.Join(t.TempDir(), "vmlinux")
	if err = errors.Join(err, os.WriteFile(name, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBundles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{Kernel: kernel(t, "Linux version 6.6.6 x")})
	if _, err := s.CurrentBundle(t.Context()); !fault.Is(err, fault.NotFound) || !strings.Contains(hint(err), "tartarus setup") {
		t.Errorf("nothing there yet: %v", err)
	}
	var made []nyx.Bundle
	for i := range 6 {
		b, err := s.EnsureBundle(t.Context(), fmt.Appendf(nil, "\x7fELF init %d", i), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b.Release != "6.6.6" || !strings.Contains(b.Cmdline, "rdinit=/init") || !b.Digest.Valid() {
			t.Errorf("%+v", b)
		}
		for _, file := range []string{b.Kernel, b.Initrd} {
			if st, err := os.Stat(file); err != nil || st.Mode() != 0o444 {
				t.Errorf("%s: %v, %v", file, st, err)
			}
		}
		current, err := mustOpen(t, dir, nyx.Config{}).CurrentBundle(t.Context())
		if err != nil || current != b {
			t.Errorf("current is %+v, %v; made was %+v", current, err, b)
		}
		made = append(made, b)
	}
	keep, err := s.Referenced(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range made {
		if want := i >= 2; keep[b.Digest] != want { // four are kept, for those who wait
			t.Errorf("bundle %d: kept %v", i, keep[b.Digest])
		}
	}
	// All that a kept bundle needs is kept with it.
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := blobs.Collect(t.Context(), func(d sandbox.Digest) bool { return keep[d] }, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range made {
		if got, err := s.Bundle(t.Context(), b.Digest); (err == nil) != (i >= 2) || err == nil && got != b {
			t.Errorf("bundle %d after collecting: %+v, %v", i, got, err)
		}
	}
	// An old one can become the current one again.
	b, err := s.EnsureBundle(t.Context(), []byte("\x7fELF init 2"), nil)
	if err != nil || b != made[2] {
		t.Errorf("%+v, %v", b, err)
	}
}

// A damaged kernel is never handed out, and made again.
func TestDamagedBundle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{Kernel: kernel(t, "Linux version 6.6.6 x")})
	init := []byte("\x7fELF init")
	b, err := s.EnsureBundle(t.Context(), init, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(b.Initrd, 0o600), os.WriteFile(b.Initrd, []byte("evil"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CurrentBundle(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("a damaged initrd: %v", err)
	}
	if again, err := s.EnsureBundle(t.Context(), init, nil); err != nil || again != b {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := s.Bundle(t.Context(), erebus.Digest([]byte("nothing"))); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown bundle: %v", err)
	}
}

func TestDamagedIndex(t *testing.T) {
	t.Parallel()
	for text, kind := range map[string]fault.Kind{
		"":               fault.Internal,
		"{":              fault.Internal,
		`{"format": 99}`: fault.Unsupported,
		`{"format": 1, "templates": {"x": {"name": "y", "digest": "sha256:` + strings.Repeat("0", 64) + `"}}}`: fault.Internal,
		`{"format": 1, "templates": {"x": {"name": "x", "digest": "../x"}}}`:                                   fault.Internal,
		`{"format": 1, "bundles": ["../../etc/passwd"]}`:                                                       fault.Internal,
	} {
		dir := t.TempDir()
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "nyx"), 0o700), os.WriteFile(filepath.Join(dir, "nyx", "index.json"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := open(dir); err == nil || fault.KindOf(err) != kind || hint(err) == "" {
			t.Errorf("%q: %v, hint %q", text, err, hint(err))
		}
	}
	if _, err := nyx.Open(nyx.Config{}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no folder: %v", err)
	}
}
