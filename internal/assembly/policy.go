package assembly

import (
	"context"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/rehearsal"
)

// checkPolicy reads a policy as an up would.
func checkPolicy(path string) (cli.PolicySummary, error) {
	p, file, err := themis.Load(path)
	if err != nil {
		return cli.PolicySummary{}, err
	}
	return cli.PolicySummary{File: file, Version: p.Version(), Tenants: len(p.Tenants()), Rules: len(p.Rules())}, nil
}

// tryPolicy tries the cases of a file on the bench that an up has.
func tryPolicy(ctx context.Context, path string) (cli.PolicyReport, error) {
	r, err := rehearsal.Stage{API: olympus.Form{}, Bench: judgeBench()}.Run(ctx, path)
	if err != nil {
		return cli.PolicyReport{}, err
	}
	out := cli.PolicyReport{File: r.File, Policy: r.Policy, Version: r.Version, Untested: append([]string{}, r.Untested...)}
	for _, c := range r.Results {
		out.Cases = append(out.Cases, cli.PolicyCase(c))
	}
	return out, nil
}
