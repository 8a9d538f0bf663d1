package olympus

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// keepAlive is how often an event stream shows that it lives.
const keepAlive = 15 * time.Second

// httpRun is POST /sandbox/run: 202 with the queued record, or 200 with the
// ended one if it ends within ?wait.
func (s *Server) httpRun(w *answer, r *http.Request) error {
	ctx := r.Context()
	wait, waits, err := s.waitOf(r)
	if err != nil {
		return err
	}
	body, err := s.body(w, r)
	if err != nil {
		return err
	}
	rec, err := s.run(ctx, func() (*apiv1.RunRequest, error) {
		req := &apiv1.RunRequest{}
		return req, decodeJSON(body, req)
	})
	if err != nil {
		return err
	}
	if waits && rec.State.Live() {
		if rec, err = s.waitEnd(ctx, rec, wait); err != nil {
			return err
		}
	}
	w.Header().Set("Location", "/sandbox/"+string(rec.ID))
	code := http.StatusAccepted
	if waits && !rec.State.Live() {
		code = http.StatusOK
	}
	return writeMessage(w, code, recordOf(rec, callOf(ctx).principal))
}

func (s *Server) waitOf(r *http.Request) (d time.Duration, waits bool, err error) {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return 0, false, err
	}
	values, waits := q["wait"]
	delete(q, "wait")
	if len(q) > 0 {
		return 0, false, fault.Invalid(shorten(firstKey(q)), "The parameters here are wait.", "there is no parameter %q", shorten(firstKey(q)))
	}
	if !waits {
		return 0, false, nil
	}
	if len(values) > 1 {
		return 0, false, fault.Invalid("wait", "Send it once.", "the parameter is there twice")
	}
	if d, err = parseDuration("wait", values[0]); err != nil {
		return 0, false, err
	}
	if d > s.cfg.MaxWait {
		return 0, false, fault.Invalid("wait", "Follow its events instead, or ask again.", "wait is longer than %v", s.cfg.MaxWait)
	}
	return d, true, nil
}

// httpLogs is GET /sandbox/{id}/logs.
func (s *Server) httpLogs(w *answer, r *http.Request) error {
	form, err := formOf(r, formLines, formPlain, formEvents)
	if err != nil {
		return err
	}
	req := &apiv1.LogsRequest{}
	if err := s.decode(w, r, s.methods[apiv1.SandboxService_Logs_FullMethodName], req); err != nil {
		return err
	}
	q, err := logQueryOf(req)
	if err != nil {
		return err
	}
	if id, resumes, err := lastEventID(r); err != nil {
		return err
	} else if resumes && form == formEvents {
		q.offset, q.tail = id, -1
	}
	return s.held(r.Context(), func(ctx context.Context) error {
		rec, err := s.visible(ctx, req.GetId())
		if err != nil {
			return err
		}
		if rec.Exit.Usage.LogTruncated {
			w.Header().Set("X-Log-Truncated", "true")
		}
		k := &logSink{sink: open(w, form, string(rec.ID)+".log", q.follow)}
		if q.follow {
			if err := k.begin(); err != nil {
				return err
			}
			defer k.keep(keepAlive)()
		}
		err = s.logs(ctx, rec, q, k.entry)
		if err != nil && !w.begun.Load() {
			return err
		}
		if err == nil {
			err = k.rest()
		}
		return k.close(orCut(ctx, err), callOf(ctx).requestID)
	})
}

// httpEvents is GET /sandbox/{id}/events.
func (s *Server) httpEvents(w *answer, r *http.Request) error {
	form, err := formOf(r, formLines, formEvents)
	if err != nil {
		return err
	}
	req := &apiv1.EventsRequest{}
	if err := s.decode(w, r, s.methods[apiv1.SandboxService_Events_FullMethodName], req); err != nil {
		return err
	}
	if id, resumes, err := lastEventID(r); err != nil {
		return err
	} else if resumes && form == formEvents {
		req.After = int32(min(id, math.MaxInt32))
	}
	return s.held(r.Context(), func(ctx context.Context) error {
		if _, err := s.eventsOf(ctx, req); err != nil { // while it can be an answer of its own
			return err
		}
		k := open(w, form, "", req.GetFollow())
		if req.GetFollow() {
			if err := k.begin(); err != nil {
				return err
			}
			defer k.keep(keepAlive)()
		}
		err := s.events(ctx, req, func(e sandbox.Event) error {
			m := eventOf(e)
			line, err := marshalJSON(m)
			if err != nil {
				return err
			}
			return k.piece("state", strconv.FormatInt(e.Seq, 10), line)
		})
		if err != nil && !w.begun.Load() {
			return err
		}
		return k.close(orCut(ctx, err), callOf(ctx).requestID)
	})
}

// orCut is err, or why the server ended the stream.
func orCut(ctx context.Context, err error) error {
	if why := cut(ctx); err != nil && why != nil {
		return why
	}
	return err
}

// httpStdin is POST /sandbox/{id}/stdin. It has no time limit: whoever pipes
// into a sandbox may think for long.
func (s *Server) httpStdin(w *answer, r *http.Request) error {
	unblock := func() { _ = w.rc.SetReadDeadline(time.Now()) } // fails only where reads never block
	n, err := s.stdin(r.Context(), r.PathValue("id"), r.Body, unblock)
	if err != nil {
		return err
	}
	return writeMessage(w, http.StatusOK, &apiv1.StdinResponse{Bytes: float64(n)})
}
