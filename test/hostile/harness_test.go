package hostile_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// rawVar is the path of the program raw, where it cannot be built: in the lab.
const rawVar = "TARTARUS_HOSTILE_RAW"

// rawProgram is testdata/raw, packed, as a file of a run.
func rawProgram(t *testing.T) string {
	t.Helper()
	path := os.Getenv(rawVar)
	if path == "" {
		path = filepath.Join(t.TempDir(), "raw")
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/raw")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const fits = 1 << 20 // of files, in a request
	if packed.Len() > fits {
		t.Fatalf("the program has %d bytes, packed", packed.Len())
	}
	return base64.StdEncoding.EncodeToString(packed.Bytes())
}

// policyFile is a file with that policy.
func policyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// request is what the tests say in a body of run.
type request map[string]any

func (r request) body(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// shell is a run of a script.
func shell(script string) request { return request{"command": []string{"sh", "-c", script}} }

// with sets a field.
func (r request) with(field string, value any) request {
	r[field] = value
	return r
}

func (r request) root() request { return r.with("user", "root") }

// entry is a line of a log.
type entry struct {
	Offset    int64
	Stream    string
	Text      string
	Truncated bool
}

// output is a whole log.
type output struct {
	stdout, stderr string
	bytes          int64
	truncated      bool // and the last entry says so
}

// readLog follows a log to its end.
func readLog(s *realvm.Server, id string) output {
	s.T.Helper()
	resp := s.Open(realvm.Patience(s.T), "GET", "/sandbox/"+id+"/logs?follow=true", "")
	defer resp.Body.Close()
	var out output
	for d := json.NewDecoder(resp.Body); ; {
		var e struct {
			entry
			Data  []byte          `json:"data_base64"`
			Error json.RawMessage `json:"error"`
		}
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil || e.Error != nil {
			s.T.Fatalf("the log of %s: %v %s", id, err, e.Error)
		}
		text := e.Text + string(e.Data)
		if out.truncated {
			s.T.Errorf("the log of %s goes on behind its mark with %q", id, text)
		}
		out.truncated = e.Truncated
		out.bytes += int64(len(text))
		switch e.Stream {
		case "stdout":
			out.stdout += text
		case "stderr":
			out.stderr += text
		}
	}
}

// clip is for messages.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
