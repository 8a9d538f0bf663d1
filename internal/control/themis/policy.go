// Package themis is the policy: what a request gets where it says nothing,
// what it may ask for at most, who may ask, and what is refused.
//
// A Policy is an immutable value made from one text, and its version is the
// SHA-256 of that text. Resolve turns a request into plain values, once; the
// judges then decide on these. What is malformed is themis's to refuse, what
// goes beyond the policy the judges'.
package themis

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"slices"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// MaxPolicyBytes bounds the text of a policy.
const MaxPolicyBytes = 1 << 20

//go:embed default.yaml
var defaultText string

// Policy is one version of the rules. It is never changed after it was made,
// and may be used by many at once. What its methods return is not to be
// changed either.
type Policy struct {
	version  string
	text     string
	tenants  map[string]Tenant
	defaults Defaults
	floor    sandbox.IsolationFloor
	rules    []Rule
}

// Tenant is one who may call, with all that holds for it.
type Tenant struct {
	Name      string
	Quota     Quota
	Maxima    Maxima
	Templates []string        // that it may use; nil for any
	Network   []sandbox.Grant // that it may be given; Domain may begin with "*.", no Ports means any
}

// Quota is how much is a tenant's at once.
type Quota struct {
	Limits        sandbox.Limits
	RatePerMinute int // runs asked for
	Burst         int // of them at once, after a quiet time
}

// Defaults is what a request gets where it says nothing.
type Defaults struct {
	Template     string
	User         string
	WorkingDir   string
	Resources    sandbox.Resources
	MaxDuration  time.Duration
	StartTimeout time.Duration
	QueueTimeout time.Duration
	CapacityWait time.Duration
	LogBytes     int64
}

// Maxima is what a request may ask for at most.
type Maxima struct {
	Resources   sandbox.Resources
	MaxDuration time.Duration
}

// Lookup is what Resolve asks the outside.
type Lookup interface {
	// Template finds a template by name; NotFound with a hint if there is none.
	Template(ctx context.Context, name string) (sandbox.Template, error)
	// GuestDigest names the guest bundle that new sandboxes get.
	GuestDigest(ctx context.Context) (sandbox.Digest, error)
}

// Default is the built-in policy.
func Default() (*Policy, error) { return Parse([]byte(defaultText)) }

// Parse makes a policy of its text. Errors are of kind InvalidArgument and
// give line and column, but nothing of the content.
func Parse(text []byte) (*Policy, error) {
	base, err := readPolicy([]byte(defaultText), document{})
	if err != nil {
		return nil, err // the embedded text is tested
	}
	doc, err := readPolicy(text, base)
	if err != nil {
		return nil, err
	}
	return doc.policy(string(text)), nil
}

func (d document) policy(text string) *Policy {
	sum := sha256.Sum256([]byte(text))
	return &Policy{
		version: "sha256:" + hex.EncodeToString(sum[:]), text: text,
		tenants: d.tenants, defaults: d.defaults, floor: d.floor, rules: d.rules,
	}
}

// Version is "sha256:" and the SHA-256 of the text.
func (p *Policy) Version() string { return p.version }

// Text is what the policy was made from.
func (p *Policy) Text() string { return p.text }

// Defaults is what a request gets where it says nothing.
func (p *Policy) Defaults() Defaults { return p.defaults }

// Tenant is the tenant of that name; false if the policy does not name it.
func (p *Policy) Tenant(name string) (Tenant, bool) {
	t, ok := p.tenants[name]
	return t, ok
}

// Tenants are the names of all tenants, sorted.
func (p *Policy) Tenants() []string {
	names := make([]string, 0, len(p.tenants))
	for name := range p.tenants {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Rules are the deny rules, in the order of the text.
func (p *Policy) Rules() []Rule { return p.rules }
