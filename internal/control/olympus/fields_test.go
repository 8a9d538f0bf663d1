package olympus_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func openFile(path string) (*os.File, error) { return os.Open(path) }

// bodyOf writes a request as its caller would.
func bodyOf(r sandbox.Request) string {
	type m = map[string]any
	body := m{}
	put := func(key string, v any, set bool) {
		if set {
			body[key] = v
		}
	}
	put("template", r.Template, r.Template != "")
	put("command", r.Command, r.Command != nil)
	put("name", r.Name, r.Name != "")
	put("env", r.Env, r.Env != nil)
	put("working_dir", r.WorkingDir, r.WorkingDir != "")
	put("user", r.User, r.User != "")
	put("stdin", base64.StdEncoding.EncodeToString(r.Stdin), r.Stdin != nil)
	put("stdin_open", true, r.StdinOpen)
	put("labels", r.Labels, r.Labels != nil)
	put("node_selector", r.NodeSelector, r.NodeSelector != nil)
	put("max_duration", fmt.Sprintf("%.9fs", r.MaxDuration.Seconds()), r.MaxDuration != 0)
	put("resources", m{"vcpus": r.Resources.VCPUs, "memory_mib": r.Resources.MemoryMiB,
		"disk_mib": r.Resources.DiskMiB, "processes": r.Resources.Processes}, r.Resources != sandbox.Resources{})
	var files, grants []m
	for _, f := range r.Files {
		files = append(files, m{"path": f.Path, "mode": f.Mode, "data": base64.StdEncoding.EncodeToString(f.Data)})
	}
	put("files", files, files != nil)
	for _, g := range r.Network.Allow {
		grant := m{"domain": g.Domain, "cidr": g.CIDR, "protocol": g.Protocol, "ports": g.Ports}
		if g.Ports == nil {
			delete(grant, "ports")
		}
		grants = append(grants, grant)
	}
	put("network", m{"allow": grants}, grants != nil)
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	// Bytes that are no UTF-8 are sent as they are, which JSON does not allow.
	return strings.ReplaceAll(string(b), `\ufffd`, "\xff")
}

// Every field of a run at and beyond its bounds, through the whole server:
// what is beyond names the field and leaves nothing but an audit entry.
func TestEveryFieldOfRunIsBounded(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	for _, c := range themistest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			req := themistest.Request()
			c.Change(&req)
			before := len(w.audits())
			r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: bodyOf(req)})
			if c.Field == "" {
				// It is well formed. What the policy says to it is another matter.
				if r.code == http.StatusBadRequest {
					t.Fatalf("refused as malformed: %s", r.body)
				}
				return
			}
			if r.code == http.StatusRequestEntityTooLarge { // the body's own bound came first
				return
			}
			e := r.fails(t, fault.InvalidArgument)
			if e.Field != c.Field && (e.Field != "" || utf8.ValidString(bodyOf(req))) {
				t.Errorf("field %q, want %q: %s", e.Field, c.Field, r.body)
			}
			if e.Hint == "" {
				t.Errorf("no hint: %s", r.body)
			}
			audits := w.audits()
			if len(audits) != before+1 || audits[before] != "acme run deny" {
				t.Errorf("audit got %q", audits[before:])
			}
		})
	}
	for _, rec := range must(w.book.List(t.Context(), ledger.Query{States: []sandbox.State{sandbox.Queued}}))(t).Records {
		if rec.Tenant != "acme" {
			t.Errorf("a record of %s", rec.Tenant)
		}
	}
}

// What is wrong with the JSON itself is refused by the field's name, too, and
// never shows a value: it may be a secret.
func TestMalformedJSON(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	const ok = `"command":["true"]`
	for name, c := range map[string]struct{ body, field string }{
		"nothing":                 {"", ""},
		"no JSON":                 {"s3cret", ""},
		"cut off":                 {`{"command":["s3cret"`, ""},
		"a list":                  {`["s3cret"]`, ""},
		"null":                    {`null`, ""},
		"two objects":             {`{` + ok + `} {}`, ""},
		"no UTF-8":                {"{\"command\":[\"\xff\"]}", ""},
		"unknown":                 {`{` + ok + `,"s":1}`, "s"},
		"unknown and unprintable": {`{` + ok + `,"a\u001b[2J\u202e\u009b\u00e9":1}`, `a\x1b[2J\u202e\u009b\u00e9`},
		"camel case":              {`{` + ok + `,"workingDir":"/"}`, "workingDir"},
		"unknown inside":          {`{` + ok + `,"resources":{"gpus":1}}`, "resources.gpus"},
		"unknown in a list":       {`{` + ok + `,"files":[{"path":"/a"},{"name":"s3cret"}]}`, "files[1].name"},
		"unknown far inside":      {`{` + ok + `,"network":{"allow":[{"cidrs":"s3cret"}]}}`, "network.allow[0].cidrs"},
		"twice":                   {`{` + ok + `,` + ok + `}`, "command"},
		"twice inside":            {`{` + ok + `,"env":{"A":"s3cret","A":"s3cret"}}`, "env.A"},
		"number as string":        {`{` + ok + `,"resources":{"vcpus":"s3cret"}}`, "resources.vcpus"},
		"fraction":                {`{` + ok + `,"resources":{"vcpus":1.5}}`, "resources.vcpus"},
		"beyond 32 bits":          {`{` + ok + `,"resources":{"memory_mib":4294967296}}`, "resources.memory_mib"},
		"negative mode":           {`{` + ok + `,"files":[{"path":"/a","mode":-1}]}`, "files[0].mode"},
		"string as number":        {`{` + ok + `,"name":5}`, "name"},
		"string as list":          {`{"command":"s3cret"}`, "command"},
		"null in a list":          {`{"command":["a",null]}`, "command[1]"},
		"null in a list of files": {`{` + ok + `,"files":[null]}`, "files[0]"},
		"object in a list":        {`{"command":[{"a":"s3cret"}]}`, "command[0]"},
		"env value":               {`{` + ok + `,"env":{"A":5}}`, "env.A"},
		"env is a list":           {`{` + ok + `,"env":["A=s3cret"]}`, "env"},
		"stdin no base64":         {`{` + ok + `,"stdin":"s3cret s3cret"}`, "stdin"},
		"data no base64":          {`{` + ok + `,"files":[{"path":"/a","data":"\n"}]}`, "files[0].data"},
		"bool":                    {`{` + ok + `,"stdin_open":"true"}`, "stdin_open"},
		"duration as number":      {`{` + ok + `,"max_duration":60}`, "max_duration"},
		"duration without unit":   {`{` + ok + `,"max_duration":"60"}`, "max_duration"},
		"duration in minutes":     {`{` + ok + `,"max_duration":"1m"}`, "max_duration"},
		"duration that overflows": {`{` + ok + `,"max_duration":"99999999999999999999s"}`, "max_duration"},
		"negative duration":       {`{` + ok + `,"max_duration":"-5s"}`, "max_duration"},
		"resources no object":     {`{` + ok + `,"resources":[]}`, "resources"},
		"no command":              {`{}`, "command"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(w.audits())
			r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: c.body})
			e := r.fails(t, fault.InvalidArgument)
			if e.Field != c.field || e.Hint == "" {
				t.Errorf("field %q, want %q, and a hint: %s", e.Field, c.field, r.body)
			}
			if strings.Contains(r.body, "s3cret") {
				t.Errorf("the answer shows a value: %s", r.body)
			}
			if got := w.audits()[before:]; len(got) != 1 || got[0] != "acme run deny" {
				t.Errorf("audit got %q", got)
			}
		})
	}
	if page := must(w.book.List(t.Context(), ledger.Query{}))(t); len(page.Records) != 0 {
		t.Errorf("%d records were stored", len(page.Records))
	}
	if strings.Contains(w.log.String(), "s3cret") {
		t.Error("the log shows a value")
	}
}

func TestBadParameters(t *testing.T) {
	w := newWorld(t)
	token, admin := w.token("acme"), w.token("acme", sandbox.ScopeAdmin)
	id := string(w.run(token, `{"command":["true"]}`))
	for _, c := range []struct{ method, path, field string }{
		{"GET", "/sandbox/nonsense", "id"},
		{"GET", "/sandbox/sb-01ARZ3NDEKTSV4RRFFQ69G5FAV", "id"},
		{"GET", "/sandbox/" + id + "?verbose=1", "verbose"},
		{"GET", "/sandbox?states=queued", "states"},
		{"GET", "/sandbox?state=sleeping", "state"},
		{"GET", "/sandbox?label=team", "label"},
		{"GET", "/sandbox?label=a=1&label=a=2", "label"},
		{"GET", "/sandbox?page_token=x", "page_token"},
		{"GET", "/sandbox?page_size=-1", "page_size"},
		{"GET", "/sandbox?page_size=1001", "page_size"},
		{"GET", "/sandbox?page_size=many", "page_size"},
		{"GET", "/sandbox?page_size=1&page_size=2", "page_size"},
		{"GET", "/sandbox?page_size=%zz", ""},
		{"GET", "/sandbox?tenant=%ff", "tenant"},
		{"DELETE", "/sandbox/" + id + "?grace=soon", "grace"},
		{"DELETE", "/sandbox/" + id + "?grace=-1s", "grace"},
		{"DELETE", "/sandbox/" + id + "?grace=1h", "grace"},
		{"DELETE", "/sandbox/" + id + "?id=" + id, "id"},
		{"GET", "/sandbox/" + id + "/logs?stream=stdlog", "stream"},
		{"GET", "/sandbox/" + id + "/logs?offset=-1", "offset"},
		{"GET", "/sandbox/" + id + "/logs?offset=1.5", "offset"},
		{"GET", "/sandbox/" + id + "/logs?offset=NaN", "offset"},
		{"GET", "/sandbox/" + id + "/logs?offset=9007199254740993", "offset"},
		{"GET", "/sandbox/" + id + "/logs?tail=-1", "tail"},
		{"GET", "/sandbox/" + id + "/logs?tail=10001", "tail"},
		{"GET", "/sandbox/" + id + "/logs?follow=perhaps", "follow"},
		{"GET", "/sandbox/" + id + "/events?after=-1", "after"},
		{"GET", "/sandbox/" + id + "/events?after=-1&follow", "after"},
		{"GET", "/sandbox/" + id + "/logs?tail=-1&follow", "tail"},
		{"POST", "/sandbox/nonsense/stdin", "id"},
		{"POST", "/sandbox/run?wait=long", "wait"},
		{"POST", "/sandbox/run?wait=-1s", "wait"},
		{"POST", "/sandbox/run?wait=10h", "wait"},
		{"POST", "/sandbox/run?dry_run=1", "dry_run"},
		{"GET", "/audit?page_token=x", "page_token"},
		{"GET", "/nodes?all=1", "all"},
		{"POST", "/tokens?tenant=acme", "tenant"},
	} {
		t.Run(c.method+c.path, func(t *testing.T) {
			a := ask{method: c.method, path: c.path, token: admin}
			if c.method == "POST" {
				a.body = `{"command":["true"]}`
			}
			r := w.ask(a)
			if e := r.fails(t, fault.InvalidArgument); e.Field != c.field || e.Hint == "" {
				t.Errorf("field %q, want %q, and a hint: %s", e.Field, c.field, r.body)
			}
		})
	}
	w.ask(ask{path: "/sandbox", token: token, body: "{}"}).fails(t, fault.InvalidArgument)
	if rec := must(w.book.Get(t.Context(), sandbox.ID(id)))(t); rec.State != sandbox.Queued {
		t.Errorf("one of them ended the sandbox: %s", rec.State)
	}
}
