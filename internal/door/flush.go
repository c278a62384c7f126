package door

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

func (d *Door) flush() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, no := d.flusher(r)
		if no != nil {
			d.deny(w, no)
			return
		}
		targets, no := targets(r.URL.Query(), who)
		if no != nil {
			d.deny(w, no)
			return
		}
		if wait := d.limits.take(who.name, len(targets), time.Now()); wait > 0 {
			seconds := int(math.Ceil(wait.Seconds()))
			w.Header().Set("Retry-After", strconv.Itoa(seconds))
			d.deny(w, newRefusal(http.StatusTooManyRequests, fault.RateLimited,
				fmt.Sprintf("try again in %d seconds; without a flush, the image is looked up again once its TTL is over", seconds),
				"too many flushes"))
			return
		}
		done, err := d.shared.Flush(r.Context(), targets)
		if err != nil {
			d.Refuse(w, http.StatusServiceUnavailable, err) // to nobody: the client is gone
			return
		}
		d.report(who, done)
		Answer(w, api.FlushResponse{Flushed: done})
	})
}

// targets returns what the query asks to flush, when who may.
func targets(query url.Values, who caller) ([]image.Target, *refusal) {
	const hint = "POST /flush?image=registry.example.com/team/app:latest, once per image; without tag for all tags"
	images := query["image"]
	if len(images) == 0 || len(images) > api.MaxImages {
		return nil, newRefusal(http.StatusBadRequest, fault.Request, hint, "%d images to flush", len(images))
	}
	out := make([]image.Target, len(images))
	for i, text := range images {
		t, err := image.ParseTarget(text)
		if err != nil {
			return nil, newRefusal(http.StatusBadRequest, fault.Request, hint, "%w", err)
		}
		if err := who.may(t.Ref); err != nil {
			return nil, &refusal{http.StatusForbidden, err}
		}
		out[i] = t
	}
	return out, nil
}

// report logs and counts what was flushed.
func (d *Door) report(who caller, done []api.Flushed) {
	for _, f := range done {
		d.flushes.Inc()
		log := d.o.Log.With("image", f.Image, "old", f.Old, "caller", who.name)
		if f.Error != nil {
			log.Warn("flushed, not resolved again", "error", f.Error.Message)
			continue
		}
		log.Info("flushed", "new", f.New)
	}
}

// How much may be flushed, in references a second and at once. A flush costs its registry a request. Callers are tokens,
// which a whole CI system may share, and the subjects of OIDC issuers.
const (
	callerRate, callerBurst = 2, 300
	totalRate, totalBurst   = 20, 1500
)

// limits are a bucket for each caller and one for all. It is safe for concurrent use.
type limits struct {
	mu      sync.Mutex
	total   *rate.Limiter
	callers map[string]*rate.Limiter
}

func newLimits() *limits {
	return &limits{total: rate.NewLimiter(totalRate, totalBurst), callers: map[string]*rate.Limiter{}}
}

// take takes n references from the buckets of name and of all, and returns 0; or it takes nothing, and returns how long
// it takes until there are as many. More than a bucket holds counts as what it holds.
func (l *limits) take(name string, n int, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.callers[name]
	if own == nil {
		l.forget(now)
		own = rate.NewLimiter(callerRate, callerBurst)
		l.callers[name] = own
	}
	a := own.ReserveN(now, min(n, callerBurst))
	b := l.total.ReserveN(now, min(n, totalBurst))
	wait := max(a.DelayFrom(now), b.DelayFrom(now))
	if wait > 0 {
		a.CancelAt(now)
		b.CancelAt(now)
	}
	return wait
}

// forget drops the buckets that are full again, once there are many. The others are few: all callers together draw from
// the total. The caller holds mu.
func (l *limits) forget(now time.Time) {
	const many = 1000
	if len(l.callers) < many {
		return
	}
	for name, b := range l.callers {
		if b.TokensAt(now) >= callerBurst {
			delete(l.callers, name)
		}
	}
}

// shared joins flushes of the same targets: while one is under way, all that come wait for one more, which begins when
// it ends. They cannot have the answer of the one under way, which may have left before the push that they are about.
type shared struct {
	flush func(context.Context, []image.Target) []api.Flushed

	mu      sync.Mutex
	running map[string]*round
	next    map[string]*round
	rounds  sync.WaitGroup
}

// round is one flush, for everybody who waits for it. Its result may be read once done is closed.
type round struct {
	done   chan struct{}
	result []api.Flushed
}

// Flush flushes the targets, and returns the context's cause when ctx ends first; the flush goes on for the others.
func (s *shared) Flush(ctx context.Context, targets []image.Target) ([]api.Flushed, error) {
	key := keyOfTargets(targets)
	s.mu.Lock()
	r := s.next[key]
	if r == nil {
		r = &round{done: make(chan struct{})}
		if s.next == nil {
			s.next, s.running = map[string]*round{}, map[string]*round{}
		}
		s.next[key] = r
		before := s.running[key]
		s.rounds.Go(func() { s.run(context.WithoutCancel(ctx), key, before, r, targets) })
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.result, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func keyOfTargets(targets []image.Target) string {
	var b strings.Builder
	for _, t := range targets {
		fmt.Fprintln(&b, t)
	}
	return b.String()
}

// run flushes once the round before, if any, has ended. Whoever comes from then on gets a round of their own.
func (s *shared) run(ctx context.Context, key string, before, r *round, targets []image.Target) {
	if before != nil {
		<-before.done
	}
	s.mu.Lock()
	delete(s.next, key)
	s.running[key] = r
	s.mu.Unlock()
	r.result = s.flush(ctx, targets)
	s.mu.Lock()
	delete(s.running, key)
	s.mu.Unlock()
	close(r.done)
}

// wait returns when no flush is under way.
func (s *shared) wait() { s.rounds.Wait() }
