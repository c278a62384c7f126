package plugin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/pin"
)

// Row explains one place of an overlay that holds an image reference, or looks as if it did.
type Row struct {
	Object     string     `json:"object"`               // "Deployment/server"
	Field      string     `json:"field"`                // "spec.template.spec.containers[0].image"
	Value      string     `json:"value"`                // as written
	Image      string     `json:"image,omitempty"`      // normalised
	Digest     string     `json:"digest,omitempty"`     // what it is rendered with
	Rendered   string     `json:"rendered,omitempty"`   // what a render writes, which ends in the digest
	Locked     string     `json:"locked,omitempty"`     // the digest in digest-lock.yaml
	Rejected   string     `json:"rejected,omitempty"`   // where the tag stands now, which a hold keeps the lock from
	Unasked    string     `json:"unasked,omitempty"`    // why the registry could not say, where the lock decided in its place
	DecidedBy  Decider    `json:"decidedBy,omitempty"`  // where the digest came from
	ResolvedAt *time.Time `json:"resolvedAt,omitempty"` // when the registry was asked
	Skipped    string     `json:"skipped,omitempty"`    // why it is not pinned
	Error      string     `json:"error,omitempty"`      // why it cannot be: a render fails
}

// Explanation is what a render would do, and why.
type Explanation struct {
	Rows     []Row      `json:"rows"`             // in the order of the output
	Unused   []lock.Pin `json:"unused,omitempty"` // pins of the lock that nothing renders
	Warnings []string   `json:"warnings,omitempty"`
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

// Explain decides as Generate does, has nothing recorded, and tells each decision. Unlike Generate it does not stop at
// an image that cannot be resolved.
func (r Render) Explain(ctx context.Context) (Explanation, error) {
	r.DryRun = true
	p, err := r.plan(ctx)
	if err != nil {
		return Explanation{}, err
	}
	byImage := make(map[string]Decision, len(p.decisions))
	for _, d := range p.decisions {
		byImage[d.Image] = d
	}
	e := Explanation{Rows: []Row{}}
	for _, u := range p.pins.Uses() {
		e.Rows = append(e.Rows, row(u, byImage, r.Settings.PinFormat))
	}
	if p.lock != nil {
		e.Unused = slices.DeleteFunc(slices.Clone(p.lock.Pins), func(pin lock.Pin) bool { return byImage[pin.Image].Image != "" })
	}
	e.Warnings = warnings(p)
	return e, nil
}

func warnings(p planned) []string {
	var out []string
	for _, d := range p.decisions {
		if d.Unasked != nil {
			out = append(out, fmt.Sprintf("%s: %s decides, because the registry cannot be asked: %v", d.Image, lock.FileName, d.Unasked))
		}
	}
	for _, job := range p.pins.Jobs() {
		out = append(out, job+" is pinned, and a Job is immutable: its sync fails once the digest moves. "+
			"Make it an Argo CD hook, let it be replaced, or give parameter exclude-kinds: [Job]")
	}
	return out
}

func row(u pin.Use, decisions map[string]Decision, format pin.Format) Row {
	out := Row{Object: u.Object, Field: u.Field, Value: u.Value, Image: u.Image, Skipped: u.Skipped}
	if u.Skipped != "" {
		return out
	}
	d := decisions[u.Image]
	if d.Err != nil {
		out.Error = d.Err.Error()
		return out
	}
	if ref, err := image.Parse(u.Value); err == nil {
		out.Rendered = format.Pinned(ref, d.Digest)
	}
	if d.Unasked != nil {
		out.Unasked = d.Unasked.Error()
	}
	out.Digest, out.DecidedBy, out.ResolvedAt, out.Locked, out.Rejected = d.Digest, d.By, &d.At, d.Locked, d.Rejected
	return out
}
