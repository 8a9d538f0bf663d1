package olympus_test

import (
	"runtime"
	"syscall"
	"testing"
)

// asUser runs f on a thread of its own whose user is uid, and throws the
// thread away.
func asUser(t *testing.T, uid int, f func() (int, error)) int {
	t.Helper()
	type result struct {
		v   int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{0, errno}
			return
		}
		v, err := f()
		done <- result{v, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}
