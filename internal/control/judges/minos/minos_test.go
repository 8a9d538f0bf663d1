package minos_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func tenant(l sandbox.Limits) themis.Tenant {
	return themis.Tenant{Name: "t", Quota: themis.Quota{Limits: l, RatePerMinute: 60, Burst: 2}}
}

func TestWhatCouldNeverFit(t *testing.T) {
	limits := sandbox.Limits{Live: 1, Running: 1, VCPUs: 2, MemoryMiB: 256, DiskMiB: 512}
	fits := sandbox.Resources{VCPUs: 2, MemoryMiB: 256, DiskMiB: 512}
	for name, c := range map[string]struct {
		limits sandbox.Limits
		res    sandbox.Resources
		rules  []string
		field  string
	}{
		"all of it":  {limits, fits, nil, ""},
		"vcpus":      {limits, sandbox.Resources{VCPUs: 3, MemoryMiB: 256, DiskMiB: 512}, []string{"quota.vcpus"}, "resources.vcpus"},
		"memory":     {limits, sandbox.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 512}, []string{"quota.memory_mib"}, "resources.memory_mib"},
		"disk":       {limits, sandbox.Resources{VCPUs: 2, MemoryMiB: 256, DiskMiB: 513}, []string{"quota.disk_mib"}, "resources.disk_mib"},
		"no live":    {sandbox.Limits{Running: 1, VCPUs: 2, MemoryMiB: 256, DiskMiB: 512}, fits, []string{"quota.live"}, ""},
		"no running": {sandbox.Limits{Live: 1, VCPUs: 2, MemoryMiB: 256, DiskMiB: 512}, fits, []string{"quota.running"}, ""},
		"nothing":    {sandbox.Limits{}, fits, []string{"quota.live", "quota.running", "quota.vcpus", "quota.memory_mib", "quota.disk_mib"}, ""},
	} {
		o := minos.Minos{}.Judge(judges.Case{Tenant: tenant(c.limits), Request: sandbox.Resolved{Resources: c.res}})
		var rules []string
		for _, r := range o.Refusals {
			rules = append(rules, r.Rule)
		}
		if !slices.Equal(rules, c.rules) || len(rules) > 0 && (o.Kind != fault.QuotaExceeded || o.Refusals[0].Field != c.field) {
			t.Errorf("%s: %+v", name, o)
		}
		if o.Limits == nil || *o.Limits != c.limits {
			t.Errorf("%s: limits %+v", name, o.Limits)
		}
	}
}

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestRate(t *testing.T) {
	var r minos.Rate
	a, b := tenant(sandbox.Limits{}), tenant(sandbox.Limits{})
	b.Name = "u"
	for range 2 {
		if err := r.Allow(a, start); err != nil {
			t.Fatal(err)
		}
	}
	err := r.Allow(a, start)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.QuotaExceeded || f.RetryAfter != time.Second || f.Hint == "" {
		t.Errorf("the third at once: %#v", err)
	}
	if err := r.Allow(b, start); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	// A refusal takes nothing, so the time it named is enough.
	for range 100 {
		if r.Allow(a, start) == nil {
			t.Fatal("allowed at once")
		}
	}
	if err := r.Allow(a, start.Add(f.RetryAfter)); err != nil {
		t.Errorf("after Retry-After: %v", err)
	}
	// A new policy holds at once.
	a.Quota.RatePerMinute, a.Quota.Burst = 6000, 100
	if err := r.Allow(a, start.Add(f.RetryAfter+time.Second)); err != nil {
		t.Errorf("with a larger quota: %v", err)
	}
	a.Quota.RatePerMinute, a.Quota.Burst = 0, 0
	if err := r.Allow(a, start.Add(time.Hour)); !fault.Is(err, fault.QuotaExceeded) {
		t.Errorf("with no quota: %v", err)
	}
}

func TestRateNever(t *testing.T) {
	var r minos.Rate
	a := tenant(sandbox.Limits{})
	a.Quota.RatePerMinute, a.Quota.Burst = 0, 1
	if err := r.Allow(a, start); err != nil {
		t.Errorf("the burst: %v", err)
	}
	err := r.Allow(a, start)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.QuotaExceeded || f.RetryAfter != 0 {
		t.Errorf("a rate of 0, its burst used: %#v", err)
	}
}

// In no span of time more is allowed than the rate and the burst give.
func TestRateBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r minos.Rate
		a := tenant(sandbox.Limits{})
		a.Quota.RatePerMinute = rapid.IntRange(0, 600).Draw(t, "rate")
		a.Quota.Burst = rapid.IntRange(0, 20).Draw(t, "burst")
		now, allowed := start, 0
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 500), 1, 200).Draw(t, "ms") {
			now = now.Add(time.Duration(step) * time.Millisecond)
			if r.Allow(a, now) == nil {
				allowed++
			}
		}
		most := float64(a.Quota.Burst) + now.Sub(start).Minutes()*float64(a.Quota.RatePerMinute) + 1e-6
		if float64(allowed) > most {
			t.Fatalf("%d allowed, of at most %v", allowed, most)
		}
		if a.Quota.Burst > 0 && allowed == 0 {
			t.Fatal("none allowed")
		}
	})
}
