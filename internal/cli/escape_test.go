package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain, größer, 日本, �, 🙂": "plain, größer, 日本, �, 🙂",
		"\x1b[2J\r\n\t\x7f":       `\x1b[2J\x0d\x0a\x09\x7f`,
		"\u0085\u009b31m":         `\x85\x9b31m`,
		"\xff\xc3":                `\xff\xc3`,
		"a\u202eb\u2066c\u200b":   `a\u202eb\u2066c\u200b`,
		"\u2028\ue000\U000e0041":  `\u2028\ue000\U000e0041`,
	} {
		if got := escape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := escapeLines("a\n\tb\x1b\r"); got != "a\n\tb\\x1b\\x0d" {
		t.Errorf("%q", got)
	}
}

// harmless fails if a terminal would act on s, or hide a part of it.
func harmless(t interface{ Fatalf(string, ...any) }, s, keep string) {
	if !utf8.ValidString(s) {
		t.Fatalf("%q is no UTF-8", s)
	}
	for _, r := range s {
		switch {
		case strings.ContainsRune(keep, r):
		case r < 0x20, r >= 0x7f && r < 0xa0, // C0, DEL, C1
			r == 0x061c, r >= 0x200b && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x206f, // bidi, invisible
			r == 0x2028, r == 0x2029, r == 0xfeff, r >= 0xe0000 && r <= 0xe007f:
			t.Fatalf("%q has %U", s, r)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b]0;x\a", "\u202e", "\xc3", "\xc3\x28", "a\U000e0001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := escape(s)
		harmless(t, got, "")
		if again := escape(got); again != got {
			t.Fatalf("%q becomes %q and then %q", s, got, again)
		}
		harmless(t, escapeLines(s), "\n\t")
		j := safeJSON([]byte(`"` + got + `"`))
		harmless(t, string(j), "\n")
	})
}

func TestEscapeLeavesPlainText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[ -~äöüßéñ日本語→…]*`).Draw(t, "s")
		if got := escape(s); got != s {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

// However a stream is torn, the terminal sees the same.
func TestEscaperOfTornStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOf(rapid.SampledFrom([]byte("a\n\t\x1b\x80\xc3\xa4\xe2\x80\xae\xf0\x9f\x99\x82\xff"))).Draw(t, "text")
		var out bytes.Buffer
		e := &escaper{w: &out}
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			if w, err := e.Write(rest[:n]); err != nil || w != n {
				t.Fatalf("%d %v", w, err)
			}
			rest = rest[n:]
		}
		if err := e.flush(); err != nil {
			t.Fatal(err)
		}
		if want := escapeLines(string(text)); out.String() != want {
			t.Fatalf("%q shown as %q, want %q", text, out.String(), want)
		}
	})
}
