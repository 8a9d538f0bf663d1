package qemu

import (
	"context"
	"encoding/base64"
	"io"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Console writes the last of what the guest wrote to its serial port. QEMU
// forgets what was read, so it is kept here.
func (v *vm) Console(w io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), consoleTimeout)
	defer cancel()
	_, err := w.Write(v.readRing(ctx))
	return err
}

// readRing empties QEMU's ring into ours and returns a copy. After QEMU's end,
// or when it does not answer, that is what was read before.
func (v *vm) readRing(ctx context.Context) []byte {
	v.reading.Lock()
	defer v.reading.Unlock()
	var text string
	err := v.mon.call(ctx, "ringbuf-read", map[string]any{
		"device": ringID, "size": tartarus.ConsoleBytes, "format": "base64",
	}, &text)
	if err == nil {
		if b, err := base64.StdEncoding.DecodeString(text); err == nil {
			v.console = append(v.console, b...)
			if over := len(v.console) - tartarus.ConsoleBytes; over > 0 {
				v.console = append([]byte(nil), v.console[over:]...)
			}
		}
	}
	return append([]byte(nil), v.console...)
}

// lastWords is the end of what QEMU wrote to stderr. Whoever took QEMU over
// wrote it: it is for our log, and bounded.
func (v *vm) lastWords() string {
	text, err := launcher.ReadStderr(v.spec.Dir)
	if err != nil {
		return ""
	}
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	return text[max(0, len(text)-lastWords):]
}
