package assembly

import (
	"io"
	"log/slog"
	"os"
)

// newLogger logs to stderr: everything when verbose, else from least on.
func newLogger(w io.Writer, verbose bool, least slog.Level) *slog.Logger {
	if verbose {
		least = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: least}))
}

// stderr is where services log.
func stderr() io.Writer { return os.Stderr }
