package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// check is something that must hold in the lab: the tests of a package, or a
// command that succeeds.
type check struct {
	name string
	argv []string // "" of a package: its test binary, with these arguments
	pkg  string   // whose tests are run, relative to the module
	env  []string

	limit time.Duration
	must  []string // tests that may not skip or be missing
	full  bool     // not part of the short suite, which every test run has
}

// checks are the suite, in its order: the cheap ones first. Each
// may count on the lab, but not on those before it.
var checks = []check{
	{
		name: "cgroup", pkg: "internal/node/cgroup", limit: time.Minute,
		must: []string{"TestMemoryLimitKills", "TestCPULimitSlows", "TestPidsLimitRefusesForks", "TestRemoveEndsWhatLingers", "TestOrdinaryUserGetsReasons"},
	},
	{
		name: "launcher", full: true, pkg: "internal/node/launcher", limit: 3 * time.Minute, env: []string{"LAUNCHER_TEST_PROBE=" + inLab + "probe"},
		must: []string{"TestEscapedGuestFindsNothing", "TestDeadlyCallsEndTheVMM", "TestVMMIsWhatTheLayersSay", "TestRequired"},
	},
	{name: "doctor", limit: 2 * time.Minute, argv: shell(`judged --firecracker ` + firecracker + ` --insecure-test-vmm
		cat /root/doctor; grep -q '^driver  *ok  *firecracker .*, kvm: a guest booted' /root/doctor`)},
	{
		name: "qemu", full: true, limit: 2 * time.Minute,
		argv: shell(`judged --driver qemu
			tartarus run --local --driver qemu --timings -- sh -c 'echo out; uname -r; exit 3' >/root/out 2>/root/err; status=$?
			cat /root/out /root/err; [ $status = 3 ] && grep -qx out /root/out && grep -q 'qemu .* kvm' /root/err`),
	},
	{
		name: "firecracker", pkg: "internal/node/tartarus/firecracker", argv: []string{"-test.run=^TestLab(Driver|Confined|Restored|Metrics)$"}, limit: 4 * time.Minute,
		must: []string{"TestLabDriver", "TestLabConfined", "TestLabRestored", "TestLabMetrics"},
	},
	{
		name: "user", full: true, pkg: "internal/node/tartarus/firecracker", argv: []string{"-test.run=^TestLabUser$"}, limit: 4 * time.Minute,
		must: []string{"TestLabUser"},
	},
	{
		name: "road", pkg: "test/e2e", argv: []string{"-test.run=^TestLab"}, limit: 5 * time.Minute, env: onFirecracker,
		must: []string{"TestLabRoad", "TestLabNothingIsLeft"},
	},
	{
		name: "network", full: true, pkg: "test/e2e", argv: []string{"-test.run=^TestNetwork$"}, limit: 5 * time.Minute, env: onFirecracker,
		must: []string{"TestNetwork"},
	},
	{
		name: "hostile", full: true, pkg: "test/hostile", argv: []string{"-test.run=^TestHostileGuests$", "-test.parallel=2"}, limit: 25 * time.Minute,
		env: append([]string{"TARTARUS_HOSTILE_RAW=" + inLab + "raw"}, onFirecracker...), must: []string{"TestHostileGuests"},
	},
	{
		name: "faults", full: true, pkg: "test/faults", argv: []string{"-test.run=^TestReal$"}, limit: 15 * time.Minute,
		env:  []string{"TARTARUS_FAULTS_FIRECRACKER=" + firecracker, "TARTARUS_FAULTS_STATE=" + guestFolder},
		must: []string{"TestReal"},
	},
	{
		name: "clock", full: true, pkg: "test/faults", argv: []string{"-test.run=^TestAround$", "-cell=^the clock"}, limit: 5 * time.Minute,
		env:  []string{"TARTARUS_FAULTS_STATE=" + guestFolder},
		must: []string{"TestAround"},
	},
}

// onFirecracker has the tests of the whole road run their VMs in it.
var onFirecracker = []string{"TARTARUS_E2E_FIRECRACKER=" + firecracker, "TARTARUS_E2E_STATE=" + guestFolder}

// Where things are in the lab.
const (
	inLab       = "/lab/"
	guestFolder = "/root/.cache/tartarus/test" // as the tests of the drivers want it
	vmmFolder   = "/opt/firecracker"
	firecracker = vmmFolder + "/firecracker"
)

// judged ends a script unless KVM is usable as doctor sees it, with these
// flags. A trial boot that was too slow on a busy machine is tried again: that
// it can succeed is what counts here.
const judged = `judged() {
	for try in 1 2 3; do
		tartarus doctor "$@" >/root/doctor
		if grep -q '^kvm  *ok' /root/doctor; then return; fi
		rm -f "$TARTARUS_STATE/kvm.json"
	done
	cat /root/doctor; exit 1
}
`

func shell(script string) []string { return []string{"sh", "-c", judged + script} }

// firmware is what QEMU in the lab reads beside its libraries.
var firmware = []string{"qboot.rom", "bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"}

// runSuite runs the checks with these names, or all, in one lab. The status is
// 1 when one failed.
func runSuite(ctx context.Context, s settings, stdout io.Writer) (int, error) {
	chosen, err := choose(s.names, s.full)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "tartarus-suite-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	broken, err := equip(ctx, &s.opts, chosen, tmp)
	if err != nil {
		return 0, err
	}
	l, err := newLab(ctx, s.opts)
	if err != nil {
		return 0, err
	}
	defer l.close()
	passed, failed := 0, 0
	for _, c := range chosen {
		began := time.Now()
		log := &tally{limit: logBytes}
		if s.verbose {
			log.to = stdout
		}
		faults := []string{}
		if why := broken[c.name]; why != nil {
			faults = append(faults, why.Error())
		} else {
			e, err := l.run(ctx, c.order(), log)
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			faults = c.judge(e, err, log)
		}
		if len(faults) == 0 {
			passed++
		} else {
			failed++
		}
		report(stdout, c.name, time.Since(began), log, faults)
	}
	fmt.Fprintf(stdout, "%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return 1, nil
	}
	return 0, nil
}

// choose finds the checks by their names; without names those of the short
// suite, or all.
func choose(names []string, full bool) ([]check, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return c.full && !full }), nil
	}
	var all []string
	for _, c := range checks {
		all = append(all, c.name)
	}
	var out []check
	for _, n := range names {
		i := slices.Index(all, n)
		if i < 0 {
			return nil, fmt.Errorf("there is no check %q; there are %s", n, strings.Join(all, ", "))
		}
		out = append(out, checks[i])
	}
	return out, nil
}

// binary is the name of the program that the package's tests are.
func (c check) binary() string { return path.Base(c.pkg) + ".test" }

// order is what the lab is told to run.
func (c check) order() labwire.Order {
	o := labwire.Order{Argv: c.argv, Env: append([]string{"TARTARUS_STATE=" + guestFolder}, c.env...), Limit: c.limit}
	if c.pkg != "" {
		const early = 10 * time.Second // so that Go tells where it hangs
		o.Argv = append([]string{inLab + c.binary(), "-test.v=test2json", "-test.timeout=" + (c.limit - early).String()}, c.argv...)
		o.Env = c.env
	}
	return o
}

// judge says what is wrong with how a check ended; nothing if it passed.
func (c check) judge(e labwire.Ended, err error, log *tally) []string {
	if err != nil {
		return []string{err.Error()}
	}
	var faults []string
	switch {
	case e.Error != "":
		faults = append(faults, e.Error)
	case e.TimedOut:
		faults = append(faults, fmt.Sprintf("not done in %v", c.limit))
	case e.Status != 0:
		faults = append(faults, fmt.Sprintf("it ended with status %d", e.Status))
	}
	if len(e.Left) > 0 {
		faults = append(faults, "it left behind: "+strings.Join(e.Left, ", "))
	}
	for _, name := range c.must {
		if log.results[name] != "PASS" {
			faults = append(faults, fmt.Sprintf("%s may not skip or be missing, and did not run to a pass", name))
		}
	}
	return faults
}

// report prints the line of a check, and what one must know of a failure.
func report(w io.Writer, name string, took time.Duration, log *tally, faults []string) {
	verdict := "ok"
	if len(faults) > 0 {
		verdict = "FAIL"
	}
	line := fmt.Sprintf("%-4s  %-12s %6.1f s  %s", verdict, name, took.Seconds(), log.summary())
	fmt.Fprintln(w, strings.TrimRight(line, " "))
	if len(faults) == 0 {
		return
	}
	if log.to == nil {
		for l := range strings.Lines(log.text()) {
			fmt.Fprint(w, "      | ", strings.TrimRight(l, "\n"), "\n")
		}
	}
	for _, f := range faults {
		fmt.Fprintln(w, "      "+f)
	}
}

// equip builds and collects what the checks need in the lab. What does not
// build breaks its own check alone.
func equip(ctx context.Context, o *options, chosen []check, tmp string) (broken map[string]error, err error) {
	if _, err := os.Stat("bin/tartarus"); err != nil {
		return nil, errors.New("there is no bin/tartarus here: run make build, and this from the repository's root")
	}
	const fetched = ".cache/firecracker/1.12.1"
	if _, err := os.Stat(fetched); err != nil {
		return nil, errors.New("there is no Firecracker for the tests: run make firecracker-test")
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	guest := filepath.Join(cache, "guest")
	o.say("preparing the guest that is booted in the lab")
	if _, err := distro.Run(ctx, mustAbs("bin/tartarus"), "setup", "--template", "base", "--state", guest); err != nil {
		return nil, err
	}
	o.adds = append(o.adds, addition{guest, guestFolder}, addition{"bin/tartarus", "/usr/bin/tartarus"}, addition{fetched, vmmFolder})
	o.programs = append(o.programs, "qemu-system-x86_64", "mke2fs")
	for _, f := range firmware {
		if from := "/usr/share/qemu/" + f; exists(from) {
			o.adds = append(o.adds, addition{from, from})
		}
	}
	broken = map[string]error{}
	built := map[string]error{}
	for _, c := range chosen {
		if c.pkg == "" {
			continue
		}
		err, done := built[c.pkg]
		if !done {
			o.say("building the tests of %s", c.pkg)
			binary := filepath.Join(tmp, c.binary())
			if err = goTool(ctx, "test", "-c", "-o", binary, "./"+c.pkg); err == nil {
				o.adds = append(o.adds, addition{binary, inLab + c.binary()})
			}
			built[c.pkg] = err
		}
		if err != nil {
			broken[c.name] = err
		}
	}
	// What tests build for themselves where there is Go.
	for name, pkg := range map[string]string{"probe": "./internal/node/launcher/testdata/probe", "raw": "./test/hostile/testdata/raw"} {
		program := filepath.Join(tmp, name)
		if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", program, pkg); err != nil {
			return nil, err
		}
		o.adds = append(o.adds, addition{program, inLab + name})
	}
	return broken, ctx.Err()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mustAbs is path, which is known to exist, from the root.
func mustAbs(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}
