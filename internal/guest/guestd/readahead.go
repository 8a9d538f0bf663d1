package guestd

import "golang.org/x/sys/unix"

// hotFiles are what most commands of a template read first: its shell, its
// loader, its C library, an interpreter. One that is not there is left out.
var hotFiles = [...]string{
	"bin/busybox", "bin/sh", "bin/bash", "bin/true", "bin/cat", "bin/echo", "etc/passwd", "etc/group", "etc/ld.so.cache", "etc/nsswitch.conf",
	"lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1", "lib/ld-musl-x86_64.so.1",
	"lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu/libz.so.1", "usr/lib/x86_64-linux-gnu/libexpat.so.1",
	"lib/aarch64-linux-gnu/libc.so.6", "lib/aarch64-linux-gnu/libm.so.6", "lib/aarch64-linux-gnu/libz.so.1", "usr/lib/aarch64-linux-gnu/libexpat.so.1",
	"usr/bin/python3", "usr/bin/env",
}

// hotBytes bounds what is read of them: it stays in the memory that all clones
// share.
const hotBytes = 16 << 20

// readAhead reads a template's hot files, so that a clone finds them in memory.
// Reading is no running: nothing of the template is executed. Links lead
// nowhere but within it.
func readAhead(root string) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	buf := make([]byte, 64<<10)
	left := int64(hotBytes)
	for _, name := range hotFiles {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size <= left {
			for {
				n, err := unix.Read(fd, buf)
				if n <= 0 || err != nil {
					break
				}
				left -= int64(n)
			}
		}
		unix.Close(fd)
	}
}
