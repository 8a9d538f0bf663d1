package olympus_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// at is one value for a field, and whether the contract has it in bounds.
type at struct {
	what  string
	value any
	in    bool
}

// valuesFor are values at and beyond the bounds of a field. What is in may
// still be refused for what no field alone can say, so only where that cannot
// be are values that are in.
func valuesFor(f protoreflect.FieldDescriptor, b *apiv1.Bounds) []at {
	var out []at
	one := func(what string, v any, in bool) {
		switch {
		case f.IsMap():
			v = map[string]any{"k": v}
		case f.IsList():
			v = []any{v}
		}
		out = append(out, at{what, v, in})
	}
	if b.Min != nil {
		one("min", b.GetMin(), true)
		one("below min", b.GetMin()-1, false)
	}
	if b.Max != nil {
		one("max", b.GetMax(), true)
		above := b.GetMax() + 1
		if above == b.GetMax() { // a double cannot tell
			above *= 2
		}
		one("above max", above, false)
	}
	if n := int(b.GetMaxItems()); n > 0 {
		out = append(out, at{"max_items", several(f, n), true}, at{"more than max_items", several(f, n+1), false})
	}
	if n := int(b.GetMaxBytes()); n > 0 {
		text := strings.Repeat("/"+strings.Repeat("a", 127), n/128)
		one("max_bytes", text, true)
		one("more than max_bytes", text+"a", false)
	}
	for _, bad := range []string{"x y\x00", "/\x00", "\x00"} {
		if p := b.GetPattern(); p != "" && !regexp.MustCompile(p).MatchString(bad) {
			one("not the pattern", bad, false)
			break
		}
	}
	if b.GetKeyPattern() != "" {
		out = append(out, at{"not the key_pattern", map[string]any{"a b": "v"}, false})
	}
	for _, text := range b.GetOneOf() {
		one("one_of "+text, text, true)
	}
	if len(b.GetOneOf()) > 0 {
		one("not one_of", "bogus", false)
	}
	return out
}

// several are n good values for a list or a map.
func several(f protoreflect.FieldDescriptor, n int) any {
	if f.IsMap() {
		m := map[string]any{}
		for i := range n {
			m[fmt.Sprintf("k%d", i)] = "v"
		}
		return m
	}
	list := make([]any, n)
	for i := range list {
		switch f.Name() {
		case "files":
			list[i] = map[string]any{"path": fmt.Sprintf("/f%d", i)}
		case "allow":
			list[i] = map[string]any{"cidr": "203.0.113.0/24", "ports": []any{i + 1}}
		case "ports":
			list[i] = i + 1
		default:
			list[i] = "x"
		}
	}
	return list
}

// inside says where the messages in a run are, and what else a good one has.
var inside = map[protoreflect.FullName]func(fields map[string]any) map[string]any{
	"tartarus.v1.RunRequest": func(f map[string]any) map[string]any {
		body := map[string]any{"command": []any{"true"}}
		maps.Copy(body, f)
		return body
	},
	"tartarus.v1.File": func(f map[string]any) map[string]any {
		file := map[string]any{"path": "/a"}
		maps.Copy(file, f)
		return map[string]any{"command": []any{"true"}, "files": []any{file}}
	},
	"tartarus.v1.Resources": func(f map[string]any) map[string]any {
		return map[string]any{"command": []any{"true"}, "resources": f}
	},
	"tartarus.v1.NetworkContract": func(f map[string]any) map[string]any {
		return map[string]any{"command": []any{"true"}, "network": f}
	},
	"tartarus.v1.Grant": func(f map[string]any) map[string]any {
		grant := map[string]any{"cidr": "203.0.113.0/24", "ports": []any{443}}
		maps.Copy(grant, f)
		return map[string]any{"command": []any{"true"}, "network": map[string]any{"allow": []any{grant}}}
	},
}

// Every bound that the contract states of a run holds: what is beyond is
// refused by the field's name, what is at it is not malformed.
func TestTheContractsBoundsOfARunHold(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	tried := 0
	for name, whole := range inside {
		fields := apiv1.File_v1_tartarus_proto.Messages().ByName(name.Name()).Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			b := apiv1.BoundsOf(f)
			if b == nil {
				continue
			}
			values := valuesFor(f, b)
			if b.GetRequired() {
				values = append(values, at{"absent", nil, false})
			}
			for _, v := range values {
				t.Run(string(f.FullName())+" "+v.what, func(t *testing.T) {
					body := must(json.Marshal(whole(map[string]any{string(f.Name()): v.value})))(t)
					r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: string(body)})
					if v.in {
						if r.code == http.StatusBadRequest {
							t.Errorf("refused as malformed: %s", r.body)
						}
						return
					}
					if e := r.fails(t, fault.InvalidArgument); !strings.Contains(e.Field, string(f.Name())) || e.Hint == "" {
						t.Errorf("field %q: %s", e.Field, r.body)
					}
				})
				tried++
			}
		}
	}
	if tried < 50 {
		t.Errorf("only %d values were tried: the contract has lost its bounds", tried)
	}
}

// So does every bound of what stands in a URL.
func TestTheContractsBoundsOfAURLHold(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme", sandbox.ScopeAdmin)
	id := string(w.run(token, `{"command":["true"]}`))
	tried := 0
	for verbPath, message := range map[string]protoreflect.Name{
		"GET /sandbox": "ListRequest", "GET /sandbox/" + id + "/logs": "LogsRequest", "GET /sandbox/" + id + "/events": "EventsRequest",
		"DELETE /sandbox/" + id: "KillRequest", "GET /audit": "ListAuditRequest", "GET /policy": "GetPolicyRequest", "GET /policies": "ListPoliciesRequest",
	} {
		verb, path, _ := strings.Cut(verbPath, " ")
		fields := apiv1.File_v1_tartarus_proto.Messages().ByName(message).Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			b := apiv1.BoundsOf(f)
			if b == nil || f.Name() == "id" {
				continue
			}
			for _, v := range valuesFor(f, b) {
				if list, ok := v.value.([]any); ok {
					v.value = list[0]
				}
				text := fmt.Sprint(v.value)
				if n, ok := v.value.(float64); ok {
					text = fmt.Sprintf("%.0f", n)
				}
				r := w.ask(ask{method: verb, path: path + "?" + url.Values{string(f.Name()): {text}}.Encode(), token: token})
				tried++
				if v.in {
					if r.code != http.StatusOK {
						t.Errorf("%s %s: %s", f.FullName(), v.what, r.body)
					}
				} else if e := r.fails(t, fault.InvalidArgument); e.Field != string(f.Name()) {
					t.Errorf("%s %s: field %q, %s", f.FullName(), v.what, e.Field, r.body)
				}
			}
		}
	}
	if tried < 25 {
		t.Errorf("only %d values were tried: the contract has lost its bounds", tried)
	}
}
