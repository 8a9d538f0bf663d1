package guestd

import (
	"slices"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var set []bool
	p := pace{set: func(on bool) { set = append(set, on) }}
	now := time.Unix(0, 0)
	reads := func(n int, gap time.Duration) {
		for range n {
			now = now.Add(gap)
			p.read(now)
		}
	}
	reads(100, 10*time.Millisecond)
	if len(set) != 0 {
		t.Errorf("a trickle is a flood: %v", set)
	}
	reads(100, time.Millisecond)
	if !slices.Equal(set, []bool{true}) {
		t.Errorf("a flood: %v", set)
	}
	reads(10, 20*time.Millisecond)
	if !slices.Equal(set, []bool{true}) {
		t.Errorf("a flood in batches: %v", set)
	}
	reads(1, time.Second)
	if !slices.Equal(set, []bool{true, false}) {
		t.Errorf("after the flood: %v", set)
	}
	reads(100, time.Millisecond)
	if !slices.Equal(set, []bool{true, false, true}) {
		t.Errorf("the next flood: %v", set)
	}
}
