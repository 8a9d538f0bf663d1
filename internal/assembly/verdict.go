package assembly

import (
	"encoding/json"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// kvmVerdict is what a trial boot said, for as long as what it was tried on is
// the same.
type kvmVerdict struct {
	Kernel string             `json:"kernel"` // of the host
	BootID string             `json:"boot_id"`
	VMM    string             `json:"vmm"`    // its version
	Rights bool               `json:"rights"` // to open the device
	At     time.Time          `json:"at"`
	Report tartarus.KVMReport `json:"report"`
}

// slowHolds is how long it is believed that a guest was not there in time.
const slowHolds = time.Hour

// verdictOf is that of a VMM on this host now, without its report.
func verdictOf(vmm tartarus.Info) kvmVerdict {
	return kvmVerdict{
		Kernel: kernelRelease(), BootID: bootID(), VMM: vmm.Version, Rights: tartarus.CheckKVM(tartarus.KVMDevice) == nil, At: time.Now().UTC(),
	}
}

// holds reports whether a kept verdict is still one of what there is now.
func (v kvmVerdict) holds(now kvmVerdict) bool {
	age := now.At.Sub(v.At)
	if v.Report.Slow && (age < 0 || age > slowHolds) {
		return false
	}
	return v.Kernel == now.Kernel && v.BootID == now.BootID && v.VMM == now.VMM && v.Rights == now.Rights
}

// readVerdicts are those that were kept, by driver. What cannot be read is made
// again.
func readVerdicts(path string) map[string]kvmVerdict {
	kept := map[string]kvmVerdict{}
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &kept) != nil || kept == nil {
		return map[string]kvmVerdict{}
	}
	return kept
}

func writeVerdicts(path string, v map[string]kvmVerdict) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
