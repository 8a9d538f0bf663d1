package hostile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// logBytes is the cap of a log in these tests.
const logBytes = 1 << 20

var hostilePolicy = fmt.Sprintf(`version: 1
tenants:
  local: {}
defaults:
  log_bytes: %d
  max_duration: 120s
`, logBytes)

// end is the record that a hostile guest must end with.
type end struct {
	cause   string
	code    int    // none unless the cause is exited
	signal  int    // 0 for none
	limits  string // those that were hit; "?" for whatever the guest says
	message string // what the record's message has in it
}

// source is whose word a cause is.
func (e end) source() string {
	if e.cause == "exited" || e.cause == "signaled" {
		return "guest"
	}
	return "host"
}

func exited(code int) end { return end{cause: "exited", code: code} }

// guest is a guest that means harm.
type guest struct {
	name string
	run  request
	end  end
	or   end                 // the zero value, or another end that is as true
	log  func(o output) bool // nil: it does not matter
	then func(s *realvm.Server, id string)
}

// raw is a run of the program raw, by root.
func raw(program, deed string) request {
	return shell("gunzip -c /work/raw.gz >/work/raw && chmod +x /work/raw && exec /work/raw "+deed).root().
		with("files", []any{map[string]any{"path": "/work/raw.gz", "data": program}})
}

// broke is the end of a guest that lied to the host: its VM is ended, and the
// record says no more than the host knows.
func broke() end { return end{cause: "guest_lost", message: "broke the protocol"} }

// vmEnded is the end of a guest that ended its own VM.
func vmEnded() end { return end{cause: "guest_lost", message: "the VM ended before the command"} }

// outside is how root leaves the cgroups of the commands.
const outside = "mount -o remount,rw,bind /sys/fs/cgroup && echo $$ >/sys/fs/cgroup/cgroup.procs\n"

// bomb forks for ever: each that cannot any more makes room for another.
const bomb = "echo 'while :; do sh /work/bomb & done' >/work/bomb; sleep 100 & sh /work/bomb 2>/dev/null & wait"

// devices writes noise to all devices for which that holds.
func devices(which string) string {
	return `mkdir /tmp/dev; mount -t devtmpfs dev /tmp/dev; for d in $(find /tmp/dev \( -type b -o -type c \) \( ` + which + ` \)); do
		echo $d; timeout 1 dd if=/dev/urandom of=$d bs=4k count=16 2>/dev/null; done; `
}

func guests(t *testing.T) []guest {
	program := rawProgram(t)
	full := func(o output) bool { return o.bytes == logBytes && o.truncated }
	list := []guest{
		// On a busy host it takes seconds until there are as many processes as may be.
		{name: "fork bomb", run: shell(bomb).with("max_duration", "25s"), end: end{cause: "max_duration", limits: "processes"}},
		{name: "fork bomb of root outside of its limits", run: shell(outside+bomb).root().with("max_duration", "6s"), end: end{cause: "max_duration"}},
		{name: "memory bomb", run: shell(`tail /dev/zero`), end: end{cause: "signaled", signal: 9, limits: "memory"}},
		{name: "memory bomb in tmpfs", run: shell(`cat /dev/zero >/dev/shm/a & cat /dev/zero >/tmp/b; wait; exec tail /dev/zero`), end: end{cause: "signaled", signal: 9, limits: "memory"}},
		{name: "memory bomb of root outside of its limits", run: shell(outside + `tail /dev/zero; exit 5`).root(), end: exited(5)},
		{name: "disk filler", run: shell(`cat /dev/zero >/work/a; exit 6`), end: end{cause: "exited", code: 6, limits: "disk"}},
		{name: "disk filler with names", run: shell(`mkdir /work/d && cd /work/d && i=0; while true >$i 2>/dev/null; do i=$((i+1)); done; exit 6`).
			with("resources", map[string]any{"disk_mib": 16}), end: end{cause: "exited", code: 6, limits: "disk"}},
		{name: "endless output on both streams", run: shell(`yes stdout & yes stderr >&2`).with("max_duration", "6s"), end: end{cause: "max_duration"}, log: full},
		{name: "output after exit", run: shell(`echo before; (trap '' TERM HUP; sleep 1; echo late) & exit 3`), end: exited(3),
			log: func(o output) bool { return o.stdout == "before\n" }},
		{name: "output after exit, from outside of its cage", run: shell(`mount -o remount,rw,bind /sys/fs/cgroup; echo before
			(trap '' TERM HUP; read me x </proc/self/stat; echo $me >/sys/fs/cgroup/cgroup.procs; echo out >&2; while :; do echo late; done) & sleep 1; exit 3`).root(), end: exited(3),
			log: func(o output) bool { return strings.HasPrefix(o.stdout, "before\n") && o.stderr == "out\n" }},
		{name: "closing all descriptors", run: shell(`exec 0<&- 1>&- 2>&-; sleep 1; exit 4`), end: exited(4)},
		{name: "kill -9 -1", run: shell(`sleep 100 & kill -9 -1; exit 7`), end: exited(7)},
		{name: "kill -9 -1 by root", run: shell(`sleep 100 & kill -9 -1; exit 7`).root(), end: exited(7)},
		{name: "killing and stopping init", run: shell(`for s in KILL STOP TERM INT HUP QUIT ABRT USR1 USR2 TSTP SYS TRAP; do kill -$s 1; done; sleep 1; exit 8`).root(), end: exited(8)},
		{name: "killing init by a fault", run: shell(`kill -SEGV 1; sleep 100`).root(), end: vmEnded()},
		{name: "stopping init by ptrace", run: raw(program, "deaf").with("max_duration", "4s"), end: end{cause: "max_duration"}},
		{name: "stopping init by ptrace, and killed", run: raw(program, "deaf"), end: end{cause: "killed"}, then: kill},
		{name: "zeros over init's memory", run: raw(program, "smash").with("max_duration", "20s"), end: vmEnded()},
		{name: "reboot", run: shell(`reboot -f; sleep 100`).root(), end: vmEnded()},
		// A machine without a power switch halts instead.
		{name: "power off", run: shell(`poweroff -f; sleep 100`).root().with("max_duration", "20s"), end: vmEnded(), or: end{cause: "max_duration"}},
		{name: "halt", run: shell(`halt -f; sleep 100`).root().with("max_duration", "4s"), end: end{cause: "max_duration"}},
		{name: "kernel panic", run: shell(`echo c >/proc/sysrq-trigger; sleep 100`).root(), end: vmEnded()},
		{name: "console flood", run: shell(`mknod /dev/console c 5 1; mknod /dev/kmsg c 1 11; timeout 4 cat /dev/urandom >/dev/console; timeout 2 yes x >/dev/kmsg; exit 2`).root(), end: exited(2)},
		{name: "writing to every device", run: shell(devices(`! -name mem ! -name port ! -name kmem`) + `exit 2`).root(), end: end{cause: "exited", code: 2, limits: "?"}},
		{name: "writing to memory and every I/O port", run: shell(devices(`-name mem -o -name port`) + `exit 2`).root(), end: exited(2), or: vmEnded()},
		{name: "CPU spin on all vCPUs", run: shell(`while :; do :; done & while :; do :; done & while :; do :; done & while :; do :; done & wait`).
			with("resources", map[string]any{"vcpus": 4}).with("max_duration", "6s"), end: end{cause: "max_duration"}},
		{name: "ignoring all signals", run: shell(`trap '' TERM INT HUP QUIT; while :; do sleep 1; done`).with("max_duration", "3s"), end: end{cause: "max_duration"}},
		{name: "a good end after the limit", run: shell(`trap 'exit 0' TERM; while :; do sleep 1; done`).with("max_duration", "3s"), end: end{cause: "max_duration"}},
		{name: "init's port and a module of noise", run: raw(program, "kernel"), end: exited(8)},
		{name: "kexec of a kernel that is none", run: raw(program, "kexec"), end: vmEnded()},
	}
	for _, f := range []struct {
		deed string
		end  end
	}{
		{"unknown-process", broke()}, {"wrong-offset", broke()}, {"wrong-stream", broke()}, {"credit", broke()},
		{"replay", broke()}, {"reply", broke()}, {"version", broke()}, {"length", broke()}, {"host-frame", broke()}, {"unknown-type", broke()},
		{"no-end-mark", broke()}, {"noise", broke()}, {"exit-of-another", broke()},
		{"flood", exited(9)}, {"claim", exited(0)}, {"second-exit", exited(4)}, {"endless-output", exited(5)},
	} {
		list = append(list, guest{name: "raw frames: " + f.deed, run: raw(program, f.deed), end: f.end})
	}
	// Where the host reads faster than the guest writes, it has given the credit.
	list = append(list, guest{name: "raw frames: no-credit", run: raw(program, "no-credit").with("max_duration", "10s"), end: broke(), or: end{cause: "max_duration"}})
	return append(list, guest{name: "raw frames: exit after the host's own limit", run: raw(program, "late-exit").with("max_duration", "5s"), end: end{cause: "max_duration"},
		log: func(o output) bool { return o.stdout == "ready\n" }})
}

func kill(s *realvm.Server, id string) {
	s.Follow(id, func(state string) bool { return state == "running" })
	if code, b := s.Call("DELETE", "/sandbox/"+id+"?grace=1s", ""); code != 200 {
		s.T.Errorf("%d %s", code, b)
	}
}

// The neighbour's bounds under fire, beside its calm pace in the same run: the
// host is shared with as many busy VMs as it likes, so a turn may come late,
// but it comes.
const (
	slower = 20              // times the calm pace, at most
	grain  = 2 * time.Second // but so long a stall is never counted
)

// TestHostileGuests: what each guest does is in its record, truly, and a
// neighbour does not notice.
func TestHostileGuests(t *testing.T) {
	state := realvm.NewState(t)
	u := realvm.StartUp(t, state, "--policy", policyFile(t, hostilePolicy))
	n := moveIn(t, &u.Server)
	n.await(t, 5) // it has settled
	calm := paceOf(n.await(t, 25))
	begun := len(n.since(0))
	t.Run("guests", func(t *testing.T) {
		for _, g := range guests(t) {
			t.Run(g.name, func(t *testing.T) {
				t.Parallel()
				g.check(t, u.For(t))
			})
		}
	})
	fire := paceOf(n.since(begun))
	n.moveOut(t)
	t.Logf("the neighbour, calm: %+v; under fire: %+v", calm, fire)
	if bound := max(slower*calm.stall, grain); fire.stall > bound || fire.paused > bound {
		t.Errorf("the neighbour stalled for %v, by its own clock %v; calm it was %v", fire.stall, fire.paused, calm.stall)
	}
	u.End()
	realvm.NothingLeft(t, state)
}

// check runs the guest and compares its record with what must be.
func (g guest) check(t *testing.T, s *realvm.Server) {
	began := time.Now()
	id := s.Run(g.run.body(t)).ID
	if g.then != nil {
		g.then(s, id)
	}
	o := readLog(s, id)
	rec := s.Ended(id)
	t.Logf("%v: %s %+v", time.Since(began).Round(time.Millisecond), rec.State, rec.Exit)
	wrong := g.end.differs(rec)
	if wrong != "" && g.or.cause != "" {
		wrong = g.or.differs(rec)
	}
	if wrong != "" {
		t.Errorf("%s in %s with %+v", wrong, rec.State, rec.Exit)
	}
	if g.log != nil && !g.log(o) || t.Failed() {
		t.Errorf("its log: %d bytes, truncated %v, stdout %q, stderr %q", o.bytes, o.truncated, clip(o.stdout), clip(o.stderr))
	}
}

// differs says what of a record is not as it must be; "" if all is.
func (e end) differs(rec realvm.Record) string {
	state := "failed"
	if e.cause == "exited" && e.code == 0 {
		state = "succeeded"
	}
	var hit []string
	for _, l := range rec.Exit.LimitsHit {
		hit = append(hit, l.Limit)
	}
	slices.Sort(hit)
	x := rec.Exit
	switch {
	case x.Cause != e.cause || x.Source != e.source() || rec.State != state:
		return fmt.Sprintf("the cause is not %s, the word of the %s", e.cause, e.source())
	case (x.Code != nil) != (e.cause == "exited") || x.Code != nil && *x.Code != e.code || x.Signal != e.signal:
		return fmt.Sprintf("code or signal is not that of %+v", e)
	case !strings.Contains(x.Message, e.message):
		return fmt.Sprintf("the message does not say %q", e.message)
	case e.limits != "?" && strings.Join(hit, " ") != e.limits:
		return fmt.Sprintf("the limits that were hit are not %q", e.limits)
	}
	return ""
}
