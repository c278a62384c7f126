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
	ByHold     Decider = "hold"     // the lock, because its hold keeps it from where the tag stands
	ByResolver Decider = "registry" // asked now
	ByCache    Decider = "cache"    // the resolver's memory, within its TTL
	ByStale    Decider = "stale"    // the resolver's last known answer, because the registry cannot be asked, or is being asked
)

// Decision is the digest of one image and where it came from, or why there is none.
type Decision struct {
	Image  string // normalised reference
	Digest string // "" exactly when Err is set
	By     Decider
	At     time.Time // when the registry was asked
	Err    error

	Locked   string // the digest in the lock, "" when that has none
	Unasked  error  // why the registry could not say, where the lock's digest stands in for its answer
	Rejected string // where the hold decided: what the tag stands for now
}

// errNoPin is what an image gets that the lock alone was to decide, and does not name.
var errNoPin = errors.New(lock.FileName + " has no pin for it")

// decide finds the digest of each image, in the order of refs, asking the resolver at most once.
func (r Render) decide(ctx context.Context, refs []image.Ref, locked *lock.Document) []Decision {
	live := r.Settings.Mode == Live && r.atTip()
	out := make([]Decision, len(refs))
	var pins []lock.Pin  // decided by the lock
	var ask []image.Ref  // the others
	var open []*Decision // theirs
	for i, ref := range refs {
		p, ok := locked.Find(ref.String())
		out[i] = Decision{Image: ref.String(), Digest: p.Digest, By: ByLock, At: p.ResolvedAt, Locked: p.Digest}
		switch {
		case ok && !live:
			pins = append(pins, p)
		case r.Settings.Mode == Locked:
			out[i] = Decision{Image: ref.String(), Err: errNoPin}
		default:
			ask, open = append(ask, ref), append(open, &out[i])
		}
	}
	if len(ask) == 0 {
		return out
	}
	r.progress(fmt.Sprintf("resolving images: %d", len(ask)))
	for i, res := range r.ask(ctx, pins, ask) {
		p, _ := locked.Find(open[i].Image)
		open[i].answer(res, p.Hold)
	}
	return out
}

// answer takes what the resolver said about an image, which the lock may know.
func (d *Decision) answer(res image.Resolution, hold *lock.Hold) {
	switch {
	case res.Err != nil && d.Locked != "":
		d.Unasked = res.Err
	case res.Err != nil:
		*d = Decision{Image: d.Image, Err: res.Err}
	case res.Digest != d.Locked && hold.Keeps(res.Digest, res.At):
		d.By, d.Rejected = ByHold, res.Digest
	default:
		d.Digest, d.By, d.At = res.Digest, decider(res), res.At
	}
}

func decider(res image.Resolution) Decider {
	switch {
	case res.Stale:
		return ByStale
	case res.Cached:
		return ByCache
	}
	return ByResolver
}

// ask returns one resolution per reference, in the same order, whatever the resolver does.
func (r Render) ask(ctx context.Context, pins []lock.Pin, refs []image.Ref) []image.Resolution {
	source := r.Source
	if r.DryRun {
		source = nil
	}
	if source == nil && r.Project != "" {
		source = &lock.Source{Project: r.Project}
	}
	results, err := r.Resolver.Resolve(ctx, source, pins, refs)
	if err == nil && len(results) != len(refs) {
		err = fmt.Errorf("%d answers to %d references", len(results), len(refs))
	}
	if err != nil {
		results = make([]image.Resolution, len(refs))
		for i, ref := range refs {
			results[i] = image.Resolution{Ref: ref, Err: err}
		}
	}
	return results
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

// report tells the resolver's ledger about a render that was decided by its lock alone, or for some image by a hold, where
// the resolver has recorded its own answer. The render is right without that, so that a resolver that is away or slow is
// none of its business.
func (r Render) report(ctx context.Context, decisions []Decision) {
	held := slices.ContainsFunc(decisions, func(d Decision) bool { return d.By == ByHold })
	if r.Source == nil || r.DryRun || r.Settings.Mode == Locked || !lockDecides(decisions) && !held {
		return // nobody to report to or not to be reported, nothing to do with the resolver, or the resolver was asked and knows
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, _ = r.Resolver.Resolve(ctx, r.Source, pins(decisions), nil)
}

// lockDecides reports whether the lock alone decided.
func lockDecides(decisions []Decision) bool {
	return !slices.ContainsFunc(decisions, func(d Decision) bool { return d.By != ByLock })
}

func byLock(p lock.Pin) Decision {
	return Decision{Image: p.Image, Digest: p.Digest, By: ByLock, At: p.ResolvedAt, Locked: p.Digest}
}

// pins are what was decided.
func pins(decisions []Decision) []lock.Pin {
	pins := make([]lock.Pin, len(decisions))
	for i, d := range decisions {
		pins[i] = lock.Pin{Image: d.Image, Digest: d.Digest, ResolvedAt: d.At}
	}
	return pins
}

// failures returns one error that lists every image without digest, so that people mend all of them in one go: those
// that share a reason together. It returns nil when all have one.
func failures(decisions []Decision) error {
	var code fault.Code
	var hint string
	var failed int
	var reasons []string
	images := map[string][]string{}
	for _, d := range decisions {
		if d.Err == nil {
			continue
		}
		failed++
		reason := d.Err.Error()
		if images[reason] == nil {
			reasons = append(reasons, reason)
			c, h := Remedy(d.Err)
			code, hint = cmp.Or(code, fault.CodeOf(d.Err), c), cmp.Or(hint, fault.Hint(d.Err), h)
		}
		images[reason] = append(images[reason], d.Image)
	}
	if failed == 0 {
		return nil
	}
	texts := make([]string, len(reasons))
	for i, reason := range reasons {
		texts[i] = strings.Join(images[reason], ", ") + ": " + reason
	}
	return fault.New(code, hint, "%d of %d images not resolved: %s", failed, len(decisions), strings.Join(texts, "; "))
}

// Remedy is the code and the hint for a look-up that failed without its own.
func Remedy(err error) (fault.Code, string) {
	switch {
	case errors.Is(err, errNoPin):
		return fault.NotLocked, "render the overlay in mode follow, and not --offline, so that the companion adds the pin, or write it into " + lock.FileName
	case errors.Is(err, image.ErrNotFound):
		return fault.ImageNotFound, "push the image, or correct its name or tag; a private repository looks missing to a resolver without credentials for it"
	case errors.Is(err, image.ErrUnauthorized):
		return fault.RegistryUnauthorized, "give the resolver credentials that may pull the image"
	default:
		return fault.RegistryUnavailable, "try again once the registry answers; an image that " + lock.FileName + " names needs no registry"
	}
}
