package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test binary is also what runs in the groups.
func TestMain(m *testing.M) {
	role := os.Getenv("CGROUP_TEST_ROLE")
	if role == "" {
		goleak.VerifyTestMain(m)
		return
	}
	for fd := 3; ; fd++ { // what Join.Procs asks for
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			break
		}
	}
	fmt.Println("joined")
	switch role {
	case "sleep":
		select {}
	case "hog":
		var keep [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i)
			}
			keep = append(keep, b)
			if len(keep) > 512 {
				fmt.Println("not stopped")
				os.Exit(0)
			}
		}
	case "spin":
		for end := time.Now().Add(400 * time.Millisecond); time.Now().Before(end); {
		}
		fmt.Println("spun")
		os.Stdin.Read(make([]byte, 1)) //nolint:errcheck // waits for the end
	case "fork":
		for range 64 {
			c := exec.Command("/proc/self/exe")
			c.Env = []string{"CGROUP_TEST_ROLE=sleep"}
			if err := c.Start(); err != nil {
				fmt.Println("refused:", err)
				break
			}
		}
		select {}
	}
}

// member is a process in a group.
type member struct {
	cmd *exec.Cmd
	out *bufio.Scanner
}

func (m *member) line(t *testing.T) string {
	t.Helper()
	if !m.out.Scan() {
		return ""
	}
	return m.out.Text()
}

// start runs a role in a group, and returns when it is in.
func start(t *testing.T, g *Group, role string) *member {
	t.Helper()
	j, err := g.Join()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = []string{"CGROUP_TEST_ROLE=" + role, "GOMAXPROCS=2"}
	c.ExtraFiles = j.Procs
	if j.Dir != nil {
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(j.Dir.Fd())}
		defer j.Dir.Close()
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range j.Procs {
		_ = f.Close()
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	m := &member{c, bufio.NewScanner(out)}
	if l := m.line(t); l != "joined" {
		t.Fatalf("the member said %q", l)
	}
	return m
}

// realTree is the tree of this host, with a parent of its own.
func realTree(t *testing.T) *Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("groups are made by root")
	}
	tree, err := Detect(Config{})
	if err != nil {
		t.Fatalf("this host runs as root and has no usable cgroups: %v", err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// group makes a group that is removed at the end.
func group(t *testing.T, tree *Tree, l Limits) *Group {
	t.Helper()
	name := fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	g, err := tree.Create(name, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(bounded(t)); err != nil {
			t.Error(err)
		}
		if tree.Open(name) != nil {
			t.Errorf("the group %s is still there", name)
		}
	})
	return g
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
