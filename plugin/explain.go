package plugin

import (
	"context"
	"time"

	"github.com/digestlock/digestlock/internal/pin"
)

// Row explains one place of an overlay that holds an image reference, or looks as if it did.
type Row struct {
	Object     string     `json:"object"`               // "Deployment/server"
	Field      string     `json:"field"`                // "spec.template.spec.containers[0].image"
	Value      string     `json:"value"`                // as written
	Image      string     `json:"image,omitempty"`      // normalised
	Digest     string     `json:"digest,omitempty"`     // what it is rendered with
	DecidedBy  Decider    `json:"decidedBy,omitempty"`  // where the digest came from
	ResolvedAt *time.Time `json:"resolvedAt,omitempty"` // when the registry was asked
	Skipped    string     `json:"skipped,omitempty"`    // why it is not pinned
	Error      string     `json:"error,omitempty"`      // why it cannot be: a render fails
}

// Explanation is what a render would do, and why.
type Explanation struct {
	Rows     []Row    `json:"rows"` // in the order of the output
	Warnings []string `json:"warnings,omitempty"`
}

// Failed reports whether a render would fail.
func (e Explanation) Failed() bool {
	for _, r := range e.Rows {
		if r.Error != "" {
			return true
		}
	}
	return false
}

// Explain decides as Generate does, reports to nobody, and tells each decision. Unlike Generate it does not stop at an
// image that cannot be resolved.
func (r Render) Explain(ctx context.Context) (Explanation, error) {
	r.Source = nil
	_, plan, decisions, err := r.plan(ctx)
	if err != nil {
		return Explanation{}, err
	}
	byImage := make(map[string]Decision, len(decisions))
	for _, d := range decisions {
		byImage[d.Image] = d
	}
	e := Explanation{Rows: []Row{}}
	for _, u := range plan.Uses() {
		e.Rows = append(e.Rows, row(u, byImage))
	}
	for _, job := range plan.Jobs() {
		e.Warnings = append(e.Warnings, job+" is pinned, and a Job is immutable: its sync fails once the digest moves. "+
			"Make it an Argo CD hook, let it be replaced, or give parameter exclude-kinds: [Job]")
	}
	return e, nil
}

func row(u pin.Use, decisions map[string]Decision) Row {
	out := Row{Object: u.Object, Field: u.Field, Value: u.Value, Image: u.Image, Skipped: u.Skipped}
	if u.Skipped != "" {
		return out
	}
	d := decisions[u.Image]
	if d.Err != nil {
		out.Error = d.Err.Error()
		return out
	}
	out.Digest, out.DecidedBy, out.ResolvedAt = d.Digest, d.By, &d.At
	return out
}
