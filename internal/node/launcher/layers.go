package launcher

// The layers of confinement, by the names that records show.
const (
	LayerSession         = "session"           // a session of its own, no terminal
	LayerRlimits         = "rlimits"           // no core dumps, few files
	LayerNoNewPrivs      = "no_new_privs"      // nothing it executes gains rights
	LayerCapabilities    = "no_capabilities"   // permitted, effective, inheritable and ambient sets are empty
	LayerBounding        = "empty_bounding"    // the bounding set is too
	LayerOwnUID          = "own_uid"           // a user of its own (root only)
	LayerUserNS          = "user_namespace"    // an ordinary user's way to the others
	LayerPIDNS           = "pid_namespace"     // sees no process but itself
	LayerNetNS           = "network_namespace" // no interface is up, loopback neither
	LayerIPCNS           = "ipc_namespace"     //
	LayerUTSNS           = "uts_namespace"     // does not see the host's name
	LayerMountNS         = "mount_namespace"   //
	LayerPrivateRoot     = "private_root"      // a read-only root of the named files alone
	LayerLandlock        = "landlock"          // files: the named ones, and nothing to write
	LayerLandlockNetwork = "landlock_network"  // TCP: no bind, no connect
	LayerLandlockScope   = "landlock_scope"    // no signals and no abstract sockets outwards
	LayerSeccomp         = "seccomp"           // an allow-list of system calls
)

// layers collects what is on and what is missing. The last word on a layer
// counts.
type layers struct {
	on      []string
	missing map[string]string // why, by name
	order   []string          // of missing
}

func (l *layers) add(names ...string) { l.on = append(l.on, names...) }

func (l *layers) miss(name, why string) {
	if l.missing == nil {
		l.missing = make(map[string]string)
	}
	if _, again := l.missing[name]; !again {
		l.order = append(l.order, name)
	}
	l.missing[name] = why
}

// missingList is the missing layers, each as "name: why".
func (l *layers) missingList() []string {
	var out []string
	for _, n := range l.order {
		out = append(out, n+": "+l.missing[n])
	}
	return out
}

// lacks is the first of the required layers that is not on, and why.
func (l *layers) lacks(required []string) (name, why string) {
	on := make(map[string]bool)
	for _, n := range l.on {
		on[n] = true
	}
	for _, r := range required {
		if on[r] {
			continue
		}
		if why = l.missing[r]; why == "" {
			why = "no stage applied it"
		}
		return r, why
	}
	return "", ""
}
