package assembly

import (
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Layers are told where they belong, and one that is missing says what that
// means.
func TestConfinementFindings(t *testing.T) {
	got := map[string]cli.Finding{}
	for _, f := range confinement(sandbox.Isolation{
		Confinement: []string{"seccomp", "cgroup_cpu", "landlock", "rlimits"},
		Missing:     []string{"cgroup_memory: no rights", "own_uid: the agent is not root"},
	}) {
		got[f.Name] = f
	}
	for name, want := range map[string]cli.Finding{
		"cgroups":     {Status: statusLimited, Message: "cgroup_cpu; not: cgroup_memory: no rights"},
		"user":        {Status: statusLimited, Message: "not: own_uid: the agent is not root"},
		"landlock":    {Status: statusOK, Message: "landlock"},
		"confinement": {Status: statusOK, Message: "seccomp, rlimits"},
	} {
		if f := got[name]; f.Status != want.Status || f.Message != want.Message || (f.Meaning == "") != (f.Status == statusOK) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if len(got) != 4 {
		t.Errorf("findings %v", got)
	}
}

// For production what is limited is missing, where that matters; the rest
// stays as it is.
func TestDemand(t *testing.T) {
	findings := []cli.Finding{
		{Name: "kvm", Status: statusLimited, Message: "not usable"}, {Name: "smt", Status: statusOK},
		{Name: "landlock", Status: statusLimited}, {Name: "disk", Status: statusLimited},
	}
	demand(findings)
	want := []string{statusMissing, statusOK, statusLimited, statusLimited}
	for i, f := range findings {
		if f.Status != want[i] {
			t.Errorf("%+v", f)
		}
	}
	if !strings.Contains(findings[0].Message, "production") {
		t.Errorf("%+v", findings[0])
	}
	// Every demand is one of a finding that there is.
	all := map[string]bool{}
	for _, f := range append(confinement(sandbox.Isolation{}), findKSM(), findSMT(), findClock(), findSwap(sandbox.Isolation{}), cli.Finding{Name: "kvm"}, findFirecracker(choice{jail: errHeld})) {
		all[f.Name] = true
	}
	for _, name := range demanded() {
		if !all[name] {
			t.Errorf("nothing finds %s", name)
		}
	}
}
