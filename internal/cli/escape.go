package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape makes text from guests and tenants safe to show: control characters
// (C0, C1, DEL), bidirectional overrides, other invisible format characters
// and invalid UTF-8 become visible escapes, and the text stays on one line.
func escape(s string) string { return escapeBut(s, "") }

// escapeLines is escape for text of several lines.
func escapeLines(s string) string { return escapeBut(s, "\n\t") }

// escapeBut leaves the characters of keep as they are.
func escapeBut(s, keep string) string {
	acts := func(r rune) bool { return hidden(r) && !strings.ContainsRune(keep, r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, acts) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case acts(r) && r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case acts(r):
			b.WriteString(unicodeEscape(r))
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// unicodeEscape is r as in YAML and most languages.
func unicodeEscape(r rune) string {
	if r < 0x10000 {
		return fmt.Sprintf(`\u%04x`, r)
	}
	return fmt.Sprintf(`\U%08x`, r)
}

// hidden reports whether a terminal would act on r, or hide it, instead of
// showing it. U+FFFD itself is shown.
func hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Other_Default_Ignorable_Code_Point)
}

// escaper escapes a stream on its way to a terminal, but for ends of lines and
// tabs. A character that is torn between two writes is held back until it is
// whole, or flush.
type escaper struct {
	w    io.Writer
	held []byte
}

// Write is of io.Writer.
func (e *escaper) Write(p []byte) (int, error) {
	b := append(e.held, p...)
	whole := len(b) - torn(b)
	e.held = append([]byte(nil), b[whole:]...)
	if _, err := io.WriteString(e.w, escapeLines(string(b[:whole]))); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (e *escaper) flush() error {
	_, err := io.WriteString(e.w, escapeLines(string(e.held)))
	e.held = nil
	return err
}

// torn is how many bytes at the end of b begin a character that goes on.
func torn(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
