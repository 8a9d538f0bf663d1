package cerberus

import (
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Peer is the principal at the other end of a Unix socket: the server's own
// user, or root, is an admin of tenant "local" without a token. Others are
// Unauthenticated: they need one.
func Peer(conn *net.UnixConn) (sandbox.Principal, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return sandbox.Principal{}, fault.Wrap(fault.Unauthenticated, err, "the caller's user cannot be told")
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		credErr = err
	}
	if credErr != nil {
		return sandbox.Principal{}, fault.Wrap(fault.Unauthenticated, credErr, "the caller's user cannot be told")
	}
	return PeerOf(int(cred.Uid), os.Geteuid())
}

// PeerOf is the principal of user uid at the socket of a server that runs as
// user self.
func PeerOf(uid, self int) (sandbox.Principal, error) {
	if uid != self && uid != 0 {
		return sandbox.Principal{}, fault.New(fault.Unauthenticated, "user %d is not the user that the server runs as", uid).
			WithHint("Call as that user or as root, or send a token.")
	}
	return sandbox.Principal{Tenant: localTenant, Scopes: []sandbox.Scope{sandbox.ScopeAdmin}, TokenID: "uid-" + strconv.Itoa(uid)}, nil
}
