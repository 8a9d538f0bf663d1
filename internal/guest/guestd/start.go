package guestd

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// child is a process that was just started, and our ends of its pipes.
type child struct {
	pid  int
	cage Cage
	in   int // -1 without an open stdin
	out  int
	err  int
}

// startError says why a command could not be started, with a shell's code.
type startError struct {
	code uint8
	text string
}

func (e *startError) Error() string { return e.text }

// The codes of a shell.
const (
	codeNotFound      = 127
	codeNotExecutable = 126
	codeOther         = 125
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultUser = "sandbox"
)

func (s *server) startProcess(m *guestwire.Start) {
	c, err := s.spawn(m)
	if err != nil {
		s.answer(m.Req, &guestwire.StartFailed{Req: m.Req, Proc: m.Proc, Code: err.code, Message: clip(err.text)})
		return
	}
	p := s.addProcess(m, c)
	s.answer(m.Req, &guestwire.Started{Req: m.Req, Proc: m.Proc})
	s.reaper.started(c.pid)
	for _, f := range p.outs {
		s.wantOutput(p, f)
	}
	if p.in != nil {
		s.grantStdin(p)
	}
}

// spawn checks a Start and carries it out. On failure nothing is left.
func (s *server) spawn(m *guestwire.Start) (child, *startError) {
	switch {
	case !s.ready:
		return child{}, &startError{codeOther, "the guest is not set up"}
	case m.Proc == 0 || s.find(m.Proc) != nil:
		return child{}, &startError{codeOther, "the process number is taken"}
	case len(s.procs) >= guestwire.MaxProcesses:
		return child{}, &startError{codeOther, "too many processes"}
	case len(m.Argv) == 0 || m.Argv[0] == "":
		return child{}, &startError{codeNotFound, "the command is empty"}
	case m.TTY:
		return child{}, &startError{codeOther, "terminals are not supported"}
	}
	user := m.User
	if user == "" {
		user = s.user
	}
	if user == "" {
		user = defaultUser
	}
	who, err := s.cfg.Machine.Account(user)
	if err != nil {
		return child{}, &startError{codeOther, err.Error()}
	}
	env := completeEnv(m.Env, who)
	cwd, serr := enterable(m, who)
	if serr != nil {
		return child{}, serr
	}
	path, serr := lookup(m.Argv[0], cwd, envValue(env, "PATH"))
	if serr != nil {
		return child{}, serr
	}
	cage, err := s.cfg.Machine.Cage(m.Proc)
	if err != nil {
		return child{}, &startError{codeOther, "making a cgroup: " + err.Error()}
	}
	c, err := fork(path, cwd, env, m, who, cage)
	if err != nil {
		cage.Close()
		return child{}, &startError{execCode(err), m.Argv[0] + ": " + err.Error()}
	}
	return c, nil
}

// execCode is the code for a command that was found and could not be executed.
// ENOENT is its interpreter's.
func execCode(err error) uint8 {
	for _, e := range [...]syscall.Errno{syscall.EACCES, syscall.ENOEXEC, syscall.ENOENT, syscall.EISDIR, syscall.ELIBBAD} {
		if errors.Is(err, e) {
			return codeNotExecutable
		}
	}
	return codeOther
}

// pipes are both ends of a child's three streams; -1 for none.
type pipes [3][2]int

func (p *pipes) open(stdin bool) error {
	*p = pipes{{-1, -1}, {-1, -1}, {-1, -1}}
	for i := range p {
		if i == 0 && !stdin {
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			p[0][0] = fd
			continue
		}
		if err := unix.Pipe2(p[i][:], unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	return nil
}

// ours is our end of stream i, and theirs the child's.
func (p *pipes) ours(i int) int {
	if i == 0 {
		return p[0][1]
	}
	return p[i][0]
}

func (p *pipes) theirs(i int) int {
	if i == 0 {
		return p[0][0]
	}
	return p[i][1]
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

func fork(path, cwd string, env []string, m *guestwire.Start, who Account, cage Cage) (child, error) {
	var p pipes
	if err := p.open(m.StdinOpen); err != nil {
		for i := range p {
			closeFD(p.ours(i))
			closeFD(p.theirs(i))
		}
		return child{}, err
	}
	attr := &syscall.ProcAttr{
		Dir: cwd, Env: env,
		Files: []uintptr{uintptr(p.theirs(0)), uintptr(p.theirs(1)), uintptr(p.theirs(2))},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if who.Switch {
		attr.Sys.Credential = &syscall.Credential{Uid: who.UID, Gid: who.GID, Groups: who.Groups}
	}
	if fd := cage.CgroupFD(); fd >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
	}
	pid, err := syscall.ForkExec(path, m.Argv, attr)
	for i := range p {
		closeFD(p.theirs(i))
		if err != nil {
			closeFD(p.ours(i))
		} else if p.ours(i) >= 0 {
			_ = unix.SetNonblock(p.ours(i), true)
		}
	}
	if err != nil {
		return child{}, err
	}
	return child{pid: pid, cage: cage, in: p.ours(0), out: p.ours(1), err: p.ours(2)}, nil
}

// completeEnv is env with what every command can expect to find.
func completeEnv(env []string, who Account) []string {
	out := append(make([]string, 0, len(env)+3), env...)
	for _, d := range [...][2]string{{"PATH", defaultPath}, {"HOME", who.Home}, {"USER", who.Name}} {
		if !hasEnv(env, d[0]) && d[1] != "" {
			out = append(out, d[0]+"="+d[1])
		}
	}
	return out
}

func hasEnv(env []string, name string) bool {
	for _, kv := range env {
		if k, _, ok := strings.Cut(kv, "="); ok && k == name {
			return true
		}
	}
	return false
}

func envValue(env []string, name string) string {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// enterable is the folder to start in, made if that was asked for.
func enterable(m *guestwire.Start, who Account) (string, *startError) {
	cwd := m.Cwd
	if cwd == "" {
		cwd = who.Home
	}
	if cwd == "" {
		cwd = "/"
	}
	var st unix.Stat_t
	err := unix.Stat(cwd, &st)
	if errors.Is(err, unix.ENOENT) && m.MakeCwd {
		if err = makeFolders(cwd, who); err == nil {
			err = unix.Stat(cwd, &st)
		}
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		if m.Cwd == "" && errors.Is(err, unix.ENOENT) {
			return "/", nil // a user without a home
		}
		return "", &startError{codeOther, "working directory " + cwd + ": " + err.Error()}
	}
	return cwd, nil
}

// makeFolders makes path and what is missing above it, all of them the user's.
func makeFolders(path string, who Account) error {
	if path == "" || path == "/" {
		return nil
	}
	err := unix.Mkdir(path, 0o755)
	if errors.Is(err, unix.ENOENT) {
		if err = makeFolders(path[:strings.LastIndexByte(path, '/')], who); err != nil {
			return err
		}
		err = unix.Mkdir(path, 0o755)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil && who.Switch {
		err = unix.Lchown(path, int(who.UID), int(who.GID))
	}
	return err
}

// lookup finds a command as a shell does.
func lookup(name, cwd, path string) (string, *startError) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", &startError{codeNotFound, "the command has a zero byte"}
	}
	if strings.Contains(name, "/") {
		full := name
		if name[0] != '/' {
			full = cwd + "/" + name
		}
		return full, executable(full, name)
	}
	found := &startError{codeNotFound, name + ": command not found"}
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" || dir[0] != '/' {
			dir = cwd + "/" + dir
		}
		full := dir + "/" + name
		err := executable(full, name)
		if err == nil {
			return full, nil
		}
		if err.code == codeNotExecutable {
			found = err
		}
	}
	return "", found
}

func executable(full, name string) *startError {
	var st unix.Stat_t
	switch err := unix.Stat(full, &st); {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		return &startError{codeNotFound, name + ": no such file or directory"}
	case err != nil:
		return &startError{codeNotExecutable, name + ": " + err.Error()}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return &startError{codeNotExecutable, name + ": is a directory"}
	case st.Mode&0o111 == 0:
		return &startError{codeNotExecutable, name + ": permission denied"}
	}
	return nil
}
