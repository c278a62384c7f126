package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/checkout"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// reportTimeout bounds the report of a render that needs nothing from the resolver: it is worth that much and no more.
const reportTimeout = 500 * time.Millisecond

// Decider says where a digest came from.
type Decider string

// The deciders.
const (
	ByLock     Decider = "lock"
	ByHold     Decider = "hold"     // the lock, because the tag stands at the digest that its hold rejects
	ByResolver Decider = "registry" // asked now or within the resolver's TTL
	ByStale    Decider = "stale"    // the resolver's last known answer, because the registry cannot be asked
)

// Decision is the digest of one image and where it came from.
type Decision struct {
	Image  string // normalised reference
	Digest string
	By     Decider
	At     time.Time // when the registry was asked
}

// decide finds the digest of each image, asking the resolver at most once.
func (r Render) decide(ctx context.Context, refs []image.Ref, locked *lock.Document) ([]Decision, error) {
	live := r.Settings.Mode == Live && r.atTip()
	out := make([]Decision, len(refs))
	var pins []lock.Pin // decided by the lock
	var open []int      // to be asked for, by index
	for i, ref := range refs {
		p, ok := locked.Find(ref.String())
		if ok {
			out[i] = Decision{Image: p.Image, Digest: p.Digest, By: ByLock, At: p.ResolvedAt}
		}
		if !ok || live {
			open = append(open, i)
			continue
		}
		pins = append(pins, p)
	}
	asked := make([]image.Ref, len(open))
	for i, at := range open {
		asked[i] = refs[at]
	}
	switch {
	case r.Settings.Mode == Locked && len(open) > 0:
		return nil, fault.New("render the overlay in mode follow so that the companion adds the pins, or commit "+lock.FileName+" by hand",
			"mode locked: %s has no pin for %s", lock.FileName, list(asked))
	case len(open) == 0:
		return out, nil
	}
	results, err := r.Resolver.Resolve(ctx, r.Source, pins, asked)
	if err != nil {
		results = make([]image.Resolution, len(asked))
		for i, ref := range asked {
			results[i] = image.Resolution{Ref: ref, Err: err}
		}
	}
	if len(results) != len(asked) {
		return nil, fmt.Errorf("%d answers to %d references", len(results), len(asked))
	}
	failed := results[:0:0]
	for i, res := range results {
		d := &out[open[i]]
		p, _ := locked.Find(res.Ref.String())
		switch {
		case res.Err != nil && d.Digest == "":
			failed = append(failed, res)
		case res.Err != nil: // the lock's answer stands
		case p.Hold != nil && p.Hold.Rejected == res.Digest:
			d.By = ByHold
		default:
			*d = Decision{Image: res.Ref.String(), Digest: res.Digest, By: ByResolver, At: res.At}
			if res.Stale {
				d.By = ByStale
			}
		}
	}
	switch {
	case len(failed) == 0:
		return out, nil
	case err != nil:
		return nil, fmt.Errorf("%s needs resolving: %w", list(asked), err)
	}
	return nil, failures(failed, len(refs))
}

// atTip reports whether what is rendered is the tip of the branch that the Application follows. A rollback renders an
// older commit, and must give the images of that commit. A checkout that does not say counts as not at the tip: then
// the lock decides, which is never wrong. Outside of Argo CD it is whatever a person has in front of them.
func (r Render) atTip() bool {
	if r.Source == nil {
		return true
	}
	tip, err := checkout.Tip(r.Dir, r.Source.TargetRevision)
	return err == nil && tip == r.Source.Revision
}

// report tells the resolver's ledger about a render that was decided by its lock alone. The render is right without
// that, so that a resolver that is away or slow is none of its business.
func (r Render) report(ctx context.Context, decisions []Decision) {
	if r.Source == nil || r.Settings.Mode == Locked || slices.ContainsFunc(decisions, func(d Decision) bool { return d.By != ByLock }) {
		return // nobody to report, nothing to do with the resolver, or the resolver was asked and knows
	}
	pins := make([]lock.Pin, len(decisions))
	for i, d := range decisions {
		pins[i] = lock.Pin{Image: d.Image, Digest: d.Digest, ResolvedAt: d.At}
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, _ = r.Resolver.Resolve(ctx, r.Source, pins, nil)
}

// failures returns one error that lists every image without digest, so that people mend all of them in one go.
func failures(failed []image.Resolution, all int) error {
	var hint string
	texts := make([]string, len(failed))
	for i, f := range failed {
		hint = cmp.Or(hint, fault.Hint(f.Err), remedy(f.Err))
		texts[i] = f.Ref.String() + ": " + f.Err.Error()
	}
	return fault.New(hint, "%d of %d images not resolved: %s", len(failed), all, strings.Join(texts, "; "))
}

// remedy is the hint for a look-up that failed without one of its own.
func remedy(err error) string {
	switch {
	case errors.Is(err, image.ErrNotFound):
		return "push the image, or correct its name or tag; a private repository looks missing to a resolver without credentials for it"
	case errors.Is(err, image.ErrUnauthorized):
		return "give the resolver credentials that may pull the image"
	default:
		return "try again once the registry answers; an image that " + lock.FileName + " names needs no registry"
	}
}

func list(refs []image.Ref) string {
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}
