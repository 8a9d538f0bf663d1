package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// SystemConfig is the file with the settings of the whole host.
const SystemConfig = "/etc/tartarus/config.yaml"

// maxConfig bounds a file of settings.
const maxConfig = 64 << 10

// configFile is what one file says: values by key, each with its place.
type configFile map[string]struct{ text, place string }

// configFiles are the files that there are, the one that holds first.
type configFiles []configFile

// value is what the files say of a setting.
func (c configFiles) value(key string) (text, place string, said bool) {
	for _, f := range c {
		if v, ok := f[key]; ok {
			return v.text, v.place, true
		}
	}
	return "", "", false
}

// readConfig reads this user's file and the system's.
func (a *app) readConfig() (configFiles, error) {
	dir := a.env("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(a.env("HOME"), ".config")
	}
	var out configFiles
	for _, name := range []string{filepath.Join(dir, "tartarus", "config.yaml"), a.cfg.SystemConfig} {
		if !filepath.IsAbs(name) {
			continue
		}
		f, err := readConfigFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func readConfigFile(name string) (configFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, maxConfig)
	}
	return parseConfig(name, text)
}

// configError is an error at a place of a file.
func configError(name string, tk *token.Token, format string, args ...any) error {
	return withHint(fmt.Errorf("%s: %s", placeOf(name, tk), fmt.Sprintf(format, args...)), "`tartarus help config` lists the settings")
}

func placeOf(name string, tk *token.Token) string {
	if tk == nil || tk.Position == nil {
		return name
	}
	return fmt.Sprintf("%s: line %d, column %d", name, tk.Position.Line, tk.Position.Column)
}

// parseConfig reads a file of settings: one mapping of keys to plain values.
func parseConfig(name string, text []byte) (configFile, error) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var at interface{ GetToken() *token.Token }
		if errors.As(err, &at) {
			return nil, configError(name, at.GetToken(), "it is no valid YAML, or a key is there twice")
		}
		return nil, configError(name, nil, "it is no valid YAML")
	}
	out := configFile{}
	for i, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.NullType {
			continue
		}
		m, ok := doc.Body.(ast.MapNode)
		if !ok || i > 0 {
			return nil, configError(name, doc.Body.GetToken(), "settings are wanted here, as in key: value")
		}
		for it := m.MapRange(); it.Next(); {
			key := it.Key().GetToken()
			if _, twice := out[key.Value]; twice {
				return nil, configError(name, key, "%s is there twice", key.Value)
			}
			if !slices.ContainsFunc(settings(), func(s setting) bool { return s.key() == key.Value }) {
				return nil, configError(name, key, "there is no setting %q", shorten(key.Value, 64))
			}
			value, ok := plainValue(it.Value())
			if !ok {
				return nil, configError(name, it.Value().GetToken(), "%s takes a plain value", key.Value)
			}
			out[key.Value] = struct{ text, place string }{value, placeOf(name, it.Value().GetToken())}
		}
	}
	return out, nil
}

// plainValue is a value as a flag would be given it: a list with commas.
func plainValue(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	case *ast.SequenceNode:
		var parts []string
		for _, v := range n.Values {
			s, ok := v.(*ast.StringNode)
			if !ok || strings.ContainsAny(s.Value, ",\"\n") {
				return "", false
			}
			parts = append(parts, s.Value)
		}
		return strings.Join(parts, ","), len(parts) > 0
	}
	return "", false
}
