// Package fault carries an error to the person who has to act on it: what happened, and what to do about it.
//
// Argo CD shows a plugin's stderr to people verbatim and nothing else, so an error without a way out costs somebody
// an evening. Any package may return a fault; only the commands print one.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// maxText bounds one printed line. Argo CD copies stderr uncapped into the Application's condition, so that the two
// lines together stay under 4 KiB (docs/security.md).
const maxText = 1900

// Error is an error with the action that mends it.
type Error struct {
	Err  error
	Hint string // one sentence, imperative, no full stop needed
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// New returns an error that tells people hint as the way out. The format is that of [fmt.Errorf], %w included.
func New(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint}
}

// Hint returns the outermost hint in err's chain, or "".
func Hint(err error) string {
	if f, ok := errors.AsType[*Error](err); ok {
		return f.Hint
	}
	return ""
}

// Text renders err for program as the one or two lines that a user sees, each ending in a newline and cut to a size
// that fits an Argo CD condition. Line breaks, control and invisible characters inside the texts become spaces, so that
// a foreign string can forge neither a second line nor a terminal escape nor another reading direction.
func Text(program string, err error) string {
	out := program + ": error: " + oneLine(err.Error()) + "\n"
	if h := Hint(err); h != "" {
		out += program + ": hint: " + oneLine(h) + "\n"
	}
	return out
}

func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }), " ")
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + " …(cut)"
}
