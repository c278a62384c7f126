// Package fault carries an error to the person who has to act on it: what happened, and what to do about it.
//
// Argo CD shows a plugin's stderr to people verbatim and nothing else, so an error without a way out costs somebody
// an evening. Any package may return a fault; only the commands print one.
package fault

import (
	"cmp"
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
	Code Code
	Hint string // one sentence, imperative, no full stop needed
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the kind code that tells people hint as the way out. The format is that of [fmt.Errorf], %w
// included.
func New(code Code, hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Code: code, Hint: hint}
}

// CodeOf returns the outermost code in err's chain, or "".
func CodeOf(err error) Code {
	if f, ok := errors.AsType[*Error](err); ok {
		return f.Code
	}
	return ""
}

// Hint returns the outermost hint in err's chain, or "".
func Hint(err error) string {
	if f, ok := errors.AsType[*Error](err); ok {
		return f.Hint
	}
	return ""
}

// unexpectedHint is for an error that nobody thought of.
const unexpectedHint = "try again; if it stays, report it with this text and what led to it"

// Text renders err for program as the two lines that a user sees, the first with the error's code, each ending in a
// newline and cut to a size that fits an Argo CD condition. Line breaks, control and invisible characters inside the texts become spaces, so that
// a foreign string can forge neither a second line nor a terminal escape nor another reading direction.
func Text(program string, err error) string {
	hint := cmp.Or(Hint(err), unexpectedHint)
	return fmt.Sprintf("%s: error: %s [%s]\n%[1]s: hint: %[4]s\n", program, Line(err.Error()), cmp.Or(CodeOf(err), Unexpected), Line(hint))
}

// Line keeps a text on one line of a terminal, as [Text] does with each of its two, and cuts it.
func Line(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }), " ")
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + " …(cut)"
}
