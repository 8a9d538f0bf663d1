// Package tisiphone is the watch over memory: whether a VM went over what the
// host gives it.
//
// Inside the guest the command's own cgroup holds the command to its memory;
// that is counted in the exit record as the guest's word. What is judged here
// is the host's: a VMM that takes more than guest and overhead has gone wrong.
package tisiphone

import (
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/node/erinyes"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// HostLimit is what a VM with that much guest memory may take of its host, in
// bytes.
func HostLimit(memoryMiB int64) int64 { return (memoryMiB + sandbox.VMOverheadMiB) << 20 }

// Judge says whether a VM must end for its memory. No word of the guest
// counts: it could only accuse or excuse itself.
func Judge(limit int64, s tartarus.Sample) erinyes.Verdict {
	if s.OOMKills > 0 {
		return erinyes.Verdict{
			Cause:   sandbox.Memory,
			Message: fmt.Sprintf("the host killed its VM for going over its memory limit (%d MiB)", limit>>20),
		}
	}
	if limit > 0 && s.MemoryBytes > limit {
		return erinyes.Verdict{
			Cause:   sandbox.Memory,
			Message: fmt.Sprintf("its VM took %d MiB of the host's memory, more than its limit (%d MiB)", s.MemoryBytes>>20, limit>>20),
		}
	}
	return erinyes.Verdict{}
}
