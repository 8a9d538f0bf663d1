package guestd

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel measures the APIC's timer against the TSC when it boots. A VMM
// that the host does not let run at that moment spoils it: the timer is found
// "too slow" and none is used, or its rate is wrong. Such a guest boots, and
// then nothing that waits for a time ever goes on, or does so much too late.
// Without it nothing can be promised, so init gives up before it says hello,
// and the host boots another.
const (
	clockDevice = "/sys/devices/system/clockevents/clockevent0/current_device"
	timerList   = "/proc/timer_list"
)

// checkClock insists on a timer that fires, and when it should.
func checkClock() error {
	device, err := readFile(clockDevice, 256)
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel that does not tell
	}
	if err != nil {
		return err
	}
	list := ""
	if strings.TrimSpace(device) == "lapic" {
		if list, err = readFile(timerList, 1<<16); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return judgeClock(strings.TrimSpace(device), list)
}

// apicRate is that of the APIC's timer, in ticks a nanosecond times 2^32, as
// the kernel notes it: 1 GHz divided by 16, in QEMU and in KVM.
const apicRate = 1 << 28

// judgeClock judges by the device's name and, for the APIC's timer, by what
// the kernel lists. A rate noted too low makes timers fire early, which the
// kernel mends; one too high makes them fire late.
func judgeClock(device, list string) error {
	if device == "" {
		return errors.New("the kernel has no timer: the host did not let it measure the APIC's")
	}
	if device != "lapic" {
		return nil // one that need not be measured
	}
	_, list, found := strings.Cut(list, "Clock Event Device: lapic")
	_, list, found2 := strings.Cut(list, " mult:")
	if !found || !found2 {
		return nil
	}
	number, _, _ := strings.Cut(strings.TrimSpace(list), "\n")
	rate, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
	if err != nil {
		return nil // another kernel's list says it in another way
	}
	if rate < apicRate/4 || rate > apicRate+apicRate/20 {
		return errors.New("the kernel measured the APIC's timer wrong: " + number + " instead of " + strconv.Itoa(apicRate))
	}
	return nil
}
