package guestbundle

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestFetchParts(t *testing.T) {
	calls := fakeApt(t, goodApt)
	c := Config{CacheDir: filepath.Join(t.TempDir(), "cache")}
	c.Host = packageConfig(t).Host
	p, err := FetchParts(t.Context(), c, []string{"virtio_blk"})
	if err != nil {
		t.Fatal(err)
	}
	if p.Release != "6.6.6-deb" || p.MadeFrom != "linux-image-6.6.6-deb 6.6.6-1~x" || !bytes.Contains(p.Image, []byte("HdrS")) {
		t.Errorf("release %q of %q, an image of %d bytes", p.Release, p.MadeFrom, len(p.Image))
	}
	var names []string
	for _, m := range p.Modules {
		names = append(names, m.Name)
	}
	want, err := setOf(debianLike()).orderOf([]string{"virtio_blk"})
	if err != nil || len(names) == 0 || len(names) != len(want) || names[len(names)-1] != "virtio_blk" {
		t.Errorf("modules %v (%v)", names, err)
	}
	if got := calls(); got != "apt-cache show\napt-cache show\napt-get download\ndpkg-deb --fsys-tarfile\n" {
		t.Errorf("calls:\n%s", got)
	}
	if left, err := os.ReadDir(c.CacheDir); err != nil || len(left) != 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
	if _, err := FetchParts(t.Context(), c, []string{"no_such_module"}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a module that is not there: %v", err)
	}
	if _, err := FetchParts(t.Context(), Config{}, nil); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("without a cache: %v", err)
	}
}

// What is written is what a bundle has.
func TestWriteInitramfs(t *testing.T) {
	var ours, bundles bytes.Buffer
	ms := []module{{Name: "a", data: []byte("A")}, {Name: "b", data: []byte("B")}}
	if err := WriteInitramfs(&ours, []byte("init"), []Module{{"a", []byte("A")}, {"b", []byte("B")}}); err != nil {
		t.Fatal(err)
	}
	if err := writeCPIO(&bundles, initrdEntries([]byte("init"), ms)); err != nil {
		t.Fatal(err)
	}
	if ours.Len() == 0 || !bytes.Equal(ours.Bytes(), bundles.Bytes()) {
		t.Error("it differs from a bundle's")
	}
}
