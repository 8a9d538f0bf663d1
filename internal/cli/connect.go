package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-vm/tartarus/client"
)

// connect finds the server: the one that was named, or the socket of a running
// up. nil without an error: there is none.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	token, err := a.readToken()
	if err != nil {
		return nil, err
	}
	if a.server != "" {
		c, err := client.Dial(a.server, token)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.source("server"), err)
		}
		return c, nil
	}
	for _, s := range a.cfg.Inside.Sockets(a.stateDir) {
		if alive(ctx, s) {
			return client.Dial("unix://"+s, token)
		}
	}
	return nil, nil
}

// readToken is the token for the server. TARTARUS_TOKEN is no setting, since a
// token has no place on a command line or in a file of settings; it comes
// after a flag and before everything else.
func (a *app) readToken() (string, error) {
	from := a.source("token-file")
	if token := a.env("TARTARUS_TOKEN"); a.tokenFile == "" || token != "" && from != "--token-file" {
		return token, nil
	}
	b, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return "", fmt.Errorf("%s: %w", from, err)
	}
	token := string(bytes.TrimSpace(b))
	if token == "" {
		return "", withHint(fmt.Errorf("%s: %s is empty", from, a.tokenFile), "`tartarus token create` makes a token; an up writes its first one to STATE/admin-token")
	}
	return token, nil
}

// withServer is the body of a command that needs a server.
func (a *app) withServer(do func(ctx context.Context, srv *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		srv, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		if srv == nil {
			return withHint(errors.New("no server is running"), "start one with `tartarus up`, or name one with --server or TARTARUS_URL")
		}
		defer srv.Close()
		return do(c.Context(), srv, args)
	}
}

// alive reports whether somebody listens on the socket who lets us in.
func alive(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
