package olympus

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// parseQuery reads a URL's query; what it cannot read it refuses.
func parseQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fault.Invalid("", "Escape special characters as %XX.", "the URL's query is malformed")
	}
	return q, nil
}

// decodeQuery reads the parameters of q into the fields of msg of the same
// names, but for those in the path. A parameter that is no field is refused.
func decodeQuery(q url.Values, path []string, msg proto.Message) error {
	m := msg.ProtoReflect()
	for _, name := range slices.Sorted(maps.Keys(q)) {
		field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if field == nil || field.IsMap() || slices.Contains(path, name) {
			return unknownParameter(name, path, m.Descriptor())
		}
		values := q[name]
		if len(values) > 1 && !field.IsList() {
			return fault.Invalid(shorten(name), "Send it once.", "the parameter is there twice")
		}
		for _, text := range values {
			v, err := parameter(name, field, text)
			if err != nil {
				return err
			}
			if field.IsList() {
				m.Mutable(field).List().Append(v)
			} else {
				m.Set(field, v)
			}
		}
	}
	return nil
}

// parameter reads one value.
func parameter(name string, f protoreflect.FieldDescriptor, text string) (protoreflect.Value, error) {
	none := protoreflect.Value{}
	switch f.Kind() {
	case protoreflect.StringKind:
		if strings.ToValidUTF8(text, "") != text {
			return none, fault.Invalid(name, "Send UTF-8.", "%s is not UTF-8", name)
		}
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BoolKind:
		if text == "" { // ?follow
			return protoreflect.ValueOfBool(true), nil
		}
		b, err := strconv.ParseBool(text)
		if err != nil {
			return none, fault.Invalid(name, "Send true or false.", "%s is not a boolean", name)
		}
		return protoreflect.ValueOfBool(b), nil
	case protoreflect.Int32Kind:
		i, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return none, fault.Invalid(name, "Send a whole number.", "%s is not a whole number in its range", name)
		}
		return protoreflect.ValueOfInt32(int32(i)), nil
	case protoreflect.DoubleKind: // of byte offsets only
		i, err := strconv.ParseInt(text, 10, 64)
		if err != nil || i > maxOffset || i < 0 {
			return none, fault.Invalid(name, "Send a whole number from 0 on.", "%s is not a whole number in its range", name)
		}
		return protoreflect.ValueOfFloat64(float64(i)), nil
	case protoreflect.MessageKind:
		switch f.Message().FullName() {
		case timestampName:
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return none, fault.Invalid(name, `Send RFC 3339, as in "2026-01-02T15:04:05Z".`, "%s is not a time", name)
			}
			return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), nil
		case durationName:
			d, err := parseDuration(name, text)
			if err != nil {
				return none, err
			}
			return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), nil
		}
	}
	return none, fault.New(fault.Internal, "parameter %s has a type that no URL can carry", name)
}

// maxOffset is the largest whole number that a double holds exactly.
const maxOffset = 1 << 53

// parseDuration reads a duration of a URL: as in JSON ("90s"), or with the
// larger units that hands type.
func parseDuration(name, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fault.Invalid(name, `Send seconds, as in "90s" or "0.5s".`, "%s is not a duration", name)
	}
	if d < 0 {
		return 0, fault.Invalid(name, "Send a duration from 0s on.", "%s is below zero", name)
	}
	return d, nil
}

func unknownParameter(name string, path []string, d protoreflect.MessageDescriptor) error {
	var names []string
	for i := range d.Fields().Len() {
		if n := string(d.Fields().Get(i).Name()); !slices.Contains(path, n) {
			names = append(names, n)
		}
	}
	hint := "It takes none."
	if len(names) > 0 {
		slices.Sort(names)
		hint = "The parameters here are " + strings.Join(names, ", ") + "."
	}
	return fault.Invalid(shorten(name), hint, "there is no parameter %q", shorten(name))
}

func firstKey(q url.Values) string { return slices.Min(slices.Collect(maps.Keys(q))) }
