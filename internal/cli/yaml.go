package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
)

// safeJSON is the JSON text b with what a terminal would act on escaped. Such
// characters stand in strings only, and mean the same escaped.
func safeJSON(b []byte) []byte {
	var out bytes.Buffer
	for _, r := range string(b) {
		switch {
		case !hidden(r) || r == '\n':
			out.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		}
	}
	return out.Bytes()
}

// toYAML is a JSON document as YAML, its fields in the same order, with what a
// terminal would act on escaped.
func toYAML(b []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := yamlRead(d)
	if err != nil {
		return nil, err
	}
	return []byte(strings.Join(v.lines, "\n") + "\n"), nil
}

// yamlValue is a value in lines. A block stands below its key; what is none is
// one line and follows it.
type yamlValue struct {
	lines []string
	block bool
}

func scalar(line string) yamlValue { return yamlValue{lines: []string{line}} }

func yamlRead(d *json.Decoder) (yamlValue, error) {
	t, err := d.Token()
	if err != nil {
		return yamlValue{}, err
	}
	switch v := t.(type) {
	case json.Delim:
		if v == '{' {
			return yamlFields(d)
		}
		return yamlItems(d)
	case string:
		return scalar(yamlString(v)), nil
	case nil:
		return scalar("null"), nil
	}
	return scalar(fmt.Sprint(t)), nil
}

func yamlFields(d *json.Decoder) (yamlValue, error) {
	out := yamlValue{block: true}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return out, err
		}
		v, err := yamlRead(d)
		if err != nil {
			return out, err
		}
		name := yamlString(fmt.Sprint(key)) + ":"
		if !v.block {
			out.lines = append(out.lines, name+" "+v.lines[0])
			continue
		}
		out.lines = append(out.lines, name)
		for _, l := range v.lines {
			out.lines = append(out.lines, "  "+l)
		}
	}
	if _, err := d.Token(); err != nil {
		return out, err
	}
	if out.lines == nil {
		return scalar("{}"), nil
	}
	return out, nil
}

func yamlItems(d *json.Decoder) (yamlValue, error) {
	out := yamlValue{block: true}
	for d.More() {
		v, err := yamlRead(d)
		if err != nil {
			return out, err
		}
		for i, l := range v.lines {
			lead := "  "
			if i == 0 {
				lead = "- "
			}
			out.lines = append(out.lines, lead+l)
		}
	}
	if _, err := d.Token(); err != nil {
		return out, err
	}
	if out.lines == nil {
		return scalar("[]"), nil
	}
	return out, nil
}

// plain is what needs no quotes in YAML, but for the words that mean something
// else.
var plain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@%+-]*( [A-Za-z0-9_./@%+-]+)*$`)

var yamlWords = []string{"true", "false", "yes", "no", "on", "off", "y", "n", "null"}

func yamlString(s string) string {
	if plain.MatchString(s) && !slices.Contains(yamlWords, strings.ToLower(s)) {
		return s
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string can be encoded
	var out strings.Builder
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if hidden(r) {
			out.WriteString(unicodeEscape(r))
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}
