package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

func decode(b []byte, v any) error { return json.Unmarshal(b, v) }

// prepared is a state folder with images, made once, where states can be: in
// memory if this user may mount.
var prepared = sync.OnceValues(func() (string, error) {
	from := os.Getenv("TARTARUS_FAULTS_STATE")
	if from == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		from = filepath.Join(cache, "tartarus", "e2e-base") // as the tests of e2e have it: the kernel is a download
		if err := os.MkdirAll(filepath.Dir(from), 0o700); err != nil {
			return "", err
		}
		if err := assembly.Inside().Setup(context.Background(), cli.SetupOptions{StateDir: from, Templates: []string{"base"}}); err != nil {
			return "", fmt.Errorf("preparing: %w (is everything installed? scripts/deps.sh run test)", err)
		}
	}
	dir := filepath.Join(room(), "prepared")
	if err := clone(from, dir, testkit.CopyFile); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "kvm.json")); err == nil {
		return dir, nil
	}
	return dir, tryKVM(dir)
})

// tryKVM lets servers judge KVM once, which takes a boot, and keep what they
// found for all states.
func tryKVM(dir string) error {
	for _, real := range []bool{false, true} {
		none := filepath.Join(room(), "none")
		s, err := start(plan{State: dir, Orders: none, Passed: none, Real: real})
		if err == nil {
			err = s.stop()
		}
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(dir, "up"))
}

// room is where this run's states are.
var room = sync.OnceValue(func() string {
	if _, err := os.Stat(roomDir); err == nil && os.Geteuid() == 0 {
		return roomDir
	}
	dir, err := os.MkdirTemp("", "tartarus-faults-")
	if err != nil {
		panic(err)
	}
	return dir
})

// clone makes a state out of another's images; file makes the image files.
func clone(from, to string, file func(from, to string) error) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dest := filepath.Join(to, rel)
		switch {
		case d.IsDir() && (rel == "up" || rel == "nyx/cache"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(dest, 0o700)
		case strings.HasPrefix(rel, "blobs/blobs/"):
			if err := file(path, dest); err != nil {
				return err
			}
			return os.Chmod(dest, 0o444)
		}
		return testkit.CopyFile(path, dest)
	})
}

// open makes the cell's folders.
func (c *cell) open() error {
	from, err := prepared()
	if err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp(room(), "c"); err != nil {
		return err
	}
	c.state = filepath.Join(c.dir, "s")
	text := policy
	switch c.needs {
	case aQueue:
		text = impatient
	case aRefusal: // its node is not asked for some seconds
		text = strings.Replace(policy, "capacity_wait: 1s", "capacity_wait: 10s", 1)
	}
	if c.real { // on a busy machine, in the shape that there is a snapshot of
		text = strings.NewReplacer("running: 6", "running: 3", "{template: base", "{template: base, start_timeout: 5m", ", resources: {disk_mib: 16}", "").Replace(text)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "policy.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	if c.needs != aDisk {
		return clone(from, c.state, os.Link)
	}
	if err := os.Mkdir(c.state, 0o700); err != nil {
		return err
	}
	taken, err := onDisk(from)
	if err != nil {
		return err
	}
	size := fmt.Sprintf("mode=0700,size=%d", taken+smallDisk)
	if err := unix.Mount("small", c.state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, size); err != nil {
		return err
	}
	return clone(from, c.state, testkit.CopyFile)
}

// smallDisk is beside what the images take.
const smallDisk = 160 << 20

// onDisk is what the files below dir take of their disk.
func onDisk(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		n += st.Blocks * 512
		return err
	})
	return n, err
}

func (c *cell) close() error {
	if c.dir == "" {
		return nil
	}
	if c.needs == aDisk {
		if err := unix.Unmount(c.state, 0); err != nil {
			return err
		}
	}
	return os.RemoveAll(c.dir)
}

// tidy removes the room; what of it is mounted goes with its namespace.
func tidy() error {
	if dir := room(); dir != roomDir {
		return os.RemoveAll(dir)
	}
	return nil
}

// nothingLeft compares what there is with what a run without a fault leaves.
func (c *cell) nothingLeft() error {
	if err := c.blobs(); err != nil {
		return err
	}
	var ids []string
	for _, j := range c.jobs {
		if j.id != "" {
			ids = append(ids, j.id)
		}
	}
	have, err := inventory(c.state, ids)
	if err != nil {
		return err
	}
	pids, err := c.helpers() // which may not name the state
	if err != nil {
		return err
	}
	for _, pid := range pids {
		have = append(have, fmt.Sprintf("process %d of a VM", pid))
	}
	if c.learns {
		baseline.left = have
		return nil
	}
	var out []string
	for _, l := range have {
		if !slices.Contains(baseline.left, l) {
			out = append(out, "left: "+l)
		}
	}
	for _, l := range baseline.left {
		if !slices.Contains(have, l) && !strings.Contains(l, "/lethe/ext4-") { // made when it is needed
			out = append(out, "missing: "+l)
		}
	}
	if len(out) > 0 {
		return fmt.Errorf("%s", strings.Join(out, "; "))
	}
	return nil
}

// blobs fails when a record names a log that is not there. What no record
// names, because its writer died in between, is what collecting is for.
func (c *cell) blobs() (err error) {
	ctx := context.Background()
	book, err := sqliteledger.Open(ctx, sqliteledger.Config{Path: filepath.Join(c.state, "up/ledger.db")})
	if err != nil {
		return err
	}
	page, err := book.List(ctx, ledger.Query{Limit: 1000})
	if cerr := book.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	store, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(c.state, "up/logs")})
	if err != nil {
		return err
	}
	named := map[sandbox.Digest]bool{}
	for _, rec := range page.Records {
		if rec.LogDigest == "" {
			continue
		}
		named[rec.LogDigest] = true
		if _, err := store.Stat(ctx, rec.LogDigest); err != nil {
			return fmt.Errorf("the log of %s: %w", rec.ID, err)
		}
	}
	_, err = store.Collect(ctx, func(d sandbox.Digest) bool { return named[d] }, -time.Hour)
	return err
}

var digestForm = regexp.MustCompile(`/(logs/(blobs|locks)/[0-9a-f/]+|verified/[0-9a-f]+|nyx/(snapshots/[0-9a-f]+\.json|locks/snapshots))$`)

// inventory is what there is of a state and its processes: each thing without
// what differs from run to run.
func inventory(state string, ids []string) ([]string, error) {
	inv, err := testkit.TakeInventory(testkit.Scope{Mark: state, Dirs: []string{state}})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range inv {
		switch {
		case strings.HasPrefix(l, "cgroup ") && !slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(l, id) }):
			continue // of other agents on this host, perhaps
		case l == "mount "+state, digestForm.MatchString(l), strings.Contains(l, "/blobs/blobs/"):
			continue
		}
		out = append(out, strings.ReplaceAll(l, state, "STATE"))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// audited verifies the chain of the audit.
func (c *cell) audited() error {
	report, err := assembly.Inside().VerifyAudit(context.Background(), cli.VerifyAuditOptions{StateDir: c.state})
	if err != nil {
		return fmt.Errorf("the audit: %w", err)
	}
	_ = report
	return nil
}

// noDescriptors fails when a server without sandboxes has more descriptors than
// one that had no fault.
func (c *cell) noDescriptors(s *server) error {
	if c.learns {
		time.Sleep(time.Second) // what is closed a little later is not to stay
		have, err := descriptors(s, c.state)
		baseline.descriptors = have
		return err
	}
	var more []string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(tick) {
		have, err := descriptors(s, c.state)
		if err != nil {
			return err
		}
		if more = surplus(have, baseline.descriptors); len(more) == 0 {
			return nil
		}
	}
	return fmt.Errorf("descriptors that are left open: %v", more)
}

// surplus is what is in a more often than in b, beside what belongs to VMs that
// may wait in one and not in the other: lifelines, of which a fake has both
// ends, and a real one's process and sockets.
func surplus(a, b []string) []string {
	count := map[string]int{"pipe:": 2 * standbys, "socket:": 2 * standbys, "anon_inode:[pidfd]": 2 * standbys}
	for _, x := range b {
		count[x]++
	}
	var out []string
	for _, x := range a {
		if count[x]--; count[x] < 0 {
			out = append(out, x)
		}
	}
	return out
}

var (
	inodeForm = regexp.MustCompile(`\[\d+\]`)
	uidForm   = regexp.MustCompile(`uids-\d+`)
)

// descriptors are those of a server, but for the ledger's, whose readers come
// and stay.
func descriptors(s *server, state string) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		to, err := os.Readlink(filepath.Join(dir, n.Name()))
		if err != nil || strings.Contains(to, "/ledger.db") || strings.HasPrefix(to, "/memfd:tartarus-memory") {
			continue // closed meanwhile, or kept for the next VM: one for each of the last snapshots
		}
		to = strings.ReplaceAll(strings.ReplaceAll(to, state, "STATE"), filepath.Dir(state), "CELL")
		out = append(out, uidForm.ReplaceAllString(inodeForm.ReplaceAllString(to, ""), "uids"))
	}
	slices.Sort(out)
	return out, nil
}
