package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/image"
)

// world is a registry whose tags move and which fails at times, and what the model knows about it. Many callers use one
// cache in front of it, at random and at the same time; every answer is held against the model.
type world struct {
	t    *testing.T
	o    Options
	c    *Cache
	refs []image.Ref

	mu      sync.Mutex
	rand    *rand.Rand
	tags    map[string]*tag
	down    bool
	closing bool
	clock   int // of pushes and flushes: fake time stands still between many of them
	asked   int
	kinds   map[string]int // answers by kind, to see that the model exercises what it checks
}

// tag is one reference: what it stood at, and what was asked and flushed.
type tag struct {
	history  []push
	gone     bool
	flushed  int // the clock when the last acknowledged flush began
	flushing int // flushes under way
	epoch    int // counts beginnings and ends of flushes: a lookup counts within one of them only
	looks    map[string]*looks
}

// looks are what was asked of one tag in one scope, in this epoch.
type looks struct {
	flying int       // lookups under way
	last   time.Time // when the last lookup began that was answered
	wait   time.Duration
}

// scopes are the credentials that callers have. The registry serves each its own digests.
var scopes = []string{"", "a", "b"}

// seen returns a digest as the registry serves it to a scope, given any scope's.
func seen(scope, digest string) string {
	return "sha256:" + cmp.Or(scope, "0") + digest[len("sha256:")+1:]
}

// push is one digest of a tag; it stood until the next push.
type push struct {
	digest string
	clock  int
	at     time.Time
}

var (
	errImpatient = errors.New("impatient caller")
	errDown      = fmt.Errorf("%w: registry down", image.ErrUnavailable)
)

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 0)), tags: map[string]*tag{}, kinds: map[string]int{}}
	for _, s := range []string{server, "ghcr.io/acme/server:main", "ghcr.io/acme/worker:latest", "nginx:latest"} {
		r := ref(t, s)
		w.refs = append(w.refs, r)
		w.tags[r.String()] = &tag{looks: map[string]*looks{"": {}, "a": {}, "b": {}}}
		w.push(r)
	}
	w.o = Options{
		TTL: time.Minute, NegativeTTL: 10 * time.Second, StaleIfError: 3 * time.Minute, Timeout: 15 * time.Second,
		StaleWhileRevalidate: pick(w, 0, 5*time.Second, time.Minute),
		RefreshWindow:        pick(w, 0, 2*time.Minute, time.Hour),
	}
	w.c = New(w, w.o)
	return w
}

func pick[T any](w *world, choices ...T) T { return choices[w.int(len(choices))] }

// int returns a random number below n.
func (w *world) int(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rand.IntN(n)
}

// duration returns a random time below d, in odd nanoseconds, so that few things happen at one instant.
func (w *world) duration(d time.Duration) time.Duration { return time.Duration(w.int(int(d))) }

func (w *world) some() []image.Ref {
	var refs []image.Ref
	for range 1 + w.int(3) {
		refs = append(refs, pick(w, w.refs...))
	}
	return refs
}

func (w *world) push(r image.Ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock++
	tag := w.tags[r.String()]
	digest := seen("", fmt.Sprintf("sha256:%016x%048x", w.rand.Uint64(), w.clock))
	tag.history, tag.gone = append(tag.history, push{digest, w.clock, time.Now()}), false
}

// Resolve is the registry. It reads the tags at one moment of a lookup that takes a while.
func (w *world) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	start := time.Now()
	epochs := w.ask(scope, refs, start)
	err := w.pause(ctx)
	out := make([]image.Resolution, len(refs))
	w.mu.Lock()
	for i, r := range refs {
		tag := w.tags[r.String()]
		out[i] = image.Resolution{Ref: r, Digest: seen(scope, tag.history[len(tag.history)-1].digest)}
		if tag.gone {
			out[i] = image.Resolution{Ref: r, Err: fmt.Errorf("%w: 404", image.ErrNotFound)}
		}
		if w.down {
			out[i] = image.Resolution{Ref: r, Err: errDown}
		}
	}
	w.mu.Unlock()
	if err := errors.Join(err, w.pause(ctx)); err != nil {
		for i, r := range refs {
			out[i] = image.Resolution{Ref: r, Err: fmt.Errorf("%w: %w", image.ErrUnavailable, err)}
		}
	}
	w.answered(scope, out, epochs, start)
	return out
}

// pause takes a random time, at times more than the cache gives a lookup.
func (w *world) pause(ctx context.Context) error {
	d := w.duration(100 * time.Millisecond)
	if w.int(20) == 0 {
		d = w.duration(20 * time.Second)
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), errImpatient) {
			w.t.Errorf("a caller who gave up ended a lookup that others share")
		}
		return context.Cause(ctx)
	}
}

// ask checks property 4: one lookup of a reference and scope at a time, and one for each TTL.
func (w *world) ask(scope string, refs []image.Ref, now time.Time) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	epochs := make([]int, len(refs))
	for i, r := range refs {
		w.asked++
		tag := w.tags[r.String()]
		epochs[i] = tag.epoch
		if tag.flushing > 0 {
			continue // it may be the one that the flush disowns, or the flush's own
		}
		l := tag.looks[scope]
		if l.flying > 0 {
			w.t.Errorf("%s: a second lookup while one is under way", r)
		}
		if passed := now.Sub(l.last); passed < l.wait {
			w.t.Errorf("%s: looked up again after %v, want at least %v", r, passed, l.wait)
		}
		l.flying++
	}
	return epochs
}

func (w *world) answered(scope string, out []image.Resolution, epochs []int, start time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range out {
		tag := w.tags[r.Ref.String()]
		if tag.epoch != epochs[i] || tag.flushing > 0 {
			continue
		}
		l := tag.looks[scope]
		l.flying--
		switch {
		case r.Err == nil && w.o.RefreshWindow > 0:
			l.last, l.wait = start, time.Duration(dueFrom*float64(w.o.TTL))
		case r.Err == nil:
			l.last, l.wait = start, w.o.TTL
		case errors.Is(r.Err, image.ErrNotFound):
			l.last, l.wait = start, w.o.NegativeTTL
		}
	}
}

// resolve asks as a caller does, patient or not.
func (w *world) resolve(ctx context.Context) {
	refs, patient := w.some(), w.int(3) > 0
	if !patient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, w.duration(150*time.Millisecond), errImpatient)
		defer cancel()
	}
	floor := w.floor(refs)
	start, scope := time.Now(), pick(w, scopes...)
	for i, r := range w.c.Resolve(ctx, scope, refs) {
		if r.Ref != refs[i] {
			w.t.Errorf("answer for %s to the question for %s", r.Ref, refs[i])
		}
		if r.Err == nil && r.Digest != seen(scope, r.Digest) {
			w.t.Errorf("%s: scope %q got %s, which is another's", r.Ref, scope, r.Digest)
		}
		w.check(r, floor[i], start, patient)
	}
}

// floor returns for each reference the clock of its last acknowledged flush.
func (w *world) floor(refs []image.Ref) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]int, len(refs))
	for i, r := range refs {
		out[i] = w.tags[r.String()].flushed
	}
	return out
}

// check holds an answer that was asked for at start against properties 1, 2, 3 and 5.
func (w *world) check(r image.Resolution, floor int, start time.Time, patient bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Err != nil {
		if !w.closing {
			w.kinds["error"]++
		}
		if patient && errors.Is(r.Err, errImpatient) {
			w.t.Errorf("%s: a patient caller got %v", r.Ref, r.Err)
		}
		if patient && errors.Is(r.Err, context.Canceled) && !w.closing {
			w.t.Errorf("%s: a patient caller got %v before the cache was closed", r.Ref, r.Err)
		}
		if r.Digest != "" {
			w.t.Errorf("%s: digest and error: %+v", r.Ref, r)
		}
		return
	}
	history := w.tags[r.Ref.String()].history
	i := 0
	for i < len(history) && history[i].digest != seen("", r.Digest) {
		i++
	}
	if i == len(history) {
		w.t.Errorf("%s: %s, which the registry never served for it", r.Ref, r.Digest)
		return
	}
	if i+1 < len(history) {
		next := history[i+1]
		if next.clock <= floor {
			w.t.Errorf("%s: answer from before push %d, which flush %d was to show", r.Ref, next.clock, floor)
		}
		if next.at.Before(r.At) {
			w.t.Errorf("%s: said to be seen at %v, but was replaced at %v", r.Ref, r.At, next.at)
		}
	}
	switch young, old := time.Since(r.At), start.Sub(r.At); {
	case r.Stale && young < w.o.TTL:
		w.t.Errorf("%s: %v old and marked stale", r.Ref, young)
	case !r.Stale && old >= w.o.TTL:
		w.t.Errorf("%s: %v old and not marked stale", r.Ref, old)
	case old > w.o.StaleIfError+w.o.Timeout:
		w.t.Errorf("%s: %v old", r.Ref, old)
	case r.Stale:
		w.kinds["stale"]++
	case old > 0:
		w.kinds["remembered"]++
	default:
		w.kinds["new"]++
	}
}

// flush flushes one reference, or all tags of its repository; mostly because of a push, as CI does.
func (w *world) flush(ctx context.Context) {
	target := image.Target{Ref: pick(w, w.refs...), EveryTag: w.int(2) == 0}
	if w.int(3) > 0 {
		w.push(target.Ref)
	}
	hit := []image.Ref{target.Ref}
	if target.EveryTag {
		hit = nil
		for _, r := range w.refs {
			if r.Repository == target.Repository {
				hit = append(hit, r)
			}
		}
	}
	began := w.mark(hit, 1, 0)
	start := time.Now()
	for _, f := range w.c.Flush(ctx, []image.Target{target}) {
		w.check(f.Resolution, began, start, true)
		if f.Stale {
			w.t.Errorf("flush answered with the stale %+v", f)
		}
	}
	w.mark(hit, -1, began)
}

// mark notes that a flush begins, or ends that began at the clock given, and returns the clock.
func (w *world) mark(refs []image.Ref, flushing, began int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range refs {
		tag := w.tags[r.String()]
		tag.flushing += flushing
		tag.epoch++
		for _, l := range tag.looks {
			l.flying, l.wait = 0, 0
		}
		tag.flushed = max(tag.flushed, began)
	}
	w.clock++
	return w.clock
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// live does what callers, people and registries do, for a while.
func (w *world) live(ctx context.Context) {
	for range 60 {
		switch w.int(12) {
		case 0:
			w.push(pick(w, w.refs...))
		case 1:
			w.flush(ctx)
		case 2:
			r, gone := pick(w, w.refs...), w.int(2) == 0
			w.set(func() { w.tags[r.String()].gone = gone })
		case 3:
			down := w.int(3) == 0
			w.set(func() { w.down = down })
		case 4:
			time.Sleep(w.duration(2 * w.o.TTL))
		default:
			w.resolve(ctx)
		}
		time.Sleep(w.duration(pick(w, time.Millisecond, time.Second, w.o.TTL/2)))
	}
}

// TestModel drives random interleavings of resolve, flush, push, expiry, failure, cancellation, refresh and close, and
// checks that
//
//  1. no answer is older than the last flush that was acknowledged before it was asked for,
//  2. no caller who gives up fails another,
//  3. no digest is answered that the registry did not serve for that tag,
//  4. each reference is looked up once a TTL and scope, give or take what dueFrom says, but for flushes and failures,
//  5. an answer is marked stale exactly when it is older than its TTL,
//  6. no scope gets what the registry served to another.
//
// Beside the fixed seeds it tries new ones each time. To see a failure again, put its seed among the fixed ones.
func TestModel(t *testing.T) {
	t.Parallel()
	var seeds []uint64
	for seed := range uint64(60) {
		seeds = append(seeds, seed)
	}
	for range 20 {
		seeds = append(seeds, rand.Uint64())
	}
	exercised := map[string]int{}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed)
				var callers sync.WaitGroup
				for range 6 {
					callers.Go(func() { w.live(t.Context()) })
				}
				time.Sleep(10*time.Minute + w.duration(20*time.Minute))
				w.set(func() { w.closing = true })
				w.c.Close()
				asked := w.asked
				callers.Wait()
				if w.asked != asked {
					t.Errorf("%d lookups after Close", w.asked-asked)
				}
				for kind, n := range w.kinds {
					exercised[kind] += n
				}
			})
		})
	}
	for _, kind := range []string{"new", "remembered", "stale", "error"} {
		if exercised[kind] < len(seeds) {
			t.Errorf("%d answers of the kind %q in %d runs: the model does not exercise it", exercised[kind], kind, len(seeds))
		}
	}
	t.Logf("answers: %v", exercised)
}
