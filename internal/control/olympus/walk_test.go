package olympus_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// walked says of a method who may call it, and how it is called. "ID" in the
// request stands for a sandbox's.
type walked struct {
	scope   sandbox.Scope // "": everybody
	request string        // JSON
	also    string        // an error that who may call it can get, too
}

// theWalk has a row for every method of the contract: one without fails.
var theWalk = map[protoreflect.FullName]walked{
	"tartarus.v1.SandboxService.Run":            {"run", `{"command":["true"]}`, ""},
	"tartarus.v1.SandboxService.Get":            {"read", `{"id":"ID"}`, ""},
	"tartarus.v1.SandboxService.List":           {"read", `{}`, ""},
	"tartarus.v1.SandboxService.Logs":           {"read", `{"id":"ID"}`, ""},
	"tartarus.v1.SandboxService.Stdin":          {"run", `{"id":"ID"}`, ""},
	"tartarus.v1.SandboxService.Events":         {"read", `{"id":"ID"}`, ""},
	"tartarus.v1.SandboxService.Kill":           {"run", `{"id":"ID"}`, ""},
	"tartarus.v1.OperatorService.ListTemplates": {"read", `{}`, ""},
	"tartarus.v1.OperatorService.ListNodes":     {"admin", `{}`, ""},
	"tartarus.v1.OperatorService.ListAudit":     {"admin", `{}`, ""},
	"tartarus.v1.OperatorService.GetPolicy":     {"admin", `{}`, ""},
	"tartarus.v1.OperatorService.ListPolicies":  {"admin", `{}`, ""},
	"tartarus.v1.OperatorService.CreateToken":   {"admin", `{"scopes":["read"]}`, ""},
	"tartarus.v1.OperatorService.ListTokens":    {"admin", `{}`, ""},
	"tartarus.v1.OperatorService.RevokeToken":   {"admin", `{"id":"tok-none"}`, "not_found"},
}

// routesBeyond are the routes that the contract does not have.
var routesBeyond = map[string]walked{
	"/metrics": {"read", "", ""}, "/openapi.json": {"read", "", ""}, "/healthz": {"", "", ""}, "/readyz": {"", "", ""},
}

// servicesBeyond are the gRPC services that the contract does not have: what
// they tell is open to all (health), or no tenant's (reflection, scope read).
var servicesBeyond = []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}

// walker is somebody who calls.
type walker struct {
	name, token, tenant string
	scopes              []sandbox.Scope // nil: a token that is no good, or none
}

func (k walker) has(s sandbox.Scope) bool {
	return s == "" || sandbox.Principal{Scopes: k.scopes}.Has(s)
}

// answered is an answer without what differs from call to call.
type answered struct {
	code string // of the error table; "ok"
	rest string // everything else
}

// walk is what the calls of a walk share.
type walk struct {
	*world
	t    *testing.T
	conn *grpc.ClientConn
}

// same replaces the sandbox's ID, and what is new with each call.
func same(text, id string, fresh ...string) string {
	for _, f := range fresh {
		if f != "" {
			text = strings.ReplaceAll(text, f, "REQUEST")
		}
	}
	return strings.ReplaceAll(text, id, "ID")
}

// rest calls a route.
func (w *walk) rest(k walker, verb, path, body, id string) answered {
	w.t.Helper()
	a := ask{method: verb, path: strings.ReplaceAll(path, "ID", id), token: k.token}
	if verb == http.MethodPost {
		a.body = strings.ReplaceAll(body, "ID", id)
	}
	r := w.ask(a)
	code := "ok"
	if r.code >= 400 {
		var e struct{ Error wireError }
		if err := json.Unmarshal([]byte(r.body), &e); err != nil {
			w.t.Fatalf("%s %s: %d %s", verb, path, r.code, r.body)
		}
		code = e.Error.Code
	}
	r.header.Del("Date")
	names := slices.Sorted(maps.Keys(r.header))
	var b strings.Builder
	fmt.Fprintln(&b, r.code)
	for _, n := range names {
		fmt.Fprintln(&b, n, r.header[n])
	}
	return answered{code, same(b.String()+r.body, id, r.header.Get("X-Request-Id"))}
}

// grpc calls a method.
func (w *walk) grpc(k walker, m protoreflect.MethodDescriptor, request, id string) answered {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if k.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+k.token)
	}
	in, out := w.message(m.Input()), w.message(m.Output())
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(request, "ID", id)), in); err != nil {
		w.t.Fatal(err)
	}
	desc := &grpc.StreamDesc{ServerStreams: m.IsStreamingServer(), ClientStreams: m.IsStreamingClient()}
	stream := must(w.conn.NewStream(ctx, desc, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())))(w.t)
	if err := stream.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		w.t.Fatal(err)
	}
	_ = stream.CloseSend() // the answer says why
	var b strings.Builder
	for {
		err := stream.RecvMsg(out)
		if errors.Is(err, io.EOF) || err == nil && !desc.ServerStreams {
			return answered{"ok", same(b.String()+out.(fmt.Stringer).String(), id)}
		}
		if err != nil {
			s := status.Convert(err)
			if len(s.Details()) != 1 {
				w.t.Fatalf("%s: %v", m.FullName(), err)
			}
			e, ok := s.Details()[0].(*apiv1.Error)
			if !ok || s.Code() == codes.OK {
				w.t.Fatalf("%s: %v", m.FullName(), err)
			}
			return answered{e.GetCode(), same(fmt.Sprint(s.Code(), s.Message(), e), id, e.GetRequestId())}
		}
		b.WriteString(out.(fmt.Stringer).String())
	}
}

func (w *walk) message(d protoreflect.MessageDescriptor) proto.Message {
	w.t.Helper()
	return must(protoregistry.GlobalTypes.FindMessageByName(d.FullName()))(w.t).New().Interface()
}

// call is one way to call a method, as k and about the sandbox id.
type call func(k walker, id string) answered

// callsOf are both ways to call a method of the contract.
func (w *walk) callsOf(m protoreflect.MethodDescriptor, row walked) map[string]call {
	verb, path := http.MethodPost, "/sandbox/{id}/stdin" // the one route that no annotation has
	if rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule); rule != nil {
		for v, p := range map[string]string{"GET": rule.GetGet(), "POST": rule.GetPost(), "DELETE": rule.GetDelete()} {
			if p != "" {
				verb, path = v, p
			}
		}
	} else if m.Name() != "Stdin" {
		w.t.Fatalf("%s has no route that the walk knows", m.FullName())
	}
	named := struct{ ID string }{}
	if err := json.Unmarshal([]byte(row.request), &named); err != nil {
		w.t.Fatal(err)
	}
	path = strings.ReplaceAll(path, "{id}", named.ID)
	return map[string]call{
		"REST": func(k walker, id string) answered { return w.rest(k, verb, path, row.request, id) },
		"gRPC": func(k walker, id string) answered { return w.grpc(k, m, row.request, id) },
	}
}

// walkers are those who may not know of acme's sandboxes, and those who may.
func (w *walk) walkers() (strangers, owners []walker) {
	make := func(tenant string, scopes ...sandbox.Scope) walker {
		return walker{fmt.Sprint(tenant, scopes), w.token(tenant, scopes...), tenant, scopes}
	}
	revoked, revoke := w.revocable()
	revoke()
	expired := "tart_" + strings.Repeat("B", 42) + "A" // as if it was made yesterday
	if err := w.book.PutToken(w.t.Context(), ledger.Token{
		ID: "tok-expired", Hash: sha256.Sum256([]byte(expired)), Tenant: "acme", Scopes: []sandbox.Scope{"admin"}, ExpiresAt: time.Now(),
	}); err != nil {
		w.t.Fatal(err)
	}
	strangers = []walker{
		{name: "nobody"}, {name: "a malformed token", token: "tart_x"}, {name: "a revoked token", token: revoked}, {name: "an expired token", token: expired},
		{name: "an unknown token", token: "tart_" + strings.Repeat("A", 43)},
	}
	for _, scopes := range [][]sandbox.Scope{{"read"}, {"run"}, {"read", "run"}} {
		strangers = append(strangers, make("local", scopes...), make("tiny", scopes...))
		owners = append(owners, make("acme", scopes...))
	}
	return strangers, append(owners, make("acme", "admin"), make("local", "admin"), make("tiny", "admin"))
}

// TestWalk goes through all methods, scopes and tenants, over REST and gRPC.
// Whoever lacks the scope is refused, whatever the request is about; another
// tenant's sandbox answers as one that does not exist, to the byte; and no
// answer to a stranger has anything of the tenant's in it.
func TestWalk(t *testing.T) {
	w := &walk{world: newWorld(t), t: t}
	w.conn = w.plain()
	const absent = "sb-01m855ky5x7g0esszyte7tsqv4"
	owner := w.token("acme")
	ended := string(w.run(owner, `{"command":["acmes-own"],"name":"acmes-own","labels":{"team":"acmes-own"}}`))
	a := w.place()
	appendTo(t, w.output(a.Sandbox, 0), "stdout", "acmes-own")
	w.end(a, 0)
	live := string(w.run(owner, `{"command":["acmes-own"],"name":"acmes-own"}`))
	w.place()
	strangers, owners := w.walkers()
	before := must(w.book.Get(t.Context(), sandbox.ID(live)))(t)

	type target struct {
		what  string
		row   walked
		calls map[string]call
	}
	var all []target
	left := maps.Clone(theWalk)
	services := apiv1.File_v1_tartarus_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			row, ok := theWalk[m.FullName()]
			if !ok {
				t.Errorf("%s has no row: say who may call it, and how", m.FullName())
				continue
			}
			delete(left, m.FullName())
			all = append(all, target{string(m.FullName()), row, w.callsOf(m, row)})
		}
	}
	for name := range left {
		t.Errorf("%s is in the table and not in the contract", name)
	}
	for path, row := range routesBeyond {
		all = append(all, target{path, row, map[string]call{
			"REST": func(k walker, id string) answered { return w.rest(k, http.MethodGet, path, "", id) },
		}})
	}

	for _, x := range all {
		names := strings.Contains(x.row.request, "ID")
		for way, call := range x.calls {
			for _, k := range strangers {
				none := call(k, absent)
				want := "ok"
				switch {
				case k.scopes == nil && x.row.scope != "":
					want = "unauthenticated"
				case !k.has(x.row.scope):
					want = "policy_denied"
				case names:
					want = "not_found"
				}
				if want == "ok" && none.code == "quota_exceeded" { // the small tenant's runs
					want = none.code
				}
				if none.code != want {
					t.Errorf("%s over %s by %s: %+v, want %s", x.what, way, k.name, none, want)
				}
				for _, id := range []string{live, ended} {
					got := call(k, id)
					if names && got != none {
						t.Errorf("%s over %s by %s tells another tenant's sandbox from none:\n%+v\n%+v", x.what, way, k.name, got, none)
					}
					if strings.Contains(got.rest, "acme") || strings.Contains(got.rest, live) || strings.Contains(got.rest, ended) {
						t.Errorf("%s over %s tells %s of another tenant: %s", x.what, way, k.name, got.rest)
					}
				}
			}
		}
	}
	if after := must(w.book.Get(t.Context(), sandbox.ID(live)))(t); after.State != before.State || after.Kill != "" {
		t.Errorf("a stranger changed it: %+v", after)
	}

	for _, x := range all {
		for way, call := range x.calls {
			for _, k := range owners {
				for _, id := range []string{live, ended} {
					got := call(k, id)
					refused := got.code == "unauthenticated" || got.code == "policy_denied" || got.code == "not_found"
					switch {
					case !k.has(x.row.scope) && got.code != "policy_denied", k.has(x.row.scope) && refused && got.code != x.row.also:
						t.Errorf("%s over %s by %s: %+v", x.what, way, k.name, got)
					}
				}
			}
		}
	}
}

// TestWalkSeesEveryService insists that nothing is served beside what the walk
// goes through.
func TestWalkSeesEveryService(t *testing.T) {
	w := newWorld(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+w.token("acme", sandbox.ScopeRead))
	stream := must(reflectionv1.NewServerReflectionClient(w.plain()).ServerReflectionInfo(ctx))(t)
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range must(stream.Recv())(t).GetListServicesResponse().GetService() {
		got = append(got, s.GetName())
	}
	_ = stream.CloseSend() // it is over
	want := slices.Clone(servicesBeyond)
	for i := range apiv1.File_v1_tartarus_proto.Services().Len() {
		want = append(want, string(apiv1.File_v1_tartarus_proto.Services().Get(i).FullName()))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("services %v are served, want %v", got, want)
	}
}

// A tenant's name tells nobody whether there is one.
func TestTenantsAreNotGuessed(t *testing.T) {
	w := newWorld(t)
	for _, scope := range []sandbox.Scope{"read", "run"} {
		k := walker{token: w.token("local", scope)}
		x := &walk{world: w, t: t}
		for _, path := range []string{"/sandbox?tenant=", "/tokens?tenant=", "/audit?tenant="} {
			there, none := x.rest(k, "GET", path+"acme", "", "acme"), x.rest(k, "GET", path+"nosuch", "", "nosuch")
			if there != none || there.code != "policy_denied" {
				t.Errorf("%s: %+v, and for one that is not there %+v", path, there, none)
			}
		}
	}
}
