package soak_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	workers  = 12
	patience = 3 * time.Minute // of one sandbox, whatever happens to the server meanwhile
)

// underLoad has the workers load the server for d while faults does what it
// does. What they began is over when it returns.
func (s *soak) underLoad(d time.Duration, faults func(ctx context.Context, gate *sync.RWMutex)) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var all sync.WaitGroup
	var gate sync.RWMutex // whoever holds it sees no load
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				gate.RLock()
				s.one()
				gate.RUnlock()
			}
		})
	}
	faults(ctx, &gate)
	all.Wait()
}

// one is one sandbox, or one request that is refused, from beginning to end.
func (s *soak) one() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	jobs := []struct {
		often int
		do    func(context.Context) error
	}{
		{40, s.job("true", `{"command": ["true"]}`, nil)},
		{15, s.job("fails", `{"command": ["exit", "3"], "labels": {"soak": "yes"}}`, nil)},
		{15, s.job("output followed", `{"command": ["echo", "hello"], "env": {"A": "b"}, "stdin": "aGVsbG8="}`, s.follow)},
		{10, s.job("killed", `{"command": ["sleep", "forever"]}`, s.killIt)},
		{8, s.job("never read", `{"command": ["flood", "2000000"]}`, s.neverRead)},
		{6, s.job("VMM dies", `{"command": ["crash"]}`, nil)},
		{4, s.job("guest lies", `{"command": ["lie", "garbage"]}`, nil)},
		{4, s.job("max_duration", `{"command": ["stubborn"], "max_duration": "1s"}`, nil)},
		{10, s.disconnected},
		{6, s.refused},
	}
	sum := 0
	for _, j := range jobs {
		sum += j.often
	}
	n := rand.IntN(sum)
	for _, j := range jobs {
		if n -= j.often; n < 0 {
			if err := j.do(ctx); err != nil {
				s.t.Errorf("%v", err)
			}
			return
		}
	}
}

// job admits a run, does something to it, and waits for its end.
func (s *soak) job(name, body string, during func(context.Context, string)) func(context.Context) error {
	return func(ctx context.Context) error {
		s.count("job: "+name, 1)
		id, err := s.admit(ctx, body, newKey())
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if during != nil {
			during(ctx, id)
		}
		return s.ended(ctx, id)
	}
}

// keys number what is asked for, so that it can be asked for again.
var keys atomic.Int64

func newKey() string { return fmt.Sprintf("soak-%d", keys.Add(1)) }

// admit asks for a run until there is an answer: the server may be killed
// before, while and after it answers.
func (s *soak) admit(ctx context.Context, body, key string) (string, error) {
	for {
		rec, code, err := s.post(ctx, "/sandbox/run", body, key)
		switch {
		case err == nil && rec.ID != "" && rec.Error.Code == "":
			s.mu.Lock()
			defer s.mu.Unlock()
			if _, known := s.admitted[rec.ID]; !known {
				s.admitted[rec.ID] = ""
			}
			return rec.ID, nil
		case err != nil:
			s.count("requests broken off", 1)
		case rec.Error.Code == "quota_exceeded" || rec.Error.Code == "unavailable":
			s.count("answers: "+rec.Error.Code, 1)
		default:
			return "", fmt.Errorf("%s: answered %d %s", body, code, rec.Error.Code)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return "", fmt.Errorf("%s: no answer: %w", body, err)
		}
	}
}

func (s *soak) post(ctx context.Context, path, body, key string) (rec record, code int, err error) {
	r, err := s.request(ctx, http.MethodPost, path, body)
	if err != nil {
		return rec, 0, err
	}
	r.Header.Set("Idempotency-Key", key)
	resp, err := s.http.Do(r)
	if err != nil {
		return rec, 0, err
	}
	defer resp.Body.Close()
	rec, err = decode(resp.Body)
	return rec, resp.StatusCode, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// ended waits for the end of a sandbox, across the ends of servers.
func (s *soak) ended(ctx context.Context, id string) error {
	for {
		s.read(ctx, "/sandbox/"+id+"/events?follow=true")
		rec, code, err := s.get(ctx, "/sandbox/"+id)
		switch {
		case err == nil && code == http.StatusNotFound:
			return fmt.Errorf("%s was admitted and is lost", id)
		case err == nil && code == http.StatusOK && rec.EndedAt != "":
			s.mu.Lock()
			defer s.mu.Unlock()
			s.admitted[id] = rec.Exit.Cause
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s did not end: %w", id, err)
		}
	}
}

func (s *soak) get(ctx context.Context, path string) (rec record, code int, err error) {
	r, err := s.request(ctx, http.MethodGet, path, "")
	if err != nil {
		return rec, 0, err
	}
	resp, err := s.http.Do(r)
	if err != nil {
		return rec, 0, err
	}
	defer resp.Body.Close()
	rec, err = decode(resp.Body)
	return rec, resp.StatusCode, err
}

// read reads an answer to its end, whatever it is.
func (s *soak) read(ctx context.Context, path string) {
	r, err := s.request(ctx, http.MethodGet, path, "")
	if err != nil {
		return
	}
	if resp, err := s.http.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func (s *soak) follow(ctx context.Context, id string) {
	s.read(ctx, "/sandbox/"+id+"/logs?follow=true")
}

// killIt kills a sandbox wherever it is on its road. A server that is killed
// meanwhile is asked again.
func (s *soak) killIt(ctx context.Context, id string) {
	_ = pause(ctx, time.Duration(rand.IntN(100))*time.Millisecond)
	for {
		r, err := s.request(ctx, http.MethodDelete, "/sandbox/"+id+"?grace=0s", "")
		if err != nil {
			return
		}
		resp, err := s.http.Do(r)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// neverRead follows the log and reads nothing of it.
func (s *soak) neverRead(ctx context.Context, id string) {
	r, err := s.request(ctx, http.MethodGet, "/sandbox/"+id+"/logs?follow=true", "")
	if err != nil {
		return
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(r.URL.Host, "http://"))
	if err != nil {
		return // it was killed a moment ago
	}
	defer conn.Close()
	_ = r.Write(conn)
	_ = s.ended(ctx, id) // whose caller says if it does not
	_ = pause(ctx, time.Duration(rand.IntN(500))*time.Millisecond)
}

// disconnected hangs up in the middle of a request that waits, and then asks
// for what became of it.
func (s *soak) disconnected(ctx context.Context) error {
	s.count("job: hangs up", 1)
	const body = `{"command": ["sleep", "0.2"]}`
	key := newKey()
	short, cancel := context.WithTimeout(ctx, time.Duration(1+rand.IntN(100))*time.Millisecond)
	_, _, err := s.post(short, "/sandbox/run?wait=10s", body, key)
	cancel()
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		s.count("hung up in the middle", 1)
	}
	id, err := s.admit(ctx, body, key)
	if err != nil {
		return err
	}
	return s.ended(ctx, id)
}

// refused asks for what the policy denies, and for nonsense.
func (s *soak) refused(ctx context.Context) error {
	s.count("job: refused", 1)
	for _, r := range []struct{ body, code string }{
		{`{"command": ["true"], "user": "root"}`, "policy_denied"},
		{`{"command": ["true"], "no_such_field": 1}`, "invalid_argument"},
	} {
		for {
			rec, _, err := s.post(ctx, "/sandbox/run", r.body, "")
			if err == nil && rec.Error.Code == r.code {
				break
			}
			if err == nil && rec.Error.Code != "unavailable" {
				return fmt.Errorf("%s: answered %+v", r.body, rec)
			}
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("%s: no answer: %w", r.body, err)
			}
		}
	}
	return nil
}
