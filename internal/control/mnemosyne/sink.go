package mnemosyne

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/metrics"
)

// Sink keeps checkpoints where the log's writer cannot change them.
type Sink interface {
	// Name is for people, Kind for metrics.
	Name() string
	Kind() string

	// Write keeps one line, which has no end of line in it. nil means that it
	// was handed over: a file is on disk. After an error the line may have
	// been kept or not, and is written again.
	Write(ctx context.Context, line []byte) error
}

// OpenSink is the sink that a setting names: file:/path, syslog:, or
// syslog:/path/of/its/socket.
func OpenSink(text string) (Sink, error) {
	kind, path, ok := strings.Cut(text, ":")
	switch {
	case ok && kind == "file" && filepath.IsAbs(path):
		if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
			return nil, fault.Invalid("audit-sink", "Make the folder, out of reach of whoever could change the state folder.", "there is no folder %s", filepath.Dir(path))
		}
		return &fileSink{filepath.Clean(path)}, nil
	case ok && kind == "syslog" && path == "":
		return &syslogSink{paths: []string{"/dev/log", "/var/run/syslog", "/var/run/log"}}, nil
	case ok && kind == "syslog" && filepath.IsAbs(path):
		return &syslogSink{paths: []string{path}}, nil
	}
	return nil, fault.Invalid("audit-sink", "Give file:/absolute/path or syslog:.", "%q is no audit sink", text)
}

// fileSink appends to a file, which may be one that can only be appended to
// (chattr +a), or be moved away at any time.
type fileSink struct{ path string }

func (s *fileSink) Name() string { return "file:" + s.path }
func (s *fileSink) Kind() string { return metrics.SinkFile }

func (s *fileSink) Write(_ context.Context, line []byte) (err error) {
	f, made, err := s.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	torn, err := isTorn(f)
	if err != nil {
		return err
	}
	b := append(append([]byte(nil), line...), '\n')
	if torn {
		b = append([]byte{'\n'}, b...)
	}
	if _, err := f.Write(b); err != nil { // one write: lines of others stay whole
		return err
	}
	if err := f.Sync(); err != nil || !made {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

func (s *fileSink) open() (f *os.File, made bool, err error) {
	const flags = os.O_RDWR | os.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK // a FIFO must not make us wait
	f, err = os.OpenFile(s.path, flags, 0)
	if errors.Is(err, os.ErrNotExist) {
		made = true
		f, err = os.OpenFile(s.path, flags|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, false, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, false, errors.Join(fmt.Errorf("%s is no plain file", s.path), err, f.Close())
	}
	return f, made, nil
}

// isTorn reports whether the file's last line has no end: its disk was full
// when it was written.
func isTorn(f *os.File) (bool, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], end-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syslogSink hands lines to the host's syslog, as "tartarus-audit".
type syslogSink struct{ paths []string } // of its socket; the first that is there

const (
	syslogPriority = 10<<3 | 5 // authpriv, notice
	syslogPatience = 5 * time.Second
)

func (s *syslogSink) Name() string { return "syslog:" + s.paths[0] }
func (s *syslogSink) Kind() string { return metrics.SinkSyslog }

func (s *syslogSink) Write(ctx context.Context, line []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, syslogPatience)
	defer cancel()
	var conn net.Conn
	for _, path := range s.paths {
		var dialErr error
		if conn, dialErr = new(net.Dialer).DialContext(ctx, "unixgram", path); dialErr == nil {
			break
		}
		err = errors.Join(err, dialErr)
	}
	if conn == nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	deadline, _ := ctx.Deadline() // it has one
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	// RFC 3164, as the C library sends it: without a host.
	_, err = fmt.Fprintf(conn, "<%d>%s tartarus-audit[%d]: %s", syslogPriority, time.Now().Format(time.Stamp), os.Getpid(), line)
	return err
}
