package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"

	"github.com/digestlock/digestlock/internal/fault"
)

// check is one line.
type check struct {
	Of     string     `json:"of"`    // the image, the overlay's directory or "resolver"
	Check  string     `json:"check"` // what was looked at
	Status outcome    `json:"status"`
	Text   string     `json:"text,omitempty"`
	Code   fault.Code `json:"code,omitempty"`
	Fix    string     `json:"fix,omitempty"`
}

type outcome string

const (
	isOK     outcome = "ok"
	isWarn   outcome = "warn"
	isFailed outcome = "FAILED"
)

// report collects checks and prints them, those of one thing below each other. Doctor and verify make one.
type report struct {
	checks []check
	out    io.Writer
	quiet  bool  // print nothing before the end, which is JSON then
	broken error // of out
}

func (r *report) add(k check) {
	k.Text, k.Fix = fault.Line(k.Text), fault.Line(k.Fix)
	if !r.quiet {
		if len(r.checks) == 0 || r.checks[len(r.checks)-1].Of != k.Of {
			r.print("%s\n", fault.Line(k.Of))
		}
		r.print("  %-7s %-12s %s\n", k.Status, k.Check, k.line())
	}
	r.checks = append(r.checks, k)
}

func (k check) line() string {
	text := k.Text
	if k.Code != "" {
		text += " [" + string(k.Code) + "]"
	}
	if k.Fix != "" {
		text += "; fix: " + k.Fix
	}
	return text
}

func (r *report) print(format string, args ...any) {
	if _, err := fmt.Fprintf(r.out, format, args...); err != nil {
		r.broken = err
	}
}

func (r *report) ok(of, name, format string, args ...any) {
	r.add(check{Of: of, Check: name, Status: isOK, Text: fmt.Sprintf(format, args...)})
}

// fail adds a check with the error's own text, code and hint. Found, where there is any, is what else is known.
func (r *report) fail(of, name, found string, err error) {
	text := err.Error()
	if found != "" {
		text += " (" + found + ")"
	}
	code, hint := fault.CodeOf(err), fault.Hint(err)
	r.add(check{Of: of, Check: name, Status: isFailed, Text: text, Code: cmp.Or(code, fault.Unexpected), Fix: cmp.Or(hint, "see the text")})
}

// result prints what add has not, and returns the error for the command.
func (r *report) result() error {
	failed := 0
	for _, k := range r.checks {
		if k.Status == isFailed {
			failed++
		}
	}
	if r.quiet {
		enc := json.NewEncoder(r.out)
		enc.SetIndent("", "  ")
		r.broken = enc.Encode(map[string]any{"failed": failed, "checks": r.checks})
	}
	switch {
	case r.broken != nil:
		return fault.New(fault.Output, "the reader of stdout went away, or its disk is full", "write checks: %w", r.broken)
	case failed > 0:
		return fault.New(fault.CheckFailed, "each line with FAILED says what to do", "%d of %d checks failed", failed, len(r.checks))
	}
	return nil
}
