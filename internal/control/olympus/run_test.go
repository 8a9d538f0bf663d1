package olympus_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestRunAnswersTheQueuedRecord(t *testing.T) {
	w := newWorld(t)
	r := w.ask(ask{method: "POST", path: "/sandbox/run", token: w.token("acme"), body: `{
		"template": "debian", "command": ["python3", "-c", "print(40+2)"], "name": "answer", "env": {"LANG": "C.UTF-8"},
		"working_dir": "/work", "user": "sandbox", "stdin": "aGk=", "files": [{"path": "/work/a.py", "mode": 420, "data": "cHJpbnQoMSk="}],
		"resources": {"vcpus": 1, "memory_mib": 200, "disk_mib": 512, "processes": 256}, "max_duration": "90s",
		"network": {"allow": [{"domain": "api.example.com", "ports": [443]}, {"cidr": "203.0.113.0/24", "protocol": "tcp", "ports": [5432]}]},
		"labels": {"team": "ci"}, "node_selector": {"zone": "a"}}`})
	rec := r.json(t, http.StatusAccepted)
	id := rec["id"].(string)
	if got := r.header.Get("Location"); got != "/sandbox/"+id {
		t.Errorf("Location %q", got)
	}
	req := rec["request"].(map[string]any)
	for what, got := range map[string]any{
		"state": rec["state"] == "queued", "tenant": rec["tenant"] == "acme", "name": rec["name"] == "answer",
		"memory class":   req["resources"].(map[string]any)["memory_mib"] == 256.0,
		"duration":       req["max_duration"] == "90s",
		"env name":       req["env"].([]any)[0].(map[string]any)["name"] == "LANG",
		"env length":     req["env"].([]any)[0].(map[string]any)["bytes"] == 7.0,
		"stdin length":   req["stdin_bytes"] == 2.0,
		"file length":    req["files"].([]any)[0].(map[string]any)["bytes"] == 8.0,
		"decision":       rec["verdict"].(map[string]any)["decision"] == "allow",
		"log bytes":      req["log_bytes"] == float64(16<<20),
		"no exit":        rec["exit"] == nil,
		"no started_at":  rec["started_at"] == nil,
		"time":           strings.HasSuffix(rec["created_at"].(string), "Z"),
		"timing":         rec["timings"].(map[string]any)["judged"].(float64) > 0,
		"template bytes": strings.HasPrefix(req["template_digest"].(string), "sha256:dede"),
	} {
		if got != true {
			t.Errorf("%s is wrong in %s", what, r.body)
		}
	}
	for _, secret := range []string{"C.UTF-8", "aGk=", "cHJpbnQoMSk="} {
		if strings.Contains(r.body, secret) || strings.Contains(w.log.String(), secret) {
			t.Errorf("the secret %s is in the record or the log", secret)
		}
	}
	if got := w.ask(ask{path: "/sandbox/" + id, token: w.token("acme")}); got.body != r.body {
		t.Errorf("GET shows another record:\n%s\n%s", got.body, r.body)
	}
}

// What the queue holds opens with the keys, and is what was asked for.
func TestWhatIsAdmittedIsSignedAndSealed(t *testing.T) {
	w := newWorld(t)
	id := w.run(w.token("acme"), `{"command":["cat"],"env":{"KEY":"s3cret"},"stdin":"aGk="}`)
	adm := must(w.book.Admitted(t.Context(), id))(t)
	v, digest, err := w.ring.OpenVerdict(adm.Verdict, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if v.Sandbox != id || v.Tenant != "acme" || digest != adm.Record.Verdict.Digest || v.KeyID != adm.Record.Verdict.KeyID ||
		v.PolicyVersion != adm.Record.Verdict.PolicyVersion {
		t.Errorf("the verdict is of something else: %+v", v)
	}
	if need := v.Request.QueueTimeout + v.Request.StartTimeout; v.Expires.Before(v.Issued.Add(need)) {
		t.Errorf("the verdict ends at %v, before a start that comes late", v.Expires)
	}
	if strings.Contains(string(adm.Secrets), "s3cret") || strings.Contains(string(adm.Verdict), "s3cret") {
		t.Error("a secret lies open")
	}
	secrets := must(seal.DecodeSecrets(must(w.box.Open(id, adm.Secrets))(t), v.Request.SecretsDigest))(t)
	if secrets.Env["KEY"] != "s3cret" || string(secrets.Stdin) != "hi" {
		t.Errorf("other secrets came out: %+v", secrets)
	}
	if adm.Limits.Live == 0 {
		t.Error("no limits for the ledger to enforce")
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	acme, tiny, hasty := w.token("acme"), w.token("tiny"), w.token("hasty")
	post := func(token, body string) reply {
		return w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: body})
	}
	t.Run("by policy leaves a record", func(t *testing.T) {
		e := post(acme, `{"command":["id"],"user":"root"}`).fails(t, fault.PolicyDenied)
		if e.Message != "Commands do not run as root." || !sandbox.ID(e.ID).Valid() {
			t.Fatalf("got %+v", e)
		}
		rec := w.ask(ask{path: "/sandbox/" + e.ID, token: acme}).json(t, http.StatusOK)
		verdict := rec["verdict"].(map[string]any)
		if rec["state"] != "refused" || verdict["decision"] != "deny" || rec["ended_at"] == nil {
			t.Errorf("the record says %v", rec)
		}
		if reason := verdict["reasons"].([]any)[0].(map[string]any); reason["rule"] != "no-root" {
			t.Errorf("the reason says %v", reason)
		}
	})
	t.Run("a grant beyond the policy names its field", func(t *testing.T) {
		e := post(acme, `{"command":["id"],"network":{"allow":[{"domain":"a.example.com","ports":[443]},{"cidr":"10.0.0.0/8","ports":[22]}]}}`).fails(t, fault.PolicyDenied)
		if !strings.HasPrefix(e.Field, "network.allow[1]") {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("a contract that no node can hold", func(t *testing.T) {
		before := len(must(w.book.List(t.Context(), ledger.Query{}))(t).Records)
		e := post(acme, `{"command":["id"],"network":{"allow":[{"domain":"unheld.example.com","ports":[443]}]}}`).fails(t, fault.Unsupported)
		if e.Hint == "" || len(must(w.book.List(t.Context(), ledger.Query{}))(t).Records) != before {
			t.Errorf("%+v, or it left a record", e)
		}
		if a := w.audits(); a[len(a)-1] != "acme run deny" {
			t.Errorf("the audit's end is %q", a[len(a)-1])
		}
	})
	t.Run("more than the whole quota", func(t *testing.T) {
		before := len(must(w.book.List(t.Context(), ledger.Query{Tenant: "tiny"}))(t).Records)
		post(tiny, `{"command":["id"],"resources":{"memory_mib":512}}`).fails(t, fault.QuotaExceeded)
		if n := len(must(w.book.List(t.Context(), ledger.Query{Tenant: "tiny"}))(t).Records); n != before {
			t.Error("a refusal for quota left a record")
		}
	})
	t.Run("too many live", func(t *testing.T) {
		w.run(tiny, `{"command":["id"]}`)
		post(tiny, `{"command":["id"]}`).fails(t, fault.QuotaExceeded)
		if a := w.audits(); a[len(a)-1] != "tiny run deny" {
			t.Errorf("the audit's end is %q", a[len(a)-1])
		}
	})
	t.Run("too fast", func(t *testing.T) {
		post(hasty, `{"command":["id"]}`)
		before := len(w.audits())
		r := post(hasty, `{"command":["id"]}`)
		e := r.fails(t, fault.QuotaExceeded)
		if r.header.Get("Retry-After") == "" || e.RetryAfter == "" {
			t.Errorf("no Retry-After: %v %s", r.header, r.body)
		}
		post(hasty, `not JSON`).fails(t, fault.QuotaExceeded)
		if n := len(w.audits()); n != before {
			t.Errorf("a flood wrote %d audit entries", n-before)
		}
	})
	t.Run("a tenant that the policy does not name", func(t *testing.T) {
		e := post(w.token("ghost"), `{"command":["id"]}`).fails(t, fault.PolicyDenied)
		if e.ID != "" {
			t.Errorf("it left a record: %+v", e)
		}
	})
	t.Run("ten thousand strangers share one small rate", func(t *testing.T) {
		ghost := w.token("ghost2")
		for range 20 {
			post(ghost, `{"command":["id"]}`)
		}
		post(ghost, `{"command":["id"]}`).fails(t, fault.QuotaExceeded)
	})
	metrics := w.ask(ask{path: "/metrics", token: acme}).body
	for _, want := range []string{
		`tartarus_admissions_total{outcome="policy_denied"}`, `tartarus_admissions_total{outcome="admitted"} 2`,
		`tartarus_refusals_total{kind="policy_denied",rule="no-root"} 1`, `tartarus_api_requests_total{code="quota_exceeded",method="Run"}`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(metrics, "sb-") || strings.Contains(metrics, "acme") {
		t.Error("a sandbox or a tenant is in the metrics")
	}
}

// A run that the audit cannot tell of does not happen, not even as a refusal.
func TestWithoutTheAuditNothingRuns(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	w.book.fail(fault.New(fault.Unavailable, "the disk is full"))
	for _, body := range []string{`nonsense`, `{"command":["id"],"resources":{"memory_mib":1048577}}`} {
		r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: body})
		r.fails(t, fault.Unavailable)
		if r.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	w := newWorld(t)
	acme, local := w.token("acme"), w.token("local")
	post := func(token, key, body string) reply {
		return w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: body, header: map[string]string{"Idempotency-Key": key}})
	}
	var mu sync.Mutex
	ids := map[any]int{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			id := post(acme, "k1", `{"command":["true"]}`).json(t, http.StatusAccepted)["id"]
			mu.Lock()
			defer mu.Unlock()
			ids[id]++
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("one key made %d sandboxes", len(ids))
	}
	post(acme, "k1", `{"command":["false"]}`).fails(t, fault.Conflict)
	other := post(local, "k1", `{"command":["true"]}`).json(t, http.StatusAccepted)["id"]
	if ids[other] != 0 {
		t.Error("a key of one tenant answers another")
	}
	if e := post(acme, strings.Repeat("k", 256), `{"command":["true"]}`).fails(t, fault.InvalidArgument); e.Field != "Idempotency-Key" {
		t.Errorf("got %+v", e)
	}
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	r := w.ask(ask{method: "POST", path: "/sandbox/run?wait=10ms", token: token, body: `{"command":["true"]}`})
	if rec := r.json(t, http.StatusAccepted); rec["state"] != "queued" {
		t.Errorf("got %s", r.body)
	}
	w.end(w.place(), 0)
	answered := make(chan reply, 1)
	go func() {
		answered <- w.ask(ask{method: "POST", path: "/sandbox/run?wait=20s", token: token, body: `{"command":["false"]}`})
	}()
	var c ledger.Claim
	for ok := false; !ok; {
		c, ok, _ = w.book.Claim(t.Context(), "test", time.Now(), time.Minute, nil)
	}
	now := time.Now()
	a := must(w.book.Place(t.Context(), c, "n1", w.epoch, now))(t)
	if err := errors.Join(w.book.Accept(t.Context(), a, now)); err != nil {
		t.Fatal(err)
	}
	w.end(a, 3)
	r = <-answered
	rec := r.json(t, http.StatusOK)
	exit := rec["exit"].(map[string]any)
	if rec["state"] != "failed" || exit["code"] != 3.0 || exit["cause"] != "exited" || exit["source"] != "guest" {
		t.Errorf("got %s", r.body)
	}
}

// TestTenantsDoNotSeeEachOther is about lists and nodes; TestWalk has the rest.
func TestTenantsDoNotSeeEachOther(t *testing.T) {
	w := newWorld(t)
	acme, local := w.token("acme"), w.token("local")
	admin := w.token("local", sandbox.ScopeAdmin)
	id := string(w.run(acme, `{"command":["true"]}`))
	w.place()
	count := func(token, query string) int {
		return len(w.ask(ask{path: "/sandbox" + query, token: token}).json(t, http.StatusOK)["sandboxes"].([]any))
	}
	for _, c := range []struct {
		token, query string
		want         int
	}{{acme, "", 1}, {acme, "?tenant=acme", 1}, {local, "", 0}, {admin, "", 1}, {admin, "?tenant=acme", 1}, {admin, "?tenant=local", 0}} {
		if got := count(c.token, c.query); got != c.want {
			t.Errorf("list%s shows %d, want %d", c.query, got, c.want)
		}
	}
	if e := w.ask(ask{path: "/sandbox?tenant=acme", token: local}).fails(t, fault.PolicyDenied); e.Field != "tenant" {
		t.Errorf("got %+v", e)
	}
	if rec := w.ask(ask{path: "/sandbox/" + id, token: acme}).json(t, http.StatusOK); rec["node"] != "" {
		t.Errorf("the tenant is told of node %v", rec["node"])
	}
	if rec := w.ask(ask{path: "/sandbox/" + id, token: admin}).json(t, http.StatusOK); rec["node"] != "n1" {
		t.Errorf("the admin is told of node %v", rec["node"])
	}
}

func TestListPagesAndFilters(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	var ids []string
	for i := range 5 {
		label := []string{"a", "b"}[i%2]
		ids = append(ids, string(w.run(token, `{"command":["true"],"env":{"A":"1"},"stdin":"aGk=","files":[{"path":"/a"}],"labels":{"team":"`+label+`"}}`)))
		time.Sleep(2 * time.Millisecond) // IDs sort by the millisecond
	}
	var got []string
	for token2 := ""; ; {
		page := w.ask(ask{path: "/sandbox?page_size=2&page_token=" + token2, token: token}).json(t, http.StatusOK)
		for _, s := range page["sandboxes"].([]any) {
			rec := s.(map[string]any)
			req := rec["request"].(map[string]any)
			if len(req["env"].([]any))+len(req["files"].([]any)) > 0 || req["stdin_bytes"] != 0.0 {
				t.Errorf("the list shows env, stdin or files: %v", req)
			}
			got = append([]string{rec["id"].(string)}, got...)
		}
		if token2 = page["next_page_token"].(string); token2 == "" {
			break
		}
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("pages gave %v, want %v", got, ids)
	}
	b, _ := json.Marshal(w.ask(ask{path: "/sandbox?state=queued&state=running&label=team=b", token: token}).json(t, http.StatusOK))
	if n := strings.Count(string(b), `"id":"sb-`); n != 2 {
		t.Errorf("label=team=b shows %d, want 2", n)
	}
}

func TestKill(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	t.Run("queued", func(t *testing.T) {
		id := w.run(token, `{"command":["true"]}`)
		r := w.ask(ask{method: "DELETE", path: "/sandbox/" + string(id), token: token}).json(t, http.StatusOK)
		if r["state"] != "failed" || r["exit"].(map[string]any)["cause"] != "killed" {
			t.Errorf("got %v", r)
		}
		if len(w.nodes.killed()) != 0 {
			t.Error("a node was bothered")
		}
		again := w.ask(ask{method: "DELETE", path: "/sandbox/" + string(id), token: token}).json(t, http.StatusOK)
		if again["state"] != "failed" {
			t.Errorf("killing it again: %v", again)
		}
	})
	t.Run("running", func(t *testing.T) {
		id := w.run(token, `{"command":["true"]}`)
		a := w.place()
		w.ask(ask{method: "DELETE", path: "/sandbox/" + string(id) + "?grace=7s", token: token}).json(t, http.StatusOK)
		if k := w.nodes.killed(); len(k) != 1 || k[0].ID != id || k[0].Kill != sandbox.Killed || w.nodes.grace[0] != 7*time.Second {
			t.Errorf("the node got %+v", k)
		}
		if audits := w.audits(); audits[len(audits)-1] != "acme kill allow" {
			t.Errorf("audit: %q", audits[len(audits)-1])
		}
		w.end(a, 0)
	})
	t.Run("with a broken ledger", func(t *testing.T) {
		id := w.run(token, `{"command":["true"]}`)
		w.place()
		before := len(w.nodes.killed())
		w.book.fail(fault.New(fault.Unavailable, "the disk is full"))
		defer w.book.fail(nil)
		w.ask(ask{method: "DELETE", path: "/sandbox/" + string(id), token: token}).json(t, http.StatusOK)
		if k := w.nodes.killed(); len(k) != before+1 || k[before].Kill != sandbox.Killed {
			t.Error("kills do not go on without the ledger")
		}
	})
}

// The time for a body does not end an answer that takes longer.
func TestAWaitOutlastsTheReadTimeout(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.ReadTimeout = 100 * time.Millisecond })
	began := time.Now()
	r := w.ask(ask{method: "POST", path: "/sandbox/run?wait=400ms", token: w.token("acme"), body: `{"command":["true"]}`})
	if rec := r.json(t, http.StatusAccepted); rec["state"] != "queued" {
		t.Errorf("got %s", r.body)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("it was cut short after %v", took)
	}
}
