package templates_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/templates"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/memblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(t *testing.T, name string) templates.Config {
	t.Helper()
	return templates.Config{
		Name: name, Dir: t.TempDir(), Blobs: memblobs.New(memblobs.Config{}), Host: distro.Host{ID: "debian", Codename: "bookworm", Arch: "amd64"},
	}
}

// image is a template's image as a file, checked.
func image(t *testing.T, c templates.Config, tpl sandbox.Template) string {
	t.Helper()
	r, err := c.Blobs.Open(t.Context(), tpl.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != tpl.Bytes {
		t.Errorf("the image has %d bytes, the template says %d", len(b), tpl.Bytes)
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "e2fsck", "-fn", file); strings.Contains(out, "WARNING") {
		t.Errorf("e2fsck: %s", out)
	}
	return file
}

// tool runs a program of e2fsprogs.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := distro.Look(name)
	if err != nil {
		t.Fatalf("these tests need e2fsprogs: %v", err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// stat is what the image says of a file: "type mode user size".
func stat(t *testing.T, image, name string) string {
	t.Helper()
	out := tool(t, "debugfs", "-R", "stat "+name, image)
	words := strings.Fields(out)
	after := func(key string) string {
		i := slices.Index(words, key)
		if i < 0 || i+1 >= len(words) {
			return "?"
		}
		return words[i+1]
	}
	return after("Type:") + " " + after("Mode:") + " " + after("User:")
}

func cat(t *testing.T, image, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dump")
	tool(t, "debugfs", "-R", "dump "+name+" "+file, image)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// whatAllHave are the files that every template has.
func whatAllHave(t *testing.T, img string) {
	t.Helper()
	for name, want := range map[string]string{
		"/": "directory 0755 0", "/work": "directory 0755 1000", "/home/sandbox": "directory 0755 1000", "/tmp": "directory 01777 0",
		"/proc": "directory 0555 0", "/sys": "directory 0555 0", "/dev": "directory 0755 0", "/run": "directory 0755 0", "/root": "directory 0700 0",
		"/etc/passwd": "regular 0644 0", "/etc/resolv.conf": "regular 0644 0", "/etc/hostname": "regular 0644 0",
	} {
		if got := stat(t, img, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := cat(t, img, "/etc/passwd"); !strings.HasPrefix(got, "root:x:0:0:") || strings.Count(got, "sandbox:x:1000:1000:") != 1 {
		t.Errorf("passwd: %q", got)
	}
	if got := cat(t, img, "/etc/group"); !strings.HasPrefix(got, "root:x:0:") || strings.Count(got, "sandbox:x:1000:") != 1 {
		t.Errorf("group: %q", got)
	}
	if got := cat(t, img, "/etc/hostname") + cat(t, img, "/etc/resolv.conf"); got != "localhost\n" {
		t.Errorf("hostname and resolv.conf: %q", got)
	}
}

func TestBase(t *testing.T) {
	t.Parallel()
	c := config(t, "base")
	began := time.Now()
	tpl, err := templates.Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if tpl.Name != "base" || !strings.HasPrefix(tpl.Packages, "busybox ") || time.Since(tpl.CreatedAt) > time.Minute {
		t.Errorf("%+v", tpl)
	}
	img := image(t, c, tpl)
	whatAllHave(t, img)
	if got := stat(t, img, "/bin/busybox"); got != "regular 0755 0" {
		t.Errorf("busybox is %s", got)
	}
	host, err := distro.Look("busybox")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(host)
	if err != nil || cat(t, img, "/bin/busybox") != string(want) {
		t.Errorf("busybox is not the host's, %v", err)
	}
	for _, name := range []string{"/bin/sh", "/bin/cat", "/bin/sleep", "/usr/bin/env"} {
		if got := stat(t, img, name); !strings.HasPrefix(got, "symlink") {
			t.Errorf("%s is %s", name, got)
		}
	}
	again, err := templates.Build(t.Context(), c)
	if err != nil || again.Digest != tpl.Digest {
		t.Errorf("made again it is %s, %v; was %s", again.Digest, err, tpl.Digest)
	}
	empty(t, c.Dir)
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	c := config(t, "nonsense")
	var e *fault.Error
	if _, err := templates.Build(t.Context(), c); !errors.As(err, &e) || e.Kind != fault.NotFound || !strings.Contains(e.Hint, "base") {
		t.Errorf("an unknown template: %v", err)
	}
	c.Name, c.Blobs = "base", nil
	if _, err := templates.Build(t.Context(), c); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no blob store: %v", err)
	}
	c.Blobs = memblobs.New(memblobs.Config{MaxBytes: 1000})
	if _, err := templates.Build(t.Context(), c); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a full store: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Blobs = memblobs.New(memblobs.Config{})
	if _, err := templates.Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	empty(t, c.Dir)
}

// fakeDebian puts a program in mmdebstrap's place that prints archive, after
// what before does.
func fakeDebian(t *testing.T, archive []byte, before string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >" + dir + "/args\nenv >" + dir + "/env\n" + before + "\ncat " + dir + "/tar\n"
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "tar"), archive, 0o600), os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"newuidmap", "fakechroot", "fakeroot"} { // so that an ordinary user may, too
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

// debianTar is an archive as mmdebstrap makes it, with all that is hard.
func debianTar(t *testing.T, now time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	old := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if h.ModTime.IsZero() {
			h.ModTime = old
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	dir := func(name string, mode int64) { add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, "") }
	dir("./", 0o755)
	for _, d := range []string{"./dev/", "./etc/", "./home/", "./usr/", "./usr/bin/", "./proc/", "./sys/", "./run/"} {
		mode := int64(0o755)
		if d == "./proc/" || d == "./sys/" {
			mode = 0o555
		}
		dir(d, mode)
	}
	dir("./tmp/", 0o1777)
	dir("./root/", 0o700)
	add(tar.Header{Typeflag: tar.TypeChar, Name: "./dev/console", Mode: 0o600, Devmajor: 5, Devminor: 1}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "./dev/fd", Linkname: "/proc/self/fd"}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/group", Mode: 0o644}, "root:x:0:\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/shadow", Mode: 0o640, Gid: 42}, "root:*:1:0:99999:7:::\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/hostname", Mode: 0o755, Uid: 7}, "builder.example\n")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "./etc/resolv.conf", Linkname: "../run/systemd/resolve"}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/perl", Mode: 0o4755}, strings.Repeat("perl ", 5000))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/perl5", Linkname: "./usr/bin/perl"}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/" + strings.Repeat("long", 60), Mode: 0o644, Uname: "somebody"}, "x")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/new", Mode: 0o644, ModTime: now}, "made by the build")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/capable", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}, "x")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, 10240)...) // tar pads its archives
}

func TestDebian(t *testing.T) {
	dir := fakeDebian(t, debianTar(t, time.Now()), "echo 'I: downloading packages with apt...' >&2; echo 'I: using /x as tempdir' >&2")
	t.Setenv("SOURCE_DATE_EPOCH", "5")
	c := config(t, "debian")
	c.Mirror = "http://mirror.invalid/debian"
	var steps []string
	c.Progress = func(step string, done, total int64) { steps = append(steps, fmt.Sprint(step, " ", done, "/", total)) }
	tpl, err := templates.Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, c, tpl)
	whatAllHave(t, img)
	for name, want := range map[string]string{
		"/usr/bin/perl": "regular 04755 0", "/usr/bin/perl5": "regular 04755 0", "/etc/shadow": "regular 0640 0", "/bin": "symlink 0777 0",
		"/usr/bin/" + strings.Repeat("long", 60): "regular 0644 0",
	} {
		if got := stat(t, img, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := cat(t, img, "/usr/bin/perl5"); got != strings.Repeat("perl ", 5000) {
		t.Errorf("perl has %d bytes", len(got))
	}
	if got := cat(t, img, "/etc/passwd"); !strings.Contains(got, "nologin\nsandbox:") {
		t.Errorf("passwd: %q", got)
	}
	if got := tool(t, "debugfs", "-R", "ls /dev", img); strings.Contains(got, "console") || strings.Contains(got, "fd") {
		t.Errorf("/dev: %s", got)
	}
	if got := tool(t, "debugfs", "-R", "ea_get /usr/bin/capable user.x", img); !strings.Contains(got, "y") {
		t.Errorf("extended attribute: %s", got)
	}
	if !strings.Contains(strings.Join(steps, ";"), "downloading packages 1/7") || strings.Contains(strings.Join(steps, ";"), "tempdir") {
		t.Errorf("steps: %q", steps)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil || !strings.HasSuffix(string(args), " bookworm - http://mirror.invalid/debian\n") || !strings.Contains(string(args), "--include=python3,ca-certificates") {
		t.Errorf("called with %s, %v", args, err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || strings.Contains(string(env), "SOURCE_DATE_EPOCH") {
		t.Errorf("Python would hash its modules at every start: %v", err)
	}
	empty(t, c.Dir)

	// Another build of the same day makes the same image.
	fakeDebian(t, debianTar(t, time.Now().Add(time.Second)), "")
	again, err := templates.Build(t.Context(), c)
	if err != nil || time.Now().UTC().Day() == tpl.CreatedAt.Day() && again.Digest != tpl.Digest {
		t.Errorf("%s, %v; was %s", again.Digest, err, tpl.Digest)
	}
}

func TestDebianFails(t *testing.T) {
	whole := debianTar(t, time.Now())
	for name, c := range map[string]struct {
		archive []byte
		before  string
		kind    fault.Kind
	}{
		"no mirror":           {nil, "echo 'E: no mirror' >&2; exit 1", fault.Unavailable},
		"fails half way":      {whole, "head -c 2000 $(dirname $0)/tar; exit 1", fault.Unavailable},
		"a truncated archive": {whole[:3000], "", fault.Internal},
		"nonsense":            {bytes.Repeat([]byte("nonsense"), 1000), "", fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			fakeDebian(t, c.archive, c.before)
			cfg := config(t, "debian")
			tpl, err := templates.Build(t.Context(), cfg)
			if err == nil || fault.KindOf(err) != c.kind {
				t.Errorf("%+v, %v", tpl, err)
			}
			empty(t, cfg.Dir)
		})
	}
}

func TestDebianInterrupted(t *testing.T) {
	fakeDebian(t, nil, "echo 'I: extracting archives...' >&2; exec sleep 60")
	c := config(t, "debian")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Progress = func(step string, _, _ int64) {
		if step == "unpacking packages" {
			cancel()
		}
	}
	began := time.Now()
	if _, err := templates.Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	empty(t, c.Dir)
}
