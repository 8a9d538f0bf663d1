package guestbundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
)

// fakeApt puts programs in the place of apt and dpkg, which serve a kernel out
// of dir and note each call.
func fakeApt(t *testing.T, script string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	var deb bytes.Buffer
	w := tar.NewWriter(&deb)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add("./boot/vmlinuz-6.6.6-deb", bzImage(pack(t, "lz4", fakeKernel())))
	for name, deps := range debianLike() {
		add("./usr/lib/modules/6.6.6-deb/kernel/"+strings.ReplaceAll(name, "_", "-")+".ko", fakeModule(deps...))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(name string, mode os.FileMode, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("the.deb", 0o600, deb.String())
	write("dpkg-deb", 0o700, "#!/bin/sh\necho \"dpkg-deb $1\" >>"+dir+"/calls\nexec cat \"$2\"\n")
	for _, name := range []string{"apt-get", "apt-cache"} {
		write(name, 0o700, "#!/bin/sh\nDIR="+dir+"\nME="+name+"\n"+script)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		text, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "calls"))
		return string(text)
	}
}

// goodApt has a kernel in its lists.
const goodApt = `
private=; for a; do case $a in Dir::State=*) private=" private";; esac; last=$a; done
cmd=; for a; do case $a in show|update|download) cmd=$a;; esac; done
echo "$ME $cmd${private}" >>$DIR/calls
case $cmd in
show) case $last in
  linux-image-cloud-amd64) printf 'Package: %s\nVersion: 6.6.6\nDepends: linux-image-6.6.6-deb (= 6.6.6)\n' $last;;
  linux-image-6.6.6-deb) printf 'Package: %s\nVersion: 6.6.6-1~x\nDepends: kmod, linux-base | other\nDescription: x\n Depends: y\n' $last;;
  *) exit 100;; esac;;
download) echo dlstatus:1:50.5:half >&3; cp $DIR/the.deb ./linux.deb;;
esac
`

func packageConfig(t *testing.T) Config {
	t.Helper()
	c := fileConfig(t)
	c.Kernel = ""
	return c
}

func TestBuildFromPackages(t *testing.T) {
	calls := fakeApt(t, goodApt)
	c := packageConfig(t)
	var steps []string
	c.Progress = func(step string, done, total int64) { steps = append(steps, fmt.Sprint(step, " ", done, "/", total)) }
	d, m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if m.Release != "6.6.6-deb" || m.MadeFrom != "linux-image-6.6.6-deb 6.6.6-1~x" || m.Kernel != erebus.Digest(fakeKernel()) || len(m.Modules) != 6 {
		t.Errorf("%+v", m)
	}
	if got := calls(); got != "apt-cache show\napt-cache show\napt-get download\ndpkg-deb --fsys-tarfile\n" {
		t.Errorf("calls:\n%s", got)
	}
	if !slices.Contains(steps, "downloading linux-image-6.6.6-deb 50/100") {
		t.Errorf("steps: %q", steps)
	}
	// What is there is not fetched again; another init needs no kernel.
	c.Init = []byte("\x7fELF another init")
	other, _, err := Build(t.Context(), c)
	if err != nil || other == d || calls() != "" {
		t.Errorf("%s, %v", other, err)
	}
	// Asked for a newer one, it looks, and finds that there is none.
	c.Refresh = true
	if again, _, err := Build(t.Context(), c); err != nil || again != other {
		t.Errorf("refreshed: %s, %v", again, err)
	}
	if got := calls(); got != "apt-cache show\napt-cache show\n" {
		t.Errorf("refreshing calls:\n%s", got)
	}
	// A cache that was tampered with is not used.
	c.Refresh = false
	mods, err := filepath.Glob(filepath.Join(c.CacheDir, "kernel-*", "overlay.ko"))
	if err != nil || len(mods) != 1 {
		t.Fatalf("%v, %v", mods, err)
	}
	if err := os.WriteFile(mods[0], fakeModule("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, _, err := Build(t.Context(), c); err != nil || again != other || !strings.Contains(calls(), "download") {
		t.Errorf("after tampering: %s, %v", again, err)
	}
	onlyKernels(t, c)
}

// onlyKernels insists that nothing half-made is in the cache.
func onlyKernels(t *testing.T, c Config) {
	t.Helper()
	left, err := os.ReadDir(c.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), "kernel-") {
			t.Errorf("left in the cache: %s", e.Name())
		}
	}
}

// Without usable package lists, it fetches its own; with root or not.
func TestPrivateLists(t *testing.T) {
	calls := fakeApt(t, strings.Replace(goodApt, "case $cmd in\n", "[ -n \"$private\" ] || exit 100\ncase $cmd in\n", 1))
	c := packageConfig(t)
	if _, _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	want := "apt-cache show\napt-get update private\napt-cache show private\napt-cache show private\napt-get download private\ndpkg-deb --fsys-tarfile\n"
	if got := calls(); got != want {
		t.Errorf("calls:\n%s", got)
	}
	onlyKernels(t, c)
}

func TestNoNetwork(t *testing.T) {
	fakeApt(t, strings.Replace(goodApt, "download)", "update) exit 100;; download) echo half >./linux.deb; exit 100;; never)", 1))
	c := packageConfig(t)
	if _, _, err := Build(t.Context(), c); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a network: %v", err)
	}
	onlyKernels(t, c)
}

// A kernel that is there is good enough when no newer one can be had.
func TestRefreshWithoutNetwork(t *testing.T) {
	fakeApt(t, goodApt)
	c := packageConfig(t)
	d, _, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	fakeApt(t, "exit 100")
	c.Refresh = true
	if again, _, err := Build(t.Context(), c); err != nil || again != d {
		t.Errorf("%s, %v", again, err)
	}
}

func TestInterruptedDownload(t *testing.T) {
	fakeApt(t, strings.Replace(goodApt, "cp $DIR/the.deb ./linux.deb", "cp $DIR/the.deb ./linux.deb; exec sleep 60", 1))
	c := packageConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Progress = func(_ string, done, _ int64) {
		if done == 50 { // it is in the middle of it
			cancel()
		}
	}
	if _, _, err := Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	onlyKernels(t, c)
	fakeApt(t, goodApt)
	if _, _, err := Build(t.Context(), c); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func FuzzControl(f *testing.F) {
	f.Add([]byte("Package: a\nVersion: 1\nDepends: b (= 1), c | d,, e\n\nPackage: z\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, d := range parseControl(text).Depends {
			if d == "" || strings.ContainsAny(d, " \n,") {
				t.Errorf("a dependency named %q", d)
			}
		}
	})
}
