package mnemosyne_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/control/mnemosyne"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

func openSink(t *testing.T, text string) mnemosyne.Sink {
	t.Helper()
	s, err := mnemosyne.OpenSink(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFileSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoints")
	s := openSink(t, "file:"+path)
	write := func(line string) {
		t.Helper()
		if err := s.Write(t.Context(), []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	write("two")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// Moved away, it begins anew.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("three")
	if one, two := content(t, path+".1"), content(t, path); one != "one\ntwo\n" || two != "three\n" {
		t.Errorf("the files have %q and %q", one, two)
	}
	// A line that a full disk tore keeps to itself.
	if err := os.WriteFile(path, []byte("three\nfo"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("five")
	if got := content(t, path); got != "three\nfo\nfive\n" {
		t.Errorf("it has %q", got)
	}
}

// A file that can only be appended to is the point of it.
func TestFileSinkThatOnlyGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoints")
	if err := os.WriteFile(path, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const appendOnly = 0x20 // FS_APPEND_FL
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, appendOnly); err != nil {
		t.Logf("the file system or the user (%d) cannot make a file append-only: %v", os.Geteuid(), err)
		return
	}
	defer func() {
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := openSink(t, "file:"+path).Write(t.Context(), []byte("two")); err != nil {
		t.Error(err)
	}
	if got := content(t, path); got != "one\ntwo\n" {
		t.Errorf("it has %q", got)
	}
	if err := os.Truncate(path, 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("it could be cut off: the test is blind (%v)", err)
	}
}

func TestFileSinkRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, bad := range []string{"", "file:", "file:relative", "file:" + dir + "/none/f", "syslog", "syslog:relative", "http://x", "s3:bucket"} {
		if _, err := mnemosyne.OpenSink(bad); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(filepath.Join(dir, "target"), link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo, link} {
		if err := openSink(t, "file:"+path).Write(t.Context(), []byte("x")); err == nil {
			t.Errorf("%s was written to", path)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "target")); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Stat("/dev/full"); err == nil {
		if err := openSink(t, "file:/dev/full").Write(t.Context(), []byte("x")); err == nil {
			t.Error("a device was written to")
		}
	}
}

func TestSyslogSink(t *testing.T) {
	dir, err := os.MkdirTemp("", "syslog-") // short: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "log")
	s := openSink(t, "syslog:"+path)
	if err := s.Write(t.Context(), []byte("x")); err == nil {
		t.Error("it was handed over to nobody")
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	line := `{"checkpoint":{"n":1}}` + strings.Repeat(" ", 300) + "|"
	if err := s.Write(t.Context(), []byte(line)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, err := l.Read(b)
	want := fmt.Sprintf(`^<85>\w{3} [ \d]\d \d\d:\d\d:\d\d tartarus-audit\[%d\]: `, os.Getpid())
	if err != nil || !regexp.MustCompile(want).Match(b[:n]) || !strings.HasSuffix(string(b[:n]), ": "+line) {
		t.Errorf("got %q, %v", b[:n], err)
	}
}
