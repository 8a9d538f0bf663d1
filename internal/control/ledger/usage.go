package ledger

import (
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Usage is what a tenant has in use: a sum over its live records.
type Usage struct {
	Live      int   // queued or on a node
	Running   int   // on a node, and so is the rest
	VCPUs     int   // of those on nodes
	MemoryMiB int64 // of those on nodes, plain
	DiskMiB   int64 // of those on nodes
}

// Add is u with one more sandbox on a node, which was live already.
func (u Usage) Add(r sandbox.Resources) Usage {
	u.Running++
	u.VCPUs += r.VCPUs
	u.MemoryMiB += r.MemoryMiB
	u.DiskMiB += r.DiskMiB
	return u
}

// FitsLive is nil if one more request may be admitted, else QuotaExceeded.
func (u Usage) FitsLive(l sandbox.Limits) error {
	return within("live sandboxes", int64(u.Live), 1, int64(l.Live))
}

// Fits is nil if a sandbox with r may be placed, else QuotaExceeded. It is the
// one rule that Place goes by, and whoever wants to foresee it.
func (u Usage) Fits(l sandbox.Limits, r sandbox.Resources) error {
	for _, err := range []error{
		within("running sandboxes", int64(u.Running), 1, int64(l.Running)),
		within("vCPUs", int64(u.VCPUs), int64(r.VCPUs), int64(l.VCPUs)),
		within("memory in MiB", u.MemoryMiB, r.MemoryMiB, l.MemoryMiB),
		within("disk in MiB", u.DiskMiB, r.DiskMiB, l.DiskMiB),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func within(what string, used, more, limit int64) error {
	// Compared so that nothing overflows.
	if more >= 0 && more <= limit && used <= limit-more {
		return nil
	}
	return fault.New(fault.QuotaExceeded, "%s: used %d, asked for %d more, limit %d", what, used, more, limit).
		WithHint("wait until one of the tenant's sandboxes ends, kill one, or ask the operator for a larger quota")
}

// FitsNode is nil if n, with its InUse, has room for a sandbox with r, else
// Unavailable.
func FitsNode(n sandbox.Node, r sandbox.Resources) error {
	d := r.Demand()
	for _, c := range []struct {
		what              string
		used, more, limit int64
	}{
		{"vCPUs", int64(n.InUse.VCPUs), int64(d.VCPUs), int64(n.Capacity.VCPUs)},
		{"memory in MiB", n.InUse.MemoryMiB, d.MemoryMiB, n.Capacity.MemoryMiB},
		{"disk in MiB", n.InUse.DiskMiB, d.DiskMiB, n.Capacity.DiskMiB},
	} {
		if within(c.what, c.used, c.more, c.limit) != nil {
			return fault.New(fault.Unavailable, "node %q has no room: %s: used %d, asked for %d more, capacity %d",
				n.ID, c.what, c.used, c.more, c.limit).
				WithHint("wait until a sandbox on the node ends, or add a node")
		}
	}
	return nil
}
