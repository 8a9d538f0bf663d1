package assembly

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hecatoncheir"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/snapshots"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Inside is what the command line is handed of the inside.
func Inside() cli.Inside {
	return cli.Inside{
		Local: func(ctx context.Context, o cli.LocalOptions) (cli.Local, func() error, error) {
			l, stop, err := local(ctx, o)
			return l, stop, explain(err)
		},
		Up: func(ctx context.Context, o cli.UpOptions, ready func([]string)) error {
			return explain(up(ctx, o, ready))
		},
		Setup: func(ctx context.Context, o cli.SetupOptions) error { return explain(setup(ctx, o)) },
		SetupFirecracker: func(ctx context.Context, o cli.SetupFirecrackerOptions) (string, error) {
			dir, err := setupFirecracker(ctx, o)
			return dir, explain(err)
		},
		Templates: func(ctx context.Context, stateDir string) ([]*apiv1.Template, error) {
			list, err := listTemplates(ctx, stateDir)
			return list, explain(err)
		},
		RemoveTemplate: func(ctx context.Context, stateDir, name string) error {
			return explain(removeTemplate(ctx, stateDir, name))
		},
		Doctor: func(ctx context.Context, o cli.DoctorOptions) ([]cli.Finding, error) {
			findings, err := doctor(ctx, o)
			return findings, explain(err)
		},
		VerifyAudit: func(ctx context.Context, o cli.VerifyAuditOptions) (cli.AuditReport, error) {
			report, err := verifyAudit(ctx, o)
			return report, explain(err)
		},
		CheckPolicy: func(_ context.Context, path string) (cli.PolicySummary, error) {
			s, err := checkPolicy(path)
			return s, explain(err)
		},
		TestPolicy: func(ctx context.Context, path string) (cli.PolicyReport, error) {
			r, err := tryPolicy(ctx, path)
			return r, explain(err)
		},
		Bench: func(ctx context.Context, o cli.BenchOptions) (cli.BenchReport, error) {
			r, err := (&benching{o: o}).run(ctx)
			if err != nil {
				return nil, explain(err)
			}
			return r, nil
		},
		Sockets: sockets,
	}
}

// hinted is an error whose hint the command line can ask for.
type hinted struct {
	error
	hint string
}

// Hint is what to do about it.
func (h *hinted) Hint() string { return h.hint }

// Unwrap is the error without the hint.
func (h *hinted) Unwrap() error { return h.error }

// explain gives err the hint of the fault in its chain.
func explain(err error) error {
	var e *fault.Error
	if !errors.As(err, &e) || e.Hint == "" {
		return err
	}
	return &hinted{err, e.Hint}
}

// stateRoot is the folder that was named, or this user's own.
func stateRoot(named string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	return DefaultState(os.Geteuid(), os.Getenv)
}

// sockets are where an up of this user, or of root, listens.
func sockets(named string) []string {
	var out []string
	if root, err := stateRoot(named); err == nil {
		out = append(out, paths{root}.up().socket())
	}
	if named == "" {
		if s := (paths{"/var/lib/tartarus"}).up().socket(); len(out) == 0 || out[0] != s {
			out = append(out, s)
		}
	}
	return out
}

// openImages opens what runs are made from.
func openImages(p paths, cfg nyx.Config) (*nyx.Store, *dirblobs.Store, error) {
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: p.blobs(), Log: cfg.Log})
	if err != nil {
		return nil, nil, err
	}
	cfg.Dir, cfg.Blobs = p.nyx(), blobs
	images, err := nyx.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	return images, blobs, nil
}

// setup prepares the host. Each piece is made if it is not there.
func setup(ctx context.Context, o cli.SetupOptions) error {
	root, err := stateRoot(o.StateDir)
	if err != nil {
		return err
	}
	p, err := openState(root)
	if err != nil {
		return err
	}
	images, _, err := openImages(p, nyx.Config{Kernel: o.Kernel, Modules: o.Modules, Refresh: true})
	if err != nil {
		return err
	}
	if err := ensureBundle(ctx, images, o.Progress); err != nil {
		return err
	}
	for _, t := range o.Templates {
		if _, err := images.EnsureTemplate(ctx, t, steps(o.Progress)); err != nil {
			return err
		}
	}
	return saveShapes(ctx, o)
}

// saveShapes chooses the driver, for which KVM is judged, and makes snapshots
// of the templates in the shape that requests have by default, so that the
// first run need do neither.
func saveShapes(ctx context.Context, o cli.SetupOptions) (err error) {
	e := &embedded{cfg: Config{StateDir: o.StateDir, Local: true, Progress: o.Progress}, log: slog.New(slog.DiscardHandler)}
	defer func() { err = errors.Join(err, e.close()) }()
	for _, step := range []func(context.Context) error{e.openFolders, e.openImages, e.chooseDriver} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if !e.driver.Info().CanSnapshot {
		return nil
	}
	maker, err := e.newMaker()
	if err != nil {
		return err
	}
	bundle, err := e.images.CurrentDigest(ctx)
	if err != nil {
		return err
	}
	policy, err := themis.Default()
	if err != nil {
		return err
	}
	for _, name := range o.Templates {
		t, err := e.images.Template(ctx, name)
		if err != nil {
			return err
		}
		if o.Progress != nil {
			o.Progress(cli.Step{Name: "snapshot of template " + name + ": looking for it, or booting one"})
		}
		if err := maker.Make(ctx, maker.Shape(t.Digest, bundle, policy.Defaults().Resources)); err != nil {
			return err
		}
	}
	return nil
}

// newMaker makes snapshots with what was opened and chosen.
func (e *embedded) newMaker() (*snapshots.Maker, error) {
	scratch, err := lethe.Open(lethe.Config{Dir: e.paths.lethe(), Log: e.log})
	if err != nil {
		return nil, err
	}
	cfg := snapshots.Config{Driver: e.driver, Images: e.images, Scratch: scratch, Dir: e.home.saves(), Logger: e.log}
	if passing := e.cfg.Passing; passing != nil {
		cfg.Passing = func(step string, of sandbox.ID, done bool) error {
			return passing(hecatoncheir.Passing{Step: step, Of: of, Done: done})
		}
	}
	return snapshots.New(cfg)
}

func ensureBundle(ctx context.Context, images *nyx.Store, progress func(cli.Step)) error {
	init, err := guestInit()
	if err != nil {
		return err
	}
	_, err = images.EnsureBundle(ctx, init, steps(progress))
	return err
}

// steps shows nyx's steps on the command line.
func steps(show func(cli.Step)) nyx.Progress {
	if show == nil {
		return nil
	}
	return func(s nyx.Step) {
		show(cli.Step{Name: s.Of + ": " + s.Name, Done: s.Done, Total: s.Total})
	}
}

// listTemplates lists what is on this host, without a server.
func listTemplates(ctx context.Context, stateDir string) ([]*apiv1.Template, error) {
	images, err := hostImages(stateDir)
	if err != nil {
		return nil, err
	}
	list, err := images.Templates(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]*apiv1.Template, len(list))
	for i, t := range list {
		out[i] = &apiv1.Template{
			Name: t.Name, Digest: string(t.Digest), Bytes: float64(t.Bytes),
			CreatedAt: timestamppb.New(t.CreatedAt), Packages: t.Packages,
		}
	}
	return out, nil
}

// hostImages are the images in a state folder.
func hostImages(stateDir string) (*nyx.Store, error) {
	root, err := stateRoot(stateDir)
	if err != nil {
		return nil, err
	}
	p, err := openState(root)
	if err != nil {
		return nil, err
	}
	images, _, err := openImages(p, nyx.Config{})
	return images, err
}

func removeTemplate(ctx context.Context, stateDir, name string) error {
	images, err := hostImages(stateDir)
	if err != nil {
		return err
	}
	return images.Remove(ctx, name) // its image goes with the next collection of an up
}
