package assembly

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
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
	vms, layers := findDriver(ctx, p, o.VMM)
	findings = append(findings, vms...)
	findings = append(findings, findNetwork(), findSwap(layers), findKSM(), findSMT(), findClock())
	if o.Production {
		demand(findings)
	}
	return findings, nil
}

// demanded is what a host for the code of strangers has, by the names of
// findings.
func demanded() []string {
	return []string{"kvm", "firecracker", "cgroups", "user", "swap", "ksm", "smt", "clock"}
}

// demand turns what is limited into what is missing, where production needs it.
func demand(findings []cli.Finding) {
	for i, f := range findings {
		if f.Status == statusLimited && slices.Contains(demanded(), f.Name) {
			findings[i].Status = statusMissing
			findings[i].Message += " (production needs it)"
		}
	}
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

// findDriver says what VMs run in and how they are confined there, and the
// layers that there are.
func findDriver(ctx context.Context, p paths, want cli.VMMOptions) ([]cli.Finding, sandbox.Isolation) {
	c, err := choose(ctx, p, want, nil, nil)
	if err != nil {
		return []cli.Finding{failed("driver", err)}, sandbox.Isolation{}
	}
	defer c.close() //nolint:errcheck // an empty folder is all it could leave
	info := c.driver.Info()
	kvm := cli.Finding{Name: "kvm", Status: statusLimited, Message: c.kvm.Why, Meaning: "guest code is translated (TCG): slower, and the VMM's confinement is the boundary that counts"}
	if c.kvm.Usable {
		kvm.Status, kvm.Meaning = statusOK, ""
	}
	return append([]cli.Finding{
		kvm,
		findFirecracker(c),
		{Name: "driver", Status: statusOK, Message: fmt.Sprintf("%s %s, %s: %s", info.Name, info.Version, info.Accelerator, c.why)},
	}, confinement(info.Isolation)...), info.Isolation
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
		f.Cure = ""
		f.Meaning = "VMs run in QEMU; Firecracker needs KVM"
		return f
	}
	f.Meaning = "VMs run in QEMU, which is larger, slower to start and has more that a guest could attack"
	return f
}
