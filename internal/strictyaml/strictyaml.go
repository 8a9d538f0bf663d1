// Package strictyaml is the reader of the YAML files that people write for
// Tartarus: one mapping, no guesses, every error with its place.
//
// A file may turn out to be quite another file, so errors tell line and column
// and nothing of the text. Aliases, tags and deep nesting are refused before
// the parser sees them.
package strictyaml

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Form is what a file should be.
type Form struct {
	What     string // "policy", for errors
	Hint     string // which keys there are
	MaxBytes int
}

// Bounds on the shape of a file, judged on its tokens: the parser needs
// far more than linear time for what is nested deeply.
const (
	maxDepth  = 16
	maxIndent = 64
)

// malformed is an error at a place of the text. It tells nothing of the text.
func (f Form) malformed(tk *token.Token, format string, args ...any) error {
	where := ""
	if tk != nil && tk.Position != nil {
		where = fmt.Sprintf("line %d, column %d: ", tk.Position.Line, tk.Position.Column)
	}
	return fault.New(fault.InvalidArgument, "the %s is malformed: %s%s", f.What, where, fmt.Sprintf(format, args...)).WithHint("%s", f.Hint)
}

// Read parses the text, and returns its one document with a Reader to take it
// apart.
func (f Form) Read(text []byte) (ast.Node, *Reader, error) {
	n, err := f.parse(text)
	return n, &Reader{form: f}, err
}

func (f Form) parse(text []byte) (ast.Node, error) {
	if len(text) > f.MaxBytes {
		return nil, f.malformed(nil, "it has more than %d bytes", f.MaxBytes)
	}
	if !utf8.Valid(text) {
		return nil, f.malformed(nil, "it is no UTF-8")
	}
	if err := f.checkTokens(lexer.Tokenize(string(text))); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		// Only the place is taken from err: its text quotes the file.
		var at interface{ GetToken() *token.Token }
		if errors.As(err, &at) {
			return nil, f.malformed(at.GetToken(), "no valid YAML, or a repeated key")
		}
		return nil, f.malformed(nil, "no valid YAML")
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, f.malformed(nil, "it must be one YAML document that is not empty")
	}
	return file.Docs[0].Body, nil
}

// checkTokens refuses what no file needs: aliases and their kin, and deep
// nesting.
func (f Form) checkTokens(tokens token.Tokens) error {
	flow, entries, line := 0, 0, 0
	for i, tk := range tokens {
		if tk.Position.Line != line {
			line, entries = tk.Position.Line, 0
		}
		switch tk.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return f.malformed(tk, "anchors, aliases and merge keys are not allowed")
		case token.TagType, token.DirectiveType, token.MappingKeyType:
			return f.malformed(tk, "tags, directives and complex keys are not allowed")
		case token.DocumentHeaderType, token.DocumentEndType:
			return f.malformed(tk, "document markers are not allowed")
		case token.InvalidType:
			return f.malformed(tk, "no valid YAML")
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType:
			entries++
			if flow == 0 && tk.Position.Column > maxIndent {
				return f.malformed(tk, "indented too far")
			}
		case token.MappingValueType:
			if i > 0 && flow == 0 && tokens[i-1].Position.Column > maxIndent {
				return f.malformed(tokens[i-1], "indented too far")
			}
		}
		if flow > maxDepth || entries > maxDepth {
			return f.malformed(tk, "nested too deeply")
		}
	}
	return nil
}

// Reader takes values out of nodes and keeps the first error; after that it
// returns zero values. YAML's own guesses (8 for "8", 1 for 1.5) are errors.
type Reader struct {
	form Form
	err  error
}

// Err is the first error.
func (r *Reader) Err() error { return r.err }

// OK reports whether there was none yet.
func (r *Reader) OK() bool { return r.err == nil }

// Fail makes an error at n's place, or at none if n is nil. Its text must tell
// nothing of the file.
func (r *Reader) Fail(n ast.Node, format string, args ...any) {
	if r.err == nil {
		var tk *token.Token
		if n != nil {
			tk = n.GetToken()
		}
		r.err = r.form.malformed(tk, format, args...)
	}
}

// Refuse makes an error at n's place of one that another reader found there,
// and keeps its hint.
func (r *Reader) Refuse(n ast.Node, err *fault.Error) {
	if r.err == nil {
		f := r.form
		f.Hint = err.Hint
		r.err = f.malformed(n.GetToken(), "%s", err.Message)
	}
}

// Fields calls the function of each key that is there.
func (r *Reader) Fields(n ast.Node, known map[string]func(ast.Node)) {
	r.Each(n, func(key string, k, v ast.Node) {
		if read, ok := known[key]; ok {
			read(v)
		} else {
			r.Fail(k, "unknown key")
		}
	})
}

// Each calls f for each pair of a mapping.
func (r *Reader) Each(n ast.Node, f func(key string, k, v ast.Node)) {
	if r.err != nil {
		return
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		r.Fail(n, "a mapping is wanted here")
		return
	}
	seen := map[string]bool{}
	for it := m.MapRange(); r.err == nil && it.Next(); {
		key, ok := it.Key().(*ast.StringNode)
		if !ok {
			r.Fail(it.Key(), "a key must be a string")
			return
		}
		if seen[key.Value] {
			r.Fail(key, "repeated key")
			return
		}
		seen[key.Value] = true
		f(key.Value, key, it.Value())
	}
}

// List calls f for each entry of a list of at most limit.
func (r *Reader) List(n ast.Node, limit int, f func(v ast.Node)) {
	if r.err != nil {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		r.Fail(n, "a list is wanted here")
		return
	}
	if len(s.Values) > limit {
		r.Fail(n, "a list of more than %d entries", limit)
		return
	}
	for _, v := range s.Values {
		if r.err != nil {
			return
		}
		f(v)
	}
}

// Str is a string.
func (r *Reader) Str(n ast.Node) string {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value
	case *ast.LiteralNode:
		return s.Value.Value
	}
	r.Fail(n, "a string is wanted here")
	return ""
}

// Number is a decimal integer within its bounds.
func (r *Reader) Number(n ast.Node, low, high int64) int64 {
	if _, ok := n.(*ast.IntegerNode); !ok {
		r.Fail(n, "an integer is wanted here")
		return 0
	}
	text := n.GetToken().Value
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(v, 10) != text {
		r.Fail(n, "a plain decimal integer is wanted here")
		return 0
	}
	if v < low || v > high {
		r.Fail(n, "out of bounds: %d to %d", low, high)
	}
	return v
}

// Duration is a duration as in 90s, within its bounds.
func (r *Reader) Duration(n ast.Node, low, high time.Duration) time.Duration {
	d, err := time.ParseDuration(r.Str(n))
	if r.err == nil && err != nil {
		r.Fail(n, "a duration as in 90s is wanted here")
	}
	if r.err == nil && (d < low || d > high) {
		r.Fail(n, "out of bounds: %v to %v", low, high)
	}
	return d
}
