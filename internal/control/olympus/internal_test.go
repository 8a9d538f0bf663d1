package olympus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Every row of the table of errors comes out as that row, over HTTP and gRPC.
func TestErrorsComeOutAsTheTableSays(t *testing.T) {
	for _, row := range fault.Table() {
		in := &fault.Error{
			Kind: row.Kind, Message: "what \xff happened", Hint: "do this", Field: "files[2].path",
			Sandbox: "sb-x", RetryAfter: 1500 * time.Millisecond,
		}
		err := fmt.Errorf("context that is ours: %w", in)
		rec := httptest.NewRecorder()
		writeError(rec, err, "req-1")
		var got errorLine
		if jerr := json.Unmarshal(rec.Body.Bytes(), &got); jerr != nil || rec.Code != row.HTTP || got.Error.Code != row.Code {
			t.Errorf("%s over HTTP: %d %s", row.Code, rec.Code, rec.Body)
		}
		s := status.Convert(statusOf(err, "req-1"))
		if uint32(s.Code()) != row.GRPC || len(s.Details()) != 1 {
			t.Fatalf("%s over gRPC: %v", row.Code, s)
		}
		d := s.Details()[0].(*apiv1.Error)
		if strings.Contains(rec.Body.String()+s.Message(), "ours") {
			t.Errorf("%s shows context: %s", row.Code, rec.Body)
		}
		if row.Kind == fault.Internal {
			if strings.Contains(rec.Body.String()+s.String(), "happened") {
				t.Errorf("an internal error shows its message: %s %v", rec.Body, s)
			}
			continue
		}
		want := errorLine{wireError{Code: row.Code, Message: "what \uFFFD happened", Hint: "do this", Field: "files[2].path", RequestID: "req-1", ID: "sb-x", RetryAfter: "1.5s"}}
		if got != want || rec.Header().Get("Retry-After") != "2" {
			t.Errorf("got %+v, Retry-After %s", got, rec.Header().Get("Retry-After"))
		}
		if d.GetCode() != row.Code || d.GetMessage() != want.Error.Message || d.GetHint() != "do this" || d.GetField() != "files[2].path" ||
			d.GetRequestId() != "req-1" || d.GetId() != "sb-x" || d.GetRetryAfter().AsDuration() != in.RetryAfter {
			t.Errorf("got %v", d)
		}
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, status.Error(codes.Canceled, "x")} {
		if k := shown(fmt.Errorf("reading: %w", err)).Kind; k != fault.Unavailable {
			t.Errorf("%v is shown as %v", err, k)
		}
	}
	if e := shown(errors.New("s3cret")); e.Kind != fault.Internal || strings.Contains(e.Message, "s3cret") {
		t.Errorf("got %v", e)
	}
}

// The error detail of the contract, the body over HTTP and the document agree.
func TestTheErrorShapeIsOne(t *testing.T) {
	b, _ := json.Marshal(wireError{Hint: "x", Field: "x", ID: "x", RetryAfter: "x"})
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	var got, want, documented []string
	for k := range fields {
		got = append(got, k)
	}
	d := (&apiv1.Error{}).ProtoReflect().Descriptor().Fields()
	for i := range d.Len() {
		want = append(want, string(d.Get(i).Name()))
	}
	schemas := document(t)["components"].(map[string]any)["schemas"].(map[string]any)
	shape := schemas["ErrorResponse"].(map[string]any)["properties"].(map[string]any)["error"].(map[string]any)["properties"].(map[string]any)
	for k := range shape {
		documented = append(documented, k)
	}
	slices.Sort(got)
	slices.Sort(want)
	slices.Sort(documented)
	if !slices.Equal(got, want) || !slices.Equal(documented, want) {
		t.Errorf("over HTTP %v, in the document %v, in the contract %v", got, documented, want)
	}
	var codes []string
	for _, row := range fault.Table() {
		codes = append(codes, row.Code)
	}
	var listed []string
	for _, c := range shape["code"].(map[string]any)["enum"].([]any) {
		listed = append(listed, c.(string))
	}
	if !slices.Equal(listed, codes) {
		t.Errorf("the document lists the codes %v, the table %v", listed, codes)
	}
}

func document(t *testing.T) map[string]any {
	t.Helper()
	b, err := apiv1.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func contract(t *testing.T) map[string]*method {
	t.Helper()
	methods, err := methodsOf(map[*grpc.ServiceDesc]any{
		&apiv1.SandboxService_ServiceDesc: nil, &apiv1.OperatorService_ServiceDesc: nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	return methods
}

// Each method states who may call it. (methodsOf fails for one that does not,
// so that the server would not even start.)
func TestEveryMethodHasAScope(t *testing.T) {
	methods := contract(t)
	services := apiv1.File_v1_tartarus_proto.Services()
	n := 0
	for i := range services.Len() {
		n += services.Get(i).Methods().Len()
		for j := range services.Get(i).Methods().Len() {
			d := services.Get(i).Methods().Get(j)
			m := methods["/"+string(services.Get(i).FullName())+"/"+string(d.Name())]
			if m == nil {
				t.Errorf("%s is not served", d.FullName())
				continue
			}
			if _, known := scopes[m.scope]; !known && m.scope != apiv1.Scope_SCOPE_NONE {
				t.Errorf("%s has scope %v", d.FullName(), m.scope)
			}
		}
	}
	if n != len(methods) || n == 0 {
		t.Errorf("%d methods in the contract, %d served", n, len(methods))
	}
	// A method without one is found.
	file := protodesc.ToFileDescriptorProto(apiv1.File_v1_tartarus_proto)
	proto.ClearExtension(file.GetService()[0].GetMethod()[0].GetOptions(), apiv1.E_Scope)
	open, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	if scope, err := scopeOf(open.Services().Get(0).Methods().Get(0)); err == nil {
		t.Errorf("a method without a scope has %v", scope)
	}
}

// JSON names are the contract's own, and no number is a string.
func TestEveryFieldIsPlainJSON(t *testing.T) {
	messages := apiv1.File_v1_tartarus_proto.Messages()
	for i := range messages.Len() {
		fields := messages.Get(i).Fields()
		for j := range fields.Len() {
			f := fields.Get(j)
			if f.JSONName() != string(f.Name()) {
				t.Errorf("%s is %s in JSON", f.FullName(), f.JSONName())
			}
			switch f.Kind() {
			case protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.Sint64Kind:
				t.Errorf("%s would be a string in JSON", f.FullName())
			}
		}
	}
}

// The document and the routes are the same, in both directions.
func TestTheDocumentHasEveryRoute(t *testing.T) {
	documented := map[string]bool{}
	for path, item := range document(t)["paths"].(map[string]any) {
		for verb, op := range item.(map[string]any) {
			documented[strings.ToUpper(verb)+" "+path] = true
			responses := op.(map[string]any)["responses"].(map[string]any)
			if responses["400"] == nil || responses["500"] == nil || len(responses) < 4 {
				t.Errorf("%s %s answers %v", verb, path, responses)
			}
		}
	}
	served := map[string]bool{
		"GET /healthz": true, "GET /readyz": true, "GET /metrics": true, "GET /openapi.json": true, "POST /sandbox/{id}/stdin": true,
	}
	for _, m := range contract(t) {
		if m.rule != nil {
			verb, path := pattern(m.rule)
			served[verb+" "+path] = true
		}
	}
	for r := range served {
		if !documented[r] {
			t.Errorf("%s is not in the document", r)
		}
	}
	for r := range documented {
		if !served[r] {
			t.Errorf("%s is in the document only", r)
		}
	}
	checkRefs(t, document(t), document(t))
}

// checkRefs follows every $ref of v.
func checkRefs(t *testing.T, root, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			at := root
			for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
				m, _ := at.(map[string]any)
				at = m[part]
			}
			if at == nil {
				t.Errorf("%s points nowhere", ref)
			}
		}
		for _, x := range v {
			checkRefs(t, root, x)
		}
	case []any:
		for _, x := range v {
			checkRefs(t, root, x)
		}
	}
}

// What is generated is what the contract says today.
func TestGeneratedFilesAreFresh(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a cold cache builds the tools first
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "buf", "generate", "--output", out)
	cmd.Dir = root
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	n := 0
	err = filepath.WalkDir(filepath.Join(out, "api"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n++
		rel, _ := filepath.Rel(out, path)
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(filepath.Join(root, rel)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale (%v); run: make generate", rel, err)
		}
		return nil
	})
	if err != nil || n < 5 {
		t.Errorf("%d files were generated, %v", n, err)
	}
}

// Whatever the check lets pass, protobuf's own reader takes, and the other way
// round nothing that it takes by our names and types is refused.
func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"command":["a"],"env":{"A":"b"},"stdin":"aGk=","files":[{"path":"/a","mode":420,"data":""}],"max_duration":"1.5s"}`))
	f.Add([]byte(`{"resources":{"vcpus":1,"memory_mib":-1},"network":{"allow":[{"ports":[1,2]},{}]},"labels":null}`))
	f.Add([]byte(`{"command":[null]}`))
	f.Add([]byte(`{"command":["\ud800"]}`))
	f.Add([]byte("{\"a\u0000\":1}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := &apiv1.RunRequest{}
		err := decodeJSON(body, got)
		if err == nil {
			again := &apiv1.RunRequest{}
			b, merr := marshalJSON(got)
			if merr != nil {
				t.Fatalf("%q was taken, and cannot be written: %v", body, merr)
			}
			if err := decodeJSON(b, again); err != nil || !proto.Equal(got, again) {
				t.Fatalf("%q became %s: %v", body, b, err)
			}
			return
		}
		var e *fault.Error
		if !errors.As(err, &e) || e.Kind != fault.InvalidArgument || e.Hint == "" {
			t.Fatalf("%q: got %v", body, err)
		}
		theirs := &apiv1.RunRequest{}
		if protojson.Unmarshal(body, theirs) == nil && e.Message == "the body does not fit the request" {
			t.Fatalf("%q: refused without a reason", body)
		}
	})
}

func TestHalfRune(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "a": 0, "ä": 0, "\xc3": 1, "a\xc3": 1, "\xf0\x9f": 2, "\xf0\x9f\xa5": 3, "🥊": 0, "\xff": 0, "\x80": 0, "a\x80": 0, "\xe6\x8b": 2,
	} {
		if got := halfRune([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
