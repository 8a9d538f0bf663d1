package main

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

// caller is one client on one connection that it keeps. It says HTTP by hand,
// so that the client costs as little as a client can: it shares the cores with
// what is measured.
type caller struct {
	u    *up
	conn net.Conn
	r    *bufio.Reader
}

const callTimeout = 2 * time.Minute

func (u *up) dial(ctx context.Context) (*caller, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.addr)
	if err != nil {
		return nil, err
	}
	return &caller{u, conn, bufio.NewReader(conn)}, nil
}

// open asks, and returns the answer with its body still to be read.
func (c *caller) open(method, path, body string) (*http.Response, error) {
	_ = c.conn.SetDeadline(time.Now().Add(callTimeout))
	length := ""
	if method == http.MethodPost {
		length = fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if _, err := io.WriteString(c.conn, method+" "+path+" HTTP/1.1\r\nHost: "+c.u.addr+
		"\r\nAuthorization: Bearer "+c.u.token+"\r\n"+length+"\r\n"+body); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.r, nil)
}

// call asks and reads the whole answer.
func (c *caller) call(method, path, body string, want int) ([]byte, error) {
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

// one is one call on a connection of its own.
func (u *up) one(ctx context.Context, method, path, body string, want int) ([]byte, error) {
	c, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	return c.call(method, path, body, want)
}

// clients is how many callers there are in a crowd.
const clients = 64

// crowd has 64 clients do something n times in all, and tells how many times a
// second. begin makes the clients.
func crowd(n int, begin func() (do func() error, end func(), err error)) (float64, error) {
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

// post has the crowd post a run, n times in all.
func (u *up) post(ctx context.Context, n int, body string) (float64, error) {
	return crowd(n, func() (func() error, func(), error) {
		c, err := u.dial(ctx)
		if err != nil {
			return nil, nil, err
		}
		do := func() error {
			_, err := c.call(http.MethodPost, "/sandbox/run", body, http.StatusAccepted)
			return err
		}
		return do, func() { c.conn.Close() }, nil
	})
}
