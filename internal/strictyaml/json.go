package strictyaml

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

var plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// JSON is n as a JSON text: what the file says, where an API wants JSON.
func (r *Reader) JSON(n ast.Node) []byte {
	var b bytes.Buffer
	r.json(&b, n)
	return b.Bytes()
}

func (r *Reader) json(b *bytes.Buffer, n ast.Node) {
	switch v := n.(type) {
	case ast.MapNode:
		comma := ""
		b.WriteByte('{')
		r.Each(n, func(key string, _, v ast.Node) {
			b.WriteString(comma)
			comma = ","
			r.text(b, key)
			b.WriteByte(':')
			r.json(b, v)
		})
		b.WriteByte('}')
	case *ast.SequenceNode:
		b.WriteByte('[')
		for i, e := range v.Values {
			if i > 0 {
				b.WriteByte(',')
			}
			r.json(b, e)
		}
		b.WriteByte(']')
	case *ast.StringNode:
		r.text(b, v.Value)
	case *ast.LiteralNode:
		r.text(b, v.Value.Value)
	case *ast.BoolNode:
		fmt.Fprint(b, v.Value)
	case *ast.NullNode:
		b.WriteString("null")
	case *ast.IntegerNode, *ast.FloatNode:
		text := n.GetToken().Value
		if !plainNumber.MatchString(text) {
			r.Fail(n, "a plain decimal number is wanted here")
			return
		}
		b.WriteString(text)
	default:
		r.Fail(n, "a string, number, true, false, list or mapping is wanted here")
	}
}

func (r *Reader) text(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string can be encoded
}

// Find is the node that a path as in network.allow[0].ports speaks of, below
// n: its key in a mapping, itself in a list. Where the path leads nowhere it
// is the last node on the way.
func Find(n ast.Node, path string) ast.Node {
	at := n
	for path != "" {
		value, key, rest := step(n, path)
		if value == nil {
			return at
		}
		n, at, path = value, key, rest
	}
	return at
}

// step goes one part of path down. Keys may have dots in them: the longest one
// that fits is meant.
func step(n ast.Node, path string) (value, at ast.Node, rest string) {
	switch v := n.(type) {
	case ast.MapNode:
		longest := -1
		for it := v.MapRange(); it.Next(); {
			k, ok := it.Key().(*ast.StringNode)
			if !ok || len(k.Value) <= longest {
				continue
			}
			after, ok := strings.CutPrefix(path, k.Value)
			if ok && (after == "" || after[0] == '.' || after[0] == '[') {
				longest = len(k.Value)
				value, at, rest = it.Value(), k, strings.TrimPrefix(after, ".")
			}
		}
	case *ast.SequenceNode:
		i := -1
		if _, err := fmt.Sscanf(path, "[%d]", &i); err != nil || i < 0 || i >= len(v.Values) {
			return nil, nil, ""
		}
		_, rest, _ = strings.Cut(path, "]")
		value, rest = v.Values[i], strings.TrimPrefix(rest, ".")
		at = value
	}
	return value, at, rest
}
