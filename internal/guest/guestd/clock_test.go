package guestd

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// list is what a kernel 6.1 tells, in part.
const list = `Tick Device: mode:     1
Per CPU device: 0
Clock Event Device: lapic
 max_delta_ns:   37885014892
 min_delta_ns:   1000
 mult:           243456999
 shift:          32
 mode:           3
`

// rated is the list of a kernel that noted this rate, in parts of the right one.
func rated(part float64) string {
	return strings.Replace(list, "243456999", strconv.Itoa(int(part*apicRate)), 1)
}

func TestJudgeClock(t *testing.T) {
	for _, tc := range []struct {
		name, device, list string
		cpus               int
		wake               time.Duration
		wrong              string
	}{
		{name: "a good one", device: "lapic", list: list, cpus: 1},
		{name: "none", device: "", list: list, cpus: 1, wrong: "no timer"},
		{name: "one that is not measured", device: "lapic-deadline", cpus: 1},
		{name: "hardly late", device: "lapic", list: rated(1.009), cpus: 1},
		{name: "late by an eighth", device: "lapic", list: rated(1.125), cpus: 1, wake: 8 * lateness},
		{name: "late by the whole", device: "lapic", list: rated(2), cpus: 1, wake: lateness},
		{name: "later", device: "lapic", list: rated(2.1), cpus: 1, wrong: "measured"},
		{name: "hardly late, of two", device: "lapic", list: rated(1.04), cpus: 2},
		{name: "late, of two", device: "lapic", list: rated(1.125), cpus: 2, wrong: "measured"},
		{name: "early", device: "lapic", list: rated(0.5), cpus: 1},
		{name: "far too early", device: "lapic", list: rated(0.01), cpus: 1, wrong: "measured"},
		{name: "a list of another form", device: "lapic", list: "mult: 1", cpus: 1},
		{name: "no list", device: "lapic", cpus: 1},
	} {
		wake, err := judgeClock(tc.device, tc.list, tc.cpus)
		if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if wake != tc.wake {
			t.Errorf("%s: wakes every %v, want %v", tc.name, wake, tc.wake)
		}
	}
}

// The loop is woken again and again.
func TestWakeEvery(t *testing.T) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epfd)
	s := &server{epfd: epfd, watches: map[int]func(){}, cfg: Config{Log: func(l string) { t.Error(l) }}}
	fd, err := s.wakeEvery(time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for range 3 {
		events := make([]unix.EpollEvent, 2)
		n, err := unix.EpollWait(epfd, events, 60_000)
		for err == unix.EINTR {
			n, err = unix.EpollWait(epfd, events, 60_000)
		}
		if err != nil || n != 1 || int(events[0].Fd) != fd {
			t.Fatalf("%d events: %v", n, err)
		}
		s.watches[fd]()
	}
}
