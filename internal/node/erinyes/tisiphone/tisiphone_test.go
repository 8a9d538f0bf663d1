package tisiphone

import (
	"testing"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestJudge(t *testing.T) {
	limit := HostLimit(128)
	if limit != (128+sandbox.VMOverheadMiB)<<20 {
		t.Fatalf("limit %d", limit)
	}
	for _, c := range []struct {
		name string
		s    tartarus.Sample
		want sandbox.Cause
	}{
		{"nothing seen", tartarus.Sample{}, ""},
		{"at the limit", tartarus.Sample{MemoryBytes: limit}, ""},
		{"over it", tartarus.Sample{MemoryBytes: limit + 1}, sandbox.Memory},
		{"a peak that is over", tartarus.Sample{MemoryPeakBytes: limit * 2}, ""},
		{"killed by the host", tartarus.Sample{OOMKills: 1}, sandbox.Memory},
	} {
		if v := Judge(limit, c.s); v.Cause != c.want || v.Guilty() != (v.Message != "") {
			t.Errorf("%s: %+v, want %q", c.name, v, c.want)
		}
	}
}
