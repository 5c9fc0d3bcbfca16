package cli

import (
	"bytes"
	"strings"
	"testing"
)

// TestPrintable tests that personal data cannot control an operator's terminal.
func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Ada":                     "Ada",
		"Zoë 日本":                  "Zoë 日本",
		"नमस्\u200dते":            "नमस्\u200dते",
		"\x1b]0;title\x07\x1b[2J": `\x1b]0;title\a\x1b[2J`,
		"a\nb\rc\td":              `a\nb\rc\td`,
		"\u202egpj.exe":           `\u202egpj.exe`,
		"\x9b31m":                 "\ufffd31m",
	} {
		if got := Printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
	var out bytes.Buffer
	Console{Out: &out}.Table([]any{"name"}, [][]any{{"\x1b[2J"}})
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("a table prints %q", out.String())
	}
}
