package fcapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"fault message": {400, `{"fault_message":"The drive is gone."}`, "PUT /entropy with status 400: The drive is gone."},
		"no reason":     {500, ``, "no reason given"},
		"plain text":    {404, "what?\n", "what?"},
		"long":          {400, `{"fault_message":"` + strings.Repeat("x", 4096) + `"}`, strings.Repeat("x", maxFault)},
		"other success": {200, `{}`, "status 200"},
		"redirect":      {302, ``, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://192.0.2.1/")
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			})
			err := api.PutEntropy(t.Context())
			var e *Error
			if !errors.As(err, &e) || e.Status != c.status || len(e.Message) > maxFault || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestBounds: an answer that does not end, and a header that does not, are
// given up.
func TestBounds(t *testing.T) {
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	if err := api.PutEntropy(t.Context()); err != nil {
		t.Fatal(err)
	}
	endless := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	if err := endless.PutEntropy(t.Context()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless answer: %v", err)
	}
	header := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 4*maxHeader))
		w.WriteHeader(http.StatusNoContent)
	})
	if err := header.PutEntropy(t.Context()); err == nil {
		t.Error("an endless header was read")
	}
}

// TestSilence: a peer that accepts and never answers keeps nobody longer than
// they allow.
func TestSilence(t *testing.T) {
	c := New(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		return ours, nil
	}, Version{1, 17, 0})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestConnect(t *testing.T) {
	for body, want := range map[string]string{
		`{"firecracker_version":"1.12.1"}`:     "1.12.1",
		`{"firecracker_version":"v1.17.0"}`:    "1.17.0",
		`{"firecracker_version":"1.17.0-dev"}`: "",
		`{"firecracker_version":17}`:           "",
		`{}`:                                   "",
		`no`:                                   "",
	} {
		api := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
		c, err := Connect(t.Context(), dialOf(t, api))
		if (err == nil) != (want != "") || err == nil && c.Version().String() != want {
			t.Errorf("%s: %v, %v", body, c, err)
		}
	}
}

func TestVersions(t *testing.T) {
	in := []string{"0.25.2", "1.2.3", "1.12.1", "1.12.10", "1.16.1", "2.0.0"}
	for i, a := range in {
		for j, b := range in {
			va, err := ParseVersion(a)
			if err != nil {
				t.Fatal(err)
			}
			vb, _ := ParseVersion(b)
			if va.Before(vb) != (i < j) {
				t.Errorf("%s before %s: %v", a, b, va.Before(vb))
			}
		}
	}
	for _, bad := range []string{"", "1", "1.2", "1.2.3.4", "1.2.x", "1.17.0-dev", "99999.1.1", " v1.2.3 x"} {
		if v, err := ParseVersion(bad); err == nil {
			t.Errorf("%q is %v", bad, v)
		}
	}
}
