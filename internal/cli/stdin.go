package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tartarus-vm/tartarus/client"
)

// passStdin passes standard input to the command. The function it returns
// waits until nothing is sent any more; a read that blocks is left behind with
// the process.
func (a *app) passStdin(ctx context.Context, c *client.Client, id string) func() {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		_, err := io.Copy(pw, a.io.In)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			fmt.Fprintf(a.io.Err, "tartarus: standard input ends here: %s\n", escape(err.Error()))
		}
		pw.Close() // what came before an error is all there is
	}()
	go func() {
		defer close(done)
		_, err := c.Stdin(ctx, id, pr)
		// The command may end without reading it all: that is its business.
		if err != nil && ctx.Err() == nil && client.CodeOf(err) != client.Conflict {
			a.complain(fmt.Errorf("passing standard input on: %w", err))
		}
		pr.Close()
	}()
	return func() {
		pr.Close()
		<-done
	}
}
