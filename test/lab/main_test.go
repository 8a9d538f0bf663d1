package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSplitCommands(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ words, want string }{
		{"uname", "uname"},
		{"a b --- c --- d e", "a b|c|d e"},
		{"tartarus run -- sh -c x --- b", "tartarus run -- sh -c x|b"},
		{"", ""}, {"---", ""}, {"a ---", ""}, {"--- a", ""}, {"a --- --- b", ""},
	} {
		got, err := splitCommands(strings.Fields(c.words))
		var joined []string
		for _, argv := range got {
			joined = append(joined, strings.Join(argv, " "))
		}
		if strings.Join(joined, "|") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q: %q, %v", c.words, joined, err)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	s, err := parse(strings.Fields("-add a:/b -add c:/d/ -program qemu -time 5s -memory 1024 -- cat /b --- true"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []addition{{"a", "/b"}, {"c", "/d"}}; !slices.Equal(s.opts.adds, want) || s.opts.programs[0] != "qemu" {
		t.Errorf("%+v", s.opts)
	}
	if len(s.commands) != 2 || s.suite || s.limit.Seconds() != 5 || s.opts.memoryMiB != 1024 || s.opts.cpus != 2 {
		t.Errorf("%+v", s)
	}
	if s, err = parse([]string{"-v", "suite", "cgroup"}, io.Discard); err != nil || !s.suite || !s.verbose || !slices.Equal(s.names, []string{"cgroup"}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "uname", "suite -- uname", "--", "-- ---", "-add x -- a", "-add :/x -- a", "-add a:b -- a", "-cpus 0 -- a", "-memory 9 -- a", "-time 0s -- a", "-x -- a"} {
		if _, err := parse(strings.Fields(bad), io.Discard); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// What the command line cannot mean boots nothing.
func TestUsage(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if status := run(t.Context(), []string{"suite", "nonsense"}, &out, &errs); status != statusLab || !strings.Contains(errs.String(), "cgroup, launcher") {
		t.Errorf("an unknown check: status %d, %q", status, errs.String())
	}
	errs.Reset()
	if status := run(t.Context(), []string{"uname"}, &out, &errs); status != statusUsage || !strings.Contains(errs.String(), "COMMAND") {
		t.Errorf("no --: status %d, %q", status, errs.String())
	}
	if out.Len() > 0 {
		t.Errorf("on stdout: %q", out.String())
	}
}

func TestLibraries(t *testing.T) {
	t.Parallel()
	got := libraries("\tlinux-vdso.so.1 (0x00007fe4)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibgone.so => not found\n")
	if want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestCopyInto(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to", "deep")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(from, "sub"), 0o700),
		os.WriteFile(filepath.Join(from, "sub", "ro"), []byte("text"), 0o444),
		os.WriteFile(filepath.Join(from, "run"), []byte("#!"), 0o755),
		os.Symlink("run", filepath.Join(from, "link")),
		os.Symlink("from", filepath.Join(dir, "alias")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // what is there is replaced
		os.Remove(filepath.Join(to, "link"))
		if err := copyInto(filepath.Join(dir, "alias"), to); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(to, "sub", "ro"))
	if err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	for name, want := range map[string]os.FileMode{"sub": 0o700, "sub/ro": 0o444, "run": 0o755} {
		if st, err := os.Stat(filepath.Join(to, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	if l, err := os.Readlink(filepath.Join(to, "link")); err != nil || l != "run" {
		t.Errorf("link: %q, %v", l, err)
	}
	if err := copyInto(filepath.Join(dir, "nothing"), to); err == nil {
		t.Error("what is not there was copied")
	}
}
