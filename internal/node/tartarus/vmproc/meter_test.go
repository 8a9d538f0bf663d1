package vmproc

import (
	"strings"
	"testing"
)

func TestCPUSeconds(t *testing.T) {
	line := "12 (a) R (b)) S 1 1 1 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 1 0 1 1"
	if got, err := cpuSeconds([]byte(line)); err != nil || got != 3 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", ")", "12 (x) S 1", strings.Replace(line, ") S", ") Z", 1), strings.Replace(line, "250", "x", 1)} {
		if got, err := cpuSeconds([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestField(t *testing.T) {
	status := []byte("Name:\tRssAnon: 7\nRssAnon:\t   123 kB\nRssShmem:\n")
	if n, ok := field(status, "RssAnon:"); !ok || n != 123 {
		t.Errorf("%d, %v", n, ok)
	}
	for _, name := range []string{"RssShmem:", "VmHWM:"} {
		if n, ok := field(status, name); ok {
			t.Errorf("%s is %d", name, n)
		}
	}
}
