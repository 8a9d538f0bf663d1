package fcapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// facts are what testdata/extract took out of a specification.
type facts struct {
	Version string
	Calls   map[string]struct {
		Body    string
		Answers map[string]string
	}
	Types map[string]struct {
		Required []string
		Fields   map[string]struct {
			Type     string
			Enum     []string
			Min, Max *int64
		}
	}
}

func (f *facts) version(t *testing.T) Version {
	t.Helper()
	v, err := ParseVersion(strings.TrimSuffix(f.Version, "-dev"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func specifications(t *testing.T) []*facts {
	t.Helper()
	files, err := filepath.Glob("testdata/v*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("specifications: %v, %v", files, err)
	}
	var out []*facts
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f := &facts{}
		if err := json.Unmarshal(b, f); err != nil {
			t.Fatal(err)
		}
		if len(f.Calls) < 20 || len(f.Types) < 30 {
			t.Fatalf("%s holds %d calls and %d types", file, len(f.Calls), len(f.Types))
		}
		out = append(out, f)
	}
	return out
}

// calls are all that the client can be asked, each with the fullest and the
// barest message.
var calls = map[string]struct {
	want string // method and path of the specification
	make []func(context.Context, *Client) error
}{
	"PutMachineConfig": {"PUT /machine-config", each((*Client).PutMachineConfig, MachineConfig{1, 128}, MachineConfig{32, 1 << 20})},
	"PutBootSource":    {"PUT /boot-source", each((*Client).PutBootSource, BootSource{"/k", "/i", "quiet"}, BootSource{Kernel: "/k"})},
	"PutDrive": {"PUT /drives/{drive_id}", each((*Client).PutDrive,
		Drive{"root", "/r", true, true, CacheWriteback, EngineSync}, Drive{ID: "root", Path: "/r", Cache: CacheUnsafe}, Drive{ID: "root", Path: "/r"})},
	"PutNetworkInterface": {"PUT /network-interfaces/{iface_id}", each((*Client).PutNetworkInterface,
		NetworkInterface{"card", "tap0", "02:74:ac:10:00:02"}, NetworkInterface{ID: "card", Device: "tap0"})},
	"PutEntropy":  {"PUT /entropy", []func(context.Context, *Client) error{ask((*Client).PutEntropy)}},
	"PutVsock":    {"PUT /vsock", each((*Client).PutVsock, Vsock{GuestCID, "v"})},
	"PutMetrics":  {"PUT /metrics", each((*Client).PutMetrics, Metrics{"m"})},
	"PutSerial":   {"PUT /serial", each((*Client).PutSerial, Serial{&TokenBucket{1, 2, 3}}, Serial{})},
	"PutSnapshot": {"PUT /snapshot/create", each((*Client).PutSnapshot, Snapshot{"m", "s", SnapshotFull})},
	"LoadSnapshot": {"PUT /snapshot/load", each((*Client).LoadSnapshot,
		SnapshotLoad{MemoryBackend{MemoryFile, "m"}, "s", true}, SnapshotLoad{Memory: MemoryBackend{MemoryFile, "m"}, State: "s"})},
	"Start":        {"PUT /actions", []func(context.Context, *Client) error{ask((*Client).Start)}},
	"FlushMetrics": {"PUT /actions", []func(context.Context, *Client) error{ask((*Client).FlushMetrics)}},
	"Pause":        {"PATCH /vm", []func(context.Context, *Client) error{ask((*Client).Pause)}},
	"Resume":       {"PATCH /vm", []func(context.Context, *Client) error{ask((*Client).Resume)}},
}

// notCalls are methods that send nothing.
var notCalls = []string{"Version", "CanLimitSerial"}

func ask(f func(*Client, context.Context) error) func(context.Context, *Client) error {
	return func(ctx context.Context, c *Client) error { return f(c, ctx) }
}

func each[M any](f func(*Client, context.Context, M) error, messages ...M) []func(context.Context, *Client) error {
	var out []func(context.Context, *Client) error
	for _, m := range messages {
		out = append(out, func(ctx context.Context, c *Client) error { return f(c, ctx, m) })
	}
	return out
}

// TestConformance compares every call as it goes over the wire with the
// specification of each version.
func TestConformance(t *testing.T) {
	methods := reflect.TypeFor[*Client]()
	for i := range methods.NumMethod() {
		name := methods.Method(i).Name
		if _, ok := calls[name]; !ok && !slices.Contains(notCalls, name) {
			t.Errorf("%s is compared with nothing", name)
		}
	}
	for _, f := range specifications(t) {
		t.Run(f.Version, func(t *testing.T) {
			c, seen := recorder(t, f)
			for name, call := range calls {
				_, known := f.Calls[call.want]
				for _, do := range call.make {
					*seen = nil
					err := do(t.Context(), c)
					switch {
					case !known && (!errors.Is(err, ErrNotKnown) || *seen != nil):
						t.Errorf("%s: %s is not in this version, and got %v", name, call.want, err)
					case known && (err != nil || len(*seen) != 1):
						t.Errorf("%s: %v, requests %q", name, err, *seen)
					case known && (*seen)[0] != call.want:
						t.Errorf("%s sends %s and not %s", name, (*seen)[0], call.want)
					}
				}
			}
			if v, err := Connect(t.Context(), dialOf(t, c)); err != nil || v.Version() != f.version(t) {
				t.Errorf("its version: %v, %v", v, err)
			}
		})
	}
}

// TestConformanceSees shows that the comparison finds what it is there for.
func TestConformanceSees(t *testing.T) {
	f := specifications(t)[0]
	for _, c := range []struct{ message, body, complaint string }{
		{"MachineConfiguration", `{"vcpu_count":1,"mem_size_mib":128}`, ""},
		{"MachineConfiguration", `{"vcpus":1,"mem_size_mib":128}`, "vcpus is no field"},
		{"MachineConfiguration", `{"mem_size_mib":128}`, "vcpu_count is required"},
		{"MachineConfiguration", `{"vcpu_count":"1","mem_size_mib":128}`, "vcpu_count is a string"},
		{"MachineConfiguration", `{"vcpu_count":1.5,"mem_size_mib":128}`, "vcpu_count is a number"},
		{"MachineConfiguration", `{"vcpu_count":33,"mem_size_mib":128}`, "vcpu_count is out of bounds"},
		{"MachineConfiguration", `{"vcpu_count":1,"mem_size_mib":128,"huge_pages":"4M"}`, "huge_pages is none of"},
		{"SnapshotLoadParams", `{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}}`, ""},
		{"SnapshotLoadParams", `{"snapshot_path":"s","mem_backend":{"backend_type":"Disk","backend_path":"m"}}`, "backend_type is none of"},
		{"SnapshotLoadParams", `{"snapshot_path":"s","clock_realtime":true}`, "clock_realtime is no field"}, // of this version
	} {
		got := strings.Join(f.check(c.message, []byte(c.body)), "; ")
		if c.complaint == "" && got != "" || !strings.Contains(got, c.complaint) {
			t.Errorf("%s: %q", c.body, got)
		}
	}
}

// recorder answers as the specification says, and complains of what is not
// in it.
func recorder(t *testing.T, f *facts) (*Client, *[]string) {
	t.Helper()
	var seen []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		for thing, id := range map[string][2]string{"/drives/": {"root", "{drive_id}"}, "/network-interfaces/": {"card", "{iface_id}"}} {
			if is, ok := strings.CutPrefix(path, thing); ok {
				if is != id[0] {
					t.Errorf("%s%q", thing, is)
				}
				path = thing + id[1]
			}
		}
		name := r.Method + " " + path
		seen = append(seen, name)
		call, ok := f.Calls[name]
		if !ok {
			t.Errorf("%s is not in the specification", name)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if call.Body != "" {
			for _, complaint := range f.check(call.Body, body) {
				t.Errorf("%s: %s in %s", name, complaint, body)
			}
		} else if len(body) > 0 {
			t.Errorf("%s has a body: %s", name, body)
		}
		if name == "GET /version" {
			if f.Types[call.Answers["200"]].Fields["firecracker_version"].Type != "string" {
				t.Error("a version is told in another way")
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"firecracker_version": f.version(t).String()})
			return
		}
		if _, ok := call.Answers["204"]; !ok {
			t.Errorf("%s does not succeed with 204", name)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	c.version = f.version(t)
	return c, &seen
}

// check compares a message with its type.
func (f *facts) check(name string, body []byte) []string {
	var out []string
	typ, ok := f.Types[name]
	if !ok {
		return []string{name + " is no type"}
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return []string{err.Error()}
	}
	for _, r := range typ.Required {
		if _, ok := m[r]; !ok {
			out = append(out, r+" is required")
		}
	}
	for field, value := range m {
		want, ok := typ.Fields[field]
		if !ok {
			out = append(out, field+" is no field of "+name)
			continue
		}
		kind := kindOf(value)
		if _, ref := f.Types[want.Type]; ref {
			out = append(out, f.check(want.Type, value)...)
			continue
		}
		var n int64
		_ = json.Unmarshal(value, &n)
		var s string
		_ = json.Unmarshal(value, &s)
		switch {
		case kind != want.Type:
			out = append(out, field+" is a "+kind+" and not a "+want.Type)
		case kind == "integer" && (want.Min != nil && n < *want.Min || want.Max != nil && n > *want.Max):
			out = append(out, field+" is out of bounds")
		case want.Enum != nil && !slices.Contains(want.Enum, s):
			out = append(out, field+" is none of "+strings.Join(want.Enum, ", "))
		}
	}
	return out
}

func kindOf(value json.RawMessage) string {
	var v any
	if json.Unmarshal(value, &v) != nil {
		return "nothing"
	}
	switch v := v.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
		return "number"
	}
	return "object"
}

// serve is a client of a scripted API.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return New(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}, Version{1, 17, 0})
}

// dialOf opens a stream to the API of a client.
func dialOf(t *testing.T, c *Client) Dial {
	t.Helper()
	return func(ctx context.Context) (net.Conn, error) {
		return c.http.Transport.(*http.Transport).DialContext(ctx, "", "")
	}
}
