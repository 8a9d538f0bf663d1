package olympus_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

// pki makes certificates in a folder.
type pki struct {
	t         *testing.T
	cert, key string
	roots     *x509.CertPool
}

func newPKI(t *testing.T) *pki {
	dir := t.TempDir()
	return &pki{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), roots: x509.NewCertPool()}
}

// issue writes a certificate for names and its key, and trusts it. Files are
// put in place whole, as renewals do.
func (p *pki) issue(serial int64, names ...string) {
	p.t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(p.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	if len(names) == 0 {
		tmpl.IPAddresses = nil
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(p.t)
	p.roots.AddCert(must(x509.ParseCertificate(der))(p.t))
	p.write(p.key, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(p.t))
	p.write(p.cert, "CERTIFICATE", der)
}

func (p *pki) write(name, kind string, der []byte) {
	p.t.Helper()
	if err := os.WriteFile(name+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		p.t.Fatal(err)
	}
}

// secured is a server of w's parts that speaks TLS, and its address.
func (w *world) secured(p *pki) string {
	w.t.Helper()
	cfg := w.config()
	cfg.Certificate = must(olympus.LoadCertificate(p.cert, p.key, slog.New(slog.NewTextHandler(w.log, nil))))(w.t)
	srv := must(olympus.New(cfg))(w.t)
	l := must(olympus.ListenTLS(w.t.Context(), "127.0.0.1:0", cfg.Certificate))(w.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return l.Addr().String()
}

// get is one request over a connection of its own; serial is the server's.
func (p *pki) get(addr, host, token string, h2 bool) (r reply, serial int64) {
	p.t.Helper()
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots, ServerName: "tartarus.test"}, ForceAttemptHTTP2: h2, DisableKeepAlives: true}
	defer t.CloseIdleConnections()
	req := must(http.NewRequestWithContext(p.t.Context(), http.MethodGet, "https://"+addr+"/sandbox", nil))(p.t)
	req.Host = host
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := t.RoundTrip(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if want := map[bool]int{true: 2, false: 1}[h2]; resp.ProtoMajor != want {
		p.t.Errorf("it spoke HTTP/%d, want %d", resp.ProtoMajor, want)
	}
	return reply{resp.StatusCode, resp.Header, string(must(io.ReadAll(resp.Body))(p.t))}, resp.TLS.PeerCertificates[0].SerialNumber.Int64()
}

func TestTLS(t *testing.T) {
	w, p := newWorld(t), newPKI(t)
	p.issue(1, "tartarus.test", "*.wild.test")
	addr, token := w.secured(p), w.token("acme")
	for _, h2 := range []bool{false, true} {
		for host, ok := range map[string]bool{
			"tartarus.test": true, "tartarus.test:443": true, "TARTARUS.test": true, "a.wild.test": true, "localhost": true, addr: true,
			"evil.example": false, "a.b.wild.test": false, "10.0.0.1": false, "tartarus.test.evil.example": false,
		} {
			r, _ := p.get(addr, host, token, h2)
			if ok && r.code != http.StatusOK {
				t.Errorf("%s: %s", host, r.body)
			}
			if !ok {
				if e := r.fails(t, fault.InvalidArgument); e.Field != "Host" || e.Hint == "" {
					t.Errorf("%s: %s", host, r.body)
				}
			}
		}
	}
	// The Go client, by its own way.
	c := must(client.Dial("https://"+addr, token, client.WithTLS(&tls.Config{RootCAs: p.roots})))(t)
	defer c.Close()
	if _, err := c.List(t.Context(), &apiv1.ListRequest{}); err != nil {
		t.Error(err)
	}
	// Who speaks plain HTTP is told.
	conn := must(net.Dial("tcp", addr))(t)
	defer conn.Close()
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: tartarus.test\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.0 400") {
		t.Errorf("got %q, %v", line, err)
	}
	// Nothing older than TLS 1.2.
	old, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: p.roots, ServerName: "tartarus.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err == nil {
		old.Close()
		t.Error("it speaks TLS 1.1")
	}
}

// A renewed certificate holds from the next connection on; one that does not
// do changes nothing.
func TestCertificatesAreRenewed(t *testing.T) {
	w, p := newWorld(t), newPKI(t)
	p.issue(1, "tartarus.test")
	addr, token := w.secured(p), w.token("acme")
	holds := func(want int64) {
		t.Helper()
		if r, serial := p.get(addr, "tartarus.test", token, true); r.code != http.StatusOK || serial != want {
			t.Errorf("certificate %d, want %d: %s", serial, want, r.body)
		}
	}
	holds(1)
	p.issue(2, "tartarus.test", "renewed.test")
	holds(2)
	if r, _ := p.get(addr, "renewed.test", token, true); r.code != http.StatusOK {
		t.Errorf("the new one's name: %s", r.body)
	}
	p.write(p.cert, "CERTIFICATE", []byte("nonsense"))
	holds(2)
	if !strings.Contains(w.log.String(), "cannot be read again") {
		t.Error("the log does not say so")
	}
	if err := os.Remove(p.cert); err != nil {
		t.Fatal(err)
	}
	holds(2)
	p.issue(3, "tartarus.test")
	holds(3)
}

func TestCertificatesThatDoNotDo(t *testing.T) {
	good, other := newPKI(t), newPKI(t)
	good.issue(1, "tartarus.test")
	other.issue(2, "tartarus.test")
	nameless := newPKI(t)
	nameless.issue(3)
	for name, files := range map[string][2]string{
		"none": {"/nowhere/c", "/nowhere/k"}, "another's key": {good.cert, other.key}, "no name": {nameless.cert, nameless.key},
		"no certificate": {good.key, good.key}, "no key": {good.cert, good.cert},
	} {
		if _, err := olympus.LoadCertificate(files[0], files[1], nil); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := must(olympus.LoadCertificate(good.cert, good.key, nil))(t)
	l := must(olympus.ListenTLS(t.Context(), "127.0.0.1:0", c))(t)
	defer l.Close()
	if _, err := olympus.ListenTLS(t.Context(), l.Addr().String(), c); !fault.Is(err, fault.Conflict) {
		t.Errorf("a port in use: %v", err)
	}
	for _, addr := range []string{"nonsense", "127.0.0.1:99999", "192.0.2.1:0"} {
		if _, err := olympus.ListenTLS(t.Context(), addr, c); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
