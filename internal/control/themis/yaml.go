package themis

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

// Bounds on the shape of a policy file, judged on its tokens: the parser needs
// far more than linear time for what is nested deeply.
const (
	maxDepth  = 16
	maxIndent = 64
)

// malformed is an error at a place of the policy's text. It tells nothing of
// the text itself: a policy file may turn out to be quite another file.
func malformed(tk *token.Token, format string, args ...any) error {
	where := ""
	if tk != nil && tk.Position != nil {
		where = fmt.Sprintf("line %d, column %d: ", tk.Position.Line, tk.Position.Column)
	}
	return fault.New(fault.InvalidArgument, "the policy is malformed: %s%s", where, fmt.Sprintf(format, args...)).
		WithHint("Mend that place. A policy has the keys version (1), tenants, defaults, maxima, templates, network, isolation_floor and rules.")
}

// parseYAML returns the one mapping that the text is.
func parseYAML(text []byte) (ast.Node, error) {
	if len(text) > MaxPolicyBytes {
		return nil, malformed(nil, "it has more than %d bytes", MaxPolicyBytes)
	}
	if !utf8.Valid(text) {
		return nil, malformed(nil, "it is no UTF-8")
	}
	if err := checkTokens(lexer.Tokenize(string(text))); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		// Only the place is taken from err: its text quotes the file.
		var at interface{ GetToken() *token.Token }
		if errors.As(err, &at) {
			return nil, malformed(at.GetToken(), "no valid YAML, or a repeated key")
		}
		return nil, malformed(nil, "no valid YAML")
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, malformed(nil, "it must be one YAML document that is not empty")
	}
	return file.Docs[0].Body, nil
}

// checkTokens refuses what no policy needs: aliases and their kin, and deep
// nesting.
func checkTokens(tokens token.Tokens) error {
	flow, entries, line := 0, 0, 0
	for i, tk := range tokens {
		if tk.Position.Line != line {
			line, entries = tk.Position.Line, 0
		}
		switch tk.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return malformed(tk, "anchors, aliases and merge keys are not allowed")
		case token.TagType, token.DirectiveType, token.MappingKeyType:
			return malformed(tk, "tags, directives and complex keys are not allowed")
		case token.DocumentHeaderType, token.DocumentEndType:
			return malformed(tk, "document markers are not allowed")
		case token.InvalidType:
			return malformed(tk, "no valid YAML")
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType:
			entries++
			if flow == 0 && tk.Position.Column > maxIndent {
				return malformed(tk, "indented too far")
			}
		case token.MappingValueType:
			if i > 0 && flow == 0 && tokens[i-1].Position.Column > maxIndent {
				return malformed(tokens[i-1], "indented too far")
			}
		}
		if flow > maxDepth || entries > maxDepth {
			return malformed(tk, "nested too deeply")
		}
	}
	return nil
}

// reader takes values out of nodes and keeps the first error; after that it
// returns zero values. YAML's own guesses (8 for "8", 1 for 1.5) are errors.
type reader struct{ err error }

func (r *reader) fail(n ast.Node, format string, args ...any) {
	if r.err == nil {
		var tk *token.Token
		if n != nil {
			tk = n.GetToken()
		}
		r.err = malformed(tk, format, args...)
	}
}

// fields calls the function of each key that is there.
func (r *reader) fields(n ast.Node, known map[string]func(ast.Node)) {
	r.each(n, func(key string, k, v ast.Node) {
		if read, ok := known[key]; ok {
			read(v)
		} else {
			r.fail(k, "unknown key")
		}
	})
}

// each calls f for each pair of a mapping.
func (r *reader) each(n ast.Node, f func(key string, k, v ast.Node)) {
	if r.err != nil {
		return
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		r.fail(n, "a mapping is wanted here")
		return
	}
	seen := map[string]bool{}
	for it := m.MapRange(); r.err == nil && it.Next(); {
		key, ok := it.Key().(*ast.StringNode)
		if !ok {
			r.fail(it.Key(), "a key must be a string")
			return
		}
		if seen[key.Value] {
			r.fail(key, "repeated key")
			return
		}
		seen[key.Value] = true
		f(key.Value, key, it.Value())
	}
}

// list calls f for each entry of a list of at most limit.
func (r *reader) list(n ast.Node, limit int, f func(v ast.Node)) {
	if r.err != nil {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		r.fail(n, "a list is wanted here")
		return
	}
	if len(s.Values) > limit {
		r.fail(n, "a list of more than %d entries", limit)
		return
	}
	for _, v := range s.Values {
		if r.err != nil {
			return
		}
		f(v)
	}
}

func (r *reader) str(n ast.Node) string {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value
	case *ast.LiteralNode:
		return s.Value.Value
	}
	r.fail(n, "a string is wanted here")
	return ""
}

// number is a decimal integer within its bounds.
func (r *reader) number(n ast.Node, low, high int64) int64 {
	if _, ok := n.(*ast.IntegerNode); !ok {
		r.fail(n, "an integer is wanted here")
		return 0
	}
	text := n.GetToken().Value
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(v, 10) != text {
		r.fail(n, "a plain decimal integer is wanted here")
		return 0
	}
	if v < low || v > high {
		r.fail(n, "out of bounds: %d to %d", low, high)
	}
	return v
}

func (r *reader) duration(n ast.Node) time.Duration {
	d, err := time.ParseDuration(r.str(n))
	if r.err == nil && err != nil {
		r.fail(n, "a duration as in 90s is wanted here")
	}
	if r.err == nil && (d < MinDuration || d > MaxDuration) {
		r.fail(n, "out of bounds: %v to %v", MinDuration, MaxDuration)
	}
	return d
}
