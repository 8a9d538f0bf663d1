package qemu

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Under TCG the guest's time stamp counter is the host's. Its kernel would
// calibrate it against an emulated timer, which fails under emulation's jitter
// and then waits for a tick for ever, so it is told the rate.
const (
	tscWindow  = 10 * time.Millisecond
	tscWindows = 5
	tscSpread  = 1000 // windows may differ by one part in this
)

// measureTSC measures the counter's rate in kHz; 0 where there is no counter
// or it does not run evenly.
func measureTSC() int64 {
	if !hasCounter {
		return 0
	}
	var rates []int64
	for range tscWindows {
		t0, ns0 := tscPair()
		time.Sleep(tscWindow)
		t1, ns1 := tscPair()
		if t1 <= t0 || ns1 <= ns0 {
			return 0
		}
		rates = append(rates, int64(float64(t1-t0)*1e6/float64(ns1-ns0)))
	}
	return evenRate(rates)
}

// evenRate is the median of rates, or 0 when the middle ones differ too much.
// The outermost may be off: the process may have lost its core in between.
func evenRate(rates []int64) int64 {
	slices.Sort(rates)
	mid := rates[len(rates)/2]
	low, high := rates[len(rates)/2-1], rates[len(rates)/2+1]
	if mid <= 0 || high-low > mid/tscSpread {
		return 0
	}
	return mid
}

// tscPair reads counter and clock as close together as it can.
func tscPair() (tsc uint64, ns int64) {
	best := ^uint64(0)
	for range 16 {
		before := counter()
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
			return 0, 0
		}
		after := counter()
		if d := after - before; d < best {
			best, tsc, ns = d, before+d/2, ts.Nano()
		}
	}
	return tsc, ns
}
