package faults_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// around are faults of what is around the server, and not of one step.
func around() []*cell {
	out := []*cell{
		{row: "a damaged log: torn", needs: aCrash, deadly: true, between: damage(walFile, tear)},
		{row: "a damaged log: garbage", needs: aCrash, deadly: true, between: damage(walFile, garbage)},
		{row: "a damaged log: flipped", needs: aCrash, deadly: true, between: damage(walFile, flipEnd)},
		{row: "a damaged journal: torn", needs: aCrash, deadly: true, between: damage(journalFile, tear)},
		{row: "a damaged journal: garbage", needs: aCrash, deadly: true, between: damage(journalFile, garbage)},
		{row: "a damaged journal: flipped", needs: aCrash, deadly: true, between: damage(journalFile, flipEnd)},
		{row: "a newer state", needs: aCrash, deadly: true, between: versions("version", "2\n")},
		{row: "an older state", needs: aCrash, deadly: true, between: versions("version", "0\n")},
		{row: "a second up", during: secondUp},
		{row: "no descriptors", during: noDescriptorsLeft, also: starved, logless: true},
		{row: "killed under load", deadly: true, during: func(c *cell, s *server) error { return c.killAtRandom(s) }},
	}
	if os.Geteuid() == 0 { // else nothing can be mounted: these need it
		out = append(out,
			&cell{row: "a full disk", needs: aDisk, during: fullDisk, also: starved, logless: true},
			&cell{row: "a full disk, killed", needs: aDisk, deadly: true, during: fullDisk, also: starved, logless: true},
			&cell{row: "a read-only state", needs: aCrash, deadly: true, between: readOnly},
		)
	}
	if os.Getenv(labVar) != "" { // a machine whose clock is the test's to set
		out = append(out,
			&cell{row: "the clock jumps forth", during: clock(2 * time.Hour), also: []string{"queue_timeout"}},
			&cell{row: "the clock jumps back", during: clock(-2 * time.Hour)},
		)
	}
	for _, c := range out {
		c.column = once
	}
	return out
}

// labVar says that this is the lab.
const labVar = "TARTARUS_LAB"

// clock sets the host's clock under load, and back once all have ended.
func clock(by time.Duration) func(c *cell, s *server) error {
	set := func(by time.Duration) error {
		tv := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
		return unix.Settimeofday(&tv)
	}
	return func(c *cell, s *server) error {
		if err := c.untilRunning(s); err != nil {
			return err
		}
		return errors.Join(set(by), c.drive(s), set(-by))
	}
}

// starved are causes that are true where a host gives nothing more: starts fail.
var starved = []string{"start_failed"}

func TestAround(t *testing.T) {
	t.Parallel()
	learn(t)
	runAll(t, choose(t, around(), 6))
}

// damage does something to the files that a killed server left.
func damage(files func(c *cell) ([]string, error), how func(name string) error) func(c *cell) error {
	return func(c *cell) error {
		names, err := files(c)
		if err != nil || len(names) == 0 {
			return fmt.Errorf("there is nothing to damage: %v %w", names, err)
		}
		for _, n := range names {
			if err := how(n); err != nil {
				return err
			}
		}
		return nil
	}
}

func walFile(c *cell) ([]string, error) {
	return filepath.Glob(filepath.Join(c.state, "up/ledger.db-wal"))
}

func journalFile(c *cell) ([]string, error) {
	return filepath.Glob(filepath.Join(c.state, "up/node/journal/sb-*"))
}

// tear appends the beginning of what had been written before, as a write that
// power cut short.
func tear(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return appendTo(name, b[len(b)/2:len(b)/2+min(100, len(b)/2)])
}

func garbage(name string) error {
	return appendTo(name, []byte(strings.Repeat("\x00\xffgarbage", 1000)))
}

// flipEnd appends a copy of the end with a bit flipped: a last write that did
// not reach the disk as it was.
func flipEnd(name string) error {
	b, err := os.ReadFile(name)
	if err != nil || len(b) == 0 { // the log was emptied just before: it has no end
		return err
	}
	end := slices.Clone(b[max(0, len(b)-4120):])
	end[len(end)/2] ^= 0x10
	return appendTo(name, end)
}

func appendTo(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// versions writes another version over a file's, sees that up refuses the
// state and changes nothing, and puts it back.
func versions(file, text string) func(c *cell) error {
	return func(c *cell) error {
		name := filepath.Join(c.state, file)
		right, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
		if err := c.refused("version"); err != nil {
			return err
		}
		return os.WriteFile(name, right, 0o600)
	}
}

// refused starts a server that must refuse the state, saying why, and leave
// every file as it is.
func (c *cell) refused(word string) error {
	before, err := contents(c.state)
	if err != nil {
		return err
	}
	s, err := start(c.plan())
	if err == nil {
		s.kill()
		return errors.New("up took a state that it must refuse")
	}
	if !strings.Contains(err.Error(), word) {
		return fmt.Errorf("up refused the state and did not say %q: %w", word, err)
	}
	after, err := contents(c.state)
	if err != nil {
		return err
	}
	for name, b := range before {
		if after[name] != b {
			return fmt.Errorf("up refused the state and changed %s", name)
		}
	}
	if len(after) != len(before) {
		return fmt.Errorf("up refused the state and left %d files where there were %d", len(after), len(before))
	}
	return nil
}

// contents are all files but the images.
func contents(dir string) (map[string]string, error) {
	out := map[string]string{}
	return out, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/s/blobs/") {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
}

// secondUp starts another on the same state, which must be refused, while the
// first goes on.
func secondUp(c *cell, s *server) error {
	if err := c.untilRunning(s); err != nil {
		return err
	}
	p := c.plan()
	p.UIDs = fmt.Sprintf("%d-%d", firstUID+100_000+1000*c.slot, firstUID+100_000+1000*c.slot+999)
	other, err := start(p)
	if err == nil {
		other.kill()
		return errors.New("a second up was let onto the state")
	}
	if !strings.Contains(err.Error(), "another `tartarus up` runs") {
		return fmt.Errorf("the second up says: %w", err)
	}
	return nil
}

// untilRunning asks for all jobs and waits until the one runs that goes on until
// it is killed, or has run.
func (c *cell) untilRunning(s *server) error {
	c.holds = true
	defer func() { c.holds = false }()
	for end := time.Now().Add(c.patience()); ; time.Sleep(tick) {
		if err := c.step(s); err != nil {
			return err
		}
		if slices.ContainsFunc(c.jobs, func(j *job) bool { return j.kill && (j.rec.State == "running" || j.rec.ended()) }) {
			return nil
		}
		if s.isGone() || time.Now().After(end) {
			return fmt.Errorf("nothing ran: %s", s.log.last())
		}
	}
}

// hard is how long a failing environment lasts.
const hard = 700 * time.Millisecond

// noDescriptorsLeft takes the server's descriptors away under load, for a
// while.
func noDescriptorsLeft(c *cell, s *server) error {
	pid := s.cmd.Process.Pid
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		return err
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	few := unix.Rlimit{Cur: uint64(len(open) + c.random.IntN(6)), Max: was.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		return err
	}
	given := make(chan error, 1)
	back := time.AfterFunc(hard, func() { given <- unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil) })
	defer back.Stop()
	for {
		if err := c.step(s); err != nil { // which waits for as long as no call is taken
			return err
		}
		select {
		case err := <-given:
			if s.isGone() {
				return fmt.Errorf("without descriptors the server ended: %s", s.log.last())
			}
			return err
		case <-time.After(tick):
		}
	}
}

// fullDisk fills the state's disk under load, for a while; in a deadly cell the
// server is killed meanwhile, and one that starts then may fail but not harm.
func fullDisk(c *cell, s *server) error {
	if err := c.untilRunning(s); err != nil {
		return err
	}
	ballast := filepath.Join(c.state, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(b)
	}
	for len(b) > 1 { // to the last byte
		b = b[:len(b)/2]
		for werr := error(nil); werr == nil; _, werr = f.Write(b) {
		}
	}
	if cerr := f.Close(); !errors.Is(err, syscall.ENOSPC) || cerr != nil {
		return fmt.Errorf("the disk does not get full: %w", errors.Join(err, cerr))
	}
	for end := time.Now().Add(hard); time.Now().Before(end); time.Sleep(tick) {
		if err := c.step(s); err != nil {
			return err
		}
	}
	if s.isGone() {
		return fmt.Errorf("on a full disk the server ended: %s", s.log.last())
	}
	if c.deadly {
		s.kill()
		if again, err := start(c.plan()); err == nil {
			again.kill()
		} else if again == nil {
			return err
		}
	}
	return os.Remove(ballast)
}

// readOnly lets up start on a state that cannot be written.
func readOnly(c *cell) error {
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT)
	if err := unix.Mount(c.state, c.state, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", c.state, "", flags|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	err := c.refused("read-only file system")
	return errors.Join(err, unix.Unmount(c.state, 0))
}

// killAtRandom kills the server at a moment that the seed chooses.
func (c *cell) killAtRandom(s *server) error {
	moment := time.Now().Add(time.Duration(c.random.Int64N(int64(1500 * time.Millisecond))))
	for time.Now().Before(moment) {
		if err := c.step(s); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	s.kill()
	return nil
}
