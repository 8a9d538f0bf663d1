package rehearsal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml/ast"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/strictyaml"
)

// formatVersion is the version of the form of test files.
//
//	1  policy, cases
const formatVersion = 1

// testsName is the name of a test file that only its folder is given of.
const testsName = "tests.yaml"

const (
	maxFileBytes = 1 << 20
	maxCases     = 10000
)

// testSet is what a file says.
type testSet struct {
	policy string // path
	cases  []testCase
}

// testCase is a request and what is expected.
type testCase struct {
	name    string
	line    int
	tenant  string
	request sandbox.Request

	allow    bool
	reason   string // of a denial: a rule, or a part of a message
	resolved []byte // values as the file has them, as JSON; nil: none
	plain    []byte // the same in the form of API.Show
}

// find is the file that path means.
func find(path string) (string, error) {
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		path = filepath.Join(path, testsName)
		_, err = os.Stat(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return path, fault.New(fault.NotFound, "there is no test file %s", path).
			WithHint("give a file, or a folder with %s in it", testsName)
	}
	return path, err
}

// reader reads what test files are made of.
type reader struct {
	*strictyaml.Reader
	api API
}

func (s Stage) read(file string) (testSet, error) {
	f, err := os.Open(file)
	if err != nil {
		return testSet{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return testSet{}, err
	}
	set, err := s.parse(text)
	if err != nil {
		return testSet{}, fmt.Errorf("%s: %w", file, err)
	}
	if !filepath.IsAbs(set.policy) {
		set.policy = filepath.Join(filepath.Dir(file), set.policy)
	}
	return set, nil
}

// parse reads a file's text.
func (s Stage) parse(text []byte) (testSet, error) {
	root, yaml, err := strictyaml.Form{
		What: "test file", MaxBytes: maxFileBytes,
		Hint: "Mend that place. A test file has the keys version (1), policy and cases; a case has name, tenant, request and expect; " +
			"expect has decision, and reason with deny or resolved.",
	}.Read(text)
	if err != nil {
		return testSet{}, err
	}
	r := &reader{yaml, s.API}
	var set testSet
	version := int64(0)
	r.Fields(root, map[string]func(ast.Node){
		"version": func(n ast.Node) { version = r.Number(n, formatVersion, formatVersion) },
		"policy":  func(n ast.Node) { set.policy = r.Str(n) },
		"cases": func(n ast.Node) {
			r.List(n, maxCases, func(n ast.Node) { set.cases = append(set.cases, r.testCase(n)) })
		},
	})
	switch {
	case !r.OK():
	case version == 0:
		r.Fail(nil, "the key version is missing; this is version %d", formatVersion)
	case set.policy == "":
		r.Fail(nil, "the key policy is missing: it names the policy's file or folder, relative to this file")
	case len(set.cases) == 0:
		r.Fail(nil, "there are no cases")
	}
	names := map[string]bool{}
	for _, c := range set.cases {
		if r.OK() && names[c.name] {
			r.Fail(nil, "two cases of one name, the second at line %d", c.line)
		}
		names[c.name] = true
	}
	return set, r.Err()
}

func (r *reader) testCase(n ast.Node) testCase {
	var c testCase
	var request, expect ast.Node
	r.Each(n, func(key string, k, v ast.Node) {
		if c.line == 0 {
			c.line = k.GetToken().Position.Line
		}
		switch key {
		case "name":
			c.name = r.Str(v)
		case "tenant":
			c.tenant = r.Str(v)
		case "request":
			request = v
		case "expect":
			expect = v
		default:
			r.Fail(k, "unknown key")
		}
	})
	if r.OK() && (c.name == "" || c.tenant == "" || request == nil || expect == nil) {
		r.Fail(n, "a case has name, tenant, request and expect")
	}
	if r.OK() {
		c.request = r.request(request)
	}
	if r.OK() {
		r.expect(expect, &c)
	}
	return c
}

// request reads a request as the API does.
func (r *reader) request(n ast.Node) sandbox.Request {
	body := r.JSON(n)
	if !r.OK() {
		return sandbox.Request{}
	}
	req, err := r.api.Request(body)
	r.refuse(n, err)
	return req
}

func (r *reader) expect(n ast.Node, c *testCase) {
	decision := ""
	at := n
	var resolved ast.Node
	r.Fields(n, map[string]func(ast.Node){
		"decision": func(n ast.Node) { at, decision = n, r.Str(n) },
		"reason":   func(n ast.Node) { c.reason = r.Str(n) },
		"resolved": func(n ast.Node) { resolved = n },
	})
	if !r.OK() {
		return
	}
	switch c.allow = decision == string(sandbox.Allow); {
	case !c.allow && decision != string(sandbox.Deny):
		r.Fail(at, "the decision expected is allow or deny")
	case c.allow && c.reason != "":
		r.Fail(at, "what is allowed has no reason")
	case !c.allow && c.reason == "":
		r.Fail(at, "with deny, say the reason: a rule, or a part of its message; else it may be denied for another")
	case resolved != nil:
		c.resolved = r.JSON(resolved)
		for _, key := range []string{"template_digest", "guest_digest"} {
			if k := strictyaml.Find(resolved, key); k != resolved {
				r.Fail(k, "no digest is known in a test")
			}
		}
		if r.OK() {
			var err error
			c.plain, err = r.api.Resolved(c.resolved)
			r.refuse(resolved, err)
		}
	}
}

// refuse makes an error of the API one of the file, at the field's place.
func (r *reader) refuse(n ast.Node, err error) {
	if err == nil {
		return
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.New(fault.InvalidArgument, "it does not fit")
	}
	r.Refuse(strictyaml.Find(n, f.Field), f)
}

var _ themis.Lookup = anyTemplate{}
