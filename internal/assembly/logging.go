package assembly

import (
	"io"
	"log/slog"
	"os"

	"github.com/tartarus-vm/tartarus/internal/cli"
)

// newLogger logs to stderr: everything when verbose, else from least on, as
// lines of the format.
func newLogger(w io.Writer, format string, verbose bool, least slog.Level) *slog.Logger {
	if verbose {
		least = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: least}
	if format == cli.LogJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// stderr is where services log.
func stderr() io.Writer { return os.Stderr }
