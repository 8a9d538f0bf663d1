// Package client is the Go client of Tartarus.
//
// Dial finds a server, Run starts a sandbox, and Logs, Events, Stdin, Kill and
// Wait go on from its ID:
//
//	c, err := client.Dial("unix:///run/user/1000/tartarus/api.sock", "")
//	sb, err := c.Run(ctx, &tartarusv1.RunRequest{Command: []string{"uname", "-a"}})
//	for entry, err := range c.Logs(ctx, &tartarusv1.LogsRequest{Id: sb.GetId(), Follow: true}) { … }
//	sb, err = c.Wait(ctx, sb.GetId())
//	os.Exit(client.ExitCode(sb))
//
// Every error that a server answers is an *Error with a code of the contract.
// Messages are those of package api/v1. Following a log or events goes on by
// itself when the connection breaks, without a byte lost or twice.
package client
