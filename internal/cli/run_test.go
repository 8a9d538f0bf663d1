package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

func TestRunExitsAsTheSandboxDid(t *testing.T) {
	nine := int32(9)
	signaled := ends("signaled")
	signaled.Exit.Signal = &nine
	for _, c := range []struct {
		sb   *apiv1.Sandbox
		code int
		says string
	}{
		{exited(0), 0, ""},
		{exited(3), 3, ""},
		{signaled, 137, testID + " ended: signaled: so it was"},
		{ends("max_duration"), 124, "max_duration"},
		{ends("memory"), 137, "memory"},
		{ends("killed"), 137, "killed"},
		{ends("start_failed"), 125, "start_failed: so it was"},
		{ends("node_lost"), 125, "node_lost"},
	} {
		for _, command := range [][]string{{"run", "--", "true"}, {"wait", testID}} {
			s := newFake()
			s.sandbox = c.sb
			s.end()
			r := with(s.listen(t)).main(t, command...)
			if r.code != c.code || r.out != "" {
				t.Errorf("%s, %v: %+v, want exit code %d", c.sb.Exit, command, r, c.code)
			}
			if (c.says == "") != (r.errout == "") || !strings.Contains(r.errout, c.says) {
				t.Errorf("%s, %v: it says %q", c.sb.Exit, command, r.errout)
			}
		}
	}
}

func TestRunTellsOfLimitsAndCuts(t *testing.T) {
	s := newFake()
	s.sandbox = exited(1)
	s.sandbox.Exit.LimitsHit = []*apiv1.LimitHit{{Limit: "disk\x1b", Count: 3}}
	s.sandbox.Usage = &apiv1.Usage{LogTruncated: true, LogBytes: 16}
	s.end()
	r := with(s.listen(t)).main(t, "run", "--timings", "--", "true")
	for _, want := range []string{`limit, as the guest says: disk\x1b, 3 times`, "cut at 16 bytes", "VM ready  38.0      40.0", "exit code 1, cause exited"} {
		if !strings.Contains(r.errout, want) {
			t.Errorf("%q is missing in %q", want, r.errout)
		}
	}
}

func TestRunPassesStreamsOn(t *testing.T) {
	s := newFake()
	s.logs = []*apiv1.LogEntry{{Stream: "stdout", Data: []byte("\x1b[31mout\xff")}, {Stream: "stderr", Data: []byte("err")}}
	c := with(s.listen(t))
	c.in, c.term = strings.NewReader("hi\n"), true
	r := c.main(t, "run", "--", "cat")
	if r.out != "\x1b[31mout\xff" || r.errout != "err" || r.code != 0 {
		t.Errorf("%+v", r)
	}
	if got := s.stdin.String(); got != "hi\n" || !s.ran.GetStdinOpen() {
		t.Errorf("the command read %q, open %v", got, s.ran.GetStdinOpen())
	}
}

// brokenReader gives some and then fails.
type brokenReader struct{ given bool }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.given {
		return 0, errors.New("is a directory")
	}
	b.given = true
	return copy(p, "part"), nil
}

func TestStdinThatFailsEnds(t *testing.T) {
	s := newFake()
	c := with(s.listen(t))
	c.in = &brokenReader{}
	r := c.main(t, "run", "--", "cat")
	if r.code != 0 || s.stdin.String() != "part" || !strings.Contains(r.errout, "standard input ends here: is a directory") {
		t.Errorf("%+v, the command read %q", r, s.stdin.String())
	}
}

// A pipe that nobody closes does not keep a run whose command has ended.
func TestStdinThatNeverEnds(t *testing.T) {
	s := newFake()
	s.end()
	c := with(s.listen(t))
	pr, pw := io.Pipe()
	c.in = pr
	if r := c.main(t, "run", "--", "true"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	pw.Close() // the reader that stayed behind ends here
}

func TestInputOfAnotherJobIsLeftAlone(t *testing.T) {
	s := newFake()
	s.end()
	c := with(s.listen(t))
	c.in, c.noIn = unreadable{t}, true
	if r := c.main(t, "run", "--", "true"); r.code != 0 || s.ran.GetStdinOpen() {
		t.Errorf("%+v, open %v", r, s.ran.GetStdinOpen())
	}
}

type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("it was read")
	return 0, io.EOF
}

// The first interrupt asks, the second ends it at once, and the third gives up
// on a server that does neither.
func TestInterrupts(t *testing.T) {
	interrupt := interrupter(t)
	s := newFake()
	s.sandbox = ends("killed")
	got := make(chan result, 1)
	c := with(s.listen(t))
	c.noIn = true
	s.logs = []*apiv1.LogEntry{{Stream: "stdout", Data: []byte("up")}}
	up := make(chan struct{}, 1)
	c.out = notify{up}
	go func() { got <- c.main(t, "run", "--", "sleep", "100") }()
	<-up
	interrupt()
	if grace := <-s.killed; grace != killGrace {
		t.Errorf("the first gives %v", grace)
	}
	interrupt()
	if grace := <-s.killed; grace != 0 {
		t.Errorf("the second gives %v", grace)
	}
	interrupt()
	r := <-got
	if r.code != 130 || !strings.Contains(r.errout, "the end of "+testID+" was not seen") {
		t.Errorf("%+v", r)
	}
}

func TestInterruptEndsTheSandbox(t *testing.T) {
	interrupt := interrupter(t)
	s := newFake()
	s.sandbox = ends("killed")
	s.answer = make(chan struct{})
	got := make(chan result, 1)
	c := with(s.listen(t))
	c.noIn = true
	go func() { got <- c.main(t, "run", "--", "sleep", "100") }()
	// It comes before the server has answered, and counts when it has.
	<-s.asked
	interrupt()
	close(s.answer)
	<-s.killed
	s.end()
	if r := <-got; r.code != 137 || !strings.Contains(r.errout, "ended: killed") {
		t.Errorf("%+v", r)
	}
}

func TestInterruptWhilePreparing(t *testing.T) {
	interrupt := interrupter(t)
	for _, args := range [][]string{{"run", "--", "true"}, {"setup"}} {
		begun := make(chan struct{})
		blocked := func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return fmt.Errorf("downloading: %w", ctx.Err())
		}
		c := call{inside: Inside{
			Local: func(ctx context.Context, _ LocalOptions) (Local, func() error, error) {
				return Local{}, nil, blocked(ctx)
			},
			Setup: func(ctx context.Context, _ SetupOptions) error { return blocked(ctx) },
		}}
		got := make(chan result, 1)
		go func() { got <- c.main(t, args...) }()
		<-begun
		interrupt()
		if r := <-got; r.code != 130 || r.errout != "tartarus: interrupted\n" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// interrupter sends this process the signal of Ctrl-C. The test itself
// survives it.
func interrupter(t *testing.T) func() {
	t.Helper()
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, os.Interrupt)
	t.Cleanup(func() { signal.Stop(ch) })
	return func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-ch // it has been delivered to all
	}
}

// notify is an output that says when something came.
type notify struct{ came chan struct{} }

func (n notify) Write(p []byte) (int, error) {
	select {
	case n.came <- struct{}{}:
	default:
	}
	return len(p), nil
}

// closedPipe fails as the rest of a pipeline that has ended.
type closedPipe struct{ err error }

func (c closedPipe) Write([]byte) (int, error) { return 0, &os.PathError{Op: "write", Err: c.err} }

// Output that nobody takes ends the sandbox, at once.
func TestOutputThatFails(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		says string
	}{
		{syscall.EPIPE, 141, ""},
		{syscall.ENOSPC, 125, "writing the output"},
	} {
		s := newFake()
		s.sandbox, s.talk = ends("killed"), true
		k := with(s.listen(t))
		k.out, k.noIn = closedPipe{c.err}, true
		ended := make(chan time.Duration, 1)
		go func() {
			ended <- <-s.killed
			s.end()
		}()
		r := k.main(t, "run", "--", "yes")
		if grace := <-ended; grace != 0 {
			t.Errorf("%v: it gets %v", c.err, grace)
		}
		if r.code != c.code || (c.says == "") != (r.errout == "") || !strings.Contains(r.errout, c.says) {
			t.Errorf("%v: %+v", c.err, r)
		}
	}
	for _, args := range [][]string{{"ps"}, {"ps", "-o", "json"}, {"logs", testID}, {"events", testID}, {"kill", testID}, {"version"}} {
		s := newFake()
		s.talk = true
		k := with(s.listen(t))
		k.out = closedPipe{syscall.EPIPE}
		if r := k.main(t, args...); r.code != 141 || r.errout != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func TestRefusalsAreSaid(t *testing.T) {
	s := newFake()
	s.refuse = refusal(codes.PermissionDenied, &apiv1.Error{
		Code: "policy_denied", Message: "too much \x1b[2J", Field: "resources.memory_mib", Hint: "ask for less", RequestId: "req-1", Id: "sb-x",
	})
	r := with(s.listen(t)).main(t, "run", "--", "true")
	want := "tartarus: policy_denied: too much \\x1b[2J\n  field: resources.memory_mib\n  sandbox: sb-x\n  hint: ask for less\n  request: req-1\n"
	if r.code != 125 || r.errout != want {
		t.Errorf("%d %s", r.code, r.errout)
	}
	s = newFake()
	s.refuse = refusal(codes.ResourceExhausted, &apiv1.Error{Code: "too_large", Message: "it is"})
	if r := with(s.listen(t)).main(t, "run", "--", "true"); !strings.Contains(r.errout, "standard input") {
		t.Errorf("no hint in %q", r.errout)
	}
}

func TestDetach(t *testing.T) {
	s := newFake()
	r := with(s.listen(t)).main(t, "run", "-d", "--", "sleep", "100")
	if r.code != 0 || r.out != testID+"\n" || r.errout != "" || s.ran.GetStdinOpen() {
		t.Errorf("%+v, stdin open %v", r, s.ran.GetStdinOpen())
	}
}

func TestRequestIsWhatWasTyped(t *testing.T) {
	s := newFake()
	file := filepath.Join(t.TempDir(), "a:b")
	if err := os.WriteFile(file, []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	c := with(s.listen(t))
	c.env["HERE"] = "v"
	r := c.main(t, "run", "-d", "-t", "debian", "-m", "1GiB", "--disk", "512m", "--cpus", "2", "--processes", "9", "--timeout", "90s",
		"-e", "A=b=c", "-e", "HERE", "-e", "NOT_HERE", "--file", file+":/work/x", "-w", "/w", "-u", "root", "--name", "n", "-l", "k=v", "--node", "zone=a",
		"--allow", "api.example.com:443,80", "--allow", "203.0.113.0/24:53/udp", "--", "sh", "-c", "--timeout=1s")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	q := s.ran
	got := fmt.Sprint(q.Template, q.Command, q.Resources.MemoryMib, q.Resources.DiskMib, q.Resources.Vcpus, q.Resources.Processes, q.MaxDuration.AsDuration(),
		q.Env, q.Files[0].Path, q.Files[0].Mode, string(q.Files[0].Data), q.WorkingDir, q.User, q.Name, q.Labels, q.NodeSelector,
		q.Network.Allow[0].Domain, q.Network.Allow[0].Ports, q.Network.Allow[1].Cidr, q.Network.Allow[1].Protocol)
	want := "debian[sh -c --timeout=1s]1024 512 2 9 1m30s map[A:b=c HERE:v]/work/x416 text/wrootnmap[k:v] map[zone:a]api.example.com[443 80]203.0.113.0/24udp"
	if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Which server: the flag, the variable, the first socket that answers, none.
func TestServerChoice(t *testing.T) {
	servers := map[string]*fakeServer{}
	sockets := map[string]string{}
	for _, name := range []string{"flag", "variable", "socket"} {
		servers[name] = newFake()
		sockets[name] = servers[name].listen(t)
	}
	local := errors.New("in this process")
	inside := Inside{
		Sockets: func(state string) []string { return []string{"/nowhere/" + state, sockets["socket"]} },
		Local:   func(context.Context, LocalOptions) (Local, func() error, error) { return Local{}, nil, local },
	}
	url := map[string]string{"TARTARUS_URL": "unix://" + sockets["variable"], "TARTARUS_TOKEN": "tart_env"}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("tart_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env   map[string]string
		args  []string
		want  string
		token string
	}{
		{url, []string{"--server", "unix://" + sockets["flag"], "--token-file", token}, "flag", "Bearer tart_file"},
		{url, nil, "variable", "Bearer tart_env"},
		{nil, nil, "socket", ""},
		{url, []string{"--local"}, "", ""},
	} {
		for _, s := range servers {
			s.ran, s.token = nil, ""
		}
		k := call{env: c.env, inside: inside}
		args := append([]string{"run"}, append(c.args, "--", "true")...)
		if c.want != "" {
			args = slices.Insert(args, 1, "-d")
		}
		r := k.main(t, args...)
		for name, s := range servers {
			if (s.ran != nil) != (name == c.want) {
				t.Errorf("%v %v: server %q was asked: %v", c.env, c.args, name, s.ran != nil)
			}
		}
		if c.want == "" && (r.code != 125 || !strings.Contains(r.errout, local.Error())) {
			t.Errorf("%v: %+v", c.args, r)
		}
		if c.want != "" && servers[c.want].token != c.token {
			t.Errorf("%v: token %q", c.args, servers[c.want].token)
		}
	}
	k := call{inside: Inside{Local: inside.Local}}
	if r := k.main(t, "run", "--", "true"); !strings.Contains(r.errout, local.Error()) {
		t.Errorf("without a server: %+v", r)
	}
}

// A run in this process gets its options, uses the connection it is handed,
// and ends what it began.
func TestLocal(t *testing.T) {
	s := newFake()
	s.end()
	socket := s.listen(t)
	var got LocalOptions
	stopped := 0
	c := call{noIn: true, inside: Inside{
		Local: func(_ context.Context, o LocalOptions) (Local, func() error, error) {
			got = o
			o.Progress(Step{Name: "guest bundle: building"})
			dial := func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }
			return Local{Dial: dial, Token: "tart_x"}, func() error { stopped++; return errors.New("a VM stayed") }, nil
		},
	}}
	r := c.main(t, "run", "--state", "/s", "--policy", "p.yaml", "-t", "debian", "-v", "--", "true")
	if r.code != 0 || stopped != 1 || s.token != "Bearer tart_x" {
		t.Errorf("%+v, stopped %d times, token %q", r, stopped, s.token)
	}
	if got.StateDir != "/s" || got.Policy != "p.yaml" || got.Template != "debian" || !got.Verbose {
		t.Errorf("options %+v", got)
	}
	if want := "guest bundle: building\ntartarus: ending what ran in this process: a VM stayed\n"; r.errout != want {
		t.Errorf("it says %q", r.errout)
	}
}
