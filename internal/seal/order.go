package seal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// OrderKind is what an order tells a node to do.
type OrderKind string

// The kinds.
const (
	OrderAssign OrderKind = "assign"
	OrderKill   OrderKind = "kill"
)

// MaxGrace bounds the time that a kill may leave to the command.
const MaxGrace = time.Hour

const (
	nonceLen   = 16  // bytes, before they become hexadecimal digits
	maxNodeLen = 253 // a host name
)

// Order tells one node what to do with one attempt of one sandbox. It holds
// only together with the verdict it names.
type Order struct {
	Version    int                `json:"version"` // set by SignOrder
	KeyID      string             `json:"key_id"`  // set by SignOrder
	Kind       OrderKind          `json:"kind"`
	Verdict    sandbox.Digest     `json:"verdict"`
	Assignment sandbox.Assignment `json:"assignment"`
	Cause      sandbox.Cause      `json:"cause,omitempty"`    // of a kill
	Grace      time.Duration      `json:"grace_ns,omitempty"` // of a kill
	Issued     time.Time          `json:"issued"`
	Expires    time.Time          `json:"expires"`
	Nonce      string             `json:"nonce"` // set by SignOrder: no two orders are the same bytes
}

// SignOrder makes the bytes that travel.
func (k *Key) SignOrder(o Order) ([]byte, error) {
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails
	o.Version, o.KeyID, o.Nonce = FormatVersion, k.id, hex.EncodeToString(nonce[:])
	o.Issued, o.Expires = plainTime(o.Issued), plainTime(o.Expires)
	if err := o.check(k.id); err != nil {
		return nil, fmt.Errorf("signing the order for %q: %w", o.Assignment.Sandbox, err)
	}
	b, err := k.seal(orderDomain, o)
	if err != nil {
		return nil, fmt.Errorf("signing the order for %q: %w", o.Assignment.Sandbox, err)
	}
	return b, nil
}

// OpenOrder checks the bytes that travelled and returns what they say. It does
// not know which node asks: OpenAssign and OpenKill do. Errors are of kind
// PolicyDenied.
func (r *Ring) OpenOrder(b []byte, now time.Time) (Order, error) {
	keyID, payload, err := r.open(orderDomain, b)
	if err != nil {
		return Order{}, refuse("order", err)
	}
	var o Order
	if err := decodeStrict(payload, &o); err != nil {
		return Order{}, refuse("order", err)
	}
	if err := errors.Join(o.check(keyID), checkTimes(o.Issued, o.Expires, now)); err != nil {
		return Order{}, refuse("order", err)
	}
	return o, nil
}

func (o *Order) check(keyID string) error {
	a := o.Assignment
	switch {
	case o.Version != FormatVersion:
		return fmt.Errorf("its version %d is not %d", o.Version, FormatVersion)
	case o.KeyID != keyID:
		return errors.New("it names another key than it is signed with")
	case !o.Verdict.Valid():
		return errors.New("it names no verdict")
	case !a.Sandbox.Valid() || a.Attempt < 1 || a.Epoch < 1 || a.Node == "" || len(a.Node) > maxNodeLen:
		return errors.New("it names no whole assignment")
	case !o.Expires.After(o.Issued):
		return errors.New("it expires before it begins")
	}
	if n, err := hex.DecodeString(o.Nonce); err != nil || len(n) != nonceLen {
		return errors.New("it has no nonce")
	}
	switch o.Kind {
	case OrderAssign:
		if o.Cause != "" || o.Grace != 0 {
			return errors.New("it assigns, with a cause to end")
		}
	case OrderKill:
		if !o.Cause.Valid() || o.Grace < 0 || o.Grace > MaxGrace {
			return errors.New("it kills, without a cause or with a grace out of bounds")
		}
	default:
		return errors.New("its kind is not known here")
	}
	return nil
}

// Here is who reads an order, and when.
type Here struct {
	Node  string
	Epoch int64 // as ControlService.Join answered last
	Now   time.Time
}

// Assign is an order to run together with the verdict that allows it.
type Assign struct {
	Order   Order
	Verdict Verdict
	Digest  sandbox.Digest // of the verdict
}

// OpenAssign opens an assign order with its verdict, and checks that the two
// belong together and are meant for this node in this epoch: an order that holds but
// is for another epoch is a Conflict, all else PolicyDenied. That the sandbox
// is none the node has had is for the node's journal to say.
func (r *Ring) OpenAssign(order, verdict []byte, here Here) (Assign, error) {
	o, err := r.OpenOrder(order, here.Now)
	if err != nil {
		return Assign{}, err
	}
	v, digest, err := r.OpenVerdict(verdict, here.Now)
	if err != nil {
		return Assign{}, err
	}
	switch {
	case o.Kind != OrderAssign:
		err = errors.New("it is no order to run")
	case o.Verdict != digest:
		err = errors.New("it belongs to another verdict")
	case o.Assignment.Sandbox != v.Sandbox:
		err = errors.New("its verdict is another sandbox's")
	}
	if err != nil {
		return Assign{}, refuse("order", err)
	}
	if err := o.meant(here); err != nil {
		return Assign{}, err
	}
	return Assign{Order: o, Verdict: v, Digest: digest}, nil
}

// OpenKill opens a kill order and checks that it is meant for this node in
// this epoch, with the errors of OpenAssign. The caller compares its Verdict and Attempt with those of the
// sandbox that it names.
func (r *Ring) OpenKill(order []byte, here Here) (Order, error) {
	o, err := r.OpenOrder(order, here.Now)
	if err != nil {
		return Order{}, err
	}
	if o.Kind != OrderKill {
		return Order{}, refuse("order", errors.New("it is no order to end"))
	}
	if err := o.meant(here); err != nil {
		return Order{}, err
	}
	return o, nil
}

func (o *Order) meant(here Here) error {
	if o.Assignment.Node != here.Node {
		return refuse("order", errors.New("it is meant for another node"))
	}
	if o.Assignment.Epoch != here.Epoch {
		return fault.New(fault.Conflict, "the order is for epoch %d of this node, which is at %d", o.Assignment.Epoch, here.Epoch).
			WithHint("The node joined anew after the order was made; the control plane places the sandbox again.")
	}
	return nil
}
