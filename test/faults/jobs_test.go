package faults_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// job is something that is asked for, and what is true of its end.
type job struct {
	name string
	body string
	base []string // the causes that are true of it when nothing is at fault
	log  string   // what it writes, where it ends by itself

	refused bool // by the policy: it makes no sandbox
	kill    bool // it is ended by a call once it runs
	recall  bool // it is ended by a call while it waits

	// What became of it.
	key      string // by which it is asked for again
	id       string
	settled  bool // refused, as it should be
	answered bool // its killing was
	rec      record
}

// policy has room for some at a time, and a rule.
const policy = `version: 1
tenants:
  local:
    quota: {live: 1000, running: 6, vcpus: 64, memory_mib: 65536, disk_mib: 65536, rate_per_minute: 1000000, burst: 10000}
defaults: {template: base, capacity_wait: 1s, resources: {disk_mib: 16}}
rules:
  - name: no-root
    deny: request.user == "root"
    reason: Nothing runs as root here.
`

// impatient is a policy under which whatever waits gives up soon.
const impatient = `version: 1
tenants:
  local:
    quota: {live: 1000, running: 6, vcpus: 64, memory_mib: 65536, disk_mib: 65536, rate_per_minute: 1000000, burst: 10000}
defaults: {template: base, queue_timeout: 1s, resources: {disk_mib: 16}}
rules:
  - name: no-root
    deny: request.user == "root"
    reason: Nothing runs as root here.
`

// load is one of each, in an order that the seed chooses. Those whose fakes do
// what real guests' commands do are for both.
func load(r *rand.Rand, real bool) []*job {
	sleep, flood := `["sleep", "forever"]`, `["flood", "20000"]`
	if real {
		sleep, flood = `["sleep", "1000"]`, `["sh", "-c", "head -c 20000 /dev/zero | tr '\\0' x"]`
	}
	jobs := []*job{
		{name: "true", body: `{"command": ["true"]}`, base: []string{"exited"}},
		{name: "echo", body: `{"command": ["echo", "hello"], "env": {"A": "b"}}`, base: []string{"exited"}, log: "hello\n"},
		{name: "false", body: `{"command": ["false"]}`, base: []string{"exited"}},
		{name: "flood", body: `{"command": ` + flood + `, "files": [{"path": "/work/f", "mode": 420, "data": "eA=="}]}`, base: []string{"exited"}},
		{name: "missing", body: `{"command": ["no-such-command"]}`, base: []string{"start_failed"}},
		{name: "long", body: `{"command": ` + sleep + `, "max_duration": "1s"}`, base: []string{"max_duration"}},
		{name: "held", body: `{"command": ` + sleep + `}`, base: []string{"killed"}, kill: true},
		{name: "nowhere", body: `{"command": ["true"], "node_selector": {"zone": "nowhere"}}`, base: []string{"no_capacity"}},
		{name: "recalled", body: `{"command": ["true"], "node_selector": {"zone": "nowhere"}}`, base: []string{"killed", "no_capacity"}, recall: true},
		{name: "refused", body: `{"command": ["true"], "user": "root"}`, refused: true},
	}
	if !real {
		jobs = append(jobs, &job{name: "crash", body: `{"command": ["crash"]}`, base: []string{"guest_lost"}})
	}
	if real { // each boots a VM: fewer kinds
		jobs = slices.DeleteFunc(jobs, func(j *job) bool { return j.name == "false" || j.name == "flood" })
	}
	r.Shuffle(len(jobs), func(i, k int) { jobs[i], jobs[k] = jobs[k], jobs[i] })
	for i, j := range jobs {
		j.key = fmt.Sprintf("key-%d", i)
	}
	return jobs
}

// truths are the causes that are true of j.
func (c *cell) truths(j *job, struck string) []string {
	base := slices.Clone(j.base)
	if c.needs == aQueue {
		base = append(base, "queue_timeout")
	}
	switch {
	case j.id != "" && j.id == struck:
		switch c.outcome {
		case lost:
			return []string{"node_lost"}
		case perhaps:
			return append(base, "node_lost")
		case stillb:
			return []string{"start_failed"}
		case guest:
			return []string{"guest_lost"}
		}
		if c.needs != aCrash {
			return base
		}
		return append(base, "node_lost")
	case c.deadly:
		return append(base, "node_lost") // it may have been on the node as well
	}
	return append(base, c.also...)
}
