package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Metrics are some of what Firecracker counts, each since it was asked last
// (it also asks itself once a minute). What was taken over may tell anything.
type Metrics struct {
	API struct {
		PutCalls int64 `json:"actions_count"`
	} `json:"put_api_requests"`
	VCPU struct {
		ExitIOIn  int64 `json:"exit_io_in"`
		ExitIOOut int64 `json:"exit_io_out"`
		Failures  int64 `json:"failures"`
	} `json:"vcpu"`
	Seccomp struct {
		Faults int64 `json:"num_faults"`
	} `json:"seccomp"`
	Vsock struct {
		RxBytes int64 `json:"rx_bytes_count"`
		TxBytes int64 `json:"tx_bytes_count"`
	} `json:"vsock"`
	Block struct {
		Read    int64 `json:"read_bytes"`
		Written int64 `json:"write_bytes"`
	} `json:"block"`
}

const (
	metricsTimeout = 5 * time.Second
	maxMetrics     = 256 << 10 // bytes; one line is about 10 KiB
)

// Metrics has Firecracker tell what it counts.
func (v *vm) Metrics(ctx context.Context) (Metrics, error) {
	v.reading.Lock()
	defer v.reading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	m, err := v.metrics(ctx)
	if err != nil {
		return Metrics{}, fmt.Errorf("reading the metrics of vm %q: %w", v.boot.spec.ID, err)
	}
	return m, nil
}

func (v *vm) metrics(ctx context.Context) (Metrics, error) {
	d, err := v.openFolder()
	if err != nil {
		return Metrics{}, err
	}
	defer d.close()
	// Non-blocking, so that a read has a deadline.
	pipe, err := d.open(metricsPipe, unix.O_RDONLY|unix.O_NONBLOCK, unix.S_IFIFO)
	if err != nil {
		return Metrics{}, err
	}
	defer pipe.Close() // only read
	stop := context.AfterFunc(ctx, func() { _ = pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := v.api.FlushMetrics(ctx); err != nil {
		return Metrics{}, err
	}
	return readMetrics(ctx, pipe)
}

// readMetrics reads lines until the pipe is empty after one, and returns the
// last.
func readMetrics(ctx context.Context, pipe *os.File) (Metrics, error) {
	var text []byte
	buf := make([]byte, 16<<10)
	for {
		if len(text) > 0 && text[len(text)-1] == '\n' {
			// All that the flush wrote is there: it was answered before.
			_ = pipe.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
		n, err := pipe.Read(buf)
		text = append(text, buf[:n]...)
		if len(text) > maxMetrics {
			return Metrics{}, fmt.Errorf("more than %d bytes", maxMetrics)
		}
		if err != nil {
			last, ok := lastLine(text)
			if ok && errors.Is(err, os.ErrDeadlineExceeded) {
				var m Metrics
				return m, json.Unmarshal(last, &m)
			}
			if ctx.Err() != nil {
				return Metrics{}, ctx.Err()
			}
			return Metrics{}, err
		}
	}
}

func lastLine(text []byte) ([]byte, bool) {
	text, ok := bytes.CutSuffix(text, []byte("\n"))
	if !ok {
		return nil, false
	}
	return text[bytes.LastIndexByte(text, '\n')+1:], true
}
