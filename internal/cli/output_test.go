package cli

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// evil is what a guest or tenant may put into a name, and how it is shown.
const (
	evil      = "x\x1b[2J\u202ey\nz"
	evilShown = `x\x1b[2J\u202ey\x0az`
)

func TestTablesEscape(t *testing.T) {
	s := newFake()
	sb := exited(0)
	sb.Name, sb.Exit.Cause, sb.Request.Command = evil, evil, []string{evil}
	s.list, s.sandbox = []*apiv1.Sandbox{sb}, sb
	s.end()
	c := with(s.listen(t))
	for _, args := range [][]string{{"ps"}, {"inspect", testID, "-o", "table"}} {
		r := c.main(t, args...)
		harmless(t, r.out, "\n")
		if r.code != 0 || !strings.Contains(r.out, evilShown) {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// JSON and YAML show nothing to a terminal that it would act on, and mean what
// the API said.
func TestDocumentsEscape(t *testing.T) {
	s := newFake()
	sb := exited(0)
	sb.Name = evil + "\U000e0041\u0085"
	s.sandbox = sb
	c := with(s.listen(t))
	for format, decode := range map[string]func([]byte, any) error{
		"json": json.Unmarshal,
		"yaml": func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
	} {
		r := c.main(t, "inspect", testID, "-o", format)
		harmless(t, r.out, "\n")
		var got struct{ Name string }
		if err := decode([]byte(r.out), &got); err != nil || got.Name != sb.Name {
			t.Errorf("%s: %v, %q in %s", format, err, got.Name, r.out)
		}
	}
}

// YAML means what the JSON means, and keeps the order of fields.
func TestYAMLIsTheJSON(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "no", "Null", "1e3", "- x", "a: b", "#", "~", " x", "x ", "'", `"`, "\\", "2026-01-02", "0x1f", "a\nb", "?", "*x", "&x", "!x", "%x", "@x", "`x"}))
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		leaves := []*rapid.Generator[any]{
			rapid.Map(text, func(s string) any { return s }), rapid.Map(rapid.Bool(), func(b bool) any { return b }),
			rapid.Map(rapid.IntRange(-1e6, 1e6), func(n int) any { return float64(n) }), rapid.Just[any](nil),
		}
		if depth > 0 {
			leaves = append(leaves,
				rapid.Map(rapid.SliceOfN(value(depth-1), 0, 3), func(l []any) any { return l }),
				rapid.Map(rapid.MapOfN(text, value(depth-1), 0, 3), func(m map[string]any) any { return m }))
		}
		return rapid.OneOf(leaves...)
	}
	rapid.Check(t, func(t *rapid.T) {
		j, err := json.Marshal(map[string]any{"v": value(3).Draw(t, "v")})
		if err != nil {
			t.Fatal(err)
		}
		y, err := toYAML(j)
		if err != nil {
			t.Fatal(err)
		}
		harmless(t, string(y), "\n")
		var meant any
		if err := yaml.Unmarshal(y, &meant); err != nil {
			t.Fatalf("%v in\n%s", err, y)
		}
		back, err := json.Marshal(meant)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := json.Unmarshal(j, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(back, &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s became\n%s which is %s", j, y, back)
		}
	})
	y, err := toYAML([]byte(`{"b":[{"z":1,"a":[]},[2,"x y"]],"a":{}}`))
	if want := "b:\n  - z: 1\n    a: []\n  - - 2\n    - x y\na: {}\n"; err != nil || string(y) != want {
		t.Errorf("%v\n%s", err, y)
	}
}

func TestPsReadsAllPages(t *testing.T) {
	s := newFake()
	for range 5 {
		s.list = append(s.list, exited(0))
	}
	c := with(s.listen(t))
	for args, want := range map[string]int{"ps": 5, "ps --limit 3": 3, "ps --limit 1": 1} {
		r := c.main(t, strings.Fields(args)...)
		if n := strings.Count(r.out, testID); n != want || r.code != 0 {
			t.Errorf("%s: %d of %d: %+v", args, n, want, r)
		}
	}
	s.list = nil
	if r := c.main(t, "ps"); r.out != "ID  NAME  TENANT  STATE  CAUSE  AGE  TEMPLATE  COMMAND\n" {
		t.Errorf("of nothing: %q", r.out)
	}
	if r := c.main(t, "ps", "-o", "json"); r.out != "{\n  \"sandboxes\": [],\n  \"next_page_token\": \"\"\n}\n" {
		t.Errorf("of nothing: %q", r.out)
	}
}

// On a terminal, what somebody's command wrote is escaped; elsewhere, and for
// who asks, it is as it was.
func TestLogsOnATerminal(t *testing.T) {
	s := newFake()
	s.logs = []*apiv1.LogEntry{
		{Stream: "stdout", Data: []byte("\x1b[2Ja\xc3")}, {Stream: "stderr", Data: []byte("\a!\n")}, {Stream: "stdout", Data: []byte("\xa4\n")}, {Truncated: true},
	}
	s.end()
	c := with(s.listen(t))
	const cut = "tartarus: " + testID + ": the output was cut here\n"
	if r := c.main(t, "logs", testID); r.out != "\x1b[2Jaä\n" || r.errout != "\a!\n"+cut {
		t.Errorf("%+v", r)
	}
	c.term = true
	if r := c.main(t, "logs", testID); r.out != "\\x1b[2Jaä\n" || r.errout != "\\x07!\n"+cut {
		t.Errorf("%+v", r)
	}
	if r := c.main(t, "logs", "--raw", testID); r.out != "\x1b[2Jaä\n" {
		t.Errorf("%+v", r)
	}
}

func TestEvents(t *testing.T) {
	s := newFake()
	s.end()
	c := with(s.listen(t))
	for format, want := range map[string]string{
		"table": "1970-01-01T00:00:01.000Z queued    -\n",
		"json":  `{"seq":1,"time":"1970-01-01T00:00:01Z","state":"queued","cause":"","message":""}` + "\n",
		"yaml":  "---\nseq: 1\ntime: \"1970-01-01T00:00:01Z\"\nstate: queued\ncause: \"\"\nmessage: \"\"\n",
	} {
		if r := c.main(t, "events", testID, "-o", format); r.out != want || r.code != 0 {
			t.Errorf("%s: %+v", format, r)
		}
	}
}

func TestKillGoesOnPastWhatIsNotThere(t *testing.T) {
	s := newFake()
	c := with(s.listen(t))
	r := c.main(t, "kill", "--grace", "2s", "sb-nope", testID)
	if r.code != 1 || r.out != testID+"\n" || !strings.Contains(r.errout, "sb-nope: not_found") || len(s.kills) != 1 || s.kills[0] != 2*time.Second {
		t.Errorf("%+v, kills %v", r, s.kills)
	}
	if r := c.main(t, "kill", "sb-nope"); r.code != 1 || strings.Count(r.errout, "tartarus:") != 1 {
		t.Errorf("%+v", r)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m", 47*time.Hour + time.Minute: "47h", 49 * time.Hour: "2d"} {
		if got := age(timestamppb.New(time.Now().Add(-d))); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if got := age(nil); got != "-" {
		t.Error(got)
	}
}

func TestProgress(t *testing.T) {
	steps := []Step{{Name: "one\x1b"}, {Name: "one\x1b", Done: 1, Total: 2}, {Name: "two", Done: 3 << 20}, {Name: "two", Done: 4 << 20}, {Name: "bad", Done: -1, Total: 5}}
	show := func(p *progress) {
		for _, s := range steps {
			p.step(s)
		}
		p.end()
		p.end()
	}
	var plain bytes.Buffer
	show(&progress{w: &plain})
	if want := "one\\x1b\ntwo\nbad\n"; plain.String() != want {
		t.Errorf("elsewhere: %q", plain.String())
	}
	var term bytes.Buffer
	show(&progress{w: &term, width: 80})
	// Each line is left with the latest that was known of it.
	want := []string{`one\x1b [############            ]  50%`, "two 4.0 MiB", "bad [                        ]   0%"}
	for i, l := range strings.Split(strings.TrimSpace(term.String()), "\n") {
		if i >= len(want) || l[strings.LastIndex(l, "\x1b[K")+3:] != want[i] {
			t.Errorf("line %d is left as %q", i, l)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Step{Name: rapid.String().Draw(t, "name"), Done: rapid.Int64().Draw(t, "done"), Total: rapid.Int64().Draw(t, "total")}
		width := rapid.IntRange(60, 200).Draw(t, "width")
		if l := line(s, width); len([]rune(l)) >= width {
			t.Fatalf("%q has %d runes, the terminal %d columns", l, len([]rune(l)), width)
		}
	})
}
