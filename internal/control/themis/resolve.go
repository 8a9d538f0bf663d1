package themis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// defaultFileMode is what a file gets where the request says none.
const defaultFileMode = 0o644

// Resolve turns a request into plain values: every default filled in, names
// looked up, secrets split off. It asks no more than whether the request is
// well formed and its tenant known; whether the policy allows it is for the
// judges. The request is not changed, and shares no memory with the result
// but the bytes of stdin and files.
//
// seal.EncodeSecrets of the returned secrets has the SecretsDigest of the
// returned request. Errors are of kind InvalidArgument with the field's JSON
// name, PolicyDenied for a tenant the policy does not name, and whatever the
// lookup answers.
func (p *Policy) Resolve(ctx context.Context, who sandbox.Principal, req sandbox.Request, lookup Lookup) (sandbox.Resolved, sandbox.Secrets, error) {
	none := func(err error) (sandbox.Resolved, sandbox.Secrets, error) {
		return sandbox.Resolved{}, sandbox.Secrets{}, err
	}
	if _, ok := p.tenants[who.Tenant]; !ok {
		return none(fault.New(fault.PolicyDenied, "the policy names no tenant %s", show(who.Tenant)).
			WithHint("Ask an operator to add it to the policy, or use another tenant's token."))
	}
	if err := checkRequest(req); err != nil {
		return none(err)
	}
	network, err := plainContract(req.Network)
	if err != nil {
		return none(err)
	}
	res := p.fill(req)
	res.Network = network
	if err := lookUp(ctx, &res, lookup); err != nil {
		return none(err)
	}
	secrets := splitSecrets(req, &res)
	_, res.SecretsDigest, err = seal.EncodeSecrets(secrets)
	if err != nil {
		return none(err)
	}
	return res, secrets, nil
}

// checkRequest checks every field by itself, in the order that they are
// written down.
func checkRequest(req sandbox.Request) error {
	if req.Template != "" {
		if err := checkTemplate(req.Template); err != nil {
			return err
		}
	}
	if err := checkCommand(req.Command); err != nil {
		return err
	}
	for _, check := range []func() error{
		func() error { return checkName(req.Name) },
		func() error { return checkEnv(req.Env) },
		func() error {
			if req.WorkingDir == "" {
				return nil
			}
			return checkWorkingDir(req.WorkingDir)
		},
		func() error {
			if req.User == "" {
				return nil
			}
			return checkUser(req.User)
		},
		func() error { return checkFiles(req) },
		func() error { return checkResources(req.Resources) },
		func() error { return checkDuration(req.MaxDuration) },
		func() error { return checkLabels("labels", req.Labels, MaxLabels) },
		func() error { return checkLabels("node_selector", req.NodeSelector, MaxSelectors) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// or is v, or what the policy says where v is zero.
func or[T comparable](v, policy T) T {
	var zero T
	if v == zero {
		return policy
	}
	return v
}

// fill is the request with every default, but for what is looked up.
func (p *Policy) fill(req sandbox.Request) sandbox.Resolved {
	d := p.defaults
	return sandbox.Resolved{
		Template:   or(req.Template, d.Template),
		Command:    slices.Clone(req.Command),
		Name:       req.Name,
		WorkingDir: or(req.WorkingDir, d.WorkingDir),
		User:       or(req.User, d.User),
		StdinOpen:  req.StdinOpen,
		Resources: sandbox.Resources{
			VCPUs:     or(req.Resources.VCPUs, d.Resources.VCPUs),
			MemoryMiB: sandbox.MemoryClass(or(req.Resources.MemoryMiB, d.Resources.MemoryMiB)),
			DiskMiB:   or(req.Resources.DiskMiB, d.Resources.DiskMiB),
			Processes: or(req.Resources.Processes, d.Resources.Processes),
		},
		MaxDuration:  or(req.MaxDuration, d.MaxDuration),
		StartTimeout: d.StartTimeout,
		QueueTimeout: d.QueueTimeout,
		CapacityWait: d.CapacityWait,
		LogBytes:     d.LogBytes,
		Labels:       someOf(req.Labels),
		NodeSelector: someOf(req.NodeSelector),
		Isolation: sandbox.IsolationFloor{
			Accelerator: p.floor.Accelerator, Confinement: slices.Clone(p.floor.Confinement),
		},
	}
}

// someOf is a copy, and nil for a map without entries, so that a request has
// one resolved form.
func someOf(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func lookUp(ctx context.Context, res *sandbox.Resolved, lookup Lookup) error {
	t, err := lookup.Template(ctx, res.Template)
	if fault.Is(err, fault.NotFound) {
		hint := "`tartarus template ls` shows the templates there are."
		var f *fault.Error
		if errors.As(err, &f) && f.Hint != "" {
			hint = f.Hint
		}
		return fault.Invalid("template", hint, "there is no template %s", show(res.Template))
	}
	if err != nil {
		return fmt.Errorf("looking up template %q: %w", res.Template, err)
	}
	guest, err := lookup.GuestDigest(ctx)
	if err != nil {
		return fmt.Errorf("looking up the guest bundle: %w", err)
	}
	res.TemplateDigest, res.GuestDigest = t.Digest, guest
	return nil
}

// splitSecrets takes the secret values out of the request, and leaves their
// names and lengths in res.
func splitSecrets(req sandbox.Request, res *sandbox.Resolved) sandbox.Secrets {
	salt := make([]byte, seal.SaltLen)
	rand.Read(salt) // never fails
	s := sandbox.Secrets{Salt: salt, Env: someOf(req.Env)}
	for _, name := range sortedKeys(req.Env) {
		res.Env = append(res.Env, sandbox.SecretRef{Name: name, Bytes: len(req.Env[name])})
	}
	if len(req.Stdin) > 0 {
		s.Stdin = req.Stdin
		res.StdinBytes = len(req.Stdin)
	}
	for _, f := range req.Files {
		f.Mode = or(f.Mode, uint32(defaultFileMode))
		s.Files = append(s.Files, f)
		res.Files = append(res.Files, sandbox.FileRef{Path: f.Path, Mode: f.Mode, Bytes: len(f.Data)})
	}
	return s
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
