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

// connect finds the server: the flag, the environment, then the socket of a
// running up. nil without an error: there is none.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	token, err := a.readToken()
	if err != nil {
		return nil, err
	}
	for _, named := range [][2]string{{"--server", a.server}, {"TARTARUS_URL", a.env("TARTARUS_URL")}} {
		if named[1] == "" {
			continue
		}
		c, err := client.Dial(named[1], token)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", named[0], err)
		}
		return c, nil
	}
	for _, s := range a.cfg.Inside.Sockets(a.state()) {
		if alive(ctx, s) {
			return client.Dial("unix://"+s, token)
		}
	}
	return nil, nil
}

func (a *app) readToken() (string, error) {
	if a.tokenFile == "" {
		return a.env("TARTARUS_TOKEN"), nil
	}
	b, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := string(bytes.TrimSpace(b))
	if token == "" {
		return "", withHint(fmt.Errorf("--token-file: %s is empty", a.tokenFile), "`tartarus token create` makes a token; an up writes its first one to STATE/admin-token")
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
