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

// Metrics are some of what Firecracker counts, each since they were read last
// (what it could not write since then is lost). What was taken over may tell
// anything.
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

// Metrics has Firecracker tell what it has counted since.
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

// readMetrics reads lines until the pipe is empty after one, and returns their
// sum: each counts from the one before.
func readMetrics(ctx context.Context, pipe *os.File) (Metrics, error) {
	var text []byte
	buf := make([]byte, 16<<10)
	for {
		whole := len(text) > 0 && text[len(text)-1] == '\n'
		if whole {
			// All that the flush wrote is there: it was answered before.
			_ = pipe.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
		n, err := pipe.Read(buf)
		text = append(text, buf[:n]...)
		if len(text) > maxMetrics {
			return Metrics{}, fmt.Errorf("more than %d bytes", maxMetrics)
		}
		switch {
		case err == nil:
		case whole && errors.Is(err, os.ErrDeadlineExceeded):
			return sumOf(text)
		case ctx.Err() != nil:
			return Metrics{}, ctx.Err()
		default:
			return Metrics{}, err
		}
	}
}

func sumOf(lines []byte) (Metrics, error) {
	var sum Metrics
	for line := range bytes.Lines(lines) {
		var m Metrics
		if err := json.Unmarshal(line, &m); err != nil {
			return Metrics{}, err
		}
		sum.API.PutCalls += m.API.PutCalls
		sum.VCPU.ExitIOIn += m.VCPU.ExitIOIn
		sum.VCPU.ExitIOOut += m.VCPU.ExitIOOut
		sum.VCPU.Failures += m.VCPU.Failures
		sum.Seccomp.Faults += m.Seccomp.Faults
		sum.Vsock.RxBytes += m.Vsock.RxBytes
		sum.Vsock.TxBytes += m.Vsock.TxBytes
		sum.Block.Read += m.Block.Read
		sum.Block.Written += m.Block.Written
	}
	return sum, nil
}
