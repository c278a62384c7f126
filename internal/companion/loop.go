package companion

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// errStopped is what those learn who wait for a cycle that will not come.
var errStopped = errors.New("the companion stops")

// outcome is what a cycle came to.
type outcome struct {
	commits  []Commit
	problems []error
}

// flushed are images that somebody has told us of, as [image.Target.String] writes them.
type flushed map[string]bool

// covers reports whether a reference with a tag is one of them.
func (f flushed) covers(reference string) bool {
	return f[reference] || f[reference[:max(0, strings.LastIndexByte(reference, ':'))]]
}

// rings are what a cycle has to know of those that wait for it.
type rings struct {
	waiting []chan outcome
	flushed flushed
	next    chan struct{} // closed when somebody rings again
}

// bell begins cycles ahead of their time. It is safe for concurrent use.
type bell struct {
	rung chan struct{} // holds one ring at most: a cycle serves all that rang before it began

	mu      sync.Mutex
	rings   rings         // for the cycle to come
	next    chan struct{} // of the one under way; nil when that was told
	stopped bool
}

func newBell() *bell { return &bell{rung: make(chan struct{}, 1), rings: rings{flushed: flushed{}}} }

// ring begins a cycle that looks at images first.
func (b *bell) ring(images []image.Target) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now(images)
}

// now begins a cycle. The caller holds mu.
func (b *bell) now(images []image.Target) {
	for _, t := range images {
		b.rings.flushed[t.String()] = true
	}
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
	select {
	case b.rung <- struct{}{}:
	default: // rung already
	}
}

// wait rings, and returns where the outcome of the cycle will come that begins next.
func (b *bell) wait(images []image.Target) <-chan outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan outcome, 1)
	if b.stopped {
		c <- outcome{problems: []error{errStopped}}
		return c
	}
	b.rings.waiting = append(b.rings.waiting, c)
	b.now(images)
	return c
}

// begun returns those who wait for the cycle that begins now, which serves all rings so far.
func (b *bell) begun() *rings {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.rung:
	default:
	}
	r := b.rings
	b.next = make(chan struct{})
	r.next = b.next
	b.rings = rings{flushed: flushed{}}
	return &r
}

func (b *bell) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = false
}

func (b *bell) stop() {
	b.mu.Lock()
	b.stopped = true
	b.mu.Unlock()
	b.begun().answer(outcome{problems: []error{errStopped}})
}

func (r *rings) answer(o outcome) {
	for _, w := range r.waiting {
		w <- o
	}
}

// gap is what lies at least between the end of a cycle and one that somebody asked for: a storm of webhooks is one cycle
// in that time and the length of a cycle, and a flush waits no longer than people notice.
const gap = 500 * time.Millisecond

// Wake has Run begin a cycle now, or half a second after the one under way, or the last, has ended. It looks at the images
// first that were flushed, and hardly waits for others. It does not wait itself.
func (c *Companion) Wake(flushed ...image.Target) { c.bell.ring(flushed) }

// Sync has Run begin a cycle as Wake does, and returns what a cycle that began after the call came to: the commits it
// pushed, and the sum of what could not be done. What waits for the quiet window is in neither, see [Companion.Status].
// It returns the cause of ctx when that ends first; the cycle goes on.
func (c *Companion) Sync(ctx context.Context, flushed ...image.Target) ([]Commit, error) {
	select {
	case o := <-c.bell.wait(flushed):
		return o.commits, sum(o.problems)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Waits reports whether the last cycle left something to commit for the end of a quiet window.
func (c *Companion) Waits() bool {
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	return slices.ContainsFunc(c.board.status.Branches, func(b BranchStatus) bool { return !b.Waits.IsZero() })
}

// Run does a cycle every interval, give or take a tenth so that companions do not march in step, and whenever Wake or
// the end of a quiet window asks for one, until ctx ends. What could not be done is logged, one problem a line: the
// next cycle tries again. It may be called again once it has returned.
func (c *Companion) Run(ctx context.Context, interval time.Duration) {
	c.bell.start()
	defer c.bell.stop()
	defer c.sights.questions.Wait()
	for ctx.Err() == nil {
		rings := c.bell.begun()
		began := time.Now()
		o := c.cycle(ctx, c.o.Quiet, rings)
		if ctx.Err() == nil { // what was cut short says nothing
			c.metrics.ended(o)
			c.metrics.stand(c.Status().Branches)
			c.log(o)
			c.board.ended(began, o)
		}
		rings.answer(o)
		ended := time.Now()
		spread := time.Duration((rand.Float64() - 0.5) / 5 * float64(interval))
		next := time.Now().Add(interval + spread)
		if due := c.due(); due.After(began) && due.Before(next) {
			next = due
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-c.bell.rung:
			rest(ctx, time.Until(ended.Add(gap)))
		case <-timer.C:
		}
		timer.Stop()
	}
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *Companion) log(o outcome) {
	for _, p := range o.problems {
		c.o.Log.Error("cycle incomplete", "error", p, "code", fault.CodeOf(p), "hint", fault.Hint(p))
	}
}

// Quiet is how commits to one branch are spaced. The first change after a quiet spell is committed at once; what
// follows within Window of a commit waits until nothing new has come for Window, or the first of it has waited for
// Longest. The zero value commits everything at once.
type Quiet struct{ Window, Longest time.Duration }

// pause is where one branch stands with regard to its quiet window.
type pause struct {
	pushed  time.Time // when the last commit was pushed; zero when the companion has pushed none
	since   time.Time // when what waits began to wait; zero when nothing does
	changed time.Time // when it last changed
	what    string    // what waits
	due     time.Time // when it is to be committed
}

// wait reports whether what is to be committed has to wait.
func (p *pause) wait(q Quiet, what string, now time.Time) bool {
	if p.since.IsZero() {
		if p.pushed.IsZero() || now.Sub(p.pushed) >= q.Window {
			return false
		}
		p.since = now
	}
	if what != p.what {
		p.what, p.changed = what, now
	}
	p.due = p.changed.Add(q.Window)
	if last := p.since.Add(q.Longest); last.Before(p.due) {
		p.due = last
	}
	return now.Before(p.due)
}

// settled notes that nothing waits any more, and when something was pushed.
func (p *pause) settled(pushed time.Time) {
	if pushed.IsZero() {
		pushed = p.pushed
	}
	*p = pause{pushed: pushed}
}
