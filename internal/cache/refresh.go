package cache

import (
	"math/rand/v2"
	"slices"
	"time"
)

// DueFrom is the share of its TTL after which an entry in use is looked up again. A backend that remembers answers must
// not give one that is older.
const DueFrom = 0.90

const (
	// An entry in use is due between these shares of its TTL. Two lookups of a reference are thus never closer than the
	// first; the spread keeps references that were first asked for together from being due together for ever; and what
	// the second leaves is for noticing that an entry is due, and for the answer.
	dueFrom, dueTo = DueFrom, 0.95
	// looksPerTTL is how often a TTL the cache looks for entries that are due.
	looksPerTTL = 40
	// refreshBatch is how many references of a registry are refreshed in one call of the backend: few enough for a
	// registry that limits its rate to answer within the timeout, and for callers who come to share the lookup.
	refreshBatch = 32
	// maxRefreshing bounds the registries that are refreshed at a time. The others have their turn later.
	maxRefreshing = 16
)

// refreshAhead looks entries up again that are in use and about to expire, so that callers find them fresh. It ends with
// the cache.
func (c *Cache) refreshAhead() {
	tick := time.NewTicker(max(c.o.TTL/looksPerTTL, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			c.startRefreshes()
		}
	}
}

// startRefreshes starts to refresh what is due, unless the registry is still busy with what was due before: a slow one
// delays nobody else's references, and is never asked for more than a batch at a time.
func (c *Cache) startRefreshes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	due, now := map[string][]*entry{}, time.Now()
	for _, e := range c.entries.Values() {
		if c.refreshable(e, now) {
			due[e.ref.Registry] = append(due[e.ref.Registry], e)
		}
	}
	for registry, entries := range due {
		if c.refreshing[registry] || len(c.refreshing) >= maxRefreshing {
			continue
		}
		// The oldest first: where a round takes longer than a TTL, one that was late in the last would grow twice as old.
		slices.SortFunc(entries, func(a, b *entry) int { return a.at.Compare(b.at) })
		c.refreshing[registry] = true
		c.running.Go(func() { c.refresh(registry, entries) })
	}
}

// refresh looks up the entries of one registry, scope by scope and batch by batch.
func (c *Cache) refresh(registry string, entries []*entry) {
	byScope := map[string][]*entry{}
	for _, e := range entries {
		byScope[e.scope] = append(byScope[e.scope], e)
	}
	for _, entries := range byScope {
		for batch := range slices.Chunk(entries, refreshBatch) {
			if flights := c.board(batch); len(flights) > 0 {
				c.fly(flights, true)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.refreshing, registry)
}

// board returns a flight for each entry, all of one scope, that still wants one: not flushed, evicted, or looked up for a caller since.
func (c *Cache) board(entries []*entry) []*flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	var flights []*flight
	for _, e := range entries {
		k := key{e.scope, e.ref.String()}
		if known, _ := c.entries.Peek(k); known != e || c.flights[k] != nil || !c.refreshable(e, time.Now()) {
			continue
		}
		f := &flight{scope: e.scope, ref: e.ref, done: make(chan struct{})}
		c.flights[k] = f
		c.refreshes.Inc()
		flights = append(flights, f)
	}
	return flights
}

// refreshable reports whether e is due and in use. A refusal is not kept fresh: it is asked for again soon enough. The
// caller holds mu.
func (c *Cache) refreshable(e *entry, now time.Time) bool {
	return e.err == nil && !now.Before(e.due) && now.Sub(e.used) < c.o.RefreshWindow
}

// oldestInUse returns the age of the oldest digest that a caller asked for within the refresh window. While the
// registries answer it stays below the TTL, because such references are kept fresh, or twice that without a refresh
// window.
func (c *Cache) oldestInUse() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oldest time.Duration
	now := time.Now()
	for _, e := range c.entries.Values() {
		if e.err == nil && now.Sub(e.used) < max(c.o.RefreshWindow, c.o.TTL) {
			oldest = max(oldest, now.Sub(e.at))
		}
	}
	return oldest
}

// due returns when to refresh what was looked up at a time. A failed lookup counts as well: nothing is tried more often
// for having failed.
func (c *Cache) due(at time.Time) time.Time {
	share := dueFrom + (dueTo-dueFrom)*rand.Float64()
	return at.Add(time.Duration(share * float64(c.o.TTL)))
}
