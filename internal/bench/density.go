package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

const (
	bringUp  = 4               // VMs at once, between the first and the last
	floorVMs = 8               // idle ones of the floor, at most
	settle   = 2 * time.Second // until what a start has left to do is done
)

// idle is a command that says that it is there, and does nothing.
func idle() []string { return []string{"sh", "-c", "echo here; exec sleep 86400"} }

// density is what an idle VM costs among many, and a start beside them.
func (r *run) density(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	limit := r.MemoryMiB << 20
	if limit == 0 {
		free, err := availableBytes()
		if err != nil {
			return err
		}
		limit = free / 2
	}
	crowd := &crowd{api: r.product.API, vms: r.product.VMs, body: r.Shape.body(idle())}
	row, err := r.fill(ctx, crowd, limit)
	err = errors.Join(err, crowd.end(context.WithoutCancel(ctx)))
	if err != nil {
		return err
	}
	floor, err := r.floorDensity(ctx, min(floorVMs, row.VMs))
	if err != nil {
		return fmt.Errorf("the raw floor: %w", err)
	}
	rows := []Row{row, floor}
	compare(rows, func(row Row) float64 { return row.PrivateMiB })
	r.report.Rows = append(r.report.Rows, rows...)
	return nil
}

// crowd is idle sandboxes.
type crowd struct {
	api  API
	vms  func() ([]tartarus.VM, int)
	body string

	mu  sync.Mutex
	ids []string
}

// one starts one more.
func (c *crowd) one(ctx context.Context) (ms float64, err error) {
	u := &user{api: c.api}
	defer u.hangUp()
	id, began, err := u.create(ctx, c.body)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	c.ids = append(c.ids, id)
	c.mu.Unlock()
	ms, rest, err := u.follow(id, began)
	if err == nil {
		u.hangUp() // before the rest, which has no end yet
		_ = rest.Close()
	}
	return ms, err
}

// more starts n at once.
func (c *crowd) more(ctx context.Context, n int) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { _, errs[i] = c.one(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// end kills all of them.
func (c *crowd) end(ctx context.Context) error {
	jobs := make(chan string)
	errs := make([]error, bringUp)
	var all sync.WaitGroup
	for i := range bringUp {
		all.Go(func() {
			for id := range jobs {
				if _, err := c.api.Call(ctx, http.MethodDelete, "/sandbox/"+id+"?grace=0s", "", http.StatusOK); err != nil {
					errs[i] = errors.Join(errs[i], err)
				}
			}
		})
	}
	for _, id := range c.ids {
		jobs <- id
	}
	close(jobs)
	all.Wait()
	return errors.Join(errs...)
}

// fill starts VMs until there are as many as are wanted, or until they have as
// much memory as they may, and looks at them.
func (r *run) fill(ctx context.Context, c *crowd, limit int64) (row Row, err error) {
	r.Step("density: the first of %d VMs", r.VMs)
	first, err := c.one(ctx)
	if err != nil {
		return row, err
	}
	stopped := "the count was reached"
	for len(c.ids) < r.VMs-1 {
		vms, _ := c.vms()
		used, err := sum(vms)
		if err != nil {
			return row, err
		}
		each := used.bytes / int64(len(c.ids))
		room := int((limit - used.bytes) / max(each, 1))
		if room < 2 {
			stopped = fmt.Sprintf("the memory limit of %d MiB was reached", limit>>20)
			break
		}
		n := min(bringUp, room-1, r.VMs-1-len(c.ids))
		r.Step("density: %d of %d VMs", len(c.ids)+n, r.VMs)
		if err := c.more(ctx, n); err != nil {
			return row, err
		}
	}
	r.Step("density: the last VM")
	last, err := c.one(ctx)
	if err != nil {
		return row, err
	}
	live := len(c.ids)
	r.Step("density: looking at %d idle VMs for %v", live, r.Idle)
	used, err := watch(ctx, c.vms, r.Idle)
	if err != nil {
		return row, err
	}
	vms, _ := c.vms()
	ratio := last / first
	return Row{
		Figure: Density, Of: ofTartarus, Count: live, VMs: live, AllVMs: len(vms),
		PrivateMiB: mebibytes(used.bytes) / float64(live), CPUPercent: 100 * used.cpu / float64(live),
		FirstMS: first, LastMS: last, LastToFirst: &ratio,
		Includes: "sandboxes that sleep, started through the API until " + stopped + ": memory that is the VMM's own and CPU of all VMs of the host, standbys with them, shared out to the sandboxes; " +
			"the first's and the last's time to their first output, alone",
	}, nil
}

// floorDensity is what a few idle VMs of the bare loop cost.
func (r *run) floorDensity(ctx context.Context, n int) (row Row, err error) {
	r.Step("density: %d VMs of the floor", n)
	var vms []tartarus.VM
	var bare []*bareVM
	defer func() {
		for _, v := range bare {
			err = errors.Join(err, v.end(ctx))
		}
	}()
	for i := range n {
		v, err := r.floor.boot(ctx, i)
		if err != nil {
			return row, err
		}
		bare, vms = append(bare, v), append(vms, v.VM)
		if _, _, err := v.firstOutput(ctx, idle()); err != nil {
			return row, err
		}
	}
	used, err := watch(ctx, func() ([]tartarus.VM, int) { return vms, 0 }, r.Idle)
	return Row{
		Figure: Density, Of: ofFloor, Count: n, VMs: n, AllVMs: n,
		PrivateMiB: mebibytes(used.bytes) / float64(n), CPUPercent: 100 * used.cpu / float64(n),
		Includes: "the same of VMs by the bare loop",
	}, err
}

// use is what VMs have.
type use struct {
	bytes int64
	cpu   float64 // seconds, or cores
}

func sum(vms []tartarus.VM) (u use, err error) {
	for _, vm := range vms {
		s, err := vm.Sample()
		if err != nil {
			select {
			case <-vm.Done(): // meanwhile
				continue
			default:
				return u, err
			}
		}
		u.bytes += s.MemoryBytes
		u.cpu += s.CPUSeconds
	}
	return u, nil
}

// watch is what VMs have, and how many cores they use, over some time.
func watch(ctx context.Context, live func() ([]tartarus.VM, int), d time.Duration) (use, error) {
	if err := pause(ctx, settle); err != nil {
		return use{}, err
	}
	vms, _ := live()
	before, err := sum(vms)
	if err != nil {
		return use{}, err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return use{}, err
	}
	vms, _ = live()
	after, err := sum(vms)
	after.cpu = max(0, after.cpu-before.cpu) / time.Since(began).Seconds()
	return after, err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

// availableBytes is how much memory the host has to give.
func availableBytes() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
