package themis

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// The forms of names.
var (
	namePattern     = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	runNamePattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	userPattern     = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	envPattern      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelPattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelDNSPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
)

// show quotes a caller's name for a message: escaped, and not for ever.
func show(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:most], "")) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// checkText refuses what no argument or name of a Linux guest can hold.
func checkText(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("it is no UTF-8")
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("it has a NUL character")
	}
	return nil
}

func checkTemplate(s string) error {
	if namePattern.MatchString(s) {
		return nil
	}
	return fault.Invalid("template", "`tartarus template ls` shows the templates there are.", "%s is no name of a template", show(s))
}

func checkCommand(args []string) error {
	const field = "command"
	if len(args) == 0 || args[0] == "" {
		return fault.Invalid(field, `Give the program and its arguments, as in ["echo", "hi"].`, "there is no command")
	}
	if len(args) > MaxArgs {
		return fault.Invalid(field, "Put what is long into a file or into stdin.", "it has %d arguments of at most %d", len(args), MaxArgs)
	}
	total := 0
	for i, a := range args {
		if err := checkText(a); err != nil {
			return fault.Invalid(fmt.Sprintf("%s[%d]", field, i), "Arguments are UTF-8 without NUL; put other bytes into a file or into stdin.", "%v", err)
		}
		total += len(a) + 1
	}
	if total > MaxCommandBytes {
		return fault.Invalid(field, "Put what is long into a file or into stdin.", "it has %d bytes of at most %d", total, MaxCommandBytes)
	}
	return nil
}

func checkName(s string) error {
	if s == "" || runNamePattern.MatchString(s) {
		return nil
	}
	return fault.Invalid("name", fmt.Sprintf("Use letters, digits, '-', '_' and '.', at most %d, a letter or digit first and last.", MaxNameBytes), "%s is no name", show(s))
}

func checkEnv(env map[string]string) error {
	if len(env) > MaxEnvVars {
		return fault.Invalid("env", "Put what is long into a file.", "there are %d variables of at most %d", len(env), MaxEnvVars)
	}
	total := 0
	for _, name := range sortedKeys(env) {
		if len(name) > MaxEnvNameBytes || !envPattern.MatchString(name) {
			return fault.Invalid("env", "Names have letters, digits and '_', and do not begin with a digit.", "%s is no name of a variable", show(name))
		}
		if err := checkText(env[name]); err != nil {
			return fault.Invalid("env."+name, "Values are UTF-8 without NUL; put other bytes into a file.", "%v", err)
		}
		total += len(name) + len(env[name]) + 2
	}
	if total > MaxEnvBytes {
		return fault.Invalid("env", "Put what is long into a file.", "it has %d bytes of at most %d", total, MaxEnvBytes)
	}
	return nil
}

// checkPath wants a path that means one place however it is read.
func checkPath(field, p string) error {
	const hint = "Give an absolute path without '.', '..', doubled or trailing slashes."
	if err := checkText(p); err != nil {
		return fault.Invalid(field, hint, "%v", err)
	}
	if len(p) > MaxPathBytes {
		return fault.Invalid(field, hint, "it has %d bytes of at most %d", len(p), MaxPathBytes)
	}
	if !path.IsAbs(p) || path.Clean(p) != p {
		return fault.Invalid(field, hint, "%s is not absolute and clean", show(p))
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > 255 {
			return fault.Invalid(field, "A part of a path has at most 255 bytes.", "a part of it has %d bytes", len(part))
		}
	}
	return nil
}

func checkWorkingDir(s string) error { return checkPath("working_dir", s) }

func checkUser(s string) error {
	const hint = "Give a name of the template, as in sandbox or root, or a number."
	if s != "" && strings.Trim(s, "0123456789") == "" {
		if id, err := strconv.ParseUint(s, 10, 32); err != nil || id > MaxUserID || strconv.FormatUint(id, 10) != s {
			return fault.Invalid("user", hint, "%s is no user's number, which is 0 to %d", show(s), MaxUserID)
		}
		return nil
	}
	if !userPattern.MatchString(s) {
		return fault.Invalid("user", hint, "%s is no user's name", show(s))
	}
	return nil
}

func checkFiles(req sandbox.Request) error {
	if len(req.Files) > MaxFiles {
		return fault.Invalid("files", "Put many files into one archive and unpack it in the command.", "there are %d files of at most %d", len(req.Files), MaxFiles)
	}
	total := len(req.Stdin)
	index := map[string]int{}
	for i, f := range req.Files {
		field := fmt.Sprintf("files[%d]", i)
		if err := checkPath(field+".path", f.Path); err != nil {
			return err
		}
		for _, place := range []string{"/proc", "/sys", "/dev"} {
			if f.Path == place || strings.HasPrefix(f.Path, place+"/") {
				return fault.Invalid(field+".path", "Choose a place under working_dir.", "%s is no place for files", place)
			}
		}
		if f.Path == "/" {
			return fault.Invalid(field+".path", "Choose a place under working_dir.", "/ is a folder")
		}
		if j, ok := index[f.Path]; ok {
			return fault.Invalid(field+".path", "Give each file a path of its own.", "files[%d] has the same path", j)
		}
		index[f.Path] = i
		if f.Mode > MaxFileMode {
			return fault.Invalid(field+".mode", "Give permission bits as a number up to 511, which is 0777; leave it out for 420, which is 0644.", "%d has more than permission bits", f.Mode)
		}
		total += len(f.Data)
	}
	for i, f := range req.Files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if j, ok := index[dir]; ok {
				return fault.Invalid(fmt.Sprintf("files[%d].path", i), "Choose another path.", "it is below files[%d], which is no folder", j)
			}
		}
	}
	if total > MaxInputBytes {
		field := "files"
		if len(req.Stdin) > MaxInputBytes {
			field = "stdin"
		}
		return fault.Invalid(field, "Send what is longer by the Stdin call, with stdin_open.", "stdin and files have %d bytes together, of at most %d", total, MaxInputBytes)
	}
	return nil
}

func checkResources(r sandbox.Resources) error {
	for _, c := range []struct {
		field           string
		value           int64
		lowest, highest int64
	}{
		{"vcpus", int64(r.VCPUs), 1, MaxVCPUs},
		{"memory_mib", r.MemoryMiB, 1, MaxMemoryMiB},
		{"disk_mib", r.DiskMiB, MinDiskMiB, MaxDiskMiB},
		{"processes", int64(r.Processes), 1, MaxProcesses},
	} {
		if c.value != 0 && (c.value < c.lowest || c.value > c.highest) {
			return fault.Invalid("resources."+c.field, fmt.Sprintf("Ask for %d to %d, or leave it out for the default.", c.lowest, c.highest), "%d is out of bounds", c.value)
		}
	}
	return nil
}

func checkDuration(d time.Duration) error {
	if d == 0 || d >= MinDuration && d <= MaxDuration {
		return nil
	}
	return fault.Invalid("max_duration", fmt.Sprintf("Ask for %v to %v, or leave it out for the default.", MinDuration, MaxDuration), "%v is out of bounds", d)
}

// checkLabels checks labels and selectors: keys as in Kubernetes, values short
// and printable.
func checkLabels(field string, labels map[string]string, limit int) error {
	if len(labels) > limit {
		return fault.Invalid(field, fmt.Sprintf("Use at most %d.", limit), "there are %d", len(labels))
	}
	for _, key := range sortedKeys(labels) {
		if !labelKey(key) {
			return fault.Invalid(field, "Keys are as in team or example.com/team: letters, digits, '-', '_' and '.', at most 63 behind the slash.", "%s is no key", show(key))
		}
		value := labels[key]
		if len(value) > MaxLabelValue || !utf8.ValidString(value) || strings.ContainsFunc(value, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return fault.Invalid(field+"."+key, fmt.Sprintf("Values are printable text of at most %d bytes.", MaxLabelValue), "the value is too long or not printable")
		}
	}
	return nil
}

func labelKey(key string) bool {
	prefix, name, ok := strings.Cut(key, "/")
	if !ok {
		return labelPattern.MatchString(key)
	}
	return len(prefix) <= maxDomainBytes && labelDNSPattern.MatchString(prefix) && labelPattern.MatchString(name)
}
