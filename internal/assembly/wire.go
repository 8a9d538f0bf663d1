package assembly

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/runner"
)

// inMemory is the address of the node in the same process.
const inMemory = "memory:node"

// wire is the connection between control plane and node inside one process:
// the same gRPC as between hosts, over memory.
type wire struct {
	toControl, toNode *bufconn.Listener
}

const wireBuffer = 256 << 10

func newWire() *wire {
	return &wire{toControl: bufconn.Listen(wireBuffer), toNode: bufconn.Listen(wireBuffer)}
}

func dialMemory(l *bufconn.Listener) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
}

// controlClient is the node's way to the control plane. The caller closes the
// connection.
func (w *wire) controlClient() (nodev1.ControlServiceClient, *grpc.ClientConn, error) {
	conn, err := dialMemory(w.toControl)
	if err != nil {
		return nil, nil, err
	}
	return nodev1.NewControlServiceClient(conn), conn, nil
}

// dialNode is hades's way to the node.
func (w *wire) dialNode(node, address string) (*grpc.ClientConn, error) {
	if address != inMemory {
		return nil, fmt.Errorf("node %q is at %q, not in this process", node, address)
	}
	return dialMemory(w.toNode)
}

// control serves what the node asks of the control plane.
func (w *wire) control(impl nodev1.ControlServiceServer) runner.Service {
	srv := grpc.NewServer()
	nodev1.RegisterControlServiceServer(srv, impl)
	return serveMemory("control service", srv, w.toControl)
}

// node serves what the control plane asks of the node.
func (w *wire) node(impl nodev1.NodeServiceServer) runner.Service {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxOrder))
	nodev1.RegisterNodeServiceServer(srv, impl)
	return serveMemory("node service", srv, w.toNode)
}

// maxOrder is the most that an assignment takes: a verdict and the secrets.
const maxOrder = 16 << 20

func serveMemory(name string, srv *grpc.Server, l *bufconn.Listener) runner.Service {
	return runner.Service{
		Name: name,
		Run:  func(context.Context) error { return srv.Serve(l) },
		Stop: func(context.Context) error { srv.Stop(); return nil },
	}
}
