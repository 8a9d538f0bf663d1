// Command run runs a command in a sandbox, shows its output and exits as it
// did. TARTARUS_URL and TARTARUS_TOKEN say where.
package main

import (
	"context"
	"log"
	"os"

	tartarusv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

func main() {
	ctx := context.Background()
	c := must(client.Dial(os.Getenv("TARTARUS_URL"), os.Getenv("TARTARUS_TOKEN")))
	sb := must(c.Run(ctx, &tartarusv1.RunRequest{Command: os.Args[1:]}))
	for entry, err := range c.Logs(ctx, &tartarusv1.LogsRequest{Id: sb.GetId(), Follow: true}) {
		os.Stdout.Write(must(entry, err).GetData())
	}
	os.Exit(client.ExitCode(must(c.Wait(ctx, sb.GetId()))))
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
