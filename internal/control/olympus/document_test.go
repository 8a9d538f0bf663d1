package olympus_test

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"sync"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// documented are the statuses that the document has, by method and path with
// every {name} as *.
var documented = sync.OnceValue(func() map[string]map[string]any {
	text, err := apiv1.OpenAPI()
	if err != nil {
		panic(err)
	}
	var doc struct {
		Paths map[string]map[string]struct{ Responses map[string]any }
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		panic(err)
	}
	name := regexp.MustCompile(`\{\w+\}`)
	out := map[string]map[string]any{}
	for path, item := range doc.Paths {
		for verb, op := range item {
			out[strings.ToUpper(verb)+" "+name.ReplaceAllString(path, "*")] = op.Responses
		}
	}
	return out
})

// undocumented reports whether an answer to a route of the document has a
// status that the document does not have.
func undocumented(method, path string, status int) bool {
	path, _, _ = strings.Cut(path, "?")
	statuses, known := documented()[method+" "+path]
	if !known {
		parts := strings.Split(path, "/")
		if len(parts) < 3 {
			return false
		}
		parts[2] = "*"
		if statuses, known = documented()[method+" "+strings.Join(parts, "/")]; !known {
			return false
		}
	}
	return statuses[strconv.Itoa(status)] == nil
}
