package strictyaml_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/ast"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/strictyaml"
)

func form() strictyaml.Form {
	return strictyaml.Form{What: "file", Hint: "100% wrong", MaxBytes: 1000}
}

func read(t *testing.T, text string) (ast.Node, *strictyaml.Reader) {
	t.Helper()
	n, r, err := form().Read([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return n, r
}

func TestJSON(t *testing.T) {
	n, r := read(t, `
command: [echo, "a\nb", 'x''y', "<&>é\u0001"]
env:
  LANG: C
  EMPTY: ""
  WORD: no
  LITERAL: |
    two
    lines
files:
- path: /a
  mode: 420
- {path: "/b", data: null}
half: 0.5
minus: -1
yes: true
none: {}
list: []
`)
	b := r.JSON(n)
	const want = `{"command":["echo","a\nb","x'y","<&>é\u0001"],"env":{"LANG":"C","EMPTY":"","WORD":"no","LITERAL":"two\nlines\n"},` +
		`"files":[{"path":"/a","mode":420},{"path":"/b","data":null}],"half":0.5,"minus":-1,"yes":true,"none":{},"list":[]}`
	if got := strings.ReplaceAll(string(b), "\n", ""); got != want || r.Err() != nil || !json.Valid(b) {
		t.Errorf("got  %s\nwant %s\n%v", got, want, r.Err())
	}
	for text, place := range map[string]string{
		"a: 0x1": "column 4", "a: .inf": "column 4", "a: [1, .nan]": "column 8", "a: {1: 2}": "column 5", "a: 01": "column 4",
	} {
		n, r := read(t, text)
		r.JSON(n)
		if !fault.Is(r.Err(), fault.InvalidArgument) || !strings.Contains(r.Err().Error(), place) {
			t.Errorf("%s: %v, want it at %s", text, r.Err(), place)
		}
	}
}

func TestFind(t *testing.T) {
	n, _ := read(t, `
resources:
  vcpus: 1
network:
  allow:
  - {domain: a.example, ports: [1, 2]}
  - cidr: 10.0.0.0/8
labels: {a: x, a.b/c: y, a.b: z}
`)
	for path, want := range map[string]string{
		"":                          "",
		"resources":                 "2:1",
		"resources.vcpus":           "3:3",
		"resources.memory":          "2:1",
		"nothing":                   "",
		"network.allow[0].ports[1]": "6:36",
		"network.allow[0].domain":   "6:6",
		"network.allow[1].cidr":     "7:5",
		"network.allow[2].cidr":     "5:3",
		"network.allow.cidr":        "5:3",
		"labels.a.b/c":              "8:16",
		"labels.a.b":                "8:26",
		"labels.a":                  "8:10",
	} {
		at := strictyaml.Find(n, path)
		got := ""
		if at != n {
			p := at.GetToken().Position
			got = fmt.Sprintf("%d:%d", p.Line, p.Column)
		}
		if got != want {
			t.Errorf("%q is at %s, want %s", path, got, want)
		}
	}
}

// An error says where, and what to do, as the form has it.
func TestErrors(t *testing.T) {
	n, r := read(t, "a:\n  b: 1\n")
	r.Fields(n, map[string]func(ast.Node){"a": func(n ast.Node) { r.Fields(n, nil) }})
	r.Fail(n, "a later one")
	if err := r.Err(); err.Error() != "the file is malformed: line 2, column 3: unknown key" || r.OK() {
		t.Error(err)
	}
	_, _, err := form().Read([]byte(strings.Repeat("x", 1001)))
	if f := (*fault.Error)(nil); !errors.As(err, &f) || !strings.Contains(f.Message, "more than 1000 bytes") || f.Hint != "100% wrong" {
		t.Errorf("%v", err)
	}
}
