package themis

import "time"

// The bounds of a request's fields, whatever the policy says. Beyond them it
// is malformed. They keep a request signed and encoded below the bounds of
// package seal.
const (
	MaxArgs          = 1024      // in command
	MaxCommandBytes  = 128 << 10 // of command: each argument and one byte more
	MaxEnvVars       = 256
	MaxEnvNameBytes  = 256
	MaxEnvBytes      = 128 << 10 // of env: each "NAME=value" and one byte more
	MaxPathBytes     = 1024
	MaxFiles         = 64
	MaxInputBytes    = 1 << 20 // stdin and files together
	MaxFileMode      = 0o777
	MaxNameBytes     = 63 // of name, template and tenant
	MaxUserBytes     = 32
	MaxUserID        = 1<<31 - 1
	MaxVCPUs         = 256
	MaxMemoryMiB     = 1 << 20
	MinDiskMiB       = 16
	MaxDiskMiB       = 16 << 20
	MaxProcesses     = 32768
	MaxLabels        = 64
	MaxSelectors     = 16 // in node_selector
	MaxLabelValue    = 256
	MaxGrants        = 64 // in network.allow
	MaxPorts         = 64 // of one grant
	MaxLogBytes      = 1 << 30
	MinDuration      = 100 * time.Millisecond
	MaxDuration      = 30 * 24 * time.Hour
	maxRules         = 256
	maxRuleBytes     = 4 << 10
	maxReasonBytes   = 512
	maxTenants       = 10000
	maxPolicyGrants  = 1024
	maxPolicyEntries = 1024 // templates, confinement layers
	maxCount         = 1 << 30
)
