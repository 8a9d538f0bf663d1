package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sparse"
)

// A VM that will be saved has its memory in a file that QEMU shares with us,
// so that a migration to a file writes the state of CPUs and devices alone
// (QEMU's capability x-ignore-shared). A restored VM maps a copy of that file
// privately: what it changes is its own, all else is there once for all.
//
// QEMU 7.2 opens a memory file for writing even where it maps it privately.
// So what it gets is a memfd that the kernel has sealed: it can be opened for
// writing, and not be written, by nobody.

// ignoreShared tells QEMU that memory does not travel with the state.
var ignoreShared = map[string]any{"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": true}}}

// newMemory is a memfd of the size of a VM's memory.
func newMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// memories are the sealed copies of the memory files that VMs went on from
// last. A VM keeps what it has mapped, so to forget one costs the next VM the
// time of another copy, and nothing else.
type memories struct {
	mu   sync.Mutex
	all  map[fileID]*memory
	tick uint64
}

type memory struct {
	ready chan struct{} // closed when file or err is there
	file  *os.File
	err   error
	used  uint64 // guarded by memories.mu
}

// fileID tells a file that nobody wrote or replaced: the number of one that was
// removed may be another's now.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// maxMemories bounds how many copies are kept: each takes as much of the
// host's memory as its guest had touched.
const maxMemories = 16

// sealed is the sealed copy of a memory file. It is the cache's: a caller that
// hands it to QEMU needs it no longer than Start.
func (m *memories) sealed(f *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	id := fileID{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	m.mu.Lock()
	c := m.all[id]
	mine := c == nil
	if mine {
		c = &memory{ready: make(chan struct{})}
		if m.all == nil {
			m.all = map[fileID]*memory{}
		}
		m.all[id] = c
		m.forgetOldest()
	}
	m.tick++
	c.used = m.tick
	m.mu.Unlock()
	if mine {
		c.file, c.err = sealedCopy(f, st.Size)
		if c.err != nil {
			m.mu.Lock()
			delete(m.all, id)
			m.mu.Unlock()
		}
		close(c.ready)
	}
	<-c.ready
	return c.file, c.err
}

// forgetOldest leaves the file to the collector: somebody may be about to use
// it.
func (m *memories) forgetOldest() {
	if len(m.all) <= maxMemories {
		return
	}
	var oldest fileID
	least := ^uint64(0)
	for id, c := range m.all {
		if c.used < least && c.used > 0 {
			oldest, least = id, c.used
		}
	}
	delete(m.all, oldest)
}

func sealedCopy(from *os.File, size int64) (*os.File, error) {
	to, err := newMemory("tartarus-memory", size)
	if err != nil {
		return nil, err
	}
	err = sparse.Copy(to, from, size)
	if err == nil {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copying a snapshot's memory: %w", err), to.Close())
	}
	return to, nil
}

// Save stops the vCPUs and writes Spec.Save.
func (v *vm) Save(ctx context.Context) error {
	if v.spec.Save == nil {
		return fault.New(fault.Unsupported, "vm %q was not started to be saved", v.spec.ID)
	}
	if err := v.save(ctx); err != nil {
		return fmt.Errorf("saving vm %q: %w", v.spec.ID, err)
	}
	return nil
}

// save leaves it to the migration to stop the vCPUs: the state of a VM that
// was stopped before would have to be told to go on once it is loaded.
func (v *vm) save(ctx context.Context) error {
	if err := v.mon.call(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	if err := v.mon.give(ctx, "state", v.spec.Save.State); err != nil {
		return err
	}
	if err := v.mon.call(ctx, "migrate", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	if err := v.migrated(ctx); err != nil {
		return err
	}
	return sparse.Copy(v.spec.Save.Memory, v.memory, v.spec.MemoryMiB<<20)
}

// migrationPause is between two looks at a migration of some 60 kB.
const migrationPause = 5 * time.Millisecond

func (v *vm) migrated(ctx context.Context) error {
	t := time.NewTicker(migrationPause)
	defer t.Stop()
	for {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := v.mon.call(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("qemu could not write its state: %.512q", s.Error)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restore has QEMU load its state; the vCPUs go on as soon as it has. A QEMU
// that cannot load it ends.
func (v *vm) restore(ctx context.Context, state int) error {
	if err := v.mon.call(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	return v.mon.call(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + strconv.Itoa(state)}, nil)
}

// give hands a file over, under a name.
func (m *monitor) give(ctx context.Context, name string, f *os.File) error {
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return errors.New("qmp: a file needs a Unix socket")
	}
	id, reply, err := m.expect()
	if err != nil {
		return err
	}
	line, err := json.Marshal(request{"getfd", map[string]any{"fdname": name}, id})
	if err == nil {
		m.writing.Lock()
		if err = m.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			_, _, err = conn.WriteMsgUnix(append(line, '\n'), unix.UnixRights(int(f.Fd())), nil)
		}
		m.writing.Unlock()
	}
	if err != nil {
		m.forget(id)
		return fmt.Errorf("qmp getfd: %w", err)
	}
	return m.await(ctx, "getfd", id, reply, nil)
}
