package plugin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/render"
)

// Renders remembers renders by keys of 64 hex digits, and may forget them. What it returns is trusted to be what was
// remembered.
type Renders interface {
	// Recall returns what was remembered last, nil for nothing. It is not ok where nothing would be remembered either.
	Recall(ctx context.Context, key string) (data []byte, ok bool)
	Remember(ctx context.Context, key string, data []byte)
}

// recallTimeout bounds what is asked of Renders: a build is not much slower.
const recallTimeout = 200 * time.Millisecond

// remembered is what a render depended on and came to; its manifests follow on the next line. Who finds the same inputs and
// the same lock would render the same.
type remembered struct {
	Inputs *render.Inputs `json:"inputs"`
	Lock   string         `json:"lock,omitempty"` // SHA-256 of its bytes, "" when there was none
	Pins   []lock.Pin     `json:"pins"`           // by the lock, all of them
	Jobs   int            `json:"jobs,omitempty"`
}

// key names what is rendered, by all but what is read from the disk. It is "" where nothing is remembered: what the lock does
// not decide alone, what mode locked renders, which asks nobody, and what a person is trying out.
func (r Render) key() string {
	if r.Renders == nil || r.Source == nil || r.Manifests != nil || r.DryRun || r.Settings.Mode != Follow {
		return ""
	}
	source, settings := *r.Source, r.Settings
	source.Revision = ""        // the disk has it
	settings.Build.Remote = nil // a client; what needs it is not remembered
	data, err := json.Marshal([]any{r.Program, source, settings})
	if err != nil {
		return ""
	}
	return sum(data)
}

// recall returns what was rendered before, where the disk has what it had then, and nil otherwise. The key is "" when the
// render is not to be remembered.
func (r Render) recall(ctx context.Context) (res *Result, key string) {
	if key = r.key(); key == "" {
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, recallTimeout)
	defer cancel()
	data, ok := r.Renders.Recall(ctx, key)
	if !ok {
		return nil, ""
	}
	head, manifests, _ := bytes.Cut(data, []byte("\n"))
	var was remembered
	if json.Unmarshal(head, &was) != nil {
		return nil, key
	}
	text, err := readLock(r.Dir)
	if err != nil || was.Lock != sum(text) || !was.Inputs.Same(r.Dir) {
		return nil, key
	}
	return was.result(manifests), key
}

func (was remembered) result(manifests []byte) *Result {
	decisions := make([]Decision, len(was.Pins))
	for i, p := range was.Pins {
		decisions[i] = byLock(p)
	}
	return &Result{Manifests: manifests, Decisions: decisions, Summary: summarise(decisions, was.Jobs)}
}

// remember keeps a render that its repository alone decided.
func (r Render) remember(ctx context.Context, key string, p planned, res Result) {
	inputs := p.output.Inputs()
	if key == "" || inputs == nil || !lockDecides(p.decisions) {
		return
	}
	head, err := json.Marshal(remembered{Inputs: inputs, Lock: sum(p.lockText), Pins: pins(p.decisions), Jobs: res.Summary.Jobs})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recallTimeout)
	defer cancel()
	r.Renders.Remember(ctx, key, slices.Concat(head, []byte("\n"), res.Manifests))
}

// sum returns the SHA-256 of data in hex, "" for nil.
func sum(data []byte) string {
	if data == nil {
		return ""
	}
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}
