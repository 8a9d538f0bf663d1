package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
)

// state is what a snapshot says of a VM beside its memory, behind a checksum.
type state struct {
	MemoryMiB int64             `json:"memory_mib"`
	Drives    map[string]string `json:"drives"`
	Vsock     string            `json:"vsock"`
}

// written is what the guest has in its memory, at the start of each MiB but
// the first.
const written = "the guest's memory"

// save writes files as the real one does: opened as they are, cut, and every
// page of the memory written.
func (m *vmm) save(memoryPath, statePath string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.paused {
		return errors.New("the VM runs")
	}
	text, err := json.Marshal(m.state)
	if err != nil {
		return err
	}
	if m.what == "long" {
		text = append(text, make([]byte, 32<<20)...)
	}
	sum := sha256.Sum256(text)
	if err := os.WriteFile(statePath, append(sum[:], text...), 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(memoryPath, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	size := m.state.MemoryMiB
	if m.what == "short" {
		size--
	}
	if err := f.Truncate(size << 20); err != nil {
		return err
	}
	part := make([]byte, 1<<20)
	for range size {
		if _, err := f.Write(part); err != nil {
			return err
		}
		copy(part, written)
	}
	return errorsOf(f.Sync(), f.Close())
}

// load makes this the VM of a snapshot.
func (m *vmm) load(memoryPath, statePath string) error {
	if m.configured {
		return errors.New("loading a snapshot is not allowed after configuring the boot")
	}
	b, err := os.ReadFile(statePath)
	if err != nil {
		return err
	}
	if len(b) < sha256.Size || sha256.Sum256(b[sha256.Size:]) != [sha256.Size]byte(b[:sha256.Size]) {
		return errors.New("the state is damaged")
	}
	if err := json.Unmarshal(b[sha256.Size:], &m.state); err != nil {
		return err
	}
	memory, err := os.Open(memoryPath)
	if err != nil {
		return err
	}
	defer memory.Close() // only read
	if st, err := memory.Stat(); err != nil || st.Size() != m.state.MemoryMiB<<20 {
		return fmt.Errorf("the memory has no %d MiB (%v)", m.state.MemoryMiB, err)
	}
	got := make([]byte, len(written))
	if _, err := memory.ReadAt(got, 1<<20); err != nil || string(got) != written {
		return fmt.Errorf("the memory holds %q (%v)", got, err)
	}
	if err := errorsOf(readable(m.state.Drives["root"]), writable(m.state.Drives["scratch"])); err != nil {
		return err
	}
	l, err := net.Listen("unix", m.state.Vsock)
	if err != nil {
		return err
	}
	m.begin()
	go m.serve(l, closeAtOnce, closeAnswered)
	return nil
}

// A device that comes back closes streams that it has just accepted, before or
// after it answered.
const (
	serveIt = iota
	closeAtOnce
	closeAnswered
)
