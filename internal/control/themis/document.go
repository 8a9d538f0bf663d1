package themis

import (
	"slices"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/strictyaml"
)

// formatVersion is the version of the policy file's form.
//
//	1  tenants, defaults, maxima, templates, network, isolation_floor, rules
const formatVersion = 1

// reader reads what policies are made of.
type reader struct{ *strictyaml.Reader }

// document is what a policy's text says.
type document struct {
	tenants   map[string]Tenant
	quota     Quota // of a tenant that says nothing: as the built-in tenant's
	defaults  Defaults
	maxima    Maxima
	templates []string // nil for any
	network   []sandbox.Grant
	floor     sandbox.IsolationFloor
	rules     []Rule
}

// localTenant is the tenant of the built-in policy.
const localTenant = "local"

// readPolicy reads a text over a base, which holds where the text is silent.
func readPolicy(text []byte, base document) (document, error) {
	root, yaml, err := strictyaml.Form{
		What: "policy", MaxBytes: MaxPolicyBytes,
		Hint: "Mend that place. A policy has the keys version (1), tenants, defaults, maxima, templates, network, isolation_floor and rules.",
	}.Read(text)
	if err != nil {
		return document{}, err
	}
	if t, ok := base.tenants[localTenant]; ok {
		base.quota = t.Quota
	}
	base.tenants, base.rules = nil, nil
	r := &reader{yaml}
	d := base
	version := int64(0)
	var tenants ast.Node
	r.Fields(root, map[string]func(ast.Node){
		"version":         func(n ast.Node) { version = r.Number(n, formatVersion, formatVersion) },
		"tenants":         func(n ast.Node) { tenants = n },
		"defaults":        func(n ast.Node) { d.defaults = r.defaults(n, d.defaults) },
		"maxima":          func(n ast.Node) { d.maxima = r.maxima(n, d.maxima) },
		"templates":       func(n ast.Node) { d.templates = r.templates(n) },
		"network":         func(n ast.Node) { d.network = r.network(n) },
		"isolation_floor": func(n ast.Node) { d.floor = r.floor(n) },
		"rules":           func(n ast.Node) { d.rules = r.rules(n) },
	})
	if r.OK() && version == 0 {
		r.Fail(nil, "the key version is missing; this is version %d", formatVersion)
	}
	if r.OK() && tenants == nil {
		r.Fail(nil, "the key tenants is missing: without it nobody may call")
	}
	if r.OK() {
		// Last, because what holds for all is what a tenant begins with.
		d.tenants = r.tenants(tenants, d)
	}
	if r.OK() {
		r.consistent(root, d)
	}
	return d, r.Err()
}

// consistent refuses defaults that no request could keep.
func (r *reader) consistent(n ast.Node, d document) {
	def, top := d.defaults, d.maxima
	switch {
	case def.Resources.VCPUs > top.Resources.VCPUs, def.Resources.MemoryMiB > top.Resources.MemoryMiB,
		def.Resources.DiskMiB > top.Resources.DiskMiB, def.Resources.Processes > top.Resources.Processes,
		def.MaxDuration > top.MaxDuration:
		r.Fail(n, "a default is larger than its maximum")
	case d.templates != nil && !slices.Contains(d.templates, def.Template):
		r.Fail(n, "the default template is not among the templates that may be used")
	}
}

func (r *reader) tenants(n ast.Node, d document) map[string]Tenant {
	out := map[string]Tenant{}
	r.Each(n, func(name string, k, v ast.Node) {
		if !namePattern.MatchString(name) {
			r.Fail(k, "a tenant's name has lower-case letters, digits, '-', '_' and '.', at most %d", MaxNameBytes)
			return
		}
		if len(out) == maxTenants {
			r.Fail(k, "more than %d tenants", maxTenants)
			return
		}
		t := Tenant{Name: name, Quota: d.quota, Maxima: d.maxima, Templates: d.templates, Network: d.network}
		if _, empty := v.(*ast.NullNode); !empty {
			r.Fields(v, map[string]func(ast.Node){
				"quota":     func(n ast.Node) { t.Quota = r.quota(n, t.Quota) },
				"maxima":    func(n ast.Node) { t.Maxima = r.maxima(n, t.Maxima) },
				"templates": func(n ast.Node) { t.Templates = r.templates(n) },
				"network":   func(n ast.Node) { t.Network = r.network(n) },
			})
		}
		out[name] = t
	})
	return out
}

func (r *reader) quota(n ast.Node, q Quota) Quota {
	count := func(into *int) func(ast.Node) {
		return func(n ast.Node) { *into = int(r.Number(n, 0, maxCount)) }
	}
	count64 := func(into *int64) func(ast.Node) {
		return func(n ast.Node) { *into = r.Number(n, 0, maxCount) }
	}
	r.Fields(n, map[string]func(ast.Node){
		"live":            count(&q.Limits.Live),
		"running":         count(&q.Limits.Running),
		"vcpus":           count(&q.Limits.VCPUs),
		"memory_mib":      count64(&q.Limits.MemoryMiB),
		"disk_mib":        count64(&q.Limits.DiskMiB),
		"rate_per_minute": count(&q.RatePerMinute),
		"burst":           count(&q.Burst),
	})
	return q
}

func (r *reader) defaults(n ast.Node, d Defaults) Defaults {
	r.Fields(n, map[string]func(ast.Node){
		"template":      func(n ast.Node) { d.Template = r.checked(n, checkTemplate) },
		"user":          func(n ast.Node) { d.User = r.checked(n, checkUser) },
		"working_dir":   func(n ast.Node) { d.WorkingDir = r.checked(n, checkWorkingDir) },
		"resources":     func(n ast.Node) { d.Resources = r.resources(n, d.Resources) },
		"max_duration":  func(n ast.Node) { d.MaxDuration = r.duration(n) },
		"start_timeout": func(n ast.Node) { d.StartTimeout = r.duration(n) },
		"queue_timeout": func(n ast.Node) { d.QueueTimeout = r.duration(n) },
		"capacity_wait": func(n ast.Node) { d.CapacityWait = r.duration(n) },
		"log_bytes":     func(n ast.Node) { d.LogBytes = r.Number(n, 1<<10, MaxLogBytes) },
	})
	return d
}

// checked is a string that would also do in a request.
func (r *reader) checked(n ast.Node, check func(string) error) string {
	s := r.Str(n)
	if r.OK() && (s == "" || check(s) != nil) {
		r.Fail(n, "not what a request's field of that name may be")
	}
	return s
}

func (r *reader) duration(n ast.Node) time.Duration { return r.Duration(n, MinDuration, MaxDuration) }

func (r *reader) maxima(n ast.Node, m Maxima) Maxima {
	r.Fields(n, map[string]func(ast.Node){
		"resources":    func(n ast.Node) { m.Resources = r.resources(n, m.Resources) },
		"max_duration": func(n ast.Node) { m.MaxDuration = r.duration(n) },
	})
	return m
}

func (r *reader) resources(n ast.Node, s sandbox.Resources) sandbox.Resources {
	r.Fields(n, map[string]func(ast.Node){
		"vcpus": func(n ast.Node) { s.VCPUs = int(r.Number(n, 1, MaxVCPUs)) },
		"memory_mib": func(n ast.Node) {
			s.MemoryMiB = r.Number(n, 1, MaxMemoryMiB)
			if r.OK() && s.MemoryMiB != sandbox.MemoryClass(s.MemoryMiB) {
				r.Fail(n, "memory comes in classes: 128 times a power of two")
			}
		},
		"disk_mib":  func(n ast.Node) { s.DiskMiB = r.Number(n, MinDiskMiB, MaxDiskMiB) },
		"processes": func(n ast.Node) { s.Processes = int(r.Number(n, 1, MaxProcesses)) },
	})
	return s
}

func (r *reader) templates(n ast.Node) []string {
	out := []string{} // not nil: a list without entries allows none
	r.List(n, maxPolicyEntries, func(n ast.Node) { out = append(out, r.checked(n, checkTemplate)) })
	return out
}

func (r *reader) network(n ast.Node) []sandbox.Grant {
	var out []sandbox.Grant
	r.Fields(n, map[string]func(ast.Node){
		"allow": func(n ast.Node) {
			r.List(n, maxPolicyGrants, func(n ast.Node) { out = append(out, r.grant(n)) })
		},
	})
	return out
}

func (r *reader) grant(n ast.Node) sandbox.Grant {
	var g sandbox.Grant
	r.Fields(n, map[string]func(ast.Node){
		"domain":   func(n ast.Node) { g.Domain = r.Str(n) },
		"cidr":     func(n ast.Node) { g.CIDR = r.Str(n) },
		"protocol": func(n ast.Node) { g.Protocol = r.Str(n) },
		"ports": func(n ast.Node) {
			r.List(n, maxPolicyEntries, func(n ast.Node) { g.Ports = append(g.Ports, int(r.Number(n, 1, maxPort))) })
			if r.OK() && len(g.Ports) == 0 {
				r.Fail(n, "a list of no ports; leave it out for any port")
			}
		},
	})
	if !r.OK() {
		return g
	}
	g, err := plainPolicyGrant(g)
	if err != nil {
		r.Fail(n, "no valid grant: one of domain and cidr, protocol tcp or udp, ports")
	}
	return g
}

func (r *reader) floor(n ast.Node) sandbox.IsolationFloor {
	var f sandbox.IsolationFloor
	r.Fields(n, map[string]func(ast.Node){
		"accelerator": func(n ast.Node) {
			if f.Accelerator = r.Str(n); r.OK() && f.Accelerator != "" && f.Accelerator != "kvm" {
				r.Fail(n, `kvm, or "" for any, is wanted here`)
			}
		},
		"confinement": func(n ast.Node) {
			r.List(n, maxPolicyEntries, func(n ast.Node) { f.Confinement = append(f.Confinement, r.checked(n, checkTemplate)) })
		},
	})
	return f
}
