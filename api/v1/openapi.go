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
// that a gateway cannot say well, and the one error shape on every operation.
func OpenAPI() ([]byte, error) {
	var doc, patch map[string]any
	if err := json.Unmarshal(generated, &doc); err != nil {
		return nil, fmt.Errorf("reading the generated OpenAPI document: %w", err)
	}
	if err := json.Unmarshal(overlay, &patch); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI overlay: %w", err)
	}
	mergePatch(doc, patch)
	paths, ok := doc["paths"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the OpenAPI document has no paths")
	}
	for _, item := range paths {
		operations, _ := item.(map[string]any)
		for _, op := range operations {
			addErrorResponse(op)
		}
	}
	return json.MarshalIndent(doc, "", "  ")
}

func addErrorResponse(op any) {
	o, ok := op.(map[string]any)
	if !ok {
		return
	}
	if responses, ok := o["responses"].(map[string]any); ok {
		responses["default"] = map[string]any{"$ref": "#/components/responses/Error"}
	}
}

// mergePatch applies an RFC 7396 merge patch to doc.
func mergePatch(doc, patch map[string]any) {
	for k, v := range patch {
		child, isObject := v.(map[string]any)
		switch {
		case v == nil:
			delete(doc, k)
		case isObject:
			target, ok := doc[k].(map[string]any)
			if !ok {
				target = map[string]any{}
				doc[k] = target
			}
			mergePatch(target, child)
		default:
			doc[k] = v
		}
	}
}
