package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// record is what is read of a record.
type record struct {
	ID      string             `json:"id"`
	State   string             `json:"state"`
	Timings map[string]float64 `json:"timings"`
	Runtime struct {
		Start string `json:"start"`
	} `json:"runtime"`
	Exit struct {
		Cause   string `json:"cause"`
		Message string `json:"message"`
	} `json:"exit"`
}

func decodeRecord(b []byte) (r record, err error) {
	if err = json.Unmarshal(b, &r); err == nil && r.ID == "" {
		err = fmt.Errorf("no record: %s", b)
	}
	return r, err
}

// body is the request to run a command in a VM of the shape.
func (s Shape) body(command []string) string {
	b, err := json.Marshal(map[string]any{
		"template": s.Template, "command": command, "max_duration": "86400s",
		"resources": map[string]any{"vcpus": s.VCPUs, "memory_mib": s.MemoryMiB, "disk_mib": s.DiskMiB, "processes": s.Processes},
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// throughAPI is Tartarus as its users have it.
func throughAPI(api API, s Shape) contender {
	body := s.body(s.Command)
	return contender{
		name: ofTartarus,
		includes: "POST /sandbox/run, admitted durably, judged, signed, queued, placed and confined, until the first byte of the followed log is at the caller, over connections that are kept; " +
			"the rate counts whole runs, until the VM is gone and its end is recorded; client and server share process and cores",
		worker: func(ctx context.Context, _ int) (func() started, func()) {
			u := &user{api: api}
			return func() started { return u.start(ctx, body) }, u.hangUp
		},
	}
}

// user is one who starts sandboxes through the API.
type user struct {
	api API
	c   *Caller // nil: not connected
}

func (u *user) hangUp() {
	if u.c != nil {
		u.c.Close()
		u.c = nil
	}
}

// start runs the body's command to its end.
func (u *user) start(ctx context.Context, body string) (s started) {
	id, began, err := u.create(ctx, body)
	if err == nil {
		s.ms, err = u.firstOutput(id, began)
	}
	if err != nil {
		u.hangUp()
		return started{err: err}
	}
	rec, err := u.ended(id)
	if err != nil {
		u.hangUp()
	}
	s.how, s.stages, s.err = rec.Runtime.Start, rec.Timings, err
	return s
}

// create posts a run; began is when it was sent.
func (u *user) create(ctx context.Context, body string) (id string, began time.Time, err error) {
	if u.c == nil {
		if u.c, err = u.api.Connect(ctx); err != nil {
			return "", began, err
		}
	}
	began = time.Now()
	b, err := u.c.Call(http.MethodPost, "/sandbox/run", body, http.StatusAccepted)
	if err != nil {
		return "", began, err
	}
	rec, err := decodeRecord(b)
	return rec.ID, began, err
}

// firstOutput follows the log, to its end, and tells when its first byte came.
func (u *user) firstOutput(id string, began time.Time) (float64, error) {
	ms, rest, err := u.follow(id, began)
	if err != nil {
		return 0, err
	}
	defer rest.Close()
	_, err = io.Copy(io.Discard, rest)
	return ms, err
}

// follow follows the log until its first byte.
func (u *user) follow(id string, began time.Time) (float64, io.ReadCloser, error) {
	resp, err := u.c.open(http.MethodGet, "/sandbox/"+id+"/logs?follow=true&stream=stdout", "")
	if err != nil {
		return 0, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return 0, nil, fmt.Errorf("following the log: %s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		resp.Body.Close()
		if errors.Is(err, io.EOF) {
			err = errors.New("there was no output")
			if rec, rerr := u.ended(id); rerr != nil && rec.ID != "" {
				err = rerr
			}
		}
		return 0, nil, err
	}
	return milliseconds(time.Since(began)), resp.Body, nil
}

// ended waits for the end.
func (u *user) ended(id string) (rec record, err error) {
	if _, err := u.c.Call(http.MethodGet, "/sandbox/"+id+"/events?follow=true", "", http.StatusOK); err != nil {
		return rec, err
	}
	b, err := u.c.Call(http.MethodGet, "/sandbox/"+id, "", http.StatusOK)
	if err != nil {
		return rec, err
	}
	if rec, err = decodeRecord(b); err == nil && rec.State != "succeeded" {
		err = fmt.Errorf("it %s: %s: %s", rec.State, rec.Exit.Cause, rec.Exit.Message)
	}
	return rec, err
}
