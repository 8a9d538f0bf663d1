package sandbox

import "time"

// Request is a run as its caller asked for it. Only Command is required; a
// zero value elsewhere means "the policy's default".
type Request struct {
	Template     string
	Command      []string
	Name         string
	Env          map[string]string // secret values
	WorkingDir   string
	User         string // a name of the template, or a number
	Stdin        []byte // secret
	StdinOpen    bool   // standard input goes on after Stdin, by the Stdin call
	Files        []File // secret contents
	Resources    Resources
	MaxDuration  time.Duration
	Network      NetworkContract
	Labels       map[string]string
	NodeSelector map[string]string
}

// File is put into the guest before the command starts.
type File struct {
	Path string `json:"path"` // absolute, clean
	Mode uint32 `json:"mode"` // permission bits
	Data []byte `json:"data"` // secret
}

// Resources are what a sandbox may use. MemoryMiB is the guest's memory, and
// always one of the classes of MemoryClass once it is resolved.
type Resources struct {
	VCPUs     int   `json:"vcpus"`
	MemoryMiB int64 `json:"memory_mib"`
	DiskMiB   int64 `json:"disk_mib"`
	Processes int   `json:"processes"`
}

// Demand is the room that a sandbox with r takes on a node: the VMM's overhead
// counts.
func (r Resources) Demand() Capacity {
	return Capacity{VCPUs: r.VCPUs, MemoryMiB: r.MemoryMiB + VMOverheadMiB, DiskMiB: r.DiskMiB}
}

// MemoryClass rounds mib up to a class: 128 MiB times a power of two. There
// are few of them so that few snapshots serve all sandboxes.
func MemoryClass(mib int64) int64 {
	class := int64(128)
	for class < mib {
		class *= 2
	}
	return class
}

// NetworkContract is what a sandbox may reach. The zero value is nothing: no
// network card at all.
type NetworkContract struct {
	Allow []Grant `json:"allow,omitempty"`
}

// Grant allows one destination: either a Domain or a CIDR.
type Grant struct {
	Domain   string `json:"domain,omitempty"`   // a DNS name, lower case
	CIDR     string `json:"cidr,omitempty"`     // RFC 4632 or RFC 4291 prefix
	Protocol string `json:"protocol,omitempty"` // tcp or udp; tcp by default
	Ports    []int  `json:"ports,omitempty"`    // 1 to 65535
}

// Empty reports whether the contract grants nothing.
func (c NetworkContract) Empty() bool { return len(c.Allow) == 0 }

// Resolved is a Request after the policy filled in every default: plain
// values, no lookups left. Secrets are carried apart from it.
type Resolved struct {
	Template       string            `json:"template"`
	TemplateDigest Digest            `json:"template_digest"`
	GuestDigest    Digest            `json:"guest_digest"` // of the guest bundle
	Command        []string          `json:"command"`
	Name           string            `json:"name,omitempty"`
	Env            []SecretRef       `json:"env,omitempty"` // by name, sorted
	WorkingDir     string            `json:"working_dir"`
	User           string            `json:"user"`
	StdinBytes     int               `json:"stdin_bytes"`
	StdinOpen      bool              `json:"stdin_open,omitempty"`
	Files          []FileRef         `json:"files,omitempty"` // in the order given
	SecretsDigest  Digest            `json:"secrets_digest"`  // of the encoded Secrets
	Resources      Resources         `json:"resources"`
	MaxDuration    time.Duration     `json:"max_duration_ns"`
	StartTimeout   time.Duration     `json:"start_timeout_ns"`
	QueueTimeout   time.Duration     `json:"queue_timeout_ns"`
	CapacityWait   time.Duration     `json:"capacity_wait_ns"` // how long no node may fit before no_capacity
	LogBytes       int64             `json:"log_bytes"`        // cap over both streams
	Network        NetworkContract   `json:"network"`
	Labels         map[string]string `json:"labels,omitempty"`
	NodeSelector   map[string]string `json:"node_selector,omitempty"`
	Isolation      IsolationFloor    `json:"isolation_floor"`
}

// SecretRef names a secret value without showing it.
type SecretRef struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
}

// FileRef names a file without showing it.
type FileRef struct {
	Path  string `json:"path"`
	Mode  uint32 `json:"mode"`
	Bytes int    `json:"bytes"`
}

// Secrets are the values of env, stdin and files. They are sealed for the
// start and erased at the end; they never enter a record, an event, an audit
// entry, an error or a log.
type Secrets struct {
	Salt  []byte            `json:"salt"` // 32 random bytes, so that the digest tells nothing
	Env   map[string]string `json:"env,omitempty"`
	Stdin []byte            `json:"stdin,omitempty"`
	Files []File            `json:"files,omitempty"`
}

// IsolationFloor is what a policy insists on; a node below it is no candidate.
type IsolationFloor struct {
	Accelerator string   `json:"accelerator,omitempty"` // "kvm", or "" for any
	Confinement []string `json:"confinement,omitempty"` // layers that must be on
}
