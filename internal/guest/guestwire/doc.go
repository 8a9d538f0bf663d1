// Package guestwire is the protocol between host and guest: frames over one
// byte stream, whatever carries it (virtio-serial, vsock, a pipe in a test).
//
// # Frames
//
//	type (1 byte) | length of the payload (3 bytes) | payload | 0xA5
//
// A frame is at most MaxFrame bytes long. Numbers are little-endian and of
// fixed width, a string is a 16-bit length and bytes, data a 32-bit length and
// bytes, a list a 16-bit count and its items, a bool 0 or 1. So each message
// has exactly one encoding: decoding refuses everything else, trailing bytes
// included.
//
//	frame         from   fields
//	HelloHost     host   magic, nonce, versions it speaks, generation, last reply it has, how far it has each flow
//	Setup         host   request; identity, clock, entropy, user, limits, root, card
//	PutFile       host   request; path, mode, size; its content follows as FileData
//	FileData      host   request; the next bytes of the file
//	Part          host   request; the first bytes of a Start too long for one frame
//	Start         host   request; process, argv, env, cwd, user, stdin
//	Signal        host   request; process, signal
//	StatsRequest  host   request
//	Shutdown      host   request
//	Release       host   request; process: it has all of it, the guest may forget it
//	Data          both   process, flow, absolute offset, bytes
//	Credit        both   process, flow, taken up to, may send up to
//	EOF           both   process, flow, final offset
//	HelloGuest    guest  magic, nonce, version chosen, generation, last request it did, how far it has each flow
//	Reply         guest  request, status, message
//	Started       guest  request, process
//	StartFailed   guest  request, process, exit code of a shell (126, 127, 125), message
//	Exit          guest  process, code, signal, final offsets of both outputs, usage
//	Stats         guest  request, usage
//
// # Rules
//
// Requests are numbered from 1 without gaps, and the guest carries them out in
// order. Setup, PutFile (after its last byte), Start, Signal, StatsRequest and
// Shutdown have one answer each, in the same order; an answer also says that
// all earlier requests were carried out. At most MaxOutstanding of them may
// wait for their answer.
//
// Data is sent only up to the credit that the receiver gave; every other frame
// may be sent at any time and goes ahead of waiting data. So a flood of output
// never delays an Exit. Exit carries the final offsets: data may come after it.
// An EOF for a flow's receiving end (EOF of In from the guest) says that
// nobody will read it any more.
//
// Nothing is said of a process before its Started. After the host's Release
// the guest says nothing of it.
//
// # Resuming
//
// A stream that broke is opened again with a higher generation. Bytes of the
// old stream may still arrive first on either side, and a frame may be torn.
// The host sends MaxFrame zero bytes (a zero where a type is due is skipped),
// which make a torn frame visible: its last byte is not 0xA5. Then it sends
// HelloHost. The guest leaves whatever it was sending, answers with HelloGuest
// and says again what the host may have missed: the answers after the last
// one the host has, and of every process its credit, EOFs and Exit. Both ends
// send data again from where the other has it. The host finds HelloGuest by
// its nonce.
//
// # History
//
//	1  the first
//	2  Setup may end with how the guest's network card is set up
package guestwire

// Versions of the protocol that this code speaks.
const (
	MinVersion = 1
	Version    = 2

	VersionNetwork = 2 // the first that has Setup.Network
)

// VsockPort is where the guest listens for the host, on a machine whose stream
// is vsock.
const VsockPort = 1024
