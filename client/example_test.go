package client_test

import (
	"context"
	"fmt"
	"os"

	tartarusv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// Run a command, show its output, and exit as it did.
func Example() {
	ctx := context.Background()
	c, err := client.Dial("http://127.0.0.1:7777", os.Getenv("TARTARUS_TOKEN"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(client.ExitFailed)
	}
	defer c.Close()
	sb, err := c.Run(ctx, &tartarusv1.RunRequest{Command: []string{"echo", "hello"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(client.ExitFailed)
	}
	for entry, err := range c.Logs(ctx, &tartarusv1.LogsRequest{Id: sb.GetId(), Follow: true}) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			break
		}
		os.Stdout.Write(entry.GetData())
	}
	if sb, err = c.Wait(ctx, sb.GetId()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(client.ExitCode(sb))
}
