// Package seal is the signing and checking of verdicts, orders and audit
// checkpoints, and the keeping of secrets until a start.
//
// A verdict or an order travels as one envelope:
//
//	"TSL1"       4 bytes
//	key ID      16 bytes, lower-case hexadecimal
//	signature   64 bytes, Ed25519
//	payload     the rest: canonical JSON
//
// The signature is over a line that names the kind ("tartarus verdict v1\n"),
// the key ID and the payload, so that one kind never passes for another. The
// payload is not parsed before the signature holds, and then strictly: it must
// be the very bytes that its value encodes to. The digest of a verdict is the
// SHA-256 of the whole envelope. A checkpoint is the same, written as one line
// of JSON.
//
// History of the formats:
//
//	v1  verdict, order, secrets; audit checkpoint
package seal
