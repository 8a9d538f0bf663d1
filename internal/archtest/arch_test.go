// Package archtest holds the tests that keep the shape of the repository:
// who may import whom, a sentence for every package, and a glossary that
// tells the same as those sentences.
package archtest

import (
	"fmt"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// module is this module's path with a slash, as go.mod says it.
var module = modulePath()

func modulePath() string {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(p) + "/"
		}
	}
	panic("go.mod has no module line")
}

// A rule says what the packages under from may not import, and why. Paths are
// relative to the module and stand for all that is below them; "." is all.
type rule struct {
	from   []string // the importers
	unless []string // importers the rule is not for
	deny   []string // what they may not import
	except []string // what of it they may import
	why    string
}

var all = []string{"."}

var rules = []rule{
	{
		from: []string{"internal/sandbox", "internal/fault", "internal/runner"}, deny: all,
		why: "these are the ground: they depend on nothing, so everything may depend on them",
	},
	{
		from: []string{"api"}, deny: all,
		why: "wire messages are a promise to clients, not a view of our own types",
	},
	{
		from: []string{"internal/seal"}, deny: all, except: []string{"internal/sandbox", "internal/fault"},
		why: "signatures are checked on both sides of the wire: what checks them stands on the nouns alone",
	},
	{
		from: []string{"internal/strictyaml"}, deny: all, except: []string{"internal/fault"},
		why: "it knows how to read a file, not what the file is about",
	},
	{
		from: []string{"client", "internal/cli"}, deny: []string{"internal"},
		why: "the command line and the Go client know the API and nothing behind it; cmd hands them the commands that need the inside",
	},
	{
		from: []string{"internal/control"}, deny: []string{"internal/node", "internal/guest"},
		why: "the control plane decides; it does not reach into a node",
	},
	{
		from: []string{"internal/node"}, deny: []string{"internal/control"},
		why: "a node obeys assignments; it must run under a fake control plane",
	},
	{
		from: []string{"internal/record"}, deny: []string{"internal/control", "internal/node", "internal/guest"},
		why: "records are written to; they do not act",
	},
	{
		from: []string{"internal/guest/guestd"}, deny: all, except: []string{"internal/guest/guestwire"},
		why: "the guest binary stays small and holds nothing of the host",
	},
	{
		from: []string{"internal/control/moirai/lachesis"}, deny: all, except: []string{"internal/sandbox"},
		why: "placement is a pure function of what it is given",
	},
	{
		from: all, unless: []string{"internal/assembly", "test/bench"}, deny: []string{"internal/bench"},
		why: "what is measured knows nothing of being measured",
	},
	{
		from: all, unless: []string{"cmd", "test/realvm", "test/bench"}, deny: []string{"internal/assembly"},
		why: "only main packages put the parts together; the harness of the tests on real VMs is one to the processes it starts",
	},
}

// under reports whether p is one of roots or below one.
func under(p string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool {
		return r == "." || p == r || strings.HasPrefix(p, r+"/")
	})
}

// backends are the packages that implement a seam, and the suites that test
// one. Only the assembly chooses a backend, and only tests call a suite; the
// benchmarks measure backends.
var backends = regexp.MustCompile(`/(sqliteledger|memledger|redisledger|redisstream|memqueue|redisregistry|memregistry|redisrecords|memrecords|dirblobs|s3blobs|memblobs|firecracker|qemu|fakevm|\w+test)$`)

// firstSentence is the shape of every package comment: "Package x is the …".
var firstSentence = regexp.MustCompile(`^Package (\w+) (is|are|holds|builds|starts) (\S.*)\.$`)

type pkg struct {
	path, name, sentence string
	imports              []string
}

func TestImports(t *testing.T) {
	found := 0
	for _, p := range load(t) {
		for _, imp := range p.imports {
			for _, r := range rules {
				if under(p.path, r.from) && !under(p.path, r.unless) && under(imp, r.deny) && !under(imp, r.except) {
					t.Errorf("%s imports %s: %s", p.path, imp, r.why)
				}
			}
			found++
			if backends.MatchString(imp) && p.path != "internal/assembly" && p.path != "internal/testkit" && p.path != "internal/bench" && p.path != "test/bench" && !strings.HasSuffix(p.path, "test") {
				t.Errorf("%s imports %s: name the seam, not the backend; only internal/assembly chooses one", p.path, imp)
			}
		}
	}
	if found == 0 {
		t.Error("no import inside the module was seen: the test is blind")
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range load(t) {
		if p.name == "main" || strings.HasPrefix(p.path, "api/") { // api: generated, its words are in the proto
			continue
		}
		if m := firstSentence.FindStringSubmatch(p.sentence); m == nil || m[1] != p.name {
			t.Errorf("%s: package comment begins %q; want “Package %s is the ….”, saying in plain words what it is", p.path, p.sentence, p.name)
		}
	}
}

// TestNames holds every package name to one meaning, so that a name in the
// code, in a log line and in the glossary is the same thing.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, p := range load(t) {
		if p.name == "main" {
			continue
		}
		if other, ok := seen[p.name]; ok {
			t.Errorf("%s and %s are both named %s", other, p.path, p.name)
		}
		seen[p.name] = p.path
	}
}

func TestGlossary(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Glossary\n\nMade from the package comments by `go test ./internal/archtest -run Glossary`; do not edit.\n\n| name | what it is | where |\n|---|---|---|\n")
	for _, p := range load(t) {
		if m := firstSentence.FindStringSubmatch(p.sentence); m != nil {
			fmt.Fprintf(&b, "| %s | %s | `%s` |\n", p.name, strings.TrimSpace(strings.TrimPrefix(m[2], "is")+" "+m[3]), p.path)
		}
	}
	file := filepath.Join(root(t), "docs", "glossary.md")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != b.String() {
		t.Errorf("docs/glossary.md is not what the package comments say (%v); run: UPDATE=1 go test ./internal/archtest -run Glossary", err)
	}
}

func root(t *testing.T) string {
	t.Helper()
	d, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// load reads every package of the module, without its tests, in path order.
func load(t *testing.T) []pkg {
	t.Helper()
	byPath := map[string]*pkg{}
	err := filepath.WalkDir(root(t), func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "." {
			return fs.SkipDir // caches and the like
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root(t), filepath.Dir(file))
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		p := byPath[rel]
		if p == nil {
			p = &pkg{path: rel, name: f.Name.Name}
			byPath[rel] = p
		}
		if f.Doc != nil {
			p.sentence = new(doc.Package).Synopsis(f.Doc.Text())
		}
		for _, im := range f.Imports {
			if s := strings.Trim(im.Path.Value, `"`); strings.HasPrefix(s, module) {
				p.imports = append(p.imports, path.Clean(strings.TrimPrefix(s, module)))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var ps []pkg
	for _, p := range byPath {
		ps = append(ps, *p)
	}
	slices.SortFunc(ps, func(a, b pkg) int { return strings.Compare(a.path, b.path) })
	return ps
}
