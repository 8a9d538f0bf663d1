package olympus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

const (
	durationName  = protoreflect.FullName("google.protobuf.Duration")
	timestampName = protoreflect.FullName("google.protobuf.Timestamp")
)

// decodeJSON reads body into msg. Whatever does not fit is an InvalidArgument
// error with the field's path, and without its value, which may be a secret.
func decodeJSON(body []byte, msg proto.Message) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return fault.Invalid("", "Send a JSON object.", "the body is empty")
	}
	if !utf8.Valid(body) {
		return fault.Invalid("", "Send JSON in UTF-8; other bytes travel in base64.", "the body is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	c := checker{dec: dec}
	if err := c.value("", msg.ProtoReflect().Descriptor()); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fault.Invalid("", "Send one JSON object.", "something follows the body's object")
	}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(body, msg); err != nil {
		return fault.Invalid("", "Compare it with GET /openapi.json.", "the body does not fit the request") // err could tell a secret
	}
	return nil
}

// checker walks JSON along the contract.
type checker struct{ dec *json.Decoder }

// token reads the next token; JSON that is broken is an error on no field.
func (c checker) token() (json.Token, error) {
	t, err := c.dec.Token()
	if err != nil {
		return nil, fault.Invalid("", "Check quotes, commas and brackets.", "the body is not valid JSON, at byte %d", c.dec.InputOffset())
	}
	return t, nil
}

// value checks one message.
func (c checker) value(path string, d protoreflect.MessageDescriptor) error {
	t, err := c.token()
	if err != nil {
		return err
	}
	if t == nil && path != "" { // null: as if it were not there
		return nil
	}
	switch d.FullName() {
	case durationName:
		return checkDuration(path, t)
	case timestampName:
		return checkTimestamp(path, t)
	}
	if t != json.Delim('{') {
		return fault.Invalid(path, "Send a JSON object: {…}.", "%s is not an object", subject(path))
	}
	seen := map[string]bool{}
	for c.dec.More() {
		key, err := c.key(path, seen)
		if err != nil {
			return err
		}
		field := d.Fields().ByName(protoreflect.Name(key))
		if field == nil {
			return unknownField(path, key, d)
		}
		if err := c.field(join(path, key), field); err != nil {
			return err
		}
	}
	_, err = c.token()
	return err
}

func (c checker) key(path string, seen map[string]bool) (string, error) {
	t, err := c.token()
	if err != nil {
		return "", err
	}
	key, ok := t.(string)
	if !ok {
		return "", fault.Invalid(path, "Put names of fields in quotes.", "a name in %s is not a string", subject(path))
	}
	if seen[key] {
		return "", fault.Invalid(join(path, shorten(key)), "Send each field once.", "the field is there twice")
	}
	seen[key] = true
	return key, nil
}

func (c checker) field(path string, f protoreflect.FieldDescriptor) error {
	switch {
	case f.IsMap():
		return c.mapping(path, f)
	case f.IsList():
		return c.list(path, f)
	}
	return c.single(path, f)
}

func (c checker) mapping(path string, f protoreflect.FieldDescriptor) error {
	t, err := c.token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('{') {
		return fault.Invalid(path, `Send an object of strings: {"name": "value"}.`, "%s is not an object", path)
	}
	seen := map[string]bool{}
	for c.dec.More() {
		key, err := c.key(path, seen)
		if err != nil {
			return err
		}
		if err := c.element(join(path, shorten(key)), f.MapValue()); err != nil {
			return err
		}
	}
	_, err = c.token()
	return err
}

func (c checker) list(path string, f protoreflect.FieldDescriptor) error {
	t, err := c.token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('[') {
		return fault.Invalid(path, "Send a list: […].", "%s is not a list", path)
	}
	for i := 0; c.dec.More(); i++ {
		if err := c.element(path+"["+strconv.Itoa(i)+"]", f); err != nil {
			return err
		}
	}
	_, err = c.token()
	return err
}

// element is a single value in which null has no meaning.
func (c checker) element(path string, f protoreflect.FieldDescriptor) error {
	if f.Kind() == protoreflect.MessageKind {
		at := c.dec.InputOffset()
		var raw json.RawMessage
		if err := c.dec.Decode(&raw); err != nil {
			return fault.Invalid("", "Check quotes, commas and brackets.", "the body is not valid JSON, after byte %d", at)
		}
		if string(raw) == "null" {
			return fault.Invalid(path, "Leave it away, or send a value.", "%s is null", path)
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		return checker{dec: dec}.value(path, f.Message())
	}
	t, err := c.token()
	if err != nil {
		return err
	}
	if t == nil {
		return fault.Invalid(path, "Leave it away, or send a value.", "%s is null", path)
	}
	return checkScalar(path, f.Kind(), t)
}

func (c checker) single(path string, f protoreflect.FieldDescriptor) error {
	if f.Kind() == protoreflect.MessageKind {
		return c.value(path, f.Message())
	}
	t, err := c.token()
	if err != nil || t == nil {
		return err
	}
	return checkScalar(path, f.Kind(), t)
}

func checkScalar(path string, kind protoreflect.Kind, t json.Token) error {
	switch kind {
	case protoreflect.StringKind:
		if _, ok := t.(string); !ok {
			return fault.Invalid(path, "Put it in quotes.", "%s is not a string", path)
		}
	case protoreflect.BoolKind:
		if _, ok := t.(bool); !ok {
			return fault.Invalid(path, "Send true or false, without quotes.", "%s is not a boolean", path)
		}
	case protoreflect.BytesKind:
		s, ok := t.(string)
		if !ok || !isBase64(s) {
			return fault.Invalid(path, "Encode the bytes with base64.", "%s is not base64", path)
		}
	case protoreflect.Int32Kind:
		return checkWhole(path, t, math.MinInt32, math.MaxInt32)
	case protoreflect.Uint32Kind:
		return checkWhole(path, t, 0, math.MaxUint32)
	case protoreflect.DoubleKind:
		if n, ok := t.(json.Number); ok {
			if _, err := n.Float64(); err == nil {
				return nil
			}
		}
		return fault.Invalid(path, "Send a number, without quotes.", "%s is not a number", path)
	}
	return nil
}

func checkWhole(path string, t json.Token, low, high int64) error {
	n, ok := t.(json.Number)
	if !ok {
		return fault.Invalid(path, "Send a whole number, without quotes.", "%s is not a number", path)
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || i < low || i > high {
		return fault.Invalid(path, "Send a whole number from "+strconv.FormatInt(low, 10)+" to "+strconv.FormatInt(high, 10)+".",
			"%s is not a whole number in its range", path)
	}
	return nil
}

func isBase64(s string) bool {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "\r\n") { // Go's decoder would skip them
		return false
	}
	if strings.ContainsAny(s, "-_") {
		_, err := base64.RawURLEncoding.DecodeString(s)
		return err == nil
	}
	_, err := base64.RawStdEncoding.DecodeString(s)
	return err == nil
}

// durationForm bounds the digits too, so that no overflow is possible.
var durationForm = regexp.MustCompile(`^-?\d{1,9}(\.\d{1,9})?s$`)

func checkDuration(path string, t json.Token) error {
	if s, ok := t.(string); !ok || !durationForm.MatchString(s) {
		return fault.Invalid(path, `Send seconds, as in "90s" or "0.5s".`, "%s is not a duration", path)
	}
	return nil
}

func checkTimestamp(path string, t json.Token) error {
	if s, ok := t.(string); ok {
		if at, err := time.Parse(time.RFC3339Nano, s); err == nil && at.Year() >= 1 && at.Year() <= 9999 {
			return nil
		}
	}
	return fault.Invalid(path, `Send RFC 3339, as in "2026-01-02T15:04:05Z".`, "%s is not a time", path)
}

// unknownField refuses a name, and says which it might have been.
func unknownField(path, key string, d protoreflect.MessageDescriptor) error {
	names := make([]string, d.Fields().Len())
	plain := strings.NewReplacer("_", "", "-", "")
	for i := range names {
		names[i] = string(d.Fields().Get(i).Name())
		if strings.EqualFold(plain.Replace(names[i]), plain.Replace(key)) {
			return fault.Invalid(join(path, shorten(key)), "It is written "+names[i]+".", "there is no field %q", shorten(key))
		}
	}
	slices.Sort(names)
	return fault.Invalid(join(path, shorten(key)), "The fields here are "+strings.Join(names, ", ")+".", "there is no field %q", shorten(key))
}

// join names a field in errors. A key is the caller's and may hold anything.
func join(path, key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		key = strings.Trim(strconv.QuoteToASCII(key), `"`)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// shorten bounds what is repeated to the caller.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func subject(path string) string {
	if path == "" {
		return "the body"
	}
	return path
}
