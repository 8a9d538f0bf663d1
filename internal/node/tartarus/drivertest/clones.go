package drivertest

import (
	"bufio"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
)

// setBack is by how much the clock of one clone is behind the other's, and
// behind that of the VM which was saved.
const setBack = time.Hour

// noBytes is the checksum of nothing.
const noBytes = "d41d8cd98f00b204e9800998ecf8427e"

// secrets tells what no two clones may share, a name and a value on each line.
const secrets = `
echo boot_id $(cat /proc/sys/kernel/random/boot_id)
echo hostname $(hostname)
echo urandom $(head -c 16 /dev/urandom | md5sum)
[ -c /dev/hwrng ] || mknod /dev/hwrng c 10 183
echo hwrng $(head -c 64 /dev/hwrng 2>/dev/null | md5sum)
echo clock $(date +%s)
`

// lookAt asks a clone for its secrets, and checks what is right for it alone:
// that its clock went on from where it was set, which was not before began.
func (k *kit) lookAt(t *testing.T, s *guestdial.Session, began, set time.Time) map[string]string {
	t.Helper()
	if k.h.Shell == nil {
		return nil
	}
	text := k.command(t, s, 3, append(append([]string{}, k.h.Shell...), secrets))
	found := map[string]string{}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		name, value, _ := strings.Cut(sc.Text(), " ")
		found[name], _, _ = strings.Cut(value, " ")
	}
	clock, err := strconv.ParseInt(found["clock"], 10, 64)
	// It tells whole seconds.
	if went := time.Unix(clock, 0).Sub(set); err != nil || went < -time.Second || went > time.Since(began) {
		t.Errorf("a clock that was set to %v says %q", set, text)
	}
	delete(found, "clock")
	if found["hwrng"] == noBytes {
		delete(found, "hwrng") // there is none
	}
	return found
}

// differ insists that two clones share nothing of what they told.
func (k *kit) differ(t *testing.T, one, two map[string]string) {
	t.Helper()
	if k.h.Shell != nil && len(one) < 3 || len(one) != len(two) {
		t.Errorf("clones tell %v and %v", one, two)
	}
	for name, value := range one {
		if value == "" || value == two[name] {
			t.Errorf("two clones have the %s %q", name, value)
		}
	}
}
