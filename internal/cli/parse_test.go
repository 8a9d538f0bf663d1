package cli

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseMiB(t *testing.T) {
	for in, want := range map[string]int32{
		"256": 256, "256MiB": 256, "256m": 256, "256M": 256, "1GiB": 1024, "1g": 1024, "0.5GiB": 512, "1KiB": 1, "1025KiB": 2,
		"1GB": 954, "1TiB": 1 << 20, " 7 MiB": 7, "1kB": 1, "1k": 1,
	} {
		if got, err := parseMiB(in); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "0", "-1", "-1MiB", "NaN", "Inf", "infMiB", "1MiBMiB", "3x", "1e300GiB", "9999999TiB", "MiB", "0x10", "1_0"} {
		if got, err := parseMiB(in); err == nil {
			t.Errorf("%q is %d", in, got)
		}
	}
}

// Whatever is typed: a size above zero, or an error that shows how.
func FuzzParseMiB(f *testing.F) {
	for _, s := range []string{"1", "256MiB", "1e3g", "-0", "0x1p-3", "nan"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseMiB(s)
		if (err == nil) != (n > 0) {
			t.Fatalf("%q: %d, %v", s, n, err)
		}
	})
}

// A size is never rounded down, and never up by a whole MiB.
func TestParseMiBRounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kib := rapid.Int64Range(1, math.MaxInt32).Draw(t, "KiB")
		got, err := parseMiB(fmt.Sprintf("%dKiB", kib))
		if err != nil || int64(got)*1024 < kib || int64(got-1)*1024 >= kib {
			t.Fatalf("%d KiB: %d MiB, %v", kib, got, err)
		}
	})
}

func TestParseGrant(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com:443":        `domain:"api.example.com" ports:443`,
		"API.example.com:80,443/tcp": `domain:"api.example.com" protocol:"tcp" ports:80 ports:443`,
		"203.0.113.7:53/udp":         `cidr:"203.0.113.7/32" protocol:"udp" ports:53`,
		"203.0.113.0/24:5432":        `cidr:"203.0.113.0/24" ports:5432`,
		"[2001:db8::1]:443":          `cidr:"2001:db8::1/128" ports:443`,
		"[2001:db8::/32]:443":        `cidr:"2001:db8::/32" ports:443`,
	} {
		g, err := parseGrant(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := strings.ReplaceAll(g.String(), "  ", " "); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{"", "a", "a:", ":443", "a:0", "a:65536", "a:x", "a:-1", "a/b:1", "10.0.0.0/33:1", "a:1,", "[::1:1"} {
		if g, err := parseGrant(in); err == nil {
			t.Errorf("%q is %v", in, g)
		}
	}
}

func TestParsePairs(t *testing.T) {
	have := func(k string) (string, bool) { return "here", k == "SET" }
	env, err := parseEnv([]string{"A=", "B=x=y", "SET", "UNSET"}, have)
	if err != nil || fmt.Sprint(env) != "map[A: B:x=y SET:here]" {
		t.Errorf("%v %v", env, err)
	}
	if _, err := parseEnv([]string{"=x"}, have); err == nil {
		t.Error("a variable without a name")
	}
	for _, bad := range []string{"", "x", "=x"} {
		if _, err := parseLabels("label", []string{bad}); err == nil || !strings.HasPrefix(err.Error(), "--label") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseFiles(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for arg, says := range map[string]string{
		"x":                    "LOCAL:/PATH",
		":/x":                  "LOCAL:/PATH",
		"x:relative":           "LOCAL:/PATH",
		dir + "/none:/x":       "no such file",
		dir + ":/x":            "is a folder",
		big + ":/x":            "larger than 64 MiB",
		"/dev/zero:/work/zero": "larger than 64 MiB",
	} {
		if _, err := parseFiles([]string{arg}); err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "--file") {
			t.Errorf("%q: %v, want %q", arg, err, says)
		}
	}
}
