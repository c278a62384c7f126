// Package shared lets several resolvers share their answers through a Redis: all together ask a registry once per
// reference and TTL, and a flush that one of them takes reaches the others.
//
// Redis only ever saves requests. A resolver that cannot reach it asks by itself, as without; and nothing it remembers
// outlives a flush, because an answer counts only as long as the generation of its reference is the one under which the
// registry was asked. Redis may forget anything at any time: a generation that is lost is replaced by a name that was
// never used before. See script.go for what is stored.
package shared

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/image"
)

const (
	// lease is how long one resolver may look a reference up before another one does so too. It outlives most
	// look-ups, and bounds how long a resolver that was killed keeps the others waiting.
	lease = 5 * time.Second
	// MaxWait is how long a resolver waits for another one's answer, at most, before it asks by itself.
	MaxWait = lease
	// pollFrom and pollTo bound the time between two looks whether the answer has come.
	pollFrom, pollTo = 15 * time.Millisecond, 250 * time.Millisecond
	// attempts bounds how often a look-up is repeated because the reference was flushed meanwhile, or Redis forgot it:
	// one that is too small for its keys must not make look-ups endless.
	attempts = 3
)

// Options say how answers are shared. All are required.
type Options struct {
	Redis       *redis.Options // from [ParseURL]
	Prefix      string         // of all keys and channels, without colon
	TTL         time.Duration  // an answer younger than that is used
	NegativeTTL time.Duration  // the same for "not found" and "unauthorized"
	Timeout     time.Duration  // for one call of Redis
	Log         *slog.Logger
	Registerer  prometheus.Registerer
}

// Resolver is a resolver in front of another one. It is safe for concurrent use.
type Resolver struct {
	backend cache.Resolver
	o       Options
	id      string // of this process, to know its own messages
	client  *redis.Client
	health  health

	requests *prometheus.CounterVec

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	floor time.Time // of the last flush that Redis did not take: older answers of it do not count here
}

// New returns a resolver in front of backend. It connects when it is first asked. Close it.
func New(backend cache.Resolver, o Options) *Resolver {
	r := &Resolver{
		backend: backend, o: o, id: rand.Text(), client: connect(o),
		health: health{log: o.Log.With("redis", o.Redis.Addr)},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_shared_cache_requests_total",
			Help: "References not in memory, by how they were answered: hit (from Redis), waited (by another replica, who was asking), asked (here, for all replicas), late (here, another one took too long), moved (thrown away: flushed meanwhile), alone (here, Redis cannot be used).",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"hit", "waited", "asked", "late", "moved", "alone"} {
		r.requests.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	o.Registerer.MustRegister(r.requests, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "digestlock_shared_cache_down",
		Help: "1 since a call of Redis failed, until one succeeds.",
	}, r.health.metric))
	return r
}

// Close disconnects and waits for what [Resolver.Follow] started.
func (r *Resolver) Close() {
	r.cancel()
	_ = r.client.Close() // nothing that could be done about it
	r.running.Wait()
}

// Resolve returns one Resolution per reference, in the same order, as the scope sees it. References are of Redis where
// it has a young answer, and else looked up here, unless another resolver is doing that: then its answer is waited for,
// MaxWait at most.
func (r *Resolver) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	b := &batch{r: r, scope: scope, refs: refs, out: make([]image.Resolution, len(refs)), waited: make([]bool, len(refs)), start: time.Now()}
	for i := range refs {
		b.open = append(b.open, i)
	}
	for poll := pollFrom; ; poll = min(poll*3/2, pollTo) {
		asked := b.round(ctx)
		if len(b.open) == 0 {
			return b.out
		}
		if asked {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(poll/2 + mathrand.N(poll)):
		}
	}
}

// batch is one call of Resolve.
type batch struct {
	r      *Resolver
	scope  string
	refs   []image.Ref
	out    []image.Resolution
	open   []int  // indices of what has no answer yet
	waited []bool // by index: another resolver was asking
	tries  int    // look-ups that were made
	start  time.Time
}

// round takes what Redis has, and looks up what this resolver is to look up. It reports whether it looked anything up.
func (b *batch) round(ctx context.Context) (asked bool) {
	var claims []claim
	err := ctx.Err()
	if err == nil {
		claims, err = b.r.claim(ctx, b.scope, b.pick(b.open))
	}
	if err != nil {
		b.ask(ctx, b.open, "alone")
		b.open = nil
		return true
	}
	var wait, late []int
	var mine, overdue []claim
	var leads []int
	for n, i := range b.open {
		switch c := claims[n]; c.state {
		case stateFresh:
			b.out[i] = c.answer(b.refs[i])
			b.r.count(map[bool]string{false: "hit", true: "waited"}[b.waited[i]], 1)
		case stateLead:
			leads, mine = append(leads, i), append(mine, c)
		default:
			b.waited[i] = true
			wait = append(wait, i)
			late, overdue = append(late, i), append(overdue, c)
		}
	}
	b.open = wait
	if len(leads) > 0 {
		b.lead(ctx, leads, mine, "asked")
		return true
	}
	if time.Since(b.start) >= MaxWait && len(late) > 0 {
		b.open = nil
		b.lead(ctx, late, overdue, "late")
		return true
	}
	return false
}

// lead looks references up and puts the answers into Redis. Those that were flushed meanwhile are open again.
func (b *batch) lead(ctx context.Context, indices []int, claims []claim, outcome string) {
	b.ask(ctx, indices, outcome)
	b.tries++
	moved, err := b.r.land(b.scope, b.pickAnswers(indices), claims)
	if err != nil || b.tries >= attempts {
		return // the answers are right, they are just not shared
	}
	for n, i := range indices {
		if moved[n] {
			b.r.count("moved", 1)
			b.open = append(b.open, i)
		}
	}
}

// ask asks the backend.
func (b *batch) ask(ctx context.Context, indices []int, outcome string) {
	b.r.count(outcome, len(indices))
	for n, res := range b.r.backend.Resolve(ctx, b.scope, b.pick(indices)) {
		b.out[indices[n]] = res
	}
}

func (b *batch) pick(indices []int) []image.Ref {
	refs := make([]image.Ref, len(indices))
	for n, i := range indices {
		refs[n] = b.refs[i]
	}
	return refs
}

func (b *batch) pickAnswers(indices []int) []image.Resolution {
	out := make([]image.Resolution, len(indices))
	for n, i := range indices {
		out[n] = b.out[i]
	}
	return out
}

func (r *Resolver) count(outcome string, n int) {
	r.requests.WithLabelValues(outcome).Add(float64(n))
}

// maxAge is how old an answer in Redis may be: any age, unless a flush did not get there.
func (r *Resolver) maxAge(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.floor.IsZero() {
		return math.MaxInt32 * time.Millisecond
	}
	return now.Sub(r.floor)
}

// Forget makes what Redis has of the targets worthless, look-ups under way included, and tells all who [Resolver.Follow].
// If Redis cannot be reached, nothing that it had before counts for this process any more; other ones have the new
// digest within their TTL.
func (r *Resolver) Forget(targets []image.Target) {
	m := message{From: r.id}
	for _, t := range targets {
		m.Images = append(m.Images, t.String())
	}
	text, err := json.Marshal(m)
	if err == nil {
		err = r.forget(targets, string(text))
	}
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.floor = time.Now()
}

// message is what a flush tells the others.
type message struct {
	From   string   `json:"from"`
	Images []string `json:"images"`
}

// targets returns what a message of another process names. What is no image is left out: it comes from elsewhere.
func (r *Resolver) targets(payload string) []image.Target {
	var m message
	if err := json.Unmarshal([]byte(payload), &m); err != nil || m.From == r.id {
		return nil
	}
	var targets []image.Target
	for _, text := range m.Images {
		if t, err := image.ParseTarget(text); err == nil {
			targets = append(targets, t)
		}
	}
	return targets
}

// Follow calls drop for each flush that another process took, until Close. It returns at once. Messages may be lost.
func (r *Resolver) Follow(drop func([]image.Target)) {
	sub := r.client.Subscribe(r.ctx, r.key("flushes"))
	r.running.Go(func() {
		defer func() { _ = sub.Close() }()
		messages := sub.Channel()
		for {
			select {
			case <-r.ctx.Done():
				return
			case m, ok := <-messages:
				if !ok {
					return
				}
				if targets := r.targets(m.Payload); len(targets) > 0 {
					drop(targets)
				}
			}
		}
	})
}

// problem is a refusal as it is stored.
func problem(err error) (string, error) {
	text, err := json.Marshal(api.ToProblem(err))
	return string(text), err
}
