package olympus

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Certificate is the server's certificate and key, from files that are looked
// at with every handshake and read again when they changed. Where they cannot
// be read then, the one before goes on to hold. Make it with LoadCertificate.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate // never nil
	seen    [2]fs.FileInfo   // of the files, when they were read last, well or not
}

// LoadCertificate reads a certificate in PEM, with those that vouch for it
// behind it, and its key.
func LoadCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log}
	if log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.seen, err = c.look(); err == nil {
		c.current, err = c.read()
	}
	if err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, err, "the TLS certificate %s with the key %s does not do", certFile, keyFile).
			WithHint("Give a certificate that names the server (a subject alternative name) and its key, both in PEM.")
	}
	return c, nil
}

func (c *Certificate) look() (seen [2]fs.FileInfo, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if seen[i], err = os.Stat(name); err != nil {
			return seen, err
		}
	}
	return seen, nil
}

func (c *Certificate) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, err
	}
	if len(pair.Leaf.DNSNames)+len(pair.Leaf.IPAddresses) == 0 {
		return nil, errors.New("the certificate names no server")
	}
	return &pair, nil
}

// now is the certificate that holds now.
func (c *Certificate) now() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, err := c.look()
	if err == nil && same(seen[0], c.seen[0]) && same(seen[1], c.seen[1]) {
		return c.current
	}
	var next *tls.Certificate
	if err == nil {
		c.seen = seen
		next, err = c.read()
	}
	if err != nil {
		c.log.Warn("the TLS certificate cannot be read again; the one before goes on to hold", "error", err, "until", c.current.Leaf.NotAfter)
		return c.current
	}
	c.log.Info("TLS certificate read again", "until", next.Leaf.NotAfter)
	c.current = next
	return next
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// names reports whether the certificate is for host.
func (c *Certificate) names(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Leaf.VerifyHostname(host) == nil
}

// secure is a listener whose connections are TLS.
type secure struct{ net.Listener }

// ListenTLS listens on any address, and speaks HTTP/2 and HTTP/1.1 over TLS
// there.
func ListenTLS(ctx context.Context, addr string, c *Certificate) (net.Listener, error) {
	l, err := listenTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	return secure{tls.NewListener(l, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now(), nil },
	})}, nil
}
