package guestd

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// The kernel measures the APIC's timer against the TSC when it boots. A VMM
// that the host does not let run at that moment spoils it: the timer is found
// "too slow" and none is used, or its rate is wrong. Such a guest boots, and
// then nothing that waits for a time ever goes on, or does so too late.
// Without a timer nothing can be promised, so init gives up before it says
// hello, and the host boots another. One that is late can be mended: see
// wakeEvery.
const (
	clockDevice = "/sys/devices/system/clockevents/clockevent0/current_device"
	timerList   = "/proc/timer_list"
)

// checkClock insists on a timer that fires, and says how often the loop has to
// wake for it to fire when it should: 0 for a good one.
func checkClock() (time.Duration, error) {
	device, err := readFile(clockDevice, 256)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // a kernel that does not tell
	}
	if err != nil {
		return 0, err
	}
	list := ""
	if strings.TrimSpace(device) == "lapic" {
		if list, err = readFile(timerList, 1<<16); err != nil && !errors.Is(err, unix.ENOENT) {
			return 0, err
		}
	}
	wake, err := judgeClock(strings.TrimSpace(device), list, runtime.NumCPU())
	if err != nil || wake == 0 {
		return 0, err
	}
	if asked(guestwire.WordExactClock) {
		return 0, errors.New("the kernel measured the APIC's timer too fast, which all clones would have to mend")
	}
	return wake, nil
}

// apicRate is that of the APIC's timer, in ticks a nanosecond times 2^32, as
// the kernel notes it: 1 GHz divided by 16, in QEMU and in KVM.
const apicRate = 1 << 28

// How wrong a rate may be. One noted too low makes timers fire early, which
// the kernel mends by itself. One too high makes them fire late. On a host with
// more work than processors every fourth boot is late by 6 to 60 %, so refusing
// them would only add to its load.
const (
	lowestRate  = apicRate / 4
	goodRate    = apicRate + apicRate/100
	highestRate = 2 * apicRate // of a guest with one processor

	// A processor that sleeps is not woken by what wakes another, so with more
	// than one a late timer cannot be mended.
	highestRateOfMany = apicRate + apicRate/20

	// lateness is by how much a mended timer may be late.
	lateness = 10 * time.Millisecond
)

// judgeClock judges by the device's name and, for the APIC's timer, by what
// the kernel lists.
func judgeClock(device, list string, cpus int) (time.Duration, error) {
	if device == "" {
		return 0, errors.New("the kernel has no timer: the host did not let it measure the APIC's")
	}
	if device != "lapic" {
		return 0, nil // one that need not be measured
	}
	_, list, found := strings.Cut(list, "Clock Event Device: lapic")
	_, list, found2 := strings.Cut(list, " mult:")
	if !found || !found2 {
		return 0, nil
	}
	number, _, _ := strings.Cut(strings.TrimSpace(list), "\n")
	rate, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
	if err != nil {
		return 0, nil // another kernel's list says it in another way
	}
	highest := uint64(highestRate)
	if cpus > 1 {
		highest = highestRateOfMany
	}
	if rate < lowestRate || rate > highest {
		return 0, errors.New("the kernel measured the APIC's timer wrong: " + number + " instead of " + strconv.Itoa(apicRate))
	}
	if cpus > 1 || rate <= goodRate {
		return 0, nil
	}
	return lateness * apicRate / time.Duration(rate-apicRate), nil
}

// wakeEvery makes the loop wake for nothing. Each time the processor wakes, the
// kernel sets its timer anew for what is due next, by a clock that is right: a
// timer whose rate is wrong by a part is late by that part of the time since
// then, and no more.
func (s *server) wakeEvery(period time.Duration) (fd int, err error) {
	fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return -1, wrap("making a timer", err)
	}
	every := unix.NsecToTimespec(int64(period))
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil); err != nil {
		unix.Close(fd)
		return -1, wrap("setting a timer", err)
	}
	s.watch(fd, unix.EPOLLIN, func() {
		var b [8]byte
		_, _ = unix.Read(fd, b[:])
	})
	return fd, nil
}
