// Package bench is the measuring of what users wait for and pay for: starts,
// throughput, density, admission and placement, each beside a raw floor, and
// beside other sandboxes where they are installed.
//
// The figures of VMs are taken on a whole Tartarus that the caller opens, over
// its API. The floor is the same driver, guest, template and command by a bare
// loop, taken in turn with it: machines differ from day to day, and from minute
// to minute when others work on them, so that only ratios within one run travel.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// The figures, in the order in which they are taken.
const (
	Start      = "start"
	Throughput = "throughput"
	Density    = "density"
	Admit      = "admit"
	Place      = "place"
)

// Figures are all of them.
func Figures() []string { return []string{Start, Throughput, Density, Admit, Place} }

// Config is one run.
type Config struct {
	Figures     []string      // at least one
	Count       int           // starts at each concurrency, at least
	Concurrency []int         // of start
	Burst       int           // starts at one instant, after throughput; 0: none
	VMs         int           // idle ones that density wants
	MemoryMiB   int64         // that they may have of their own; half of what is free if 0
	Idle        time.Duration // for which density looks at them
	Compare     bool          // with other sandboxes, too
	Shape       Shape
	Standby     int // VMs that wait, at most, for the report
	Rounds      int // of admit and place

	Dir  string                                                   // a private folder for what is made meanwhile; the caller removes it
	Open func(ctx context.Context, running int) (*Product, error) // starts a Tartarus on which so many sandboxes may run at once
	Step func(format string, args ...any)                         // told what is done now
}

// Shape is what each VM is.
type Shape struct {
	Template  string   `json:"template"`
	VCPUs     int      `json:"vcpus"`
	MemoryMiB int64    `json:"memory_mib"`
	DiskMiB   int64    `json:"disk_mib"`
	Processes int      `json:"processes"`
	Command   []string `json:"command"`
}

// NewShape is the shape that the goals are for, but for what is given.
func NewShape(template string, memoryMiB int64) Shape {
	return Shape{
		Template: template, VCPUs: 1, MemoryMiB: sandbox.MemoryClass(memoryMiB), DiskMiB: 256, Processes: 256,
		Command: []string{"echo", "hello"},
	}
}

// MaxConcurrency bounds how many VMs of the floor run at once: each has a user
// ID of its own.
const MaxConcurrency = 64

// Bounds of a Config.
const (
	maxCount = 100_000
	maxVMs   = 10_000
)

// Validate says what is wrong, naming the command line's flag.
func (c Config) Validate() error {
	if len(c.Figures) == 0 {
		return fault.Invalid("figure", "give one or more of "+strings.Join(Figures(), ", "), "nothing is to be measured")
	}
	for _, f := range c.Figures {
		if !slices.Contains(Figures(), f) {
			return fault.Invalid("figure", "there are "+strings.Join(Figures(), ", "), "there is no figure %q", f)
		}
	}
	for _, n := range c.Concurrency {
		if n < 1 || n > MaxConcurrency {
			return fault.Invalid("concurrency", fmt.Sprintf("from 1 to %d", MaxConcurrency), "%d starts at once", n)
		}
	}
	switch {
	case len(c.Concurrency) == 0:
		return fault.Invalid("concurrency", "give one number or more", "no concurrency is given")
	case c.Count < 1 || c.Count > maxCount:
		return fault.Invalid("count", fmt.Sprintf("from 1 to %d", maxCount), "%d starts", c.Count)
	case c.Burst < 0 || c.Burst > maxVMs:
		return fault.Invalid("burst", fmt.Sprintf("from 0 to %d", maxVMs), "%d starts at one instant", c.Burst)
	case c.VMs < 2 || c.VMs > maxVMs:
		return fault.Invalid("vms", fmt.Sprintf("from 2 to %d: a first and a last", maxVMs), "%d VMs", c.VMs)
	case c.Idle < time.Second || c.Idle > time.Hour:
		return fault.Invalid("idle", "from 1s to 1h", "%v of looking at idle VMs", c.Idle)
	case c.Shape.MemoryMiB < tartarus.MinMemoryMiB:
		return fault.Invalid("memory", "at least 64MiB", "%d MiB of memory", c.Shape.MemoryMiB)
	}
	return nil
}

// Product is a Tartarus that is measured.
type Product struct {
	API    API
	Ledger string                                   // its file
	VMs    func() (vms []tartarus.VM, starting int) // that it runs now, standbys with them, and how many more it starts
	Floor  Floor
	Close  func() error
}

// unlimited is how many sandboxes may run at once where VMs are measured.
const unlimited = 1_000_000

// run is one run under way.
type run struct {
	Config
	report  Report
	product *Product // nil: none is open
	floor   *floor   // of the product; nil before it is needed
	others  []contender
}

// Run takes the figures. With an error there is no report; starts that failed
// are counted in it.
func Run(ctx context.Context, c Config) (_ *Report, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Step == nil {
		c.Step = func(string, ...any) {}
	}
	c.Concurrency = slices.Compact(slices.Sorted(slices.Values(c.Concurrency)))
	r := &run{Config: c, report: Report{Circumstances: measure.Now(), Shape: c.Shape, Standby: c.Standby}}
	defer func() { err = errors.Join(err, r.closeProduct()) }()
	for _, f := range []struct {
		name string
		take func(context.Context) error
	}{
		{Start, r.start}, {Throughput, r.throughput}, {Density, r.density}, {Admit, r.admit}, {Place, r.place},
	} {
		if !slices.Contains(c.Figures, f.name) {
			continue
		}
		if err := f.take(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, cmp.Or(ctx.Err(), err))
		}
	}
	return &r.report, nil
}

// open sees to it that there are a Tartarus on which VMs are measured, its
// floor, and those that they are compared with.
func (r *run) open(ctx context.Context) (err error) {
	if r.product != nil {
		return nil
	}
	r.Step("starting a Tartarus")
	if r.product, err = r.Open(ctx, unlimited); err != nil {
		return err
	}
	r.note(r.product)
	r.floor = &floor{r.product.Floor, r.Shape}
	if r.Compare {
		r.Step("looking for other sandboxes")
		r.others, r.report.Notes = findOthers(ctx, filepath.Join(r.Dir, "others"))
	}
	return nil
}

// note writes down what VMs run in.
func (r *run) note(p *Product) {
	info := p.Floor.Driver.Info()
	r.report.Driver, r.report.DriverVersion, r.report.Accelerator = info.Name, info.Version, info.Accelerator
}

func (r *run) closeProduct() error {
	if r.product == nil {
		return nil
	}
	err := r.product.Close()
	r.product, r.floor = nil, nil
	return err
}

// contenders are those that take turns, Tartarus and its floor first.
func (r *run) contenders() []contender {
	us := throughAPI(r.product.API, r.Shape)
	if r.Standby > 0 {
		us.rest = r.product.refill
		us.includes += "; the rate counts the making of new standbys, too"
	}
	return append([]contender{us, r.floor.contender()}, r.others...)
}

const (
	calmLook  = 100 * time.Millisecond
	calmLooks = 3                    // in a row without work
	calmCPU   = 2 * time.Millisecond // of all VMs in one look: no work
	calmest   = 30 * time.Second     // until it counts as calm, whatever it does
)

// refill waits until the standbys that a turn took are there again: what that
// costs is that turn's, and not that of whoever comes next.
func (p *Product) refill(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	quiet := began // since when there was no work
	before, n := 0.0, 0
	for calm := 0; calm < calmLooks && time.Since(began) < calmest; {
		if err := pause(ctx, calmLook); err != nil {
			return 0, err
		}
		vms, starting := p.VMs()
		used, err := sum(vms)
		if err != nil {
			return 0, err
		}
		if starting == 0 && len(vms) == n && used.cpu-before < calmCPU.Seconds() {
			calm++
		} else {
			calm, quiet = 0, time.Now()
		}
		before, n = used.cpu, len(vms)
	}
	return quiet.Sub(began), nil
}

func (r *run) admit(ctx context.Context) (err error) {
	if err := r.closeProduct(); err != nil {
		return err
	}
	r.Step("admit: starting a Tartarus in which everything waits")
	p, err := r.Open(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	r.note(p)
	if err := p.API.Fill(ctx); err != nil {
		return err
	}
	r.Step("admit: %d rounds of %d admissions, each beside its floor", r.Rounds, Admissions)
	rows, err := Admission(ctx, Queueing{API: p.API, Ledger: p.Ledger, Dir: r.Dir}, r.Rounds)
	r.report.take(Admit, rows)
	return err
}

// placeNodes are how many nodes place chooses among.
const placeNodes = 1000

func (r *run) place(ctx context.Context) error {
	if err := r.closeProduct(); err != nil {
		return err
	}
	r.Step("place: %d rounds of %d placements on %d nodes, each beside its floor", r.Rounds, placements, placeNodes)
	rows, err := Placement(ctx, r.Dir, r.Rounds, placeNodes)
	r.report.take(Place, rows)
	return err
}
