package assembly

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// layerGroup is a finding of its own about some layers.
type layerGroup struct {
	is   func(layer string) bool
	lack cli.Finding // what one of them missing means
}

// layerGroups are those that hosts differ in by themselves, and at last all
// others. A layer is of the first that it is of.
func layerGroups() []layerGroup {
	begins := func(with string) func(string) bool { return func(l string) bool { return strings.HasPrefix(l, with) } }
	return []layerGroup{
		{begins("cgroup_"), cli.Finding{
			Name: "cgroups", Meaning: "a VMM that went wrong may take more of the host than its sandbox has, and reach its swap",
			Cure: "run as root, or as a service with Delegate=yes (docs/operations.md)",
		}},
		{begins(launcher.LayerOwnUID), cli.Finding{Name: "user", Meaning: "a VMM that a guest has taken over is this user to the kernel", Cure: "run as root"}},
		{begins(launcher.LayerLandlock), cli.Finding{Name: "landlock", Meaning: "a layer less stands behind the VM"}},
		{begins(""), cli.Finding{Name: "confinement", Meaning: "fewer layers stand behind the VM; every record says which there were"}},
	}
}

// confinement are the layers around a VMM, as a trial of it had them.
func confinement(is sandbox.Isolation) (out []cli.Finding) {
	have, lack := map[string][]string{}, map[string][]string{}
	groups := layerGroups()
	sort := func(into map[string][]string, layer, text string) {
		i := slices.IndexFunc(groups, func(g layerGroup) bool { return g.is(layer) })
		name := groups[i].lack.Name
		into[name] = append(into[name], text)
	}
	for _, layer := range is.Confinement {
		sort(have, layer, layer)
	}
	for _, m := range is.Missing {
		layer, _, _ := strings.Cut(m, ":")
		sort(lack, layer, m)
	}
	for _, g := range groups {
		f := cli.Finding{Name: g.lack.Name, Status: statusOK, Message: strings.Join(have[g.lack.Name], ", ")}
		if not := lack[f.Name]; len(not) > 0 {
			f = g.lack
			f.Status = statusLimited
			f.Message = strings.TrimPrefix(strings.Join(have[f.Name], ", ")+"; not: "+strings.Join(not, ", "), "; ")
		}
		out = append(out, f)
	}
	return out
}

// findSwap: what a VM's group keeps out of the swap does not reach it.
func findSwap(layers sandbox.Isolation) cli.Finding {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return failed("swap", err)
	}
	if si.Totalswap == 0 {
		return cli.Finding{Name: "swap", Status: statusOK, Message: "off"}
	}
	mib := si.Totalswap * uint64(si.Unit) >> 20
	if slices.Contains(layers.Confinement, cgroup.LayerSwapOff) {
		return cli.Finding{Name: "swap", Status: statusOK, Message: fmt.Sprintf("%d MiB on; the cgroups of VMs keep out of it", mib)}
	}
	return cli.Finding{
		Name: "swap", Status: statusLimited, Message: fmt.Sprintf("%d MiB on", mib),
		Meaning: "a sandbox's memory may reach the disk", Cure: "swapoff -a",
	}
}

func findKSM() cli.Finding {
	const name = "ksm"
	b, err := os.ReadFile("/sys/kernel/mm/ksm/run")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cli.Finding{Name: name, Status: statusOK, Message: "the kernel has none"}
	case err != nil:
		return failed(name, err)
	case strings.TrimSpace(string(b)) != "1":
		return cli.Finding{Name: name, Status: statusOK, Message: "off"}
	}
	return cli.Finding{
		Name: name, Status: statusLimited, Message: "on",
		Meaning: "where memory of several is merged, one may learn what another has in it", Cure: "echo 2 > /sys/kernel/mm/ksm/run",
	}
}

func findSMT() cli.Finding {
	b, err := os.ReadFile("/sys/devices/system/cpu/smt/active")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cli.Finding{Name: "smt", Status: statusOK, Message: "the kernel knows of none"}
	case err != nil:
		return failed("smt", err)
	case strings.TrimSpace(string(b)) == "0":
		return cli.Finding{Name: "smt", Status: statusOK, Message: "off"}
	}
	return cli.Finding{
		Name: "smt", Status: statusLimited, Message: "on",
		Meaning: "neighbours on one core may learn of each other by side channels", Cure: "echo off > /sys/devices/system/cpu/smt/control",
	}
}

func findClock() cli.Finding {
	name := "clock"
	if time.Now().Year() < 2024 {
		return cli.Finding{Name: name, Status: statusLimited, Message: "the wall clock says " + time.Now().Format(time.RFC3339), Meaning: "expiries of tokens and verdicts are wrong", Cure: "set the clock, or start a time service"}
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return failed(name, err)
	}
	if state == unix.TIME_ERROR {
		return cli.Finding{Name: name, Status: statusLimited, Message: "not synchronised, as the kernel knows", Meaning: "expiries of tokens and verdicts may be off", Cure: "start a time service"}
	}
	return cli.Finding{Name: name, Status: statusOK, Message: "synchronised, on " + runtime.GOOS + "/" + runtime.GOARCH}
}
