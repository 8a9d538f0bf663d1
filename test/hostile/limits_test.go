package hostile_test

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// limitsPolicy has a tenant for each limit, so small that two fit and three do
// not.
const limitsPolicy = `version: 1
tenants:
  local: {}
  live: {quota: {live: 2}}
  running: {quota: {running: 2}}
  vcpus: {quota: {vcpus: 2}}
  memory: {quota: {memory_mib: 256}}
  disk: {quota: {disk_mib: 32}}
defaults:
  log_bytes: 65536
  resources: {disk_mib: 32, processes: 32}
  max_duration: 120s
maxima:
  resources: {vcpus: 4, memory_mib: 512, disk_mib: 64, processes: 64}
`

func resources(r map[string]any) func(request) request {
	return func(q request) request { return q.with("resources", r) }
}

// TestLimitsOfASandbox: what a sandbox was given is what it has, to the byte
// and process.
func TestLimitsOfASandbox(t *testing.T) {
	state := realvm.NewState(t)
	u := realvm.StartUp(t, state, "--policy", policyFile(t, limitsPolicy))
	cases := []struct {
		name   string
		script string
		give   map[string]any
		want   string // of its output; "?" for anything
		check  func(t *testing.T, rec realvm.Record, o output)
	}{
		{name: "disk", give: map[string]any{"disk_mib": 24},
			script: `cat /sys/block/vdb/size; cat /dev/zero >/work/a 2>/dev/null; n=$(wc -c </work/a); [ $n -le $((24*1024*1024)) ] && [ $n -ge $((18*1024*1024)) ] && echo filled || echo $n`,
			want:   fmt.Sprintf("%d\nfilled\n", 24<<20/512), check: hit("disk")},
		{name: "processes", give: map[string]any{"processes": 20},
			script: `n=1; echo $n; while sleep 100 & do n=$((n+1)); echo $n; done 2>/dev/null`,
			want:   countTo(20), check: hit("processes")},
		{name: "memory class", give: map[string]any{"memory_mib": 200},
			script: `read k total kb </proc/meminfo; [ $total -le $((256*1024)) ] && [ $total -ge $((210*1024)) ] && echo class || echo $total
				[ $(cat /sys/fs/cgroup/commands/memory.max) -le $((256*1024*1024)) ] && echo caged; tail /dev/zero; echo over`,
			want: "class\ncaged\nover\n", check: hit("memory")},
		{name: "visible CPUs", give: map[string]any{"vcpus": 3}, script: `nproc; grep -c ^processor /proc/cpuinfo`, want: "3\n3\n", check: hit("")},
		{name: "log bytes", script: `head -c 65536 /dev/zero | tr '\0' x`, want: strings.Repeat("x", 65536), check: cut(false)},
		{name: "log bytes, one too many", script: `head -c 65537 /dev/zero | tr '\0' x`, want: strings.Repeat("x", 65536), check: cut(true)},
		{name: "log bytes, over both streams", script: `head -c 40000 /dev/zero | tr '\0' x; head -c 40000 /dev/zero | tr '\0' y >&2`, want: "?", check: cut(true)},
	}
	t.Run("each", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := u.For(t)
				rec := s.Run(resources(c.give)(shell(c.script)).body(t))
				o := readLog(s, rec.ID)
				rec = s.Ended(rec.ID)
				if c.want != "?" && o.stdout != c.want {
					t.Errorf("it says %q, want %q; stderr %q, %+v", clip(o.stdout), clip(c.want), clip(o.stderr), rec.Exit)
				}
				c.check(t, rec, o)
			})
		}
	})
	t.Run("more than the policy's maxima", func(t *testing.T) {
		for field, value := range map[string]int{"vcpus": 5, "memory_mib": 513, "disk_mib": 65, "processes": 65} {
			code, b := u.For(t).Call("POST", "/sandbox/run", resources(map[string]any{field: value})(shell("true")).body(t))
			if code != http.StatusForbidden || !strings.Contains(string(b), `"field":"resources.`+field+`"`) {
				t.Errorf("%s: %d %s", field, code, b)
			}
		}
	})
	u.End()
	realvm.NothingLeft(t, state)
}

// hit checks that this limit, and no other, was hit.
func hit(limit string) func(*testing.T, realvm.Record, output) {
	return func(t *testing.T, rec realvm.Record, _ output) {
		t.Helper()
		var have []string
		for _, l := range rec.Exit.LimitsHit {
			if l.Count < 1 {
				t.Errorf("%+v", l)
			}
			have = append(have, l.Limit)
		}
		if strings.Join(have, " ") != limit {
			t.Errorf("hit were %v, want %q", have, limit)
		}
	}
}

// cut checks that the log is whole or cut at its cap, and says so.
func cut(truncated bool) func(*testing.T, realvm.Record, output) {
	return func(t *testing.T, rec realvm.Record, o output) {
		t.Helper()
		if o.bytes != 65536 || rec.Usage.LogBytes != 65536 {
			t.Errorf("the log has %d bytes, and the record says %v", o.bytes, rec.Usage.LogBytes)
		}
		if o.truncated != truncated || rec.Usage.LogTruncated != truncated {
			t.Errorf("the mark is %v, and the record says %v", o.truncated, rec.Usage.LogTruncated)
		}
	}
}

func countTo(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

// TestLimitsOfATenant: a tenant never has more on nodes than its quota, what
// waits runs when there is room, what could never fit is refused, and another
// tenant does not wait.
func TestLimitsOfATenant(t *testing.T) {
	state := realvm.NewState(t)
	u := realvm.StartUp(t, state, "--policy", policyFile(t, limitsPolicy))
	small := map[string]any{"vcpus": 1, "memory_mib": 128, "disk_mib": 16}
	t.Run("tenants", func(t *testing.T) {
		for _, c := range []struct {
			tenant string
			never  map[string]any // what could never fit; nil: nothing
		}{
			{"running", nil}, {"vcpus", map[string]any{"vcpus": 3}}, {"memory", map[string]any{"memory_mib": 257}}, {"disk", map[string]any{"disk_mib": 33}},
		} {
			t.Run(c.tenant, func(t *testing.T) {
				t.Parallel()
				s := asTenant(t, &u.Server, c.tenant)
				var recs []realvm.Record
				for range 3 {
					recs = append(recs, s.Run(resources(small)(shell("sleep 2")).body(t)))
				}
				for i := range recs {
					if recs[i] = s.Ended(recs[i].ID); recs[i].State != "succeeded" {
						t.Errorf("%+v", recs[i])
					}
				}
				if n := together(recs); n != 2 {
					t.Errorf("%d were on the node together", n)
				}
				if c.never == nil {
					return
				}
				code, b := s.Call("POST", "/sandbox/run", resources(c.never)(shell("true")).body(t))
				if code != http.StatusTooManyRequests || !strings.Contains(string(b), "quota_exceeded") {
					t.Errorf("what could never fit: %d %s", code, b)
				}
			})
		}
		t.Run("live", func(t *testing.T) {
			t.Parallel()
			s := asTenant(t, &u.Server, "live")
			var ids []string
			for range 2 {
				ids = append(ids, s.Run(resources(small)(shell("sleep 100")).body(t)).ID)
			}
			if code, b := s.Call("POST", "/sandbox/run", shell("true").body(t)); code != http.StatusTooManyRequests {
				t.Errorf("the third: %d %s", code, b)
			}
			for _, id := range ids {
				kill(s, id)
				s.Ended(id)
			}
			code, b := s.Call("POST", "/sandbox/run?wait=100s", resources(small)(shell("true")).body(t))
			if rec := realvm.Decode[realvm.Record](t, b); code != http.StatusOK || rec.State != "succeeded" {
				t.Errorf("when there is room again: %d %s", code, b)
			}
		})
	})
	u.End()
	realvm.NothingLeft(t, state)
}

// asTenant is the server with a token of that tenant.
func asTenant(t *testing.T, s *realvm.Server, tenant string) *realvm.Server {
	t.Helper()
	s = s.For(t)
	code, b := s.Call("POST", "/tokens", fmt.Sprintf(`{"tenant": %q, "scopes": ["run", "read"]}`, tenant))
	if code != http.StatusOK && code != http.StatusCreated {
		t.Fatalf("a token for %s: %d %s", tenant, code, b)
	}
	s.Token = realvm.Decode[struct{ Token string }](t, b).Token
	return s
}

// together is how many were on the node at the same time at most.
func together(recs []realvm.Record) int {
	type edge struct {
		at    time.Time
		delta int
	}
	var edges []edge
	for _, r := range recs {
		edges = append(edges, edge{r.AssignedAt, 1}, edge{r.EndedAt, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.delta, b.delta)) })
	now, most := 0, 0
	for _, e := range edges {
		now += e.delta
		most = max(most, now)
	}
	return most
}
