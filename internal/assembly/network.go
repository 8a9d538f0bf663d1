package assembly

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
)

// networkTimeout bounds the removal of the bridge at the end.
const networkTimeout = 10 * time.Second

// detectNetwork tries, beside everything else, whether sandboxes can have
// network cards here.
func (e *embedded) detectNetwork(context.Context) error {
	tried := make(chan error, 1)
	go func() { tried <- styx.Detect(styx.Config{}) }()
	e.detected = sync.OnceValue(func() error { return <-tried })
	e.later(func() error { _ = e.detected(); return nil }) // waits for it; what it says is openNetwork's
	return nil
}

// openNetwork is the network of this node, nil where there can be none: then
// contracts find no node.
func (e *embedded) openNetwork() (*styx.Network, error) {
	if err := e.detected(); err != nil {
		e.log.Info("sandboxes get no network cards here", "because", err)
		return nil, nil
	}
	n, err := styx.New(styx.Config{Logger: e.log})
	if err != nil {
		return nil, err
	}
	e.later(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), networkTimeout)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			return fmt.Errorf("removing the sandboxes' network: %w", err)
		}
		return nil
	})
	return n, nil
}

func findNetwork() cli.Finding {
	const name = "network"
	if err := styx.Detect(styx.Config{}); err != nil {
		f := failed(name, err)
		f.Status, f.Meaning = statusLimited, "runs with network grants find no node; all others have no network, as always"
		return f
	}
	return cli.Finding{Name: name, Status: statusOK, Message: fmt.Sprintf(
		"sandboxes with a contract get a card on the bridge %s, %s; forwarding is turned on while there are any", styx.DefaultBridge, styx.DefaultGateway)}
}
