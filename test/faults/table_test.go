package faults_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// stage is how far a sandbox can have come at a step: it decides which causes
// its record may then tell.
type stage string

// What becomes of the sandbox that the blow fell on.
const (
	unharmed stage = "as without the blow"
	lost     stage = "node_lost"                        // it was accepted, and nobody knows an end of it
	perhaps  stage = "as without the blow or node_lost" // the step is beside the acceptance
	stillb   stage = "start_failed"                     // the order to execute never left
	guest    stage = "guest_lost"                       // it left, and what became of it is not known
	none     stage = ""                                 // not tried
)

// step is a row of the table: the true outcome of each blow at it.
type step struct {
	name                string
	killBefore, killAft stage
	failBefore, failAft stage // after: it was done, and its answer is lost
	needs               need
}

// need is what a cell must do so that its step is passed.
type need int

const (
	nothing  need = iota
	aCrash        // a server that died before, with sandboxes on its node
	aRefusal      // a node that refuses
	aQueue        // a queue_timeout that passes
	aStandby      // a VM that waits for its sandbox
	aDisk         // a state on a small file system of its own
)

// steps are all named steps: the ledger's, the preparation's and its undoing,
// the journal's, what goes between node and control plane, and the recovery's.
// A step that a server passes and that is not here fails TestCells.
var steps = []step{
	{"ledger put token", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger activate policy", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger join", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger admit", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger refuse", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger claim", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger claim early", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger claim overdue", unharmed, unharmed, unharmed, unharmed, aQueue},
	{"ledger release", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger drop", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger place", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger requeue", unharmed, unharmed, unharmed, unharmed, aRefusal},
	{"ledger accept", unharmed, lost, unharmed, unharmed, nothing},
	{"ledger advance", lost, lost, unharmed, unharmed, nothing},
	{"ledger end", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger kill", perhaps, perhaps, unharmed, unharmed, nothing},
	{"ledger audit", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger revoke token", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger touch tokens", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger prune", none, none, none, none, nothing}, // every ten minutes: ledgertest and sqliteledger's own tests have it
	{"ledger due", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger list", unharmed, unharmed, unharmed, unharmed, nothing},
	{"ledger nodes", unharmed, unharmed, unharmed, unharmed, nothing},

	{"journal assign", unharmed, unharmed, unharmed, none, nothing}, // a local write has no answer to lose, and this one is taken back when it fails
	{"folder", unharmed, perhaps, stillb, stillb, nothing},
	{"network", perhaps, perhaps, stillb, stillb, nothing},
	{"log", perhaps, perhaps, stillb, stillb, nothing},
	{"standby", perhaps, perhaps, stillb, stillb, nothing},
	{"images", perhaps, perhaps, stillb, stillb, nothing},
	{"scratch", perhaps, perhaps, stillb, stillb, nothing},
	{"journal vm", perhaps, perhaps, stillb, stillb, nothing},
	{"vm", perhaps, perhaps, stillb, stillb, nothing},
	{"setup", perhaps, perhaps, stillb, stillb, nothing},
	{"accept", unharmed, lost, unharmed, unharmed, nothing},
	{"journal accepted", lost, lost, stillb, stillb, nothing},
	{"journal started", lost, lost, stillb, stillb, nothing},
	{"execute", lost, lost, stillb, guest, nothing},
	{"snapshot", unharmed, unharmed, unharmed, unharmed, aStandby}, // no sandbox waits for these
	{"snapshot boot", unharmed, unharmed, unharmed, unharmed, aStandby},
	{"snapshot save", unharmed, unharmed, unharmed, unharmed, aStandby},
	{"standby make", unharmed, unharmed, unharmed, unharmed, aStandby},
	{"standby end", unharmed, unharmed, unharmed, unharmed, aStandby},
	{"log to blob", lost, lost, unharmed, unharmed, nothing},
	{"journal end", lost, unharmed, unharmed, unharmed, nothing},
	{"undo setup", none, none, none, none, nothing}, // it has nothing to undo, as images
	{"undo vm", unharmed, unharmed, unharmed, unharmed, nothing},
	{"undo standby", unharmed, unharmed, unharmed, unharmed, nothing},
	{"undo scratch", unharmed, unharmed, unharmed, unharmed, nothing},
	{"undo log", unharmed, unharmed, unharmed, unharmed, nothing},
	{"undo network", unharmed, unharmed, unharmed, unharmed, nothing},
	{"undo folder", unharmed, unharmed, unharmed, unharmed, nothing},
	{"report end", unharmed, unharmed, unharmed, unharmed, nothing},
	{"journal remove", unharmed, unharmed, unharmed, unharmed, nothing},
	{"journal card", none, none, none, none, nothing}, // needs a network card: fakes have none, TestNetwork of e2e has
	{"join", unharmed, unharmed, unharmed, unharmed, nothing},
	{"reap", perhaps, perhaps, perhaps, perhaps, aCrash},
	{"journal lost", lost, lost, lost, lost, aCrash},
	{"sweep", perhaps, perhaps, perhaps, perhaps, aCrash},
}

func stepOf(name string) (step, bool) {
	i := slices.IndexFunc(steps, func(s step) bool { return s.name == name })
	if i < 0 {
		return step{}, false
	}
	return steps[i], true
}

// blows are the columns.
var blows = []string{"kill before", "kill after", "error before", "answer lost"}

// outcome is the stage of a column.
func (s step) outcome(column string) stage {
	switch column {
	case blows[0]:
		return s.killBefore
	case blows[1]:
		return s.killAft
	case blows[2]:
		return s.failBefore
	}
	return s.failAft
}

// results are the cells that were run.
type results struct {
	mu   sync.Mutex
	rows []string
	got  map[string]map[string]string // by row and column
	bad  []string
}

var table = &results{got: map[string]map[string]string{}}

// enter notes how a cell ended.
func (r *results) enter(row, column string, faults []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.got[row] == nil {
		r.rows = append(r.rows, row)
		r.got[row] = map[string]string{}
	}
	r.got[row][column] = "ok"
	if len(faults) > 0 {
		r.got[row][column] = "FAIL"
		for _, f := range faults {
			r.bad = append(r.bad, fmt.Sprintf("%s, %s: %s", row, column, f))
		}
	}
}

// once is the column of what is no step.
const once = "tried"

// print prints the table, and failures last.
func (r *results) print(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%-24s", "step")
	for _, c := range blows {
		fmt.Fprintf(w, "%-14s", c)
	}
	cells := 0
	line := func(row string, columns []string) {
		fmt.Fprintf(w, "\n%-24s", row)
		for _, c := range columns {
			cell, ok := r.got[row][c]
			if !ok {
				cell = "-"
			} else {
				cells++
			}
			fmt.Fprintf(w, "%-14s", cell)
		}
	}
	for _, s := range steps {
		if r.got[s.name] != nil {
			line(s.name, blows)
		}
	}
	fmt.Fprintf(w, "\n\n%-24s%s", "what happens", once)
	for _, row := range r.rows {
		if _, isStep := stepOf(row); !isStep {
			line(row, []string{once})
		}
	}
	fmt.Fprintf(w, "\n\nseed %d: %d cells, %d failures\n", *seed, cells, len(r.bad))
	for _, b := range r.bad {
		fmt.Fprintln(w, "FAIL "+strings.TrimSpace(b))
	}
}
