package guestd

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// upload is the file that is being put. The zero value is none.
type upload struct {
	open bool
	fd   int // -1 after a failure
	left int64
	mode uint32
	who  Account
	err  error // the first thing that went wrong
}

// putFile begins a file. Only its last byte, or here for an empty one, is
// answered.
func (s *server) putFile(m *guestwire.PutFile) {
	s.dropFile()
	s.file = upload{open: true, fd: -1, left: m.Size, mode: m.Mode}
	s.file.err = s.openFile(m)
	if m.Size == 0 {
		s.finishFile(m.Req)
	}
}

func (s *server) openFile(m *guestwire.PutFile) error {
	if !s.ready {
		return errors.New("the guest is not set up")
	}
	if !cleanPath(m.Path) {
		return errors.New("the path is not absolute and clean")
	}
	user := s.user
	if user == "" {
		user = defaultUser
	}
	var err error
	if s.file.who, err = s.cfg.Machine.Account(user); err != nil {
		return err
	}
	if err = makeFolders(m.Path[:strings.LastIndexByte(m.Path, '/')], s.file.who); err != nil {
		return wrap("making its folder", err)
	}
	// Not through a link of the template, and never stuck in a pipe.
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	s.file.fd, err = unix.Open(m.Path, flags, 0o600)
	return err
}

// cleanPath reports whether p is absolute and has no empty, . or .. part.
func cleanPath(p string) bool {
	if len(p) < 2 || p[0] != '/' || strings.IndexByte(p, 0) >= 0 {
		return false
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

func (s *server) fileData(m *guestwire.FileData) {
	f := &s.file
	if !f.open || int64(len(m.Data)) > f.left {
		s.dropFile()
		s.fail(m.Req, guestwire.StatusInvalid, errors.New("more data than the file has"))
		return
	}
	f.left -= int64(len(m.Data))
	for b := m.Data; len(b) > 0 && f.err == nil; {
		n, err := unix.Write(f.fd, b)
		if err != nil && err != unix.EINTR {
			f.err = err
			break
		}
		b = b[max(n, 0):]
	}
	if f.left == 0 {
		s.finishFile(m.Req)
	}
}

func (s *server) finishFile(req uint32) {
	f := &s.file
	if f.err == nil && f.who.Switch {
		f.err = unix.Fchown(f.fd, int(f.who.UID), int(f.who.GID))
	}
	if f.err == nil {
		f.err = unix.Fchmod(f.fd, f.mode)
	}
	err := f.err
	s.dropFile()
	if err != nil {
		s.fail(req, guestwire.StatusFailed, err)
		return
	}
	s.ok(req)
}

func (s *server) dropFile() {
	if s.file.open && s.file.fd >= 0 {
		unix.Close(s.file.fd)
	}
	s.file = upload{}
}
