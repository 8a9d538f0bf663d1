package guestd

import (
	"reflect"
	"testing"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
broken:x
sandbox:x:1000:1000::/home/sandbox:/bin/sh
odd:x:-1:5::/:/bin/sh
`

const group = `root:x:0:
audio:x:29:sandbox,other
sandbox:x:1000:
video:x:44:other,sandbox
`

func TestFindAccount(t *testing.T) {
	for _, c := range []struct {
		user string
		want Account
	}{
		{"sandbox", Account{Name: "sandbox", Home: "/home/sandbox", UID: 1000, GID: 1000, Groups: []uint32{1000, 29, 44}, Switch: true}},
		{"1000", Account{Name: "sandbox", Home: "/home/sandbox", UID: 1000, GID: 1000, Groups: []uint32{1000, 29, 44}, Switch: true}},
		{"root", Account{Name: "root", Home: "/root", Groups: []uint32{0}, Switch: true}},
		{"7", Account{Home: "/", UID: 7, GID: 7, Groups: []uint32{7}, Switch: true}},
		{"sandbox:video", Account{Name: "sandbox", Home: "/home/sandbox", UID: 1000, GID: 44, Switch: true}},
		{"7:8", Account{Home: "/", UID: 7, GID: 8, Switch: true}},
	} {
		got, err := findAccount(c.user, passwd, group)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", c.user, got, err)
		}
	}
	for _, user := range []string{"", "nobody", "odd", "broken", "sandbox:nogroup", "-1", "4294967295", "99999999999"} {
		if got, err := findAccount(user, passwd, group); err == nil {
			t.Errorf("%q: %+v", user, got)
		}
	}
}

func TestCounters(t *testing.T) {
	if n := keyed("low 1\noom_kill 7\noom 2\n", "oom_kill"); n != 7 {
		t.Errorf("oom_kill %d", n)
	}
	if n := keyed("max -5\n", "max"); n != 0 {
		t.Errorf("a negative count is %d", n)
	}
	if n := meminfo("MemTotal: 94936 kB\nMemAvailable:   57568 kB\n", "MemAvailable:"); n != 57568<<10 {
		t.Errorf("available %d", n)
	}
}

func TestCleanPath(t *testing.T) {
	for _, p := range []string{"/a", "/a/b.c", "/...", "/a/..b"} {
		if !cleanPath(p) {
			t.Errorf("%q is refused", p)
		}
	}
	for _, p := range []string{"", "/", "a", "/a/", "//a", "/a//b", "/./a", "/a/..", "/..", "/a\x00"} {
		if cleanPath(p) {
			t.Errorf("%q is allowed", p)
		}
	}
}
