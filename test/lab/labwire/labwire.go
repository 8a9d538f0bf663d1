// Package labwire is the conversation between the lab and who booted it:
// orders one way, reports the other, each a line of JSON.
//
// Both ends are of one build and trust each other; there is no version.
package labwire

import (
	"encoding/json"
	"io"
	"time"
)

// PortName is the name of the virtio port that the conversation goes over.
const PortName = "tartarus.lab"

// BeatEvery is how often the lab reports that it lives.
const BeatEvery = 2 * time.Second

// Order has the lab run a command, after those that were ordered before.
type Order struct {
	ID    int           `json:"id"` // from 1
	Argv  []string      `json:"argv"`
	Env   []string      `json:"env,omitempty"` // KEY=VALUE, beside the lab's own
	Dir   string        `json:"dir,omitempty"` // /root if empty
	Limit time.Duration `json:"limit"`         // then the command and all that it started is killed
}

// Report is what the lab tells: that it is ready, what a command printed, or
// how it ended. An empty one is a sign of life.
type Report struct {
	Ready *Ready `json:"ready,omitempty"`
	ID    int    `json:"id,omitempty"`  // of the order it is about
	Out   []byte `json:"out,omitempty"` // of both streams, in their order
	Ended *Ended `json:"ended,omitempty"`
}

// Ready is what the lab says first.
type Ready struct {
	Kernel string `json:"kernel"`
	KVM    bool   `json:"kvm"` // the device is there
	Error  string `json:"error,omitempty"`
}

// Ended tells how a command ended.
type Ended struct {
	Status   int    `json:"status"` // 128+n after signal n, as shells tell it
	TimedOut bool   `json:"timed_out,omitempty"`
	Error    string `json:"error,omitempty"` // why it could not be run

	// Left are processes, mounts, cgroups, links and files that were not
	// there before the command. The processes have been killed.
	Left []string `json:"left,omitempty"`
}

// Write writes an order or a report in one call of w.
func Write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
