package fcget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// download brings the archive to path, going on with what is there of it.
func download(ctx context.Context, cfg Config, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = fetch(ctx, cfg, f)
	if st, serr := f.Stat(); err != nil && serr == nil && st.Size() == 0 {
		err = errors.Join(err, os.Remove(path)) // nothing to go on with
	}
	return errors.Join(err, f.Close())
}

func fetch(ctx context.Context, cfg Config, f *os.File) error {
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	resp, err := ask(ctx, cfg, have)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // only read
	switch resp.StatusCode {
	case http.StatusOK:
		have = 0
	case http.StatusPartialContent:
		if start, ok := rangeStart(resp.Header.Get("Content-Range")); !ok || start != have {
			return fault.New(fault.Unavailable, "the server sends another part than was asked for").WithHint("try again")
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return nil // all is there, or too much: the checksum tells
	default:
		return fault.New(fault.Unavailable, "the server answers %.64q for %s", resp.Status, cfg.Release.URL).
			WithHint("try again, or take the archive from elsewhere, with --from")
	}
	if err := f.Truncate(have); err != nil {
		return err
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return err
	}
	p := &progress{done: have, show: cfg.Progress}
	if resp.ContentLength >= 0 {
		p.total = have + resp.ContentLength
	}
	if p.total > maxArchive {
		return fault.New(fault.Unavailable, "the server sends %d bytes, which is no release", p.total)
	}
	n, err := io.Copy(io.MultiWriter(f, p), io.LimitReader(resp.Body, maxArchive-have+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("downloading it: %w", ctx.Err())
	case err != nil:
		return fault.Wrap(fault.Unavailable, err, "the download stopped after %d bytes", have+n).
			WithHint("repeat the command: it goes on where it stopped")
	case have+n > maxArchive:
		return errors.Join(fault.New(fault.Unavailable, "the server sends more than a release can be"), f.Truncate(0))
	}
	return nil
}

// ask asks for all from an offset on.
func ask(ctx context.Context, cfg Config, from int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Release.URL, nil)
	if err != nil {
		return nil, err
	}
	if from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
	}
	client := cfg.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.Wrap(fault.Unavailable, err, "the release cannot be downloaded").
			WithHint("without internet, bring the archive %s here and give it with --from", cfg.Release.URL)
	}
	return resp, nil
}

// rangeStart is the first byte's number in "bytes 5-9/10".
func rangeStart(header string) (int64, bool) {
	rest, ok := strings.CutPrefix(header, "bytes ")
	first, _, dash := strings.Cut(rest, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, ok && dash && err == nil
}

// progress counts what is written.
type progress struct {
	done, total int64
	show        func(done, total int64)
}

func (p *progress) Write(b []byte) (int, error) {
	p.done += int64(len(b))
	if p.show != nil {
		p.show(p.done, p.total)
	}
	return len(b), nil
}
