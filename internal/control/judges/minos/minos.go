// Package minos is the quota judge: from policy and request to plain limits.
//
// What is in use is for the ledger to sum up and enforce; here is refused what
// could never fit, however long it waited. Rate, beside the judge, is asked
// before anything is looked up or written.
package minos

import (
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Minos is the judge.
type Minos struct{}

// Name is the judge's name in reasons.
func (Minos) Name() string { return "minos" }

// Judge refuses what is larger than the tenant's whole quota.
func (Minos) Judge(c judges.Case) judges.Opinion {
	limits, res := c.Tenant.Quota.Limits, c.Request.Resources
	o := judges.Opinion{Kind: fault.QuotaExceeded, Limits: &limits}
	for _, q := range []struct {
		quota, field string
		asked, limit int64
	}{
		{"live", "", 1, int64(limits.Live)},
		{"running", "", 1, int64(limits.Running)},
		{"vcpus", "resources.vcpus", int64(res.VCPUs), int64(limits.VCPUs)},
		{"memory_mib", "resources.memory_mib", res.MemoryMiB, limits.MemoryMiB},
		{"disk_mib", "resources.disk_mib", res.DiskMiB, limits.DiskMiB},
	} {
		if q.asked > q.limit {
			o.Refusals = append(o.Refusals, sandbox.Reason{
				Rule: "quota." + q.quota, Field: q.field,
				Message: fmt.Sprintf("it asks for %s %d, and the tenant's limit is %d", q.quota, q.asked, q.limit),
			})
		}
	}
	return o
}
