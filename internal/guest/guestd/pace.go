package guestd

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pace notices a flood of output. Woken by every small write of a command,
// init would take its processor from it each time to pass on a few bytes; in
// a flood it stands back until the pipe is full or its turn has come. With
// 64 MiB of output on one emulated processor that took a third of the time. It
// does not stand back at other times, because a single line is then late by
// what the command does next.
type pace struct {
	set    func(batch bool) // nil: nobody cares
	last   time.Time
	streak int
	batch  bool
}

const (
	floodStreak = 8                     // so many reads
	floodGap    = 5 * time.Millisecond  // each so soon after the last: a flood
	calmGap     = 50 * time.Millisecond // and so long a pause ends it
)

// read takes note that output was read at that time.
func (p *pace) read(now time.Time) {
	if p.set == nil {
		return
	}
	gap := now.Sub(p.last)
	p.last = now
	switch {
	case gap > calmGap && p.batch:
		p.streak, p.batch = 0, false
		p.set(false)
	case gap > floodGap:
		p.streak = 0
	default:
		p.streak++
		if p.streak == floodStreak && !p.batch {
			p.batch = true
			p.set(true)
		}
	}
}

// setBatch makes the calling thread, which must stay init's loop, a batch job
// to the scheduler or a normal one. What it forks is always normal.
func setBatch(batch bool) {
	const schedNormal, schedBatch, resetOnFork = 0, 3, 0x40000000
	policy := schedNormal
	if batch {
		policy = schedBatch | resetOnFork
	}
	var priority int32
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&priority)))
}
