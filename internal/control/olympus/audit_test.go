package olympus_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestAuditFilters(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	id := string(w.run(w.token("acme"), `{"command":["true"]}`))
	w.ask(ask{method: "DELETE", path: "/sandbox/" + id, token: admin}).json(t, http.StatusOK)
	w.ask(ask{method: "POST", path: "/sandbox/run", token: w.token("tiny"), body: `{"command":["true"],"user":"root"}`}).fails(t, fault.PolicyDenied)
	later := url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339))
	for query, want := range map[string]string{
		"": "policy.activate run kill run", "?tenant=acme": "run", "?action=run": "run run", "?decision=deny": "run", "?decision=allow&action=run": "run",
		"?sandbox=" + id: "run kill", "?since=" + later: "", "?until=" + later: "policy.activate run kill run", "?tenant=nosuch": "", "?action=nothing": "",
		"?since=2020-01-01T00:00:00Z&action=kill": "kill",
	} {
		var got []string
		for _, e := range w.ask(ask{path: "/audit" + query, token: admin}).json(t, http.StatusOK)["entries"].([]any) {
			m := e.(map[string]any)
			got = append(got, m["action"].(string))
			if m["text"] != "" {
				t.Errorf("%s: an entry comes with its text", query)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %q, want %q", query, s, want)
		}
	}
	for query, field := range map[string]string{
		"?decision=maybe": "decision", "?sandbox=x": "sandbox", "?since=yesterday": "since", "?until=1": "until", "?page_token=-1": "page_token",
		"?page_size=1001": "page_size", "?stored=true&tenant=acme": "stored", "?stored=true&decision=deny": "stored", "?stored&since=2020-01-01T00:00:00Z": "stored",
	} {
		if e := w.ask(ask{path: "/audit" + query, token: admin}).fails(t, fault.InvalidArgument); e.Field != field || e.Hint == "" {
			t.Errorf("%s: %+v, want field %s and a hint", query, e, field)
		}
	}
}

// Whoever reads the log as it is stored can compute its chain alone.
func TestTheStoredAudit(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	for range 4 { // after the policy's entry
		w.run(w.token("acme"), `{"command":["<&>"]}`)
	}
	var chain ledger.AuditChain
	pages := 0
	for next := ""; ; pages++ {
		page := w.ask(ask{path: fmt.Sprintf("/audit?stored=true&page_size=2&page_token=%s", next), token: admin}).json(t, http.StatusOK)
		for _, x := range page["entries"].([]any) {
			e := x.(map[string]any)
			text := must(base64.StdEncoding.DecodeString(e["text"].(string)))(t)
			if _, err := chain.Next(ledger.AuditRow{Seq: int64(e["seq"].(float64)), Tenant: e["tenant"].(string), Text: text}); err != nil {
				t.Error(err)
			}
		}
		if next = page["next_page_token"].(string); next == "" {
			break
		}
	}
	if head := must(w.book.AuditHead(t.Context()))(t); chain.Head() != head || head.Seq != 5 || pages != 2 {
		t.Errorf("the chain ends at %+v, want %+v; %d pages", chain.Head(), head, pages+1)
	}
}
