package hostile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// evil is what a terminal would act on or hide: escapes that set its title and
// clear it, C1 controls, text that runs backwards, what is invisible, and ends
// of lines that forge a line of a log.
const evil = "x\x1b]0;owned\x07\x1b[2J\x7f\u009b31m\u0085\u202ey\u2066\u200b\u2028\U000e0041\r\nlevel=ERROR msg=forged\n"

// acts is the first character of text that a terminal would act on or hide; ""
// if there is none.
func acts(text string) string {
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			return fmt.Sprintf("the byte %#x", text[i])
		case r == '\n' || r == '\t':
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
			return fmt.Sprintf("%U", r)
		}
	}
	return ""
}

// TestWhatIsShownIsEscaped: whatever guests and tenants put into outputs,
// commands, paths and messages, and whatever names they try, nothing of it acts
// on the terminal of who looks, nor forges a line of our log.
func TestWhatIsShownIsEscaped(t *testing.T) {
	if acts(evil) == "" || acts("\xff") == "" || acts("plain\ttext\n\ufffd…") != "" {
		t.Fatal("the test is blind")
	}
	state := realvm.NewState(t)
	u := realvm.StartUp(t, state)
	s := &u.Server

	// Its words: output of both streams with bytes that are no UTF-8 too, the
	// console, the arguments.
	speaks := s.Run(request{"command": []string{"sh", "-c", `printf '%s\377\376\n' "$1"; printf '%s\300\200' "$1" >&2; mknod /dev/console c 5 1; printf '%s' "$1" >/dev/console; exit 3`, evil, evil}}.
		root().with("labels", map[string]any{"team": "x‹y›"}).with("env", map[string]any{"A": evil}).body(t))
	// A name that is no command: the guest's message holds it.
	missing := s.Run(request{"command": []string{"no-" + evil}, "working_dir": "/work/" + strings.ReplaceAll(evil, "\n", "-")}.body(t))
	// A link in the place of the working folder, a name of a file that is one.
	links := s.Run(shell(`ln -s /proc/self/exe "$1"; rm -rf /work; ln -s / /work; ln -s "$1" "/$1"; echo "$0"; exit 4`).root().
		with("files", []any{map[string]any{"path": "/work/" + strings.ReplaceAll(evil, "/", ""), "data": "eA=="}}).body(t))
	for id, want := range map[string]string{speaks.ID: "exited", missing.ID: "start_failed", links.ID: "exited"} {
		if rec := s.Ended(id); rec.Exit.Cause != want {
			t.Errorf("%s ended with %+v", id, rec.Exit)
		}
	}

	// Names that are none are refused, and the refusals are harmless too.
	for _, r := range []request{
		shell("true").with("name", evil), shell("true").with("template", evil), shell("true").with("user", evil),
		shell("true").with("labels", map[string]any{"team": evil}), shell("true").with("labels", map[string]any{evil: "x"}),
		shell("true").with("env", map[string]any{evil: "x"}), shell("true").with(evil, 1), shell("true").with("max_duration", evil),
		shell("true").with("files", []any{map[string]any{"path": "../../etc/passwd", "data": ""}}),
		shell("true").with("files", []any{map[string]any{"path": "/work/../proc/1/mem", "data": ""}}),
		shell("true").with("files", []any{map[string]any{"path": "/dev/vda", "data": ""}}),
		shell("true").with("working_dir", "relative"),
	} {
		code, b := s.Call("POST", "/sandbox/run", r.body(t))
		var e struct {
			Error struct{ Message, Hint, Field string }
		}
		if err := json.Unmarshal(b, &e); code != http.StatusBadRequest || err != nil {
			t.Errorf("%v: %d %s", r, code, b)
		}
		if bad := acts(e.Error.Message + e.Error.Hint + e.Error.Field); bad != "" {
			t.Errorf("the refusal of %q has %s: %s", r.body(t), bad, b)
		}
	}

	// What people look at.
	look := func(want string, args ...string) {
		t.Helper()
		r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, args...))
		for _, text := range []string{r.Stdout, r.Stderr} {
			if bad := acts(text); bad != "" {
				t.Errorf("%v shows %s: %q", args, bad, text)
			}
		}
		if !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("%v does not show %q: %+v", args, want, r)
		}
	}
	const shown = `x\x1b]0;owned\x07\x1b[2J\x7f\x9b31m\x85\u202ey\u2066\u200b\u2028\U000e0041\x0d`
	look(`\x1b`, "ps", "--all")
	look(`\x1b`, "ps", "--all", "-o", "table")
	look(`\u001b`, "ps", "--all", "-o", "json")
	look(`\u001b`, "ps", "--all", "-o", "yaml")
	look("no-"+shown, "inspect", missing.ID, "-o", "table")
	for _, id := range []string{speaks.ID, missing.ID, links.ID} {
		for _, format := range []string{"table", "json", "yaml"} {
			look(id, "inspect", id, "-o", format)
			look("failed", "events", id, "-o", format)
		}
	}
	for want, args := range map[string][]string{
		shown: {"logs", speaks.ID}, `\xff\xfe`: {"logs", "--stream", "stdout", speaks.ID}, `\xc0\x80`: {"logs", "--follow", speaks.ID},
	} {
		text := onTerminal(t, realvm.Command(realvm.Patience(t), state, args...))
		if bad := acts(text); bad != "" || !strings.Contains(text, want) {
			t.Errorf("%v on a terminal shows %s, and %q is wanted: %q", args, bad, want, text)
		}
	}
	look(speaks.ID, "audit", "ls")
	look(speaks.ID, "audit", "ls", "-o", "json")
	look("no-"+shown, "run", "--detach=false", "--", "no-"+evil)
	look(`\x1b`, "run", "--name", evil, "--", "true")
	look(`\x1b`, "inspect", evil)

	u.End()
	log := u.Log.String()
	if bad := acts(log); bad != "" {
		t.Errorf("our log has %s: %q", bad, log)
	}
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "level=ERROR") {
			t.Errorf("a line of our log is forged: %q", line)
		}
	}
	realvm.NothingLeft(t, state)
}

// onTerminal is what c shows on a terminal.
func onTerminal(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = theirs, theirs
	if err := errors.Join(c.Start(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(ours)
	if err != nil && !errors.Is(err, unix.EIO) { // which is how its end is told
		t.Error(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("%v: %v", c.Args, err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}
