package assembly

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker"
)

// The statuses of a finding.
const (
	statusOK      = "ok"
	statusLimited = "limited" // it works, with less
	statusMissing = "missing" // runs fail without it
)

// doctor says what this host can do. It starts a VM to see how it would
// really be confined, and ends it.
func doctor(ctx context.Context, o cli.DoctorOptions) ([]cli.Finding, error) {
	root, err := stateRoot(o.StateDir)
	if err != nil {
		return nil, err
	}
	findings := []cli.Finding{findPrograms()}
	p, err := openState(root)
	if err != nil {
		return append(findings, failed("state", err)), nil
	}
	findings = append(findings, findSpace(root), findImages(ctx, p))
	findings = append(findings, findDriver(ctx, p, o.VMM)...)
	return append(findings, findNetwork(), findSwap(), findSMT(), findClock()), nil
}

func failed(name string, err error) cli.Finding {
	f := cli.Finding{Name: name, Status: statusMissing, Message: err.Error()}
	var e *fault.Error
	if errors.As(err, &e) {
		f.Cure = e.Hint
	}
	return f
}

func findPrograms() cli.Finding {
	missing := distro.Detect().Missing(os.Geteuid() == 0)
	if len(missing) == 0 {
		return cli.Finding{Name: "programs", Status: statusOK, Message: "all that are needed are installed"}
	}
	var names, uses []string
	for _, t := range missing {
		names, uses = append(names, t.Name), append(uses, t.For)
	}
	return cli.Finding{
		Name: "programs", Status: statusMissing, Message: "not installed: " + strings.Join(names, ", "),
		Meaning: "without them there is no " + strings.Join(uses, ", "), Cure: "as root: " + distro.InstallCommand(missing),
	}
}

// scarceMiB is how little room on the state's disk is worth a warning.
const scarceMiB = 4 << 10

func findSpace(root string) cli.Finding {
	space, err := lethe.Free(root)
	if err != nil {
		return failed("disk", err)
	}
	f := cli.Finding{Name: "disk", Status: statusOK, Message: fmt.Sprintf("%d MiB free of %d under %s", space.FreeMiB, space.TotalMiB, root)}
	if space.FreeMiB < scarceMiB {
		f.Status, f.Meaning, f.Cure = statusLimited, "few sandboxes fit at once", "name a folder on a larger disk with --state"
	}
	return f
}

func findImages(ctx context.Context, p paths) cli.Finding {
	images, _, err := openImages(p, nyx.Config{})
	if err != nil {
		return failed("images", err)
	}
	bundle, err := images.CurrentBundle(ctx)
	if err != nil {
		return cli.Finding{Name: "images", Status: statusLimited, Message: "there is no guest bundle yet", Meaning: "the first run makes it, and takes longer", Cure: "tartarus setup"}
	}
	templates, err := images.Templates(ctx)
	if err != nil {
		return failed("images", err)
	}
	names := make([]string, len(templates))
	for i, t := range templates {
		names[i] = t.Name
	}
	return cli.Finding{Name: "images", Status: statusOK, Message: fmt.Sprintf("guest kernel %s; templates: %s", bundle.Release, strings.Join(names, ", "))}
}

func findDriver(ctx context.Context, p paths, want cli.VMMOptions) []cli.Finding {
	c, err := choose(ctx, p, want, nil, nil)
	if err != nil {
		return []cli.Finding{failed("driver", err)}
	}
	defer c.close() //nolint:errcheck // an empty folder is all it could leave
	info := c.driver.Info()
	kvm := cli.Finding{Name: "kvm", Status: statusLimited, Message: c.kvm.Why, Meaning: "guest code is translated (TCG): slower, and the VMM's confinement is the boundary that counts"}
	if c.kvm.Usable {
		kvm.Status, kvm.Meaning = statusOK, ""
	}
	return []cli.Finding{
		kvm,
		findFirecracker(c),
		{Name: "driver", Status: statusOK, Message: fmt.Sprintf("%s %s, %s: %s", info.Name, info.Version, info.Accelerator, c.why)},
		confinement(info),
	}
}

// findFirecracker says why VMs run in Firecracker, or not. It is worth a cure
// only where KVM works.
func findFirecracker(c choice) cli.Finding {
	const name = firecracker.Name
	if c.jail == nil {
		return cli.Finding{Name: name, Status: statusOK, Message: "used, version " + c.driver.Info().Version}
	}
	f := failed(name, c.jail)
	f.Message = "not used: " + f.Message
	if f.Status = statusLimited; !c.kvm.Usable {
		f.Status, f.Cure = statusOK, ""
		return f
	}
	f.Meaning = "VMs run in QEMU, which is larger, slower to start and has more that a guest could attack"
	return f
}

func confinement(info tartarus.Info) cli.Finding {
	f := cli.Finding{Name: "confinement", Status: statusOK, Message: strings.Join(info.Isolation.Confinement, ", ")}
	if len(info.Isolation.Missing) > 0 {
		f.Status = statusLimited
		f.Message += "; not: " + strings.Join(info.Isolation.Missing, ", ")
		f.Meaning = "fewer layers stand behind the VM; every record says which there were"
	}
	return f
}

func findSwap() cli.Finding {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return failed("swap", err)
	}
	if si.Totalswap == 0 {
		return cli.Finding{Name: "swap", Status: statusOK, Message: "off"}
	}
	return cli.Finding{
		Name: "swap", Status: statusLimited, Message: fmt.Sprintf("%d MiB on", si.Totalswap*uint64(si.Unit)>>20),
		Meaning: "a sandbox's memory may reach the disk", Cure: "swapoff -a",
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
