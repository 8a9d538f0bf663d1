package themis_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

var local = sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeRun}, TokenID: "t"}

func builtin(t testing.TB) *themis.Policy {
	t.Helper()
	p, err := themis.Default()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func resolve(t testing.TB, req sandbox.Request) (sandbox.Resolved, sandbox.Secrets, error) {
	t.Helper()
	return builtin(t).Resolve(t.Context(), local, req, themistest.Lookup{})
}

func TestDefaults(t *testing.T) {
	got, _, err := resolve(t, themistest.Request())
	if err != nil {
		t.Fatal(err)
	}
	want := sandbox.Resolved{
		Template: "base", TemplateDigest: themistest.Digest("ba"), GuestDigest: themistest.Digest("91"),
		Command: []string{"true"}, WorkingDir: "/work", User: "sandbox", SecretsDigest: got.SecretsDigest,
		Resources:   sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 256, Processes: 256},
		MaxDuration: time.Minute, StartTimeout: time.Minute, QueueTimeout: 10 * time.Minute, CapacityWait: time.Minute,
		LogBytes: 16 << 20,
	}
	if !reflect.DeepEqual(got, want) || !got.SecretsDigest.Valid() {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryFieldAtAndBeyondItsBounds(t *testing.T) {
	names := map[string]bool{}
	for _, c := range themistest.Cases() {
		if names[c.Name] {
			t.Errorf("two cases are named %s", c.Name)
		}
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			req := themistest.Request()
			c.Change(&req)
			_, secrets, err := resolve(t, req)
			if c.Field == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field != c.Field {
				t.Fatalf("error %#v; want invalid_argument on %s", err, c.Field)
			}
			if f.Hint == "" || f.Message == "" || len(f.Message) > 400 {
				t.Errorf("message %q, hint %q", f.Message, f.Hint)
			}
			if secrets.Salt != nil {
				t.Error("secrets came with the refusal")
			}
		})
	}
}

// The largest requests that pass can be signed and encoded.
func TestLargestRequestsFitTheSeal(t *testing.T) {
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	worst := strings.Repeat("\x01", themis.MaxPathBytes)
	req := sandbox.Request{Command: []string{strings.Repeat("\x01", themis.MaxCommandBytes-1)}, WorkingDir: "/" + worst[:200], Labels: map[string]string{}}
	req.Env = map[string]string{}
	for i := range themis.MaxEnvVars {
		name := fmt.Sprintf("%s%03d", strings.Repeat("N", 200), i)
		req.Env[name] = strings.Repeat("\x01", themis.MaxEnvBytes/themis.MaxEnvVars-len(name)-2)
	}
	for i := range themis.MaxFiles {
		path := fmt.Sprintf("/%02d", i)
		for len(path) < themis.MaxPathBytes-1 {
			path += "/" + worst[:min(255, themis.MaxPathBytes-1-len(path))]
		}
		req.Files = append(req.Files, sandbox.File{Path: path, Data: make([]byte, themis.MaxInputBytes/themis.MaxFiles)})
		req.Labels[fmt.Sprintf("k%02d", i)] = strings.Repeat("ä", themis.MaxLabelValue/2)
	}
	long := strings.Repeat(strings.Repeat("a", 61)+".", 4) + "ab"
	for range themis.MaxGrants {
		g := sandbox.Grant{Domain: long}
		for p := range themis.MaxPorts {
			g.Ports = append(g.Ports, 65535-p)
		}
		req.Network.Allow = append(req.Network.Allow, g)
	}
	res, secrets, err := resolve(t, req)
	if err != nil {
		t.Fatal(err)
	}
	_, d, err := seal.EncodeSecrets(secrets)
	if err != nil || d != res.SecretsDigest {
		t.Errorf("secrets: %s, %v; want %s", d, err, res.SecretsDigest)
	}
	now := time.Now()
	b, _, err := key.SignVerdict(seal.Verdict{
		Sandbox: "sb-01arz3ndektsv4rrffq69g5fav", Tenant: "local", PolicyVersion: "p", Issued: now, Expires: now.Add(time.Hour), Request: res,
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("the largest verdict has %d bytes of %d", len(b), seal.MaxEnvelope)
}

func TestSecretsAreSplitOff(t *testing.T) {
	const marker = "MARKER-7f3a"
	req := sandbox.Request{
		Command: []string{"cat"}, Env: map[string]string{"B": marker + "1", "A": marker + "22"}, Stdin: []byte(marker), StdinOpen: true,
		Files: []sandbox.File{{Path: "/work/b", Data: []byte(marker)}, {Path: "/work/a", Mode: 0o600, Data: []byte(marker + "!")}},
	}
	res, secrets, err := resolve(t, req)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := json.Marshal(res); err != nil || strings.Contains(string(b), marker) {
		t.Errorf("the resolved request shows a secret: %s, %v", b, err)
	}
	n := len(marker)
	if want := []sandbox.SecretRef{{Name: "A", Bytes: n + 2}, {Name: "B", Bytes: n + 1}}; !slices.Equal(res.Env, want) {
		t.Errorf("env %v, want %v", res.Env, want)
	}
	if want := []sandbox.FileRef{{Path: "/work/b", Mode: 0o644, Bytes: n}, {Path: "/work/a", Mode: 0o600, Bytes: n + 1}}; !slices.Equal(res.Files, want) {
		t.Errorf("files %v, want %v", res.Files, want)
	}
	if res.StdinBytes != n || !res.StdinOpen {
		t.Errorf("stdin: %d bytes, open %v", res.StdinBytes, res.StdinOpen)
	}
	b, d, err := seal.EncodeSecrets(secrets)
	if err != nil || d != res.SecretsDigest {
		t.Fatalf("digest %s, %v; want %s", d, err, res.SecretsDigest)
	}
	back, err := seal.DecodeSecrets(b, res.SecretsDigest)
	if err != nil || !maps.Equal(back.Env, req.Env) || string(back.Stdin) != marker || string(back.Files[1].Data) != marker+"!" || back.Files[0].Mode != 0o644 {
		t.Errorf("secrets came back as %+v, %v", back, err)
	}
	// The same secrets have another digest each time: it tells nothing.
	again, _, err := resolve(t, req)
	if err != nil || again.SecretsDigest == res.SecretsDigest {
		t.Errorf("the digest of the same secrets is the same, %v", err)
	}
}

// An error is shown to callers and written into the audit.
func TestErrorsShowNoSecret(t *testing.T) {
	const marker = "MARKER-7f3a"
	for _, c := range themistest.Cases() {
		req := themistest.Request()
		req.Env = map[string]string{"A": marker}
		req.Stdin = []byte(marker)
		req.Files = []sandbox.File{{Path: "/work/x", Data: []byte(marker)}}
		c.Change(&req)
		for k, v := range req.Env {
			req.Env[k] = marker + v
		}
		if _, _, err := resolve(t, req); err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), marker) {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

func TestUnknownTenantAndBrokenLookup(t *testing.T) {
	p := builtin(t)
	_, _, err := p.Resolve(t.Context(), sandbox.Principal{Tenant: "nobody"}, themistest.Request(), themistest.Lookup{})
	if !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("a tenant that the policy does not name: %v", err)
	}
	_, _, err = p.Resolve(t.Context(), local, themistest.Request(), themistest.Lookup{Broken: true})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a lookup that fails: %v", err)
	}
	_, _, err = p.Resolve(t.Context(), local, sandbox.Request{Command: []string{"x"}, Template: "gone"}, themistest.Lookup{})
	var f *fault.Error
	if !errors.As(err, &f) || f.Hint != "Build one." {
		t.Errorf("the lookup's hint is lost: %#v", err)
	}
}

func TestNetworkNormalForm(t *testing.T) {
	req := themistest.Request()
	ports := []int{443, 80, 443}
	req.Network.Allow = []sandbox.Grant{{Domain: "API.Example.Com", Ports: ports}}
	res, _, err := resolve(t, req)
	if err != nil {
		t.Fatal(err)
	}
	want := []sandbox.Grant{{Domain: "api.example.com", Protocol: "tcp", Ports: []int{80, 443}}}
	if !reflect.DeepEqual(res.Network.Allow, want) {
		t.Errorf("got %+v, want %+v", res.Network.Allow, want)
	}
	if !slices.Equal(ports, []int{443, 80, 443}) {
		t.Error("the caller's ports were changed")
	}
}

// drawRequest draws a request that is well formed.
func drawRequest(t *rapid.T) sandbox.Request {
	text := rapid.StringMatching(`[ -~äß]{0,20}`)
	label := rapid.MapOfN(rapid.StringMatching(`([a-z]{1,5}\.io/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[a-z])?`), text, 0, 8)
	grant := rapid.Custom(func(t *rapid.T) sandbox.Grant {
		g := sandbox.Grant{
			Protocol: rapid.SampledFrom([]string{"", "tcp", "udp"}).Draw(t, "protocol"),
			Ports:    rapid.SliceOfN(rapid.IntRange(1, 65535), 1, 5).Draw(t, "ports"),
		}
		if rapid.Bool().Draw(t, "named") {
			g.Domain = rapid.StringMatching(`[A-Za-z0-9]{1,5}\.[a-z]{2,4}`).Draw(t, "domain")
		} else {
			g.CIDR = fmt.Sprintf("203.0.%d.0/24", rapid.IntRange(0, 255).Draw(t, "net"))
		}
		return g
	})
	file := rapid.Custom(func(t *rapid.T) sandbox.File {
		return sandbox.File{
			Path: rapid.StringMatching(`/work/[a-z]{1,10}`).Draw(t, "path"),
			Mode: rapid.Uint32Range(0, 0o777).Draw(t, "mode"), Data: rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "data"),
		}
	})
	return sandbox.Request{
		Template:   rapid.SampledFrom([]string{"", "base", "debian"}).Draw(t, "template"),
		Command:    append([]string{"x"}, rapid.SliceOfN(text, 0, 5).Draw(t, "args")...),
		Name:       rapid.StringMatching(`([A-Za-z0-9]{1,10})?`).Draw(t, "name"),
		Env:        rapid.MapOfN(rapid.StringMatching(`[A-Z_][A-Z0-9_]{0,8}`), text, 0, 5).Draw(t, "env"),
		WorkingDir: rapid.SampledFrom([]string{"", "/", "/work", "/a/b c"}).Draw(t, "dir"),
		User:       rapid.SampledFrom([]string{"", "root", "0", "1000", "sandbox"}).Draw(t, "user"),
		Stdin:      rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "stdin"),
		StdinOpen:  rapid.Bool().Draw(t, "open"),
		Files:      rapid.SliceOfNDistinct(file, 0, 4, func(f sandbox.File) string { return f.Path }).Draw(t, "files"),
		Resources: sandbox.Resources{
			VCPUs:     rapid.IntRange(0, themis.MaxVCPUs).Draw(t, "vcpus"),
			MemoryMiB: rapid.Int64Range(0, themis.MaxMemoryMiB).Draw(t, "memory"),
			DiskMiB:   rapid.Just(int64(0)).Draw(t, "no disk") + rapid.Int64Range(themis.MinDiskMiB, themis.MaxDiskMiB).Draw(t, "disk"),
			Processes: rapid.IntRange(0, themis.MaxProcesses).Draw(t, "processes"),
		},
		MaxDuration:  time.Duration(rapid.Int64Range(int64(themis.MinDuration), int64(themis.MaxDuration)).Draw(t, "duration")),
		Network:      sandbox.NetworkContract{Allow: rapid.SliceOfN(grant, 0, 4).Draw(t, "grants")},
		Labels:       label.Draw(t, "labels"),
		NodeSelector: label.Draw(t, "selector"),
	}
}

// again is the request that a resolved one would be.
func again(res sandbox.Resolved, s sandbox.Secrets) sandbox.Request {
	return sandbox.Request{
		Template: res.Template, Command: res.Command, Name: res.Name, Env: s.Env, WorkingDir: res.WorkingDir, User: res.User,
		Stdin: s.Stdin, StdinOpen: res.StdinOpen, Files: s.Files, Resources: res.Resources, MaxDuration: res.MaxDuration,
		Network: res.Network, Labels: res.Labels, NodeSelector: res.NodeSelector,
	}
}

func TestResolveIsIdempotentAndLeavesNothingOpen(t *testing.T) {
	p := builtin(t)
	rapid.Check(t, func(rt *rapid.T) {
		req := drawRequest(rt)
		before, err := json.Marshal(req)
		if err != nil {
			rt.Fatal(err)
		}
		once, secrets, err := p.Resolve(t.Context(), local, req, themistest.Lookup{})
		if err != nil {
			rt.Fatal(err)
		}
		if after, _ := json.Marshal(req); string(after) != string(before) {
			rt.Fatalf("the request was changed: %s, before %s", after, before)
		}
		if once.Resources.MemoryMiB != sandbox.MemoryClass(once.Resources.MemoryMiB) || once.Resources.MemoryMiB < req.Resources.MemoryMiB {
			rt.Fatalf("memory %d of %d asked for", once.Resources.MemoryMiB, req.Resources.MemoryMiB)
		}
		if once.Template == "" || once.User == "" || once.WorkingDir == "" || once.Resources.VCPUs == 0 || once.Resources.DiskMiB == 0 ||
			once.Resources.Processes == 0 || once.MaxDuration == 0 || !once.TemplateDigest.Valid() || !once.GuestDigest.Valid() {
			rt.Fatalf("something is left open: %+v", once)
		}
		twice, moreSecrets, err := p.Resolve(t.Context(), local, again(once, secrets), themistest.Lookup{})
		if err != nil {
			rt.Fatal(err)
		}
		twice.SecretsDigest, moreSecrets.Salt = once.SecretsDigest, secrets.Salt
		if !reflect.DeepEqual(once, twice) || !reflect.DeepEqual(secrets, moreSecrets) {
			rt.Fatalf("once  %+v\ntwice %+v", once, twice)
		}
	})
}
