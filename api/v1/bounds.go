package tartarusv1

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// BoundsOf is what the contract says a field may hold; nil where it says
// nothing.
func BoundsOf(f protoreflect.FieldDescriptor) *Bounds {
	b, _ := proto.GetExtension(f.Options(), E_Bounds).(*Bounds)
	return b
}

type object = map[string]any

// sayBounds writes the contract's bounds into the document, and that unknown
// fields are refused. Schemas are found by the names that the generator gives.
func sayBounds(doc object) {
	components, _ := doc["components"].(object)
	schemas, _ := components["schemas"].(object)
	services := File_v1_tartarus_proto.Services()
	operations := map[string]protoreflect.MessageDescriptor{}
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			operations[string(m.Parent().Name())+"_"+string(m.Name())] = m.Input()
		}
	}
	for _, op := range operationsOf(doc) {
		id, _ := op["operationId"].(string)
		input := operations[id]
		if input == nil {
			continue
		}
		parameters, _ := op["parameters"].([]any)
		for _, p := range parameters {
			sayParameter(p, input)
		}
		if body := jsonSchema(op["requestBody"]); body != nil {
			sayMessage(schemas, body, input)
		}
	}
}

// operationsOf are all operations of the document.
func operationsOf(doc object) []object {
	var out []object
	paths, _ := doc["paths"].(object)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		item, _ := paths[path].(object)
		for _, verb := range slices.Sorted(maps.Keys(item)) {
			if op, ok := item[verb].(object); ok {
				out = append(out, op)
			}
		}
	}
	return out
}

func sayParameter(p any, input protoreflect.MessageDescriptor) {
	parameter, _ := p.(object)
	name, _ := parameter["name"].(string)
	schema, _ := parameter["schema"].(object)
	if f := input.Fields().ByName(protoreflect.Name(name)); f != nil && schema != nil {
		sayField(schema, f)
		if f.Kind() == protoreflect.BoolKind {
			parameter["allowEmptyValue"] = true // ?follow
		}
	}
}

// jsonSchema is the schema of a body in JSON; nil if there is none.
func jsonSchema(body any) object {
	b, _ := body.(object)
	content, _ := b["content"].(object)
	form, _ := content["application/json"].(object)
	schema, _ := form["schema"].(object)
	return schema
}

// sayMessage writes down the bounds of a message that callers send, and of
// the messages in it.
func sayMessage(schemas, schema object, m protoreflect.MessageDescriptor) {
	properties, _ := schema["properties"].(object)
	schema["additionalProperties"] = false
	var required []any
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		property, _ := properties[string(f.Name())].(object)
		if property == nil {
			continue
		}
		sayField(property, f)
		if BoundsOf(f).GetRequired() {
			required = append(required, string(f.Name()))
		} else {
			properties[string(f.Name())] = orNull(property)
		}
		if f.Message() == nil || f.IsMap() {
			continue
		}
		if inner, ok := schemas[string(f.Message().FullName())].(object); ok {
			sayMessage(schemas, inner, f.Message())
		}
	}
	if required != nil {
		schema["required"] = required
	}
}

// orNull is a property for which null stands for its absence, as in JSON of
// protobuf.
func orNull(property object) object {
	switch t := property["type"].(type) {
	case string:
		property["type"] = []any{t, "null"}
		if texts, ok := property["enum"].([]any); ok {
			property["enum"] = append(texts, nil)
		}
	case nil:
		if ref := property["$ref"]; ref != nil {
			out := object{"anyOf": []any{object{"$ref": ref}, object{"type": "null"}}}
			if d := property["description"]; d != nil {
				out["description"] = d
			}
			return out
		}
	}
	return property
}

// sayField writes down the bounds of one field.
func sayField(schema object, f protoreflect.FieldDescriptor) {
	b := BoundsOf(f)
	if b == nil {
		return
	}
	value := schema
	switch {
	case f.IsMap():
		value, _ = schema["additionalProperties"].(object)
		set(schema, "maxProperties", b.GetMaxItems())
		if b.GetKeyPattern() != "" {
			schema["propertyNames"] = object{"pattern": b.GetKeyPattern()}
		}
	case f.IsList():
		value, _ = schema["items"].(object)
		set(schema, "maxItems", b.GetMaxItems())
		if b.GetRequired() {
			schema["minItems"] = 1
		}
	}
	if value == nil || value["$ref"] != nil {
		return
	}
	if b.GetWhole() {
		value["type"] = "integer"
		delete(value, "format")
	}
	if b.Min != nil {
		value["minimum"] = b.GetMin()
	}
	if b.Max != nil {
		value["maximum"] = b.GetMax()
	}
	set(value, "maxLength", b.GetMaxBytes())
	// An empty text stands for none, where that may be.
	mayBeEmpty := f.Kind() == protoreflect.StringKind && !f.IsList() && !b.GetRequired() && schema["type"] == "string"
	if p := b.GetPattern(); p != "" {
		if mayBeEmpty {
			p = "^$|" + p
		}
		value["pattern"] = p
	}
	if len(b.GetOneOf()) > 0 {
		var texts []any
		if mayBeEmpty {
			texts = append(texts, "")
		}
		for _, t := range b.GetOneOf() {
			texts = append(texts, t)
		}
		value["enum"] = texts
	}
}

func set(schema object, key string, n int32) {
	if n > 0 {
		schema[key] = n
	}
}

// inPath reports whether an operation has something in its path.
func inPath(op object) bool {
	parameters, _ := op["parameters"].([]any)
	return slices.ContainsFunc(parameters, func(p any) bool {
		parameter, _ := p.(object)
		in, _ := parameter["in"].(string)
		return strings.EqualFold(in, "path")
	})
}
