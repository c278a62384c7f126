// Package cache stands in front of a resolver and remembers its answers for a while: one lookup per reference and
// TTL, however many Applications ask.
//
// Freshness is decided here and not by the LRU, which only bounds memory: a TTL cache that hides expired values could
// not answer with the last known digest when a registry is down. An entry is fresh, then where that is wanted good
// enough while it is looked up again, then good for when the registry cannot be asked. refresh.go keeps entries in use
// fresh.
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/image"
)

// Resolver looks references up where the truth is, with the credentials of a scope. It returns one Resolution per
// reference, in the same order.
type Resolver interface {
	Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution
}

// Options bound what is remembered and for how long. Zero values mean the default given with each field.
type Options struct {
	Size         int           // references remembered; default 10,000
	TTL          time.Duration // an answer is used without asking again; default 60 s
	NegativeTTL  time.Duration // the same for "not found" and "unauthorized"; default 10 s
	StaleIfError time.Duration // an answer is used when asking again fails; default 24 h, negative for never
	Timeout      time.Duration // one lookup, all of a registry's references together; default 15 s

	// StaleWhileRevalidate is how long after its TTL a digest is still answered at once, marked stale, and looked up
	// again meanwhile; default never.
	StaleWhileRevalidate time.Duration
	// RefreshWindow is how long after a reference was last asked for its digest is kept fresh, by looking it up again
	// shortly before its TTL ends; default never.
	RefreshWindow time.Duration

	// Forget makes the backend forget too, if it remembers answers. It is called before a flush looks anything up.
	Forget func([]image.Target)

	Registerer prometheus.Registerer
}

// Cache is a resolver that asks another one no more often than its TTL. It is safe for concurrent use. Callers of one
// reference share one lookup, and a caller who gives up fails nobody else.
type Cache struct {
	backend   Resolver
	o         Options
	lookups   *prometheus.CounterVec
	refreshes prometheus.Counter

	mu         sync.Mutex
	entries    *lru.Cache[key, *entry]
	flights    map[key]*flight
	refreshing map[string]bool // registries whose entries are being refreshed
	closed     bool

	running sync.WaitGroup
	ctx     context.Context // parent of every lookup: lookups outlive their callers, but not the cache
	cancel  context.CancelFunc
}

// key is a reference as one credential scope sees it: a scope must never learn what only another may read.
type key struct{ scope, image string }

// entry is the last answer for one reference: a digest or a refusal, never a temporary error. It is guarded by Cache.mu
// and changed in place, so that only callers, and no refresh, make it recently used.
type entry struct {
	scope  string
	ref    image.Ref
	digest string
	err    error
	at     time.Time
	used   time.Time // when a caller last asked
	due    time.Time // when to look it up again, if it is in use
}

// answer is what the entry says about ref, which differs from its own only in how the name is written.
func (e *entry) answer(ref image.Ref, stale bool) image.Resolution {
	return image.Resolution{Ref: ref, Digest: e.digest, At: e.at, Err: e.err, Stale: stale, Cached: true}
}

// flight is one lookup under way. Its result may be read once done is closed.
type flight struct {
	scope   string
	ref     image.Ref
	done    chan struct{}
	result  image.Resolution
	asked   bool // guarded by Cache.mu: for a caller, and not only to refresh
	flushed bool // guarded by Cache.mu: a flush came after the lookup began, so that its answer may be the old one
}

func (f *flight) key() key { return key{f.scope, f.ref.String()} }

// New returns a cache in front of backend. Close it to end its lookups and to wait for them.
func New(backend Resolver, o Options) *Cache {
	o.Size = orDefault(o.Size, 10_000)
	o.TTL = orDefault(o.TTL, time.Minute)
	o.NegativeTTL = orDefault(o.NegativeTTL, 10*time.Second)
	o.StaleIfError = orDefault(o.StaleIfError, 24*time.Hour)
	o.Timeout = orDefault(o.Timeout, 15*time.Second)
	entries, err := lru.New[key, *entry](o.Size)
	if err != nil {
		panic(err) // only for a size below one
	}
	c := &Cache{
		backend: backend, o: o, entries: entries, flights: map[key]*flight{}, refreshing: map[string]bool{},
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_cache_lookups_total",
			Help: "References asked for, by how they were answered: hit, miss (a lookup was started), shared (a lookup was under way), stale (at once, and looked up again).",
		}, []string{"outcome"}),
		refreshes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_cache_refreshes_total",
			Help: "References in use that were looked up again before anybody had to wait for it.",
		}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if o.Registerer != nil {
		o.Registerer.MustRegister(c.lookups, c.refreshes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "digestlock_cache_entries",
			Help: "References remembered.",
		}, func() float64 { return float64(entries.Len()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "digestlock_cache_oldest_in_use_seconds",
			Help: "Age of the oldest digest among the references that were asked for within --refresh-window, at least --ttl.",
		}, func() float64 { return c.oldestInUse().Seconds() }))
		for _, outcome := range []string{"hit", "miss", "shared", "stale"} {
			c.lookups.WithLabelValues(outcome) // a rate needs a series that begins at 0
		}
	}
	if o.RefreshWindow > 0 {
		c.running.Go(c.refreshAhead)
	}
	return c
}

func orDefault[T int | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Close cancels lookups under way and waits for them. Callers that wait for one get an error.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}

// Resolve returns one Resolution per reference, in the same order, as the scope sees it. An answer younger than the TTL
// is used as it is. A look-up is as patient as the caller who begins it ([image.Patient]). Where asking fails, or need not be waited for, the last known digest is used, marked stale. No answer is older than a
// [Cache.Flush] of its reference that returned before Resolve was called.
func (c *Cache) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	out := make([]image.Resolution, len(refs))
	waits := make([]*flight, len(refs))
	c.mu.Lock()
	var start []*flight
	for i, ref := range refs {
		k := key{scope, ref.String()}
		e, is := c.use(k)
		if is == fresh {
			c.lookups.WithLabelValues("hit").Inc()
			out[i] = e.answer(ref, false)
			continue
		}
		f, shared := c.flights[k]
		if !shared {
			f = &flight{scope: scope, ref: ref, done: make(chan struct{})}
			c.flights[k] = f
			start = append(start, f)
		}
		f.asked = true
		switch {
		case is == usable:
			c.lookups.WithLabelValues("stale").Inc()
			out[i] = e.answer(ref, true)
			continue
		case shared:
			c.lookups.WithLabelValues("shared").Inc()
		default:
			c.lookups.WithLabelValues("miss").Inc()
		}
		waits[i] = f
	}
	c.launch(start, image.IsPatient(ctx))
	c.mu.Unlock()
	for i, f := range waits {
		if f != nil {
			out[i] = c.wait(ctx, f)
			out[i].Ref = refs[i] // the flight may be another caller's, who wrote the name differently
		}
	}
	return out
}

// freshness is what an entry is good for.
type freshness int

const (
	expired freshness = iota // for when the registry cannot be asked, if at all
	usable                   // to answer with while it is looked up again
	fresh                    // to answer with
)

// use returns the entry of k and what it is good for, and notes that a caller asked. The caller holds mu.
func (c *Cache) use(k key) (*entry, freshness) {
	e, ok := c.entries.Get(k)
	if !ok {
		return nil, expired
	}
	now := time.Now()
	e.used = now
	switch old := now.Sub(e.at); {
	case e.err != nil && old < c.o.NegativeTTL, e.err == nil && old < c.o.TTL:
		return e, fresh
	case e.err == nil && old < c.o.TTL+c.o.StaleWhileRevalidate:
		return e, usable
	}
	return e, expired
}

// launch starts the lookups, of one scope, one call of the backend per registry: a registry that does not answer delays
// nobody else's references, and the backend sees all repositories that need a token at once. The caller holds mu.
func (c *Cache) launch(flights []*flight, patient bool) {
	byRegistry := map[string][]*flight{}
	for _, f := range flights {
		byRegistry[f.ref.Registry] = append(byRegistry[f.ref.Registry], f)
	}
	for _, fs := range byRegistry {
		if c.closed {
			for _, f := range fs {
				delete(c.flights, f.key())
				f.result = image.Resolution{Ref: f.ref, Err: fmt.Errorf("%w: the resolver is shutting down", image.ErrUnavailable)}
				close(f.done)
			}
			continue
		}
		c.running.Go(func() { c.fly(fs, patient) })
	}
}

// fly looks references up that have one scope and one registry.
func (c *Cache) fly(flights []*flight, patient bool) {
	ctx := c.ctx
	if patient {
		ctx = image.Patient(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.o.Timeout, fmt.Errorf("no answer within %v", c.o.Timeout))
	defer cancel()
	at := time.Now()
	refs := make([]image.Ref, len(flights))
	for i, f := range flights {
		refs[i] = f.ref
	}
	results := c.backend.Resolve(ctx, flights[0].scope, refs)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range flights {
		r := results[i]
		if r.At.IsZero() || r.At.After(at) {
			r.At = at
		}
		c.land(f, r)
	}
}

// land remembers an answer and hands it to everybody who waits for it. The caller holds mu.
func (c *Cache) land(f *flight, r image.Resolution) {
	defer close(f.done)
	f.result = r
	if f.flushed {
		return // those who wait ask again, see wait
	}
	delete(c.flights, f.key())
	e, known := c.entries.Peek(f.key())
	if r.Err != nil && !errors.Is(r.Err, image.ErrNotFound) && !errors.Is(r.Err, image.ErrUnauthorized) {
		if known {
			e.due = c.due(time.Now())
		}
		f.result = c.orStale(f.scope, r)
		return
	}
	if !known && !f.asked {
		return // evicted while it was refreshed: those in use come first
	}
	if !known {
		e = &entry{scope: f.scope, ref: f.ref}
		c.entries.Add(f.key(), e)
	}
	e.digest, e.err, e.at, e.due = r.Digest, r.Err, r.At, c.due(r.At)
	if f.asked {
		e.used = time.Now()
	}
}

// orStale replaces a temporary error by the last known digest, if there is one that is not too old. The caller holds
// mu.
func (c *Cache) orStale(scope string, r image.Resolution) image.Resolution {
	e, ok := c.entries.Peek(key{scope, r.Ref.String()})
	if !ok || e.err != nil || time.Since(e.at) > c.o.StaleIfError {
		return r
	}
	return e.answer(r.Ref, time.Since(e.at) >= c.o.TTL)
}

func (c *Cache) wait(ctx context.Context, f *flight) image.Resolution {
	select {
	case <-f.done:
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.orStale(f.scope, image.Resolution{Ref: f.ref, Err: fmt.Errorf("%w: %w", image.ErrUnavailable, context.Cause(ctx))})
	}
	c.mu.Lock()
	flushed := f.flushed
	c.mu.Unlock()
	if flushed {
		return c.Resolve(ctx, f.scope, []image.Ref{f.ref})[0]
	}
	return f.result
}

// Flushed is what a flush did to one reference.
type Flushed struct {
	image.Resolution
	Old string // the digest known before, or ""
}

// Flush forgets what is known about the targets in every scope, then asks again for all of them at once, in each scope
// that knew them, and returns both answers for each reference, in the order of the targets. Look-ups that were under
// way cannot bring the old digest back. An answer that cannot be had is in the Resolution's Err, and the reference
// stays forgotten: no stale answer is used. Of several scopes' answers the first with a digest is returned.
func (c *Cache) Flush(ctx context.Context, targets []image.Target) []Flushed {
	c.forgetBelow(targets)
	out, scopes := c.forget(targets)
	for i := range scopes {
		if scopes[i] == nil {
			scopes[i] = []string{""}
		}
	}
	c.resolveAgain(ctx, out, scopes)
	return out
}

// Invalidate forgets as [Cache.Flush] does and waits for nothing. It begins to ask again for those references that were
// remembered or being looked up, which it returns: what is said about an image that nobody uses costs no request.
func (c *Cache) Invalidate(targets []image.Target) []image.Ref {
	c.forgetBelow(targets)
	out, scopes := c.forget(targets)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.resolveAgain(ctx, out, scopes) // look-ups outlive a caller who does not wait
	var refs []image.Ref
	for i, f := range out {
		if scopes[i] != nil {
			refs = append(refs, f.Ref)
		}
	}
	return refs
}

// Drop forgets as [Cache.Flush] does, without telling the backend, and asks nobody: the flush is another process's.
func (c *Cache) Drop(targets []image.Target) { c.forget(targets) }

// forgetBelow makes the backend forget. It comes before [Cache.forget], which disowns the look-ups that began meanwhile
// and may have met what the backend knew.
func (c *Cache) forgetBelow(targets []image.Target) {
	if c.o.Forget != nil {
		c.o.Forget(targets)
	}
}

// resolveAgain resolves each of out in its scopes, and sets its Resolution to that of the first scope that has a digest.
func (c *Cache) resolveAgain(ctx context.Context, out []Flushed, scopes [][]string) {
	indices := map[string][]int{}
	for i, in := range scopes {
		for _, scope := range in {
			indices[scope] = append(indices[scope], i)
		}
	}
	names := slices.Sorted(maps.Keys(indices))
	results := make([][]image.Resolution, len(names))
	var wg sync.WaitGroup
	for s, scope := range names {
		refs := make([]image.Ref, len(indices[scope]))
		for n, i := range indices[scope] {
			refs[n] = out[i].Ref
		}
		wg.Go(func() { results[s] = c.Resolve(ctx, scope, refs) })
	}
	wg.Wait()
	for s, scope := range names {
		for n, i := range indices[scope] {
			if r := results[s][n]; out[i].Digest == "" && (out[i].Err == nil || r.Err == nil) {
				out[i].Resolution = r
			}
		}
	}
}

// forget drops the entries of the targets and disowns their look-ups under way. It returns all references that the
// targets name, with their old digests, and for each the scopes that knew it, nil for none.
func (c *Cache) forget(targets []image.Target) (all []Flushed, scopes [][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.known(targets)
	for _, t := range targets {
		refs := []image.Ref{t.Ref}
		if t.EveryTag {
			refs = tags(known, t.Ref)
		}
		for _, r := range refs {
			f := Flushed{Resolution: image.Resolution{Ref: r}}
			for _, scope := range known[r.String()] {
				f.Old = cmp.Or(f.Old, c.drop(key{scope, r.String()}))
			}
			all, scopes = append(all, f), append(scopes, known[r.String()])
		}
	}
	return all, scopes
}

// drop drops the entry of k, and disowns a look-up under way. It returns the digest, or "". The caller holds mu.
func (c *Cache) drop(k key) (digest string) {
	if e, ok := c.entries.Peek(k); ok {
		digest = e.digest
	}
	c.entries.Remove(k)
	if f, ok := c.flights[k]; ok {
		f.flushed = true
		delete(c.flights, k)
	}
	return digest
}

// known returns the scopes, sorted, in which each reference of the targets' repositories is remembered or being looked
// up. The caller holds mu.
func (c *Cache) known(targets []image.Target) map[string][]string {
	wanted := map[string]bool{}
	for _, t := range targets {
		wanted[repository(t.Ref.String())] = true
	}
	found := map[key]bool{}
	add := func(k key) {
		if wanted[repository(k.image)] {
			found[k] = true
		}
	}
	for _, k := range c.entries.Keys() {
		add(k)
	}
	for k := range c.flights {
		add(k)
	}
	known := map[string][]string{}
	for k := range found {
		known[k.image] = append(known[k.image], k.scope)
	}
	for _, scopes := range known {
		slices.Sort(scopes)
	}
	return known
}

// repository cuts the tag off a full reference.
func repository(image string) string { return image[:strings.LastIndexByte(image, ':')] }

// tags returns every known reference to ref's repository, sorted.
func tags(known map[string][]string, ref image.Ref) []image.Ref {
	prefix := ref.Registry + "/" + ref.Repository + ":"
	var names []string
	for name := range known {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	out := make([]image.Ref, len(names))
	for i, name := range names {
		out[i] = ref
		out[i].Tag = strings.TrimPrefix(name, prefix)
	}
	return out
}
