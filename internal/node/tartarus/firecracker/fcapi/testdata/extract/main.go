// Command extract takes out of a specification of Firecracker's API what the
// conformance test compares with, and prints it as JSON:
//
//	go run ./testdata/extract firecracker.yaml > testdata/v1.17.0.json
//
// The specifications are Firecracker's own (src/firecracker/swagger), under
// the Apache License 2.0. Only facts are kept: paths, methods, names, types.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
)

type (
	spec struct {
		Info        struct{ Version string }
		Paths       map[string]map[string]operation
		Definitions map[string]definition
	}
	operation struct {
		Parameters []struct {
			In     string
			Schema ref
		}
		Responses map[string]struct{ Schema ref }
	}
	ref struct {
		Ref string `yaml:"$ref"`
	}
	definition struct {
		Required   []string
		Properties map[string]property
	}
	property struct {
		Type    string
		Ref     string `yaml:"$ref"`
		Enum    []string
		Minimum *int64
		Maximum *int64
	}
)

type (
	facts struct {
		Version string               `json:"version"`
		Calls   map[string]call      `json:"calls"` // by "METHOD /path"
		Types   map[string]typeFacts `json:"types"`
	}
	call struct {
		Body    string            `json:"body,omitempty"`
		Answers map[string]string `json:"answers"` // type by status; "" for none
	}
	typeFacts struct {
		Required []string             `json:"required,omitempty"`
		Fields   map[string]fieldFact `json:"fields,omitempty"`
	}
	fieldFact struct {
		Type string   `json:"type"` // a JSON type, or the name of another type
		Enum []string `json:"enum,omitempty"`
		Min  *int64   `json:"min,omitempty"`
		Max  *int64   `json:"max,omitempty"`
	}
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: extract SPECIFICATION.yaml")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s spec
	if err := yaml.Unmarshal(text, &s); err != nil {
		return err
	}
	b, err := json.MarshalIndent(extract(s), "", " ")
	if err != nil {
		return err
	}
	fmt.Println(string(b))
	return nil
}

func extract(s spec) facts {
	f := facts{Version: s.Info.Version, Calls: map[string]call{}, Types: map[string]typeFacts{}}
	for path, methods := range s.Paths {
		for method, op := range methods {
			c := call{Answers: map[string]string{}}
			for _, p := range op.Parameters {
				if p.In == "body" {
					c.Body = name(p.Schema.Ref)
				}
			}
			for status, r := range op.Responses {
				c.Answers[status] = name(r.Schema.Ref)
			}
			f.Calls[strings.ToUpper(method)+" "+path] = c
		}
	}
	for n, d := range s.Definitions {
		t := typeFacts{Required: d.Required, Fields: map[string]fieldFact{}}
		for field, p := range d.Properties {
			kind := p.Type
			if p.Ref != "" {
				kind = name(p.Ref)
			}
			t.Fields[field] = fieldFact{Type: kind, Enum: p.Enum, Min: p.Minimum, Max: p.Maximum}
		}
		f.Types[n] = t
	}
	return f
}

func name(ref string) string { return strings.TrimPrefix(ref, "#/definitions/") }
