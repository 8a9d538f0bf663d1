// Package rhadamanthus is the policy judge: templates, maxima, network grants
// and the policy's own rules.
package rhadamanthus

import (
	"fmt"
	"slices"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Unevaluated begins the reason of a rule that could not be evaluated.
const Unevaluated = "the rule could not be evaluated on this request, which denies it: "

// Rhadamanthus is the judge.
type Rhadamanthus struct{}

// Name is the judge's name in reasons.
func (Rhadamanthus) Name() string { return "rhadamanthus" }

// Judge refuses what the policy does not allow.
func (Rhadamanthus) Judge(c judges.Case) judges.Opinion {
	return judges.Opinion{
		Kind:     fault.PolicyDenied,
		Refusals: slices.Concat(template(c), maxima(c), network(c), rules(c)),
	}
}

func template(c judges.Case) []sandbox.Reason {
	if c.Tenant.Templates == nil || slices.Contains(c.Tenant.Templates, c.Request.Template) {
		return nil
	}
	return []sandbox.Reason{{
		Rule: "templates", Field: "template",
		Message: fmt.Sprintf("the policy does not allow template %q", c.Request.Template),
	}}
}

func maxima(c judges.Case) []sandbox.Reason {
	var out []sandbox.Reason
	res, most := c.Request.Resources, c.Tenant.Maxima.Resources
	for _, m := range []struct {
		name        string
		asked, most int64
	}{
		{"vcpus", int64(res.VCPUs), int64(most.VCPUs)},
		{"memory_mib", res.MemoryMiB, most.MemoryMiB},
		{"disk_mib", res.DiskMiB, most.DiskMiB},
		{"processes", int64(res.Processes), int64(most.Processes)},
	} {
		if m.asked > m.most {
			out = append(out, sandbox.Reason{
				Rule: "maxima.resources." + m.name, Field: "resources." + m.name,
				Message: fmt.Sprintf("it asks for %s %d, and the policy allows at most %d", m.name, m.asked, m.most),
			})
		}
	}
	if d := c.Request.MaxDuration; d > c.Tenant.Maxima.MaxDuration {
		out = append(out, sandbox.Reason{
			Rule: "maxima.max_duration", Field: "max_duration",
			Message: fmt.Sprintf("it asks for %v, and the policy allows at most %v", d, c.Tenant.Maxima.MaxDuration),
		})
	}
	return out
}

func rules(c judges.Case) []sandbox.Reason {
	var out []sandbox.Reason
	for _, r := range c.Policy.Rules() {
		denied, err := r.Denies(c.Tenant.Name, c.Request)
		switch {
		case err != nil:
			out = append(out, sandbox.Reason{Rule: r.Name, Message: Unevaluated + r.Reason})
		case denied:
			out = append(out, sandbox.Reason{Rule: r.Name, Message: r.Reason})
		}
	}
	return out
}
