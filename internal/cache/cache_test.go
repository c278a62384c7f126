package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
)

// upstream is a registry whose answers the test sets and whose lookups it may hold up.
type upstream struct {
	mu     sync.Mutex
	digest map[string]string // by reference
	err    error
	asked  int
	hasty  int // of those asked, for somebody who waits
	delay  time.Duration
	hang   string // registry that never answers
}

func (u *upstream) Resolve(ctx context.Context, _ string, refs []image.Ref) []image.Resolution {
	u.mu.Lock()
	delay, hang := u.delay, u.hang
	out := make([]image.Resolution, len(refs))
	for i, r := range refs {
		u.asked++
		if !image.IsPatient(ctx) {
			u.hasty++
		}
		out[i] = image.Resolution{Ref: r, Digest: u.digest[r.String()], Err: u.err}
		if u.err != nil {
			out[i].Digest = ""
		}
	}
	u.mu.Unlock()
	if hang != "" && refs[0].Registry == hang {
		<-ctx.Done()
		for i, r := range refs {
			out[i] = image.Resolution{Ref: r, Err: fmt.Errorf("%w: %w", image.ErrUnavailable, context.Cause(ctx))}
		}
		return out
	}
	time.Sleep(delay) // fake time: the tests run in a synctest bubble
	return out
}

func (u *upstream) set(ref, digest string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.digest[ref], u.err = digest, err
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

const server = "ghcr.io/acme/server:latest"

var (
	old = "sha256:" + strings.Repeat("0", 64)
	cur = "sha256:" + strings.Repeat("1", 64)
)

func ref(t *testing.T, s string) image.Ref {
	t.Helper()
	r, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bubble runs f with fake time, an upstream that knows server at old, and a cache in front of it.
func bubble(t *testing.T, o Options, f func(t *testing.T, u *upstream, c *Cache)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{digest: map[string]string{server: old}}
		c := New(u, o)
		defer c.Close()
		f(t, u, c)
	})
}

func one(ctx context.Context, t *testing.T, c *Cache) image.Resolution {
	t.Helper()
	return c.Resolve(ctx, "", []image.Ref{ref(t, server)})[0]
}

func TestFreshness(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, StaleIfError: time.Hour}, func(t *testing.T, u *upstream, c *Cache) {
		if r := one(t.Context(), t, c); r.Digest != old || r.Stale || r.Cached {
			t.Fatalf("first look = %+v, want %s", r, old)
		}
		u.set(server, cur, nil)
		time.Sleep(59 * time.Second)
		if r := one(t.Context(), t, c); r.Digest != old || !r.Cached || u.count() != 1 {
			t.Errorf("within the TTL = %+v after %d lookups, want the remembered digest after 1", r, u.count())
		}
		time.Sleep(time.Second)
		if r := one(t.Context(), t, c); r.Digest != cur || r.Cached || u.count() != 2 {
			t.Errorf("after the TTL = %+v after %d lookups, want the new digest after 2", r, u.count())
		}
		u.set(server, "", fmt.Errorf("%w: 503", image.ErrUnavailable))
		time.Sleep(time.Hour)
		if r := one(t.Context(), t, c); r.Digest != cur || !r.Stale {
			t.Errorf("registry down = %+v, want the last digest, stale", r)
		}
		time.Sleep(time.Second)
		if r := one(t.Context(), t, c); !errors.Is(r.Err, image.ErrUnavailable) || r.Digest != "" {
			t.Errorf("registry down for too long = %+v, want unavailable", r)
		}
		before := u.count()
		one(t.Context(), t, c)
		if u.count() != before+1 {
			t.Error("a temporary error was remembered")
		}
	})
}

func TestNegativeAnswers(t *testing.T) {
	t.Parallel()
	bubble(t, Options{NegativeTTL: 10 * time.Second}, func(t *testing.T, u *upstream, c *Cache) {
		u.set(server, "", fmt.Errorf("%w: 404", image.ErrNotFound))
		for range 3 {
			if r := one(t.Context(), t, c); !errors.Is(r.Err, image.ErrNotFound) {
				t.Errorf("missing image = %+v, want not found", r)
			}
		}
		if u.count() != 1 {
			t.Errorf("%d lookups within the negative TTL, want 1", u.count())
		}
		u.set(server, cur, nil)
		time.Sleep(10 * time.Second)
		if r := one(t.Context(), t, c); r.Digest != cur {
			t.Errorf("after the negative TTL = %+v, want %s", r, cur)
		}
	})
}

func TestCallersShareOneLookup(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		u.delay = time.Second
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if r := one(t.Context(), t, c); r.Digest != old {
					t.Errorf("got %+v", r)
				}
			})
		}
		wg.Wait()
		if u.count() != 1 {
			t.Errorf("%d lookups for 100 callers, want 1", u.count())
		}
	})
}

func TestCallerWhoGivesUp(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		u.delay = time.Second
		short, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("impatient"))
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if r := one(short, t, c); !errors.Is(r.Err, image.ErrUnavailable) || !strings.Contains(r.Err.Error(), "impatient") {
				t.Errorf("impatient caller got %+v", r)
			}
		})
		synctest.Wait() // the lookup under way is the impatient caller's
		if r := one(t.Context(), t, c); r.Digest != old {
			t.Errorf("patient caller got %+v, want %s", r, old)
		}
		wg.Wait()
		if u.count() != 1 {
			t.Errorf("%d lookups, want 1", u.count())
		}
	})
}

func TestSilentRegistryDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Timeout: 5 * time.Second}, func(t *testing.T, u *upstream, c *Cache) {
		u.hang = "silent.example.com"
		start := time.Now()
		refs := []image.Ref{ref(t, "silent.example.com/a"), ref(t, server)}
		done := make(chan image.Resolution, 1)
		go func() { done <- c.Resolve(t.Context(), "", refs)[0] }()
		synctest.Wait()
		if r := one(t.Context(), t, c); r.Digest != old || time.Since(start) != 0 {
			t.Errorf("other registry = %+v after %v, want an answer at once", r, time.Since(start))
		}
		r := <-done
		if !errors.Is(r.Err, image.ErrUnavailable) || time.Since(start) != 5*time.Second {
			t.Errorf("silent registry = %+v after %v, want unavailable after 5s", r, time.Since(start))
		}
	})
}

func TestFlush(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.set(server, cur, nil)
		got := c.Flush(t.Context(), []image.Target{{Ref: ref(t, server)}})
		if len(got) != 1 || got[0].Old != old || got[0].Digest != cur {
			t.Errorf("Flush = %+v, want %s → %s", got, old, cur)
		}
		if r := one(t.Context(), t, c); r.Digest != cur || u.count() != 2 {
			t.Errorf("after the flush = %+v after %d lookups, want the new digest remembered after 2", r, u.count())
		}
		u.set(server, "", image.ErrUnavailable)
		if got := c.Flush(t.Context(), []image.Target{{Ref: ref(t, server)}}); got[0].Digest != "" || got[0].Stale {
			t.Errorf("Flush while the registry is down = %+v: an answer older than the flush", got)
		}
	})
}

// TestPatient: look-ups are as patient as who begins them, those of a flush never.
func TestPatient(t *testing.T) {
	t.Parallel()
	bubble(t, Options{TTL: time.Minute, RefreshWindow: 10 * time.Minute}, func(t *testing.T, u *upstream, c *Cache) {
		for i, step := range []struct {
			do   func()
			want int
		}{
			{func() { one(image.Patient(t.Context()), t, c) }, 0},
			{func() { time.Sleep(59 * time.Second) }, 0}, // it is looked up again
			{func() { c.Flush(t.Context(), []image.Target{{Ref: ref(t, server)}}) }, 1},
			{func() { c.Resolve(t.Context(), "", []image.Ref{ref(t, "ghcr.io/acme/other")}) }, 2},
		} {
			step.do()
			synctest.Wait()
			if u.count() != i+1 || u.hasty != step.want {
				t.Errorf("after step %d %d look-ups, %d that somebody waits for; want %d and %d", i, u.count(), u.hasty, i+1, step.want)
			}
		}
	})
}

func TestFlushOfRepository(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		for _, s := range []string{server, "ghcr.io/acme/server:main", "ghcr.io/acme/server-2:latest"} {
			u.set(s, old, nil)
			c.Resolve(t.Context(), "", []image.Ref{ref(t, s)})
		}
		var got []string
		for _, f := range c.Flush(t.Context(), []image.Target{{Ref: ref(t, "ghcr.io/acme/server"), EveryTag: true}}) {
			got = append(got, f.Ref.String())
		}
		if diff := cmp.Diff([]string{server, "ghcr.io/acme/server:main"}, got); diff != "" {
			t.Errorf("flushed (-want +got):\n%s", diff)
		}
	})
}

// TestFlushOvertakesLookup: a lookup that began before a push and ends after the flush neither fills the cache with
// the old digest nor hands it to anybody.
func TestFlushOvertakesLookup(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		u.delay = time.Minute
		early := make(chan image.Resolution, 1)
		go func() { early <- one(t.Context(), t, c) }()
		synctest.Wait() // the lookup has read the old digest and is on its way back
		u.mu.Lock()
		u.digest[server], u.delay = cur, 0
		u.mu.Unlock()
		if got := c.Flush(t.Context(), []image.Target{{Ref: ref(t, server)}}); got[0].Digest != cur {
			t.Errorf("Flush = %+v, want %s", got, cur)
		}
		if r := <-early; r.Digest != cur {
			t.Errorf("caller from before the flush got %+v, want %s", r, cur)
		}
		if r := one(t.Context(), t, c); r.Digest != cur {
			t.Errorf("after everything = %+v, want %s", r, cur)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Size: 2}, func(t *testing.T, u *upstream, c *Cache) {
		for _, s := range []string{"a", "b", "c"} {
			u.set("index.docker.io/library/"+s+":latest", old, nil)
			c.Resolve(t.Context(), "", []image.Ref{ref(t, s)})
		}
		if n := c.entries.Len(); n != 2 {
			t.Errorf("%d entries, want 2", n)
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	bubble(t, Options{}, func(t *testing.T, u *upstream, c *Cache) {
		u.hang = "ghcr.io"
		done := make(chan image.Resolution, 1)
		go func() { done <- one(t.Context(), t, c) }()
		synctest.Wait()
		c.Close()
		if r := <-done; !errors.Is(r.Err, image.ErrUnavailable) {
			t.Errorf("caller at Close got %+v, want unavailable", r)
		}
		if r := one(t.Context(), t, c); !errors.Is(r.Err, image.ErrUnavailable) {
			t.Errorf("caller after Close got %+v, want unavailable", r)
		}
	})
}

// TestInvalidate: what is known is asked for again, without waiting; what is not known costs nothing.
func TestInvalidate(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Timeout: 5 * time.Second}, func(t *testing.T, u *upstream, c *Cache) {
		one(t.Context(), t, c)
		u.set(server, cur, nil)
		targets := []image.Target{{Ref: ref(t, "ghcr.io/nobody/uses:latest")}, {Ref: ref(t, "ghcr.io/acme/server"), EveryTag: true}}
		if got := c.Invalidate(targets); len(got) != 1 || got[0].String() != server {
			t.Errorf("Invalidate = %v, want %s", got, server)
		}
		synctest.Wait()
		if u.count() != 2 {
			t.Errorf("%d lookups, want 2: the one before and the one after", u.count())
		}
		if r := one(t.Context(), t, c); r.Digest != cur || u.count() != 2 {
			t.Errorf("after Invalidate = %+v after %d lookups, want %s without another", r, u.count(), cur)
		}
		u.hang = "ghcr.io"
		start := time.Now()
		c.Invalidate(targets)
		if d := time.Since(start); d != 0 {
			t.Errorf("Invalidate waited %v for a silent registry", d)
		}
		if r := one(t.Context(), t, c); r.Digest != "" || r.Err == nil {
			t.Errorf("after Invalidate, registry silent = %+v: an answer older than it", r)
		}
	})
}

// TestBackendThatRemembers: an answer is as old as the backend says, and a flush empties the backend before the cache
// asks it again.
func TestBackendThatRemembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		digest, at, asked := old, time.Now(), 0
		c := New(resolverFunc(func(refs []image.Ref) []image.Resolution {
			asked++
			return []image.Resolution{{Ref: refs[0], Digest: digest, At: at}}
		}), Options{TTL: time.Minute, Forget: func(targets []image.Target) {
			if len(targets) != 1 {
				t.Errorf("%d targets, want 1", len(targets))
			}
			digest, at = cur, time.Now()
		}})
		defer c.Close()
		time.Sleep(40 * time.Second)
		for _, want := range []int{1, 1, 2} {
			if r := one(t.Context(), t, c); !r.At.Equal(at) || asked != want {
				t.Errorf("answer of %v after %d lookups, want %v after %d", r.At, asked, at, want)
			}
			time.Sleep(15 * time.Second)
		}
		target := image.Target{Ref: ref(t, server)}
		if f := c.Flush(t.Context(), []image.Target{target}); f[0].Digest != cur {
			t.Errorf("flushed to %s, want %s", f[0].Digest, cur)
		}
		digest = old
		c.Invalidate([]image.Target{target})
		synctest.Wait()
		if r := one(t.Context(), t, c); r.Digest != cur {
			t.Errorf("invalidated to %s, want %s", r.Digest, cur)
		}
		before := asked
		c.Drop([]image.Target{target})
		synctest.Wait()
		if asked != before {
			t.Error("Drop asks")
		}
		if one(t.Context(), t, c); asked != before+1 {
			t.Error("what was dropped is still remembered")
		}
	})
}

type resolverFunc func([]image.Ref) []image.Resolution

func (f resolverFunc) Resolve(_ context.Context, _ string, refs []image.Ref) []image.Resolution {
	return f(refs)
}
