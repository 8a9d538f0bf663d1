package rehearsal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// differ compares the values that said names, and no others. said is as the
// file has them, want the same in the form of got.
func differ(said, want, got []byte) (expected, came string, err error) {
	var s, w, g any
	for _, v := range []struct {
		text []byte
		into *any
	}{{said, &s}, {want, &w}, {got, &g}} {
		d := json.NewDecoder(bytes.NewReader(v.text))
		d.UseNumber()
		if err := d.Decode(v.into); err != nil {
			return "", "", fmt.Errorf("comparing resolved values: %w", err)
		}
	}
	var d differences
	d.walk("", s, w, g)
	return strings.Join(d.expected, ", "), strings.Join(d.came, ", "), nil
}

type differences struct{ expected, came []string }

func (d *differences) add(path string, want, got any) {
	d.expected = append(d.expected, path+" "+text(want))
	d.came = append(d.came, path+" "+text(got))
}

// walk goes along what was said. A list is compared with its length.
func (d *differences) walk(path string, said, want, got any) {
	switch s := said.(type) {
	case nil: // as if it were not there, as in requests
	case map[string]any:
		w, _ := want.(map[string]any)
		g, ok := got.(map[string]any)
		if !ok {
			d.add(path, want, got)
			return
		}
		for _, key := range slices.Sorted(maps.Keys(s)) {
			d.walk(strings.TrimPrefix(path+"."+key, "."), s[key], w[key], g[key])
		}
	case []any:
		w, _ := want.([]any)
		g, _ := got.([]any)
		if len(w) != len(s) || len(g) != len(s) {
			d.add(path, want, got)
			return
		}
		for i := range s {
			d.walk(fmt.Sprintf("%s[%d]", path, i), s[i], w[i], g[i])
		}
	default:
		if !reflect.DeepEqual(want, got) {
			d.add(path, want, got)
		}
	}
}

func text(v any) string {
	if v == nil {
		return "nothing"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
