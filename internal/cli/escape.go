package cli

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape makes text from guests and tenants safe to show: control characters
// (C0, C1, DEL), bidirectional overrides, other invisible format characters
// and invalid UTF-8 become visible escapes, and the text stays on one line.
func escape(s string) string {
	plain := utf8.ValidString(s) && strings.IndexFunc(s, hidden) < 0
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case hidden(r) && r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case hidden(r) && r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		case hidden(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// hidden reports whether a terminal would act on r, or hide it, instead of
// showing it. U+FFFD itself is shown.
func hidden(r rune) bool {
	return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || unicode.Is(unicode.Co, r)
}
