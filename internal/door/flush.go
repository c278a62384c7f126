package door

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

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
		patience, no := patienceOf(r.URL.Query())
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
		if done.Err != nil {
			d.Refuse(w, http.StatusServiceUnavailable, done.Err)
			return
		}
		d.report(who, done.Images)
		d.follow(w, r, who, done, patience)
	})
}

// follow answers a flush, once what follows from it has ended or the caller's patience has.
func (d *Door) follow(w http.ResponseWriter, r *http.Request, who caller, done Flushed, patience time.Duration) {
	res := api.FlushResponse{Flushed: done.Images, Replicas: done.Replicas}
	if done.Cycle == nil {
		Answer(w, res)
		return
	}
	if !done.Cycle.wait(r.Context(), patience) {
		res.Status = api.StatusPath
		w.Header().Set("Location", res.Status)
		answer(w, http.StatusAccepted, res)
		return
	}
	res.Commits, res.Error = who.sees(done)
	Answer(w, res)
}

// wait waits for the end of the cycle, and reports whether it came.
func (c *Cycle) wait(ctx context.Context, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-c.Done:
		return c.Ended
	case <-ctx.Done():
		return false
	}
}

// sees returns what a caller may know of the cycle, which was about all repositories: who may flush some images only sees
// the commits whose message names one of those that were flushed, and no more of an error than that there is one.
func (c caller) sees(done Flushed) ([]api.Commit, *api.Problem) {
	commits := []api.Commit{}
	for _, x := range done.Cycle.Commits {
		if c.all || names(x.Message, done.Images) {
			subject, _, _ := strings.Cut(x.Message, "\n")
			commits = append(commits, api.Commit{Repository: x.Repository, Branch: x.Branch, Commit: x.Hash, Subject: subject})
		}
	}
	problem := api.ToProblem(done.Cycle.Err)
	if problem != nil && !c.all {
		problem = &api.Problem{Code: problem.Code, Message: "the companion could not do everything", Hint: "its log says what"}
	}
	return commits, problem
}

// names reports whether a commit's message has one of the references, as a word.
func names(message string, images []api.Flushed) bool {
	words := strings.FieldsFunc(message, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`,;()[]<>"'`+"`", r) })
	return slices.ContainsFunc(images, func(f api.Flushed) bool { return slices.Contains(words, f.Image) })
}

// Forwarded serves what another door passes on with a token: flushes that are limited there.
func (d *Door) Forwarded() http.Handler {
	return d.Protected(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := everything("companion")
		targets, no := targets(r.URL.Query(), who)
		if no != nil {
			d.deny(w, no)
			return
		}
		done, err := d.shared.Flush(r.Context(), targets)
		if err != nil {
			d.Refuse(w, http.StatusServiceUnavailable, err) // to nobody: the client is gone
			return
		}
		d.report(who, done.Images)
		Answer(w, api.FlushResponse{Flushed: done.Images})
	}))
}

// ForwardedEvents serves what another door passes on with a token: what webhooks name, limited there.
func (d *Door) ForwardedEvents() http.Handler {
	return d.Protected(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		targets, no := targets(r.URL.Query(), everything("companion"))
		if no != nil {
			d.deny(w, no)
			return
		}
		res := api.WebhookResponse{Images: r.URL.Query()["image"], Refreshed: d.invalidate(targets)}
		d.o.Log.Info("webhook passed on", "images", len(res.Images), "refreshed", res.Refreshed, "first", res.Images[0])
		answer(w, http.StatusAccepted, res)
	}))
}

// invalidate forgets, and counts what was remembered, where that is known.
func (d *Door) invalidate(targets []image.Target) *int {
	n := d.o.Backend.Invalidate(targets)
	if n != nil {
		d.flushes.Add(float64(*n))
	}
	return n
}

// How long a flush waits for what follows from it. CI steps have somebody who waits for them.
const (
	defaultWait = 10 * time.Second
	// MaxWait is the longest wait that a caller may ask for.
	MaxWait = 30 * time.Second
)

// patienceOf returns how long the caller wants to wait.
func patienceOf(query url.Values) (time.Duration, *refusal) {
	if !query.Has("wait") {
		return defaultWait, nil
	}
	d, err := time.ParseDuration(query.Get("wait"))
	if err != nil || d < 0 || d > MaxWait {
		return 0, newRefusal(http.StatusBadRequest, fault.Request, "for example &wait=20s", "wait=%.40q is no time from 0s to %v", query.Get("wait"), MaxWait)
	}
	return d, nil
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
	flush func(context.Context, []image.Target) Flushed

	mu      sync.Mutex
	running map[string]*round
	next    map[string]*round
	rounds  sync.WaitGroup
}

// round is one flush, for everybody who waits for it. Its result may be read once done is closed.
type round struct {
	done   chan struct{}
	result Flushed
}

// Flush flushes the targets, and returns the context's cause when ctx ends first; the flush goes on for the others.
func (s *shared) Flush(ctx context.Context, targets []image.Target) (Flushed, error) {
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
		return Flushed{}, context.Cause(ctx)
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
