package tartarusv1

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

//go:embed tartarus.openapi.json
var generated []byte

//go:embed overlay.json
var overlay []byte

// OpenAPI is the OpenAPI 3.1 document of the API: what is generated from the
// contract, with overlay.json (a JSON merge patch, RFC 7396) for the routes
// that a gateway cannot say well, the contract's bounds, and the one error shape
// under every status that an operation may answer.
func OpenAPI() ([]byte, error) {
	var doc, patch object
	if err := json.Unmarshal(generated, &doc); err != nil {
		return nil, fmt.Errorf("reading the generated OpenAPI document: %w", err)
	}
	if err := json.Unmarshal(overlay, &patch); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI overlay: %w", err)
	}
	mergePatch(doc, patch)
	sayBounds(doc)
	for _, op := range operationsOf(doc) {
		sayErrors(op)
	}
	return json.MarshalIndent(doc, "", "  ")
}

// sayErrors names every status of an error that the operation may answer. The
// overlay names those that only few have.
func sayErrors(op object) {
	statuses := []string{"400", "500", "503"}
	if open, ok := op["security"].([]any); !ok || len(open) > 0 {
		statuses = append(statuses, "401", "403", "429")
	}
	if inPath(op) {
		statuses = append(statuses, "404")
	}
	if op["requestBody"] != nil {
		statuses = append(statuses, "413")
	}
	responses, ok := op["responses"].(object)
	if !ok {
		return
	}
	for _, status := range statuses {
		responses[status] = object{"$ref": "#/components/responses/Error"}
	}
}

// mergePatch applies an RFC 7396 merge patch to doc.
func mergePatch(doc, patch object) {
	for k, v := range patch {
		child, isObject := v.(object)
		switch {
		case v == nil:
			delete(doc, k)
		case isObject:
			target, ok := doc[k].(object)
			if !ok {
				target = object{}
				doc[k] = target
			}
			mergePatch(target, child)
		default:
			doc[k] = v
		}
	}
}
