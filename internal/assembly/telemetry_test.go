package assembly

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
)

// marker is what no metric, trace or log may ever hold.
const marker = "s3cret-m4rker"

// firstBootFails has the first VM end before its guest answers.
func firstBootFails(n int, _ tartarus.Spec) fakevm.Script {
	if n == 1 {
		return fakevm.Script{NeverBoots: true, EndAfter: time.Millisecond}
	}
	return fakevm.Script{}
}

// runs is what a scripted set of runs left.
type runs struct {
	good, failed, refused, killed, repeated answered
	asleep                                  map[string]*dto.MetricFamily // metrics while one slept
}

// scriptedRuns has one of most things happen that can happen.
func scriptedRuns(u *fakeUp) (r runs) {
	secret := fmt.Sprintf(`"env": {"TOKEN": %q}, "stdin": "czNjcmV0LW00cmtlcg==", "files": [{"path": "/work/f", "data": "czNjcmV0LW00cmtlcg=="}]`, marker)
	r.good = u.run(`{"command": ["echo", "hi"], `+secret+`}`, "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Idempotency-Key", "k")
	r.repeated = u.run(`{"command": ["echo", "hi"], `+secret+`}`, "Idempotency-Key", "k")
	r.failed = u.run(`{"command": ["exit", "3"], "name": "tenant-made-name", "labels": {"tenant-made": "label"}}`)
	r.refused = u.run(`{"command": ["true"], "user": "root"}`)
	u.run(`{"command": ["true"], "resources": {"vcpus": 9}}`)
	u.run(`{"command": ["true"], "no_such_field": 1}`)
	u.run(`{"command": ["flood", "100000"]}`)
	asleep := u.asked("POST", "/sandbox/run", `{"command": ["sleep"]}`)
	u.await(asleep.ID, "running")
	u.until("its memory is seen", func() bool {
		r.asleep = u.scrape()
		return value(r.asleep, "tartarus_vmm_memory_bytes") > 0
	})
	u.ask("DELETE", "/sandbox/"+asleep.ID+"?grace=0s", "")
	u.await(asleep.ID, "failed")
	r.killed = u.asked("GET", "/sandbox/"+asleep.ID, "")
	u.ask("GET", "/sandbox/"+asleep.ID+"/logs", "")
	u.ask("GET", "/sandbox/sb-00000000000000000000000000", "")
	return r
}

// scrape is what GET /metrics answers.
func (u *fakeUp) scrape() map[string]*dto.MetricFamily {
	u.t.Helper()
	code, b := u.ask("GET", "/metrics", "")
	if code != http.StatusOK {
		u.t.Fatalf("GET /metrics: %d %s", code, b)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(string(b)))
	must(u.t, err)
	return families
}

// value is the sum of a metric over its labels; of a histogram the count.
func value(families map[string]*dto.MetricFamily, name string) (sum float64) {
	for _, m := range families[name].GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// still are the metrics that stay at 0 while all is well, and the tests that
// see them move.
var still = map[metrics.Name]string{
	metrics.AuditFailures:    "census TestAudited",
	metrics.PolicyRefused:    "themis TestSourceReloads",
	metrics.CommitFailures:   "census TestCommits",
	metrics.Checkpoints:      "mnemosyne TestASinkThatFails",
	metrics.ReadFailures:     "census TestReadFailure",
	metrics.Requeued:         "census TestRoad",
	metrics.QueueLimited:     "census TestRead",
	metrics.APIStreams:       "olympus TestAReaderThatStops",
	metrics.QueueDepth:       "census TestRead",
	metrics.QueueOldest:      "census TestRead",
	metrics.NodeUndoFailures: "hermes TestMetrics",
	metrics.NodeLogsLost:     "hermes TestMetrics",
}

// TestTelemetry has an up run what is scripted, and looks at what it told of
// it: in metrics, traces and logs.
func TestTelemetry(t *testing.T) {
	c := startCollector(t)
	u := startFake(t, firstBootFails)
	r := scriptedRuns(u)
	u.until("the spans are sent", func() bool {
		f := u.scrape()
		return value(f, "tartarus_trace_spans_total") > 0 && len(c.of(r.killed.ID)) > 0
	})
	after := u.scrape()
	t.Run("metrics are those of the table", func(t *testing.T) { checkMetrics(t, r, after) })
	u.stop() // sends what is left
	t.Run("the spans of a run are one tree", func(t *testing.T) { checkTree(t, c, r) })
	t.Run("log lines name their sandbox and request", func(t *testing.T) { checkLog(t, u.log.String(), r) })
	t.Run("no secret is told", func(t *testing.T) {
		metricsText := fmt.Sprint(after)
		for name, leaks := range map[string]bool{
			"metrics": strings.Contains(metricsText, marker), "traces": c.holds(marker), "log": strings.Contains(u.log.String(), marker),
			"a tenant's text in metrics": strings.Contains(metricsText, "tenant-made"), "a tenant's text in traces": c.holds("tenant-made"),
		} {
			if leaks {
				t.Errorf("%s hold what they must not", name)
			}
		}
	})
}

func checkMetrics(t *testing.T, r runs, after map[string]*dto.MetricFamily) {
	rows := map[string]metrics.Row{}
	for _, row := range metrics.Table() {
		rows[string(row.Name)] = row
		if after[string(row.Name)] == nil {
			t.Errorf("%s is in the table, and never told", row.Name)
		}
		moved := value(after, string(row.Name)) > 0 || value(r.asleep, string(row.Name)) > 0
		if _, stays := still[row.Name]; moved == stays {
			t.Errorf("%s moved: %v, after all that was done", row.Name, moved)
		}
	}
	for name, f := range after {
		row, known := rows[name]
		if !known {
			if !slices.ContainsFunc(metrics.Library(), func(p string) bool { return strings.HasPrefix(name, p) }) {
				t.Errorf("%s is told, and not in the table", name)
			}
			continue
		}
		if got := strings.ToLower(f.GetType().String()); got != string(row.Kind) || f.GetHelp() != row.Help {
			t.Errorf("%s is a %s: %s", name, got, f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			checkLabels(t, row, m)
		}
	}
	for series, want := range map[string]float64{
		"tartarus_admissions_total admitted": 4, "tartarus_admissions_total repeated": 1, "tartarus_admissions_total policy_denied": 1,
		"tartarus_refusals_total policy_denied no-root": 1, "tartarus_refusals_total quota_exceeded quota.vcpus": 1,
		"tartarus_refusals_total invalid_argument none":   1,
		"tartarus_sandboxes_ended_total exited succeeded": 2, "tartarus_sandboxes_ended_total exited failed": 1,
		"tartarus_sandboxes_ended_total killed failed": 1, "tartarus_node_boots_given_up_total": 1,
		"tartarus_stage_seconds judged": 5, "tartarus_stage_seconds total": 4, "tartarus_stage_seconds vm_ready": 4,
		"tartarus_node_logs_truncated_total": 1, "tartarus_node_log_bytes_total": 4096 + 3, "tartarus_sandboxes running": 0,
		"tartarus_nodes ready": 1, "tartarus_api_requests_total invalid_argument Run": 1, "tartarus_api_requests_total not_found Get": 1,
	} {
		if got, ok := one(after, series); !ok || got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if running, _ := one(r.asleep, "tartarus_sandboxes running"); running != 1 {
		t.Errorf("while one ran, %v did", running)
	}
}

// checkLabels holds the labels of a series to its row.
func checkLabels(t *testing.T, row metrics.Row, m *dto.Metric) {
	for _, l := range m.GetLabel() {
		i := slices.IndexFunc(row.Labels, func(r metrics.Label) bool { return r.Name == l.GetName() })
		switch v := l.GetValue(); {
		case i < 0:
			t.Errorf("%s has a label %s", row.Name, l.GetName())
		case row.Labels[i].Values != nil && !slices.Contains(row.Labels[i].Values, v):
			t.Errorf("%s has the label %s=%s", row.Name, l.GetName(), v)
		case v == metrics.Other || strings.Contains(v, "sb-") || strings.Contains(v, "req-") || v == "local":
			t.Errorf("%s has the label %s=%s", row.Name, l.GetName(), v)
		}
	}
}

// one is the value of the series whose name and values of labels, in the order
// of the labels' names, are these.
func one(families map[string]*dto.MetricFamily, series string) (float64, bool) {
	words := strings.Fields(series)
	for _, m := range families[words[0]].GetMetric() {
		var values []string
		for _, l := range m.GetLabel() {
			values = append(values, l.GetValue())
		}
		if slices.Equal(values, words[1:]) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
		}
	}
	return 0, false
}

func checkTree(t *testing.T, c *otlp, r runs) {
	spans := c.of(r.good.ID)
	below := map[string]string{
		"run": "", "request": "run", "judge": "run", "admit": "run", "queue": "run", "place": "run", "assign": "run",
		"prepare": "run", "accept": "run", "execute": "run", "end": "run", "cleanup": "run",
	}
	for _, step := range metrics.Steps() {
		below[step] = "prepare"
	}
	for name, parent := range below {
		s := spans[name]
		switch {
		case s == nil:
			t.Errorf("there is no span %s", name)
			return
		case parent == "" && len(s.GetParentSpanId()) != 0, parent != "" && id(s.GetParentSpanId()) != id(spans[parent].GetSpanId()):
			t.Errorf("%s is not below %q", name, parent)
		case id(s.GetTraceId()) != id(spans["run"].GetTraceId()):
			t.Errorf("%s is in another trace", name)
		case end(s).Before(begin(s)):
			t.Errorf("%s ends before it begins", name)
		case s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR:
			t.Errorf("%s failed: %s", name, s.GetStatus().GetMessage())
		}
	}
	if len(spans) != len(below) {
		t.Errorf("%d spans, of which %d are known", len(spans), len(below))
	}
	// The times are the record's, and the stages follow each other.
	run := spans["run"]
	if !begin(run).Equal(r.good.CreatedAt) || !end(run).Equal(r.good.EndedAt) || !begin(spans["execute"]).Equal(r.good.StartedAt) {
		t.Errorf("run from %v to %v, executed at %v; the record says %+v", begin(run), end(run), begin(spans["execute"]), r.good)
	}
	road := []string{"judge", "admit", "place", "prepare", "execute", "end", "cleanup"}
	for i := range len(road) - 1 {
		if a, b := spans[road[i]], spans[road[i+1]]; begin(b).Before(begin(a)) {
			t.Errorf("%s begins before %s", road[i+1], road[i])
		}
	}
	for _, step := range metrics.Steps() {
		if begin(spans[step]).Before(begin(spans["prepare"])) || end(spans[step]).After(end(spans["prepare"])) {
			t.Errorf("%s is not within prepare", step)
		}
	}
	links := spans["request"].GetLinks()
	if len(links) != 1 || id(links[0].GetTraceId()) != "0af7651916cd43dd8448eb211c80319c" || id(run.GetTraceId()) == id(links[0].GetTraceId()) {
		t.Errorf("the caller's trace is linked to as %v", links)
	}
	if c.about["service.name"] != "tartarus" {
		t.Errorf("the resource is %v", c.about)
	}
	refused := c.of(r.refused.Error.ID)
	if len(refused) != 3 || refused["run"] == nil || refused["request"] == nil || refused["judge"].GetStatus().GetMessage() != "policy_denied" {
		t.Errorf("of the refused one: %v", refused)
	}
	if killed := c.of(r.killed.ID); attr(killed["run"].GetAttributes(), "cause") != "killed" {
		t.Errorf("of the killed one: %v", killed["run"])
	}
	ids := map[string]bool{}
	for _, s := range c.spans {
		if ids[id(s.GetSpanId())] {
			t.Errorf("two spans are called %s", id(s.GetSpanId()))
		}
		ids[id(s.GetSpanId())] = true
	}
}

var (
	aSandbox = regexp.MustCompile(`sb-[0-9a-hjkmnp-tv-z]{26}`)
	aRequest = regexp.MustCompile(`req-[a-z2-7]{26}`)
)

// checkLog insists that every line which speaks of a sandbox or of a request
// says so under the one key, and that the lines of a run from API to node can
// be found by the request.
func checkLog(t *testing.T, log string, r runs) {
	requests := map[string]bool{} // of r.good
	both := 0
	for line := range strings.Lines(log) {
		var l struct {
			Msg       string
			Sandbox   string
			RequestID string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if named := aSandbox.FindString(line); named != l.Sandbox {
			t.Errorf("the sandbox is not under its key: %s", line)
		}
		if named := aRequest.FindString(line); named != l.RequestID {
			t.Errorf("the request is not under its key: %s", line)
		}
		if l.Sandbox != "" && l.RequestID == "" {
			t.Errorf("a sandbox without its request: %s", line)
		}
		if l.Sandbox == r.good.ID {
			switch l.Msg {
			case "sandbox admitted", "sandbox runs", "sandbox ended":
				requests[l.RequestID] = true
				both++
			}
		}
	}
	if both != 3 || len(requests) != 1 {
		t.Errorf("%d lines of a run, of the requests %v", both, requests)
	}
	if !strings.Contains(log, `"ordered to end it"`) {
		t.Error("the node does not tell of the order to kill")
	}
}

// TestCollectorAway: a collector that takes nothing, or answers never, slows
// no run, and no end for longer than the bound.
func TestCollectorAway(t *testing.T) {
	hold := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	defer close(hold)
	closed, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	must(t, err)
	must(t, closed.Close())
	for name, endpoint := range map[string]string{"nobody listens": "http://" + closed.Addr().String(), "never answers": silent.URL} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
			u := startFake(t, nil)
			if got := u.run(`{"command": ["true"]}`); got.State != "succeeded" {
				t.Errorf("%+v", got)
			}
			u.stop()
			if log := u.log.String(); !strings.Contains(log, "the collector did not take traces") {
				t.Error("nobody is told that the traces were lost")
			}
		})
	}
}

// TestNoTraces: without a collector there is no tracer at all.
func TestNoTraces(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	u := startFake(t, nil)
	if u.e.tracer != nil {
		t.Error("traces are made for nobody")
	}
	if got := u.run(`{"command": ["true"]}`); got.State != "succeeded" {
		t.Errorf("%+v", got)
	}
	for name := range u.scrape() {
		if strings.HasPrefix(name, "tartarus_trace_") {
			t.Errorf("%s is told", name)
		}
	}
}
