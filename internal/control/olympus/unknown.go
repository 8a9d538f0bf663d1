package olympus

import (
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// checkKnown refuses a message with a field that the contract does not have,
// as JSON with one is refused: a newer caller may mean a limit by it. gRPC
// carries numbers alone, so it is told by its number.
func checkKnown(msg proto.Message) error { return knownIn("", msg.ProtoReflect()) }

func knownIn(path string, m protoreflect.Message) error {
	if raw := m.GetUnknown(); len(raw) > 0 {
		number, _, _ := protowire.ConsumeTag(raw) // they were parsed once
		name := strconv.Itoa(int(number))
		return fault.Invalid(join(path, name), "The caller is newer than this server: leave the field away, or update the server.",
			"there is no field with the number %s", name)
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := join(path, string(f.Name()))
		switch {
		case f.Message() == nil || f.IsMap(): // maps hold texts alone
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = knownIn(at+"["+strconv.Itoa(i)+"]", v.List().Get(i).Message())
			}
		default:
			err = knownIn(at, v.Message())
		}
		return err == nil
	})
	return err
}
