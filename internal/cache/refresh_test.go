package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/image"
)

func TestStaleWhileRevalidate(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, StaleWhileRevalidate: 10 * time.Second}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.set(server, cur, nil)
		u.delay = time.Second
		time.Sleep(time.Minute)
		for range 3 {
			start := time.Now()
			if r := one(t.Context(), t, c); r.Digest != old || !r.Stale || time.Since(start) != 0 {
				t.Errorf("past the TTL = %+v after %v, want the old digest at once, stale", r, time.Since(start))
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if u.count() != 2 {
			t.Errorf("%d lookups, want the first and one in the background", u.count())
		}
		if r := one(t.Context(), t, c); r.Digest != cur || r.Stale {
			t.Errorf("after the lookup in the background = %+v, want the new digest", r)
		}
		time.Sleep(time.Minute + 10*time.Second)
		start := time.Now()
		if r := one(t.Context(), t, c); r.Stale || time.Since(start) != time.Second {
			t.Errorf("too old to be answered at once = %+v after %v, want a new look", r, time.Since(start))
		}
	})
}

func TestFlushBeatsStaleWhileRevalidate(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, StaleWhileRevalidate: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		time.Sleep(2 * time.Minute)
		u.delay = time.Second
		one(t.Context(), t, c) // a lookup of the old digest is under way
		synctest.Wait()
		u.set(server, cur, nil)
		c.Flush(t.Context(), []image.Target{{Ref: ref(t, server)}})
		if r := one(t.Context(), t, c); r.Digest != cur || r.Stale {
			t.Errorf("after the flush = %+v, want the new digest", r)
		}
	})
}

func TestRefreshAhead(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, RefreshWindow: 10 * time.Minute}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.set(server, cur, nil)
		if time.Sleep(54*time.Second - 1); u.count() != 1 {
			t.Errorf("%d lookups within nine tenths of the TTL, want 1", u.count())
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if r := one(t.Context(), t, c); r.Digest != cur || u.count() != 2 {
			t.Errorf("at the end of the TTL = %+v after %d lookups, want the new digest, already looked up", r, u.count())
		}
		time.Sleep(time.Hour) // the last use was at the end of the first minute
		synctest.Wait()
		if n := u.count(); n < 2+10 || n > 2+12 {
			t.Errorf("%d lookups, want one a TTL until ten minutes after the last use", n)
		}
	})
}

// TestRefreshOfRefusals: who asks for an image that is not there asks the registry, nobody else does.
func TestRefreshOfRefusals(t *testing.T) {
	t.Parallel()
	bubble(t, Options{RefreshWindow: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		u.set(server, "", fmt.Errorf("%w: 404", image.ErrNotFound))
		one(t.Context(), t, c)
		if time.Sleep(time.Hour); u.count() != 1 {
			t.Errorf("%d lookups, want 1", u.count())
		}
	})
}

// TestRefreshDuringOutage: failures are not repeated faster than answers, and end when the registry is back.
func TestRefreshDuringOutage(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, RefreshWindow: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.set(server, cur, image.ErrUnavailable)
		if time.Sleep(30 * time.Minute); u.count() > 1+33 {
			t.Errorf("%d lookups in 30 minutes of outage, want about one a minute", u.count())
		}
		u.set(server, cur, nil)
		before := u.count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if r := one(t.Context(), t, c); r.Digest != cur || r.Stale || u.count() > before+2 {
			t.Errorf("after the outage = %+v after %d lookups, want the new digest, looked up ahead", r, u.count()-before)
		}
	})
}

// crowd is a registry that takes a second for each call and remembers how many references it was asked for at once.
// The silent one never answers.
type crowd struct {
	slow             atomic.Bool
	mu               sync.Mutex
	asked, now, most int
}

func (u *crowd) Resolve(ctx context.Context, _ string, refs []image.Ref) []image.Resolution {
	out := make([]image.Resolution, len(refs))
	for i, r := range refs {
		out[i] = image.Resolution{Ref: r, Digest: old}
	}
	switch {
	case !u.slow.Load():
	case refs[0].Registry == "silent.example.com":
		<-ctx.Done()
	default:
		u.add(len(refs))
		defer u.add(-len(refs))
		time.Sleep(time.Second)
	}
	return out
}

func (u *crowd) add(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.now += n
	u.asked += max(n, 0)
	u.most = max(u.most, u.now)
}

// TestRefreshInBatches: a registry is asked for a batch at a time, and a silent one keeps nobody else's references
// from being refreshed.
func TestRefreshInBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &crowd{}
		c := New(u, Options{TTL: time.Minute, RefreshWindow: time.Hour, Timeout: 15 * time.Second})
		defer c.Close()
		const n = 3*refreshBatch + 1
		var refs []image.Ref
		for i := range n {
			refs = append(refs, ref(t, fmt.Sprintf("ghcr.io/acme/app-%d", i)), ref(t, fmt.Sprintf("silent.example.com/app-%d", i)))
		}
		c.Resolve(t.Context(), "", refs)
		u.slow.Store(true)
		time.Sleep(54*time.Second + 15*time.Second) // until the first silence is over
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.asked != n || u.most != refreshBatch {
			t.Errorf("%d references looked up ahead, %d at a time, want %d, %d at a time", u.asked, u.most, n, refreshBatch)
		}
	})
}

// TestRefreshOldestFirst: where a registry cannot be asked for all within a TTL, no digest grows much older than it takes to ask
// for all.
func TestRefreshOldestFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &crowd{}
		c := New(u, Options{TTL: time.Minute, RefreshWindow: time.Hour, Timeout: 15 * time.Second})
		defer c.Close()
		const round = 200 * time.Second // a second for each batch
		var refs []image.Ref
		for i := range refreshBatch * int(round/time.Second) {
			refs = append(refs, image.Ref{Registry: "ghcr.io", Repository: fmt.Sprintf("acme/app-%d", i), Tag: "latest"})
		}
		c.Resolve(t.Context(), "", refs)
		u.slow.Store(true)
		time.Sleep(time.Minute + round) // those of the first round are all of an age
		for range 100 {
			if time.Sleep(10 * time.Second); c.oldestInUse() > round*6/5 {
				t.Fatalf("the oldest digest is %v old, want little more than %v", c.oldestInUse(), round)
			}
		}
	})
}

// TestRefreshIsNoUse: the LRU forgets what callers did not ask for, whatever was refreshed since.
func TestRefreshIsNoUse(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Size: 2, TTL: time.Minute, RefreshWindow: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		a, b, other := ref(t, "ghcr.io/a"), ref(t, "ghcr.io/b"), ref(t, "ghcr.io/c")
		c.Resolve(t.Context(), "", []image.Ref{a})
		time.Sleep(30 * time.Second)
		c.Resolve(t.Context(), "", []image.Ref{b}) // last used, but not last looked up from the next minute on
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if u.count() != 3 {
			t.Fatalf("%d lookups, want a's refreshed", u.count())
		}
		c.Resolve(t.Context(), "", []image.Ref{other})
		if c.entries.Contains(key{"", a.String()}) || !c.entries.Contains(key{"", b.String()}) {
			t.Errorf("kept %v, want what was asked for last", c.entries.Keys())
		}
	})
}

// TestEvictedDuringRefresh: a refresh does not bring back what had to go, or it would push out what is in use.
func TestEvictedDuringRefresh(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Size: 1, TTL: time.Minute, RefreshWindow: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.mu.Lock()
		u.delay = 10 * time.Second
		u.mu.Unlock()
		time.Sleep(59 * time.Second) // the refresh is under way
		u.mu.Lock()
		u.delay = 0
		u.mu.Unlock()
		other := ref(t, "ghcr.io/other")
		c.Resolve(t.Context(), "", []image.Ref{other})
		time.Sleep(10 * time.Second)
		if !c.entries.Contains(key{"", other.String()}) {
			t.Errorf("kept %v, want %s", c.entries.Keys(), other)
		}
	})
}

// TestRefreshEndsWithCache: nothing is asked after Close, which ends a refresh that is under way.
func TestRefreshEndsWithCache(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, RefreshWindow: time.Hour, Timeout: 15 * time.Second}, func(t *testing.T, u *upstream, c *Cache) {
		refs := []image.Ref{}
		for i := range 8 * refreshBatch { // half of them are due when the cache first looks
			refs = append(refs, ref(t, fmt.Sprintf("ghcr.io/acme/app-%d", i)))
		}
		c.Resolve(t.Context(), "", refs)
		u.mu.Lock()
		u.hang = "ghcr.io"
		u.mu.Unlock()
		time.Sleep(time.Minute)
		before, start := u.count(), time.Now()
		if before == len(refs) {
			t.Fatal("no refresh under way")
		}
		caller := make(chan image.Resolution)
		go func() { caller <- c.Resolve(t.Context(), "", refs[:1])[0] }()
		c.Close()
		if r := <-caller; r.Err != nil && !errors.Is(r.Err, image.ErrUnavailable) {
			t.Errorf("caller at Close got %+v", r)
		}
		if time.Since(start) != 0 || u.count() != before {
			t.Errorf("Close took %v and %d lookups, want none", time.Since(start), u.count()-before)
		}
	})
}

// full is a cache that holds as many references as it may.
func full(b *testing.B) (*Cache, []image.Ref) {
	b.Helper()
	refs := make([]image.Ref, 10_000)
	for i := range refs {
		refs[i] = image.Ref{Registry: "ghcr.io", Repository: fmt.Sprintf("acme/app-%d", i), Tag: "latest"}
	}
	c := New(&crowd{}, Options{TTL: time.Hour, RefreshWindow: time.Hour})
	b.Cleanup(c.Close)
	c.Resolve(b.Context(), "", refs)
	b.ReportAllocs()
	return c, refs
}

// BenchmarkResolve asks for fifty references that are remembered.
func BenchmarkResolve(b *testing.B) {
	c, refs := full(b)
	for b.Loop() {
		c.Resolve(b.Context(), "", refs[:50])
	}
}

// BenchmarkLook looks for entries that are due, as the cache does forty times a TTL.
func BenchmarkLook(b *testing.B) {
	c, _ := full(b)
	for b.Loop() {
		c.startRefreshes()
	}
}

// TestOldestInUse: what is kept fresh stays younger than the TTL, what cannot be asked for grows old, and what nobody
// uses does not count.
func TestOldestInUse(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, RefreshWindow: 2 * time.Minute}, func(t *testing.T, u *upstream, c *Cache) {
		use := func(minutes int) {
			for range minutes {
				one(t.Context(), t, c)
				time.Sleep(time.Minute)
			}
		}
		if age := c.oldestInUse(); age != 0 {
			t.Errorf("nothing was used, and the oldest is %v", age)
		}
		use(10)
		if age := c.oldestInUse(); age <= 0 || age >= time.Minute {
			t.Errorf("the oldest is %v, want less than the TTL", age)
		}
		u.set(server, "", image.ErrUnavailable)
		use(10)
		if age := c.oldestInUse(); age < 10*time.Minute || age > 11*time.Minute {
			t.Errorf("the registry is down for 10 minutes and the oldest is %v", age)
		}
		time.Sleep(2 * time.Minute)
		if age := c.oldestInUse(); age != 0 {
			t.Errorf("nobody used it for a while and the oldest is %v", age)
		}
	})
}
