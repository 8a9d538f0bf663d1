package fcapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
)

// endpoint is a call that we make. The zero since is every version.
type endpoint struct {
	method string
	path   string
	since  Version
	status int // of success
}

// to is the path for the thing of that ID, of those that have one.
func (e endpoint) to(id string) string {
	before, _, has := strings.Cut(e.path, "{")
	if !has {
		return e.path
	}
	return before + id
}

// The calls, every one of which the conformance test knows.
var (
	getVersion       = endpoint{http.MethodGet, "/version", Version{}, http.StatusOK}
	putMachineConfig = endpoint{http.MethodPut, "/machine-config", Version{}, http.StatusNoContent}
	putBootSource    = endpoint{http.MethodPut, "/boot-source", Version{}, http.StatusNoContent}
	putDrive         = endpoint{http.MethodPut, "/drives/{drive_id}", Version{}, http.StatusNoContent}
	putEntropy       = endpoint{http.MethodPut, "/entropy", Version{}, http.StatusNoContent}
	putNetwork       = endpoint{http.MethodPut, "/network-interfaces/{iface_id}", Version{}, http.StatusNoContent}
	putVsock         = endpoint{http.MethodPut, "/vsock", Version{}, http.StatusNoContent}
	putMetrics       = endpoint{http.MethodPut, "/metrics", Version{}, http.StatusNoContent}
	putSerial        = endpoint{http.MethodPut, "/serial", Version{1, 16, 1}, http.StatusNoContent}
	putActions       = endpoint{http.MethodPut, "/actions", Version{}, http.StatusNoContent}
	putSnapshot      = endpoint{http.MethodPut, "/snapshot/create", Version{}, http.StatusNoContent}
	loadSnapshot     = endpoint{http.MethodPut, "/snapshot/load", Version{}, http.StatusNoContent}
	patchVM          = endpoint{http.MethodPatch, "/vm", Version{}, http.StatusNoContent}
)

// The tag `since` on a field is the first version that knows it; an older one
// is not told.

// MachineConfig is the machine's size.
type MachineConfig struct {
	VCPUs     int   `json:"vcpu_count"`
	MemoryMiB int64 `json:"mem_size_mib"`
}

// BootSource is what the machine boots.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args,omitempty"` // without them Firecracker has its own
}

// Drive is a block device. Devices appear in the guest in the order in which
// they were put.
type Drive struct {
	ID       string     `json:"drive_id"`
	Path     string     `json:"path_on_host"`
	IsRoot   bool       `json:"is_root_device"`
	ReadOnly bool       `json:"is_read_only"`
	Cache    CacheType  `json:"cache_type,omitempty"`
	Engine   DiskEngine `json:"io_engine,omitempty"`
}

// CacheType says whether the guest's flushes reach the disk.
type CacheType string

// The cache types.
const (
	CacheUnsafe    CacheType = "Unsafe"
	CacheWriteback CacheType = "Writeback"
)

// DiskEngine is how a drive's file is read and written.
type DiskEngine string

// EngineSync needs no io_uring.
const EngineSync DiskEngine = "Sync"

// NetworkInterface is a network card.
type NetworkInterface struct {
	ID     string `json:"iface_id"`
	Device string `json:"host_dev_name"` // the TAP's name
	MAC    string `json:"guest_mac,omitempty"`
}

// Entropy is the guest's source of random numbers.
type Entropy struct{}

// GuestCID is the address of every guest: each VM has a vsock of its own.
const GuestCID = 3

// Vsock is the guest's socket device.
type Vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"` // of the socket that Firecracker makes
}

// Metrics is where metrics go.
type Metrics struct {
	Path string `json:"metrics_path"`
}

// Serial is the guest's serial port.
type Serial struct {
	Rate *TokenBucket `json:"rate_limiter,omitempty" since:"1.16.1"`
}

// TokenBucket bounds a rate.
type TokenBucket struct {
	Size     int64 `json:"size"`
	RefillMS int64 `json:"refill_time"`
	Burst    int64 `json:"one_time_burst,omitempty"`
}

// Snapshot is where a paused VM is written to: all of its memory, and the
// state of CPUs and devices.
type Snapshot struct {
	Memory string       `json:"mem_file_path"`
	State  string       `json:"snapshot_path"`
	Type   SnapshotType `json:"snapshot_type"`
}

// SnapshotType says how much of the memory is written.
type SnapshotType string

// SnapshotFull is all of it.
const SnapshotFull SnapshotType = "Full"

// SnapshotLoad is what a VM goes on from. Later versions could also give its
// socket another path, and its monotonic clock the time that has passed: the
// first is not needed, and the second would have drivers differ.
type SnapshotLoad struct {
	Memory MemoryBackend `json:"mem_backend"`
	State  string        `json:"snapshot_path"`
	Resume bool          `json:"resume_vm"` // else the vCPUs stay stopped
}

// MemoryBackend is where the guest's memory comes from.
type MemoryBackend struct {
	Type MemoryBackendType `json:"backend_type"`
	Path string            `json:"backend_path"`
}

// MemoryBackendType is the kind of a MemoryBackend.
type MemoryBackendType string

// MemoryFile is a file that is mapped privately, and must not change any more.
const MemoryFile MemoryBackendType = "File"

// action and state are the bodies of actions and changes of state.
type (
	action struct {
		Type actionType `json:"action_type"`
	}
	actionType string
	vmState    struct {
		State vmStateName `json:"state"`
	}
	vmStateName string
	versionInfo struct {
		Version string `json:"firecracker_version"`
	}
)

const (
	actionStart actionType  = "InstanceStart"
	actionFlush actionType  = "FlushMetrics"
	statePaused vmStateName = "Paused"
	stateGoesOn vmStateName = "Resumed"
)

func (c *Client) askVersion(ctx context.Context) (Version, error) {
	var info versionInfo
	if err := c.do(ctx, getVersion, "", nil, &info); err != nil {
		return Version{}, err
	}
	return ParseVersion(info.Version)
}

// PutMachineConfig sets the machine's size.
func (c *Client) PutMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.do(ctx, putMachineConfig, "", m, nil)
}

// PutBootSource sets what is booted.
func (c *Client) PutBootSource(ctx context.Context, b BootSource) error {
	return c.do(ctx, putBootSource, "", b, nil)
}

// PutDrive adds a block device.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	return c.do(ctx, putDrive, d.ID, d, nil)
}

// PutNetworkInterface adds a network card.
func (c *Client) PutNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.do(ctx, putNetwork, n.ID, n, nil)
}

// PutEntropy adds a source of random numbers.
func (c *Client) PutEntropy(ctx context.Context) error {
	return c.do(ctx, putEntropy, "", Entropy{}, nil)
}

// PutVsock adds the socket device.
func (c *Client) PutVsock(ctx context.Context, v Vsock) error {
	return c.do(ctx, putVsock, "", v, nil)
}

// PutMetrics says where metrics go.
func (c *Client) PutMetrics(ctx context.Context, m Metrics) error {
	return c.do(ctx, putMetrics, "", m, nil)
}

// CanLimitSerial reports whether PutSerial is known.
func (c *Client) CanLimitSerial() bool { return !c.version.Before(putSerial.since) }

// PutSerial configures the serial port; ErrNotKnown before 1.16.1.
func (c *Client) PutSerial(ctx context.Context, s Serial) error {
	return c.do(ctx, putSerial, "", s, nil)
}

// Start boots the guest.
func (c *Client) Start(ctx context.Context) error {
	return c.do(ctx, putActions, "", action{actionStart}, nil)
}

// FlushMetrics has the metrics written now.
func (c *Client) FlushMetrics(ctx context.Context) error {
	return c.do(ctx, putActions, "", action{actionFlush}, nil)
}

// Pause stops the vCPUs.
func (c *Client) Pause(ctx context.Context) error {
	return c.do(ctx, patchVM, "", vmState{statePaused}, nil)
}

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error {
	return c.do(ctx, patchVM, "", vmState{stateGoesOn}, nil)
}

// PutSnapshot writes a paused VM to files. It takes as long as the disk does:
// ctx alone bounds it.
func (c *Client) PutSnapshot(ctx context.Context, s Snapshot) error {
	return c.ask(ctx, putSnapshot, "", s, nil)
}

// LoadSnapshot makes a VM of a snapshot, in a Firecracker that was told of
// nothing but metrics and serial port. When it fails, Firecracker ends.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.do(ctx, loadSnapshot, "", s, nil)
}

// encode is in as JSON without the fields that v does not know.
func encode(in any, v Version) ([]byte, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	t := reflect.TypeOf(in)
	for i := range t.NumField() {
		since, ok := t.Field(i).Tag.Lookup("since")
		if !ok {
			continue
		}
		first, err := ParseVersion(since)
		if err != nil {
			return nil, fmt.Errorf("field %s of %s: %w", t.Field(i).Name, t.Name(), err)
		}
		if v.Before(first) {
			delete(fields, jsonName(t.Field(i)))
		}
	}
	return json.Marshal(fields)
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
