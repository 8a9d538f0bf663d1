package launcher

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// The test binary plays three parts: the stages of the launcher, an agent that
// starts VMMs (agent_test.go), and the tests. In the VMM's place is the probe,
// a small static program.
func TestMain(m *testing.M) {
	if Main() {
		return
	}
	if os.Getenv("LAUNCHER_TEST_AGENT") != "" {
		agentMain()
		return
	}
	dir, err := os.MkdirTemp("", "launcher-test-")
	if err != nil {
		panic(err)
	}
	status := run(m, dir)
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

func run(m *testing.M, dir string) int {
	// Both programs must be within reach of an ordinary user's agent.
	for _, err := range []error{os.Chmod(dir, 0o755), buildProbe(filepath.Join(dir, "probe")), copySelf(filepath.Join(dir, "agent"))} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	programs.probe, programs.agent = filepath.Join(dir, "probe"), filepath.Join(dir, "agent")
	if status := m.Run(); status != 0 {
		return status
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// programs are made by TestMain.
var programs struct{ probe, agent string }

func buildProbe(to string) error {
	if from := os.Getenv("LAUNCHER_TEST_PROBE"); from != "" { // where there is no toolchain
		return copyFile(from, to)
	}
	c := exec.Command("go", "build", "-o", to, "./testdata/probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building the probe: %w\n%s", err, out)
	}
	return os.Chmod(to, 0o755)
}

func copySelf(to string) error { return copyFile("/proc/self/exe", to) }

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		return err
	}
	return os.Chmod(to, 0o755)
}
