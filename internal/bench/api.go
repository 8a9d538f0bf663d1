package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// API is how a server's API is reached.
type API struct {
	Dial  func(context.Context) (net.Conn, error)
	Host  string // as the server knows itself
	Token string // none where the connection says who calls
}

// Caller is one client on one connection that it keeps. It says HTTP by hand,
// so that the client costs as little as a client can: it shares the cores with
// what is measured.
type Caller struct {
	api  API
	conn net.Conn
	r    *bufio.Reader
	stop func() bool
}

// callTimeout bounds one call, and one start outside the API: a VM of a burst
// waits for those before it.
const callTimeout = 10 * time.Minute

// Connect makes a caller. Its connection ends with ctx; the caller closes it.
func (a API) Connect(ctx context.Context) (*Caller, error) {
	conn, err := a.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return &Caller{a, conn, bufio.NewReader(conn), context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

// Close ends the connection.
func (c *Caller) Close() error {
	c.stop()
	return c.conn.Close()
}

// open asks, and returns the answer with its body still to be read.
func (c *Caller) open(method, path, body string) (*http.Response, error) {
	_ = c.conn.SetDeadline(time.Now().Add(callTimeout))
	head := method + " " + path + " HTTP/1.1\r\nHost: " + c.api.Host + "\r\n"
	if c.api.Token != "" {
		head += "Authorization: Bearer " + c.api.Token + "\r\n"
	}
	if method == http.MethodPost {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if _, err := io.WriteString(c.conn, head+"\r\n"+body); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.r, nil)
}

// Call asks and reads the whole answer.
func (c *Caller) Call(method, path, body string, want int) ([]byte, error) {
	resp, err := c.open(method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, err
}

// Call is one call on a connection of its own.
func (a API) Call(ctx context.Context, method, path, body string, want int) ([]byte, error) {
	c, err := a.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Call(method, path, body, want)
}

// clients is how many callers there are in a crowd.
const clients = 64

// Crowd has 64 clients do something n times in all, and tells how many times a
// second. begin makes the clients.
func Crowd(n int, begin func() (do func() error, end func(), err error)) (float64, error) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	errs := make([]error, clients)
	for c := range clients {
		ready.Add(1)
		done.Go(func() {
			do, end, err := begin()
			ready.Done()
			if err != nil {
				errs[c] = err
				return
			}
			defer end()
			<-start
			for i := c; i < n; i += clients {
				if errs[c] = do(); errs[c] != nil {
					return
				}
			}
		})
	}
	ready.Wait()
	began := time.Now()
	close(start)
	done.Wait()
	return float64(n) / time.Since(began).Seconds(), errors.Join(errs...)
}

// Post has a crowd post a run, n times in all.
func (a API) Post(ctx context.Context, n int, body string) (float64, error) {
	return Crowd(n, func() (func() error, func(), error) {
		c, err := a.Connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		do := func() error {
			_, err := c.Call(http.MethodPost, "/sandbox/run", body, http.StatusAccepted)
			return err
		}
		return do, func() { c.Close() }, nil
	})
}
