// Package fanout is the companion's front door: what CI and registries tell it, it passes on to every replica of the
// resolver, and then has the loop commit what that changed.
package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// replicaTimeout bounds one replica's answer. It asks registries within a flush, and gives each 10 s by default. With a queue
// or Redis it may take 10 s more. It is reported then, and has forgotten what was flushed all the same: to wait longer would
// leave the loop less than its 10 s of the 30 s that "digestlock flush" has, and whom it serves no report at all.
const replicaTimeout = 15 * time.Second

// Loop is what commits. It must be safe for concurrent use.
type Loop interface {
	// Wake begins a cycle now, or when the one under way ends, which looks first at the images that were flushed.
	Wake(flushed ...image.Target)
	// Sync does as Wake and waits until a cycle that began after the call has ended. It returns its commits and what could
	// not be done, or the cause of ctx when that ends first.
	Sync(ctx context.Context, flushed ...image.Target) ([]companion.Commit, error)
	// Waits reports whether the last cycle left something for a later commit, to keep commits apart.
	Waits() bool
}

// Options are what a Server is made of.
type Options struct {
	// Replicas returns a client for each resolver, anew because replicas come and go. The server closes them.
	Replicas func(ctx context.Context) ([]*api.Client, error)
	Loop     Loop
	// Leader returns the address, host:port, of the companion whose loop runs, "" when that is this one; the error says why
	// there is none to ask. nil is always this one.
	Leader  func() (address string, err error)
	Status  func() any // of the loop, as JSON; it may take locks, to show that they can be taken
	Keys    door.Keys
	Log     *slog.Logger
	Metrics *prometheus.Registry
}

// Server is the door and what is passed on through it. It is safe for concurrent use.
type Server struct {
	o         Options
	door      *door.Door
	forwarded *prometheus.CounterVec
	patience  time.Duration   // with a leader that a request is passed on to
	stopping  context.Context // ends with Serve's: nobody waits for the loop any more
	stop      context.CancelFunc

	background sync.WaitGroup
	mu         sync.Mutex
	events     map[string]image.Target // that are not passed on yet
	passing    bool                    // passOn is under way
}

// What passing something on to one replica came to, in the metric.
const (
	ok     = "ok"
	failed = "failed"
)

// New returns a server that does not listen yet.
func New(o Options) *Server {
	s := &Server{o: o, patience: leaderTimeout, events: map[string]image.Target{}}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.forwarded = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "digestlock_companion_forwarded_total",
		Help: "Flushes and batches of events passed on to one replica of the resolver, by what that came to: ok or failed.",
	}, []string{"outcome"})
	for _, outcome := range []string{ok, failed} {
		s.forwarded.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	o.Metrics.MustRegister(s.forwarded)
	s.door = door.New(door.Options{
		Name: "companion", Command: "digestlock-companion", Backend: s, Keys: o.Keys, Around: s.led, Health: s.health, Log: o.Log, Metrics: o.Metrics,
	})
	return s
}

// health shows that the loop's lock can be taken.
func (s *Server) health() string {
	s.o.Status()
	return ""
}

// Serve answers on l until ctx ends. It then finishes the requests under way and what they have begun, and returns nil. It
// closes the listener. It may be called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.stop()
	defer context.AfterFunc(ctx, s.stop)()
	mux := s.door.Outside()
	mux.Handle("GET "+api.StatusPath, s.led(s.door.Protected(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		door.Answer(w, s.o.Status())
	}))))
	err := s.door.Serve(ctx, door.Entrance{Listener: l, Mux: mux})
	s.stop()
	s.background.Wait()
	return err
}

// answer is what one replica said.
type answer[T any] struct {
	replica string
	value   T
	err     error
}

// each calls ask for all replicas at once, and returns their answers sorted by address. The error is about there being
// none.
func each[T any](ctx context.Context, s *Server, ask func(context.Context, *api.Client) (T, error)) ([]answer[T], error) {
	ctx, cancel := context.WithTimeoutCause(ctx, replicaTimeout, fmt.Errorf("no answer within %v", replicaTimeout))
	defer cancel()
	clients, err := s.o.Replicas(ctx)
	if err == nil && len(clients) == 0 {
		err = errors.New("there is no resolver to ask")
	}
	if err != nil {
		return nil, err
	}
	out := make([]answer[T], len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			defer c.Close()
			v, err := ask(ctx, c)
			out[i] = answer[T]{c.String(), v, err}
		})
	}
	wg.Wait()
	slices.SortStableFunc(out, func(a, b answer[T]) int { return cmp.Compare(a.replica, b.replica) })
	for _, a := range out {
		if a.err != nil {
			s.forwarded.WithLabelValues(failed).Inc()
			s.o.Log.Warn("replica missed a flush", "replica", a.replica, "error", a.err)
			continue
		}
		s.forwarded.WithLabelValues(ok).Inc()
	}
	return out, nil
}

// Flush implements [door.Backend].
func (s *Server) Flush(ctx context.Context, targets []image.Target) door.Flushed {
	images := names(targets)
	answers, err := each(ctx, s, func(ctx context.Context, c *api.Client) ([]api.Flushed, error) {
		res, err := c.Forward(ctx, images)
		return res.Flushed, err
	})
	if err != nil {
		return door.Flushed{Err: err}
	}
	out := door.Flushed{Replicas: make([]api.Replica, len(answers))}
	var flushed [][]api.Flushed
	var problems []error
	for i, a := range answers {
		out.Replicas[i] = api.Replica{Address: a.replica, Error: api.ToProblem(a.err)}
		if a.err != nil {
			problems = append(problems, a.err)
			continue
		}
		flushed = append(flushed, a.value)
	}
	if len(flushed) == 0 {
		return door.Flushed{Err: fault.New(fault.CodeOf(problems[0]), fault.Hint(problems[0]), "no resolver was flushed: %w", errors.Join(problems...))}
	}
	out.Images, out.Cycle = merge(flushed), s.cycle(targets)
	return out
}

func names(targets []image.Target) []string {
	all := make([]string, len(targets))
	for i, t := range targets {
		all[i] = t.String()
	}
	return all
}

// cycle has the loop begin a cycle.
func (s *Server) cycle(flushed []image.Target) *door.Cycle {
	c := &door.Cycle{Done: make(chan struct{})}
	s.background.Go(func() {
		defer close(c.Done)
		ctx, cancel := context.WithTimeout(s.stopping, door.MaxWait)
		defer cancel()
		commits, err := s.o.Loop.Sync(ctx, flushed...)
		if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			return // given up
		}
		if err == nil && len(commits) == 0 && s.o.Loop.Waits() {
			return // what was flushed may be in a commit that is to come
		}
		c.Ended, c.Err = true, err
		for _, x := range commits {
			c.Commits = append(c.Commits, door.Commit{Repository: x.Repository, Branch: x.Branch, Hash: x.Hash, Message: x.Message})
		}
	})
	return c
}

// Invalidate implements [door.Backend]. What it passes on in the background is one request to each replica at a time, for
// whatever came meanwhile: a replica that does not answer delays events, and piles up no requests.
func (s *Server) Invalidate(targets []image.Target) *int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range targets {
		s.events[t.String()] = t
	}
	if !s.passing {
		s.passing = true
		s.background.Go(s.passOn)
	}
	return nil
}

// passOn passes on what events named until there is nothing left. It wakes the loop when a resolver remembered some of it:
// what nobody renders is no reason for a cycle.
func (s *Server) passOn() {
	for targets := s.take(); targets != nil; targets = s.take() {
		images := names(targets)
		answers, err := each(context.Background(), s, func(ctx context.Context, c *api.Client) (int, error) { return c.Invalidate(ctx, images) })
		if err != nil {
			s.o.Log.Warn("webhook not passed on", "error", err, "hint", fault.Hint(err))
			continue
		}
		refreshed := 0
		for _, a := range answers {
			refreshed += a.value
		}
		s.o.Log.Info("webhook passed on", "images", len(images), "replicas", len(answers), "refreshed", refreshed)
		if refreshed > 0 {
			s.o.Loop.Wake(targets...)
		}
	}
}

// take returns what to pass on, sorted, or nil when there is nothing, which ends passOn.
func (s *Server) take() (targets []image.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	images := slices.Sorted(maps.Keys(s.events))
	for _, i := range images[:min(len(images), api.MaxImages)] {
		targets = append(targets, s.events[i])
		delete(s.events, i)
	}
	s.passing = len(targets) > 0
	return targets
}

// merge returns what became of each image over all replicas, in the order of the first that names it. Of several digests
// remembered, one counts that is not the new one; an error counts where no replica has a digest.
func merge(replicas [][]api.Flushed) []api.Flushed {
	out := []api.Flushed{}
	places := map[string]int{}
	for _, flushed := range replicas {
		for _, f := range flushed {
			i, seen := places[f.Image]
			if !seen {
				places[f.Image] = len(out)
				out = append(out, f)
				continue
			}
			out[i] = together(out[i], f)
		}
	}
	return out
}

func together(a, b api.Flushed) api.Flushed {
	a.New = cmp.Or(a.New, b.New)
	if b.Old != "" && (a.Old == "" || a.Old == a.New) {
		a.Old = b.Old
	}
	if a.New != "" {
		a.Error = nil
	}
	apps := slices.Concat(a.Applications, b.Applications)
	slices.Sort(apps)
	a.Applications = slices.Compact(apps)
	return a
}
