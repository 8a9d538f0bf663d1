package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// record is what is read of a record, or of an error.
type record struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	EndedAt time.Time `json:"ended_at"`
	Exit    struct {
		Cause   string `json:"cause"`
		Message string `json:"message"`
	} `json:"exit"`
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func (r record) ended() bool { return !r.EndedAt.IsZero() }

// quick keeps no connections, so that none outlives its call.
var quick = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// call is one request, whole. An error says that there was no answer.
func (s *server) call(method, path, body string, header ...string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := quick.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// post asks for j, once more with the same key where an answer did not come.
func (s *server) post(j *job) error {
	code, b, err := s.call("POST", "/sandbox/run", j.body, "Idempotency-Key", j.key)
	if err != nil {
		return nil //nolint:nilerr // no answer; it is asked again
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return fmt.Errorf("%w in %s", err, b)
	}
	switch {
	case code == http.StatusAccepted:
		j.id = rec.ID
	case code == http.StatusForbidden && j.refused:
		j.settled = true
	case code < 500 && code != http.StatusTooManyRequests:
		return fmt.Errorf("%s was answered with %d %s", j.name, code, b)
	}
	return nil
}

// look reads j's record.
func (s *server) look(j *job) error {
	code, b, err := s.call("GET", "/sandbox/"+j.id, "")
	if err != nil || code >= 500 {
		return nil //nolint:nilerr // no answer; it is asked again
	}
	if code != http.StatusOK {
		return fmt.Errorf("%s, which had been admitted as %s, is answered with %d %s", j.name, j.id, code, b)
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return err
	}
	j.rec = rec
	return nil
}

// end asks for j's end.
func (s *server) end(j *job) {
	if code, _, err := s.call("DELETE", "/sandbox/"+j.id+"?grace=0s", ""); err == nil && code == http.StatusOK {
		j.answered = true
	}
}

// states are j's changes of state, in order.
func (s *server) states(id string) ([]string, error) {
	code, b, err := s.call("GET", "/sandbox/"+id+"/events", "")
	if err != nil || code != http.StatusOK {
		return nil, fmt.Errorf("the events of %s: %d %s %w", id, code, b, err)
	}
	var out []string
	for d := json.NewDecoder(bytes.NewReader(b)); d.More(); {
		var e struct{ State string }
		if err := d.Decode(&e); err != nil {
			return nil, err
		}
		out = append(out, e.State)
	}
	return out, nil
}

// output is what a sandbox wrote.
func (s *server) output(id string) (string, error) {
	code, b, err := s.call("GET", "/sandbox/"+id+"/logs?stream=stdout", "")
	if err != nil || code != http.StatusOK {
		return "", fmt.Errorf("the log of %s: %d %s %w", id, code, b, err)
	}
	text := ""
	for d := json.NewDecoder(bytes.NewReader(b)); d.More(); {
		var e struct{ Text string }
		if err := d.Decode(&e); err != nil {
			return "", err
		}
		text += e.Text
	}
	return text, nil
}

// count is how many sandboxes there are, those that were refused apart.
func (s *server) count() (int, error) {
	n := 0
	for token := ""; ; {
		code, b, err := s.call("GET", "/sandbox?page_size=1000&page_token="+token, "")
		if err != nil || code != http.StatusOK {
			return 0, fmt.Errorf("listing: %d %s %w", code, b, err)
		}
		var page struct {
			Sandboxes     []record `json:"sandboxes"`
			NextPageToken string   `json:"next_page_token"`
		}
		if err := json.Unmarshal(b, &page); err != nil {
			return 0, err
		}
		for _, rec := range page.Sandboxes {
			if rec.State != "refused" {
				n++
			}
		}
		if token = page.NextPageToken; token == "" {
			return n, nil
		}
	}
}
