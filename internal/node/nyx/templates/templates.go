// Package templates builds the root disks that sandboxes are made from:
// read-only ext4 images, made without root.
//
// A template has no kernel and no init in it. What every template has: a user
// named sandbox (1000, home /home/sandbox), /work that is his, /tmp for all,
// and the folders proc, sys, dev and run.
package templates

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Config is what a template is made of.
type Config struct {
	Name     string       // one of Names
	Dir      string       // for what is not whole yet; made if it is not there
	Blobs    erebus.Blobs // where the image goes
	Host     distro.Host  // the zero value: the host's own
	Mirror   string       // of Debian's archive; "" for mmdebstrap's default
	Progress func(step string, done, total int64)
	Log      *slog.Logger // nil discards
}

// recipe makes one template.
type recipe struct {
	name string
	// tree writes the files of the template to t, and tells in a line what it
	// was made of.
	tree func(ctx context.Context, c Config, t *treeWriter) (packages string, err error)
}

// recipes are the templates that Tartarus knows how to make.
var recipes = []recipe{
	{"base", baseTree},
	{"debian", debianTree},
}

// Names are the templates that can be built.
func Names() []string {
	var names []string
	for _, r := range recipes {
		names = append(names, r.name)
	}
	return names
}

// Build makes the template's image and stores it. It leaves nothing half made.
func Build(ctx context.Context, c Config) (sandbox.Template, error) {
	i := slices.IndexFunc(recipes, func(r recipe) bool { return r.name == c.Name })
	if i < 0 {
		return sandbox.Template{}, fault.New(fault.NotFound, "nobody knows how to build template %q", c.Name).
			WithHint("these can be built: %s", strings.Join(Names(), ", "))
	}
	if c.Dir == "" || c.Blobs == nil {
		return sandbox.Template{}, fault.Invalid("dir", "hand in a folder and a blob store", "building template %q: no folder or no blob store", c.Name)
	}
	if c.Progress == nil {
		c.Progress = func(string, int64, int64) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Host.Arch == "" {
		c.Host = distro.Detect()
	}
	t, err := build(ctx, c, recipes[i])
	if err != nil {
		return sandbox.Template{}, fmt.Errorf("building template %q: %w", c.Name, err)
	}
	return t, nil
}

func build(ctx context.Context, c Config, r recipe) (sandbox.Template, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return sandbox.Template{}, err
	}
	image, err := os.CreateTemp(c.Dir, "template-*")
	if err != nil {
		return sandbox.Template{}, err
	}
	defer os.Remove(image.Name())
	defer image.Close()
	packages, err := writeImage(ctx, c, r, image)
	if err != nil {
		return sandbox.Template{}, err
	}
	c.Progress("storing the image", 0, 0)
	size, err := image.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = image.Seek(0, io.SeekStart)
	}
	if err != nil {
		return sandbox.Template{}, err
	}
	d, err := c.Blobs.Put(ctx, image)
	if err != nil {
		return sandbox.Template{}, err
	}
	return sandbox.Template{Name: c.Name, Digest: d, Bytes: size, CreatedAt: time.Now().UTC().Truncate(time.Second), Packages: packages}, nil
}

// maxImage is the most that an image may hold; the space for its tables is
// reserved in the image.
const maxImage = 16 << 30

// writeImage runs the recipe and turns its files into an ext4 image on the
// way.
func writeImage(ctx context.Context, c Config, r recipe, image *os.File) (packages string, err error) {
	pr, pw := io.Pipe()
	converted := make(chan error, 1)
	go func() {
		err := tar2ext4.ConvertTarToExt4(pr, image, tar2ext4.MaximumDiskSize(maxImage))
		pr.CloseWithError(errors.Join(errConverter, err)) // whoever still writes gets it
		converted <- err
	}()
	t := &treeWriter{t: tar.NewWriter(pw), seen: map[string]bool{}}
	packages, err = r.tree(ctx, c, t)
	if err == nil {
		err = t.finish()
	}
	if err == nil {
		err = t.t.Close()
	}
	pw.CloseWithError(err) // nil is the end of the archive
	convErr := <-converted
	switch {
	case err != nil && !errors.Is(err, errConverter):
		return "", err
	case convErr != nil:
		return "", fmt.Errorf("making the image: %w", convErr)
	}
	return packages, padInodeBitmaps(image)
}

// errConverter marks the error that a writer gets when the converter ended.
var errConverter = errors.New("the image could not be made")
