// Package registry turns image tags into digests over the network. It is the only package that knows
// go-containerregistry's transport, and it caches no answers: internal/cache does.
//
// One lookup is one HEAD request. Where an image comes from takes up to three GETs. What precedes them, a ping and where asked for a token, is done once for all
// repositories of a registry and kept as a session.
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/image"
)

const (
	defaultTimeout     = 10 * time.Second
	defaultConcurrency = 50 // the first render of a large overlay in one go, within twice the rate

	// sessionAge is how long a session may serve. Registries with tokens end it sooner; for the others it bounds how
	// long withdrawn credentials are used and unused repositories are remembered.
	sessionAge = time.Hour

	// maxHosts bounds what is remembered: whoever can write an Application can invent registries.
	maxHosts = 1000
)

// Keychain finds the credentials of a scope for a repository, or for its whole registry with repository "". It must be
// safe for concurrent use.
type Keychain interface {
	Find(ctx context.Context, scope, registry, repository string) (credentials.Login, error)
}

// Options are the settings of a [Client]. The zero value is usable.
type Options struct {
	Insecure     []string              // hosts, with port where one is used, that are spoken to in plain http; no other is
	Allow        Hosts                 // registries that images may come from, besides the insecure ones; empty means all
	AllowRealm   Hosts                 // token servers of another domain than their registry's that may have its credentials
	AllowPrivate bool                  // connect to private addresses for hosts that are not written out in the lists above
	QPS          float64               // requests a second and registry, twice as many at once; 0 means 50
	Timeout      time.Duration         // for one lookup, and for opening the session before it; 0 means 10 s
	Keychain     Keychain              // read whenever a session opens; nil means the docker config file
	UserAgent    string                // "" means "digestlock"
	Transport    http.RoundTripper     // nil means one of our own
	Concurrency  int                   // lookups at a time and registry; 0 means 50
	Registerer   prometheus.Registerer // nil means no metrics
}

// Client looks tags up. Make one with [New]; it is safe for concurrent use and needs no closing.
type Client struct {
	policy      policy
	timeout     time.Duration
	step        time.Duration // for each part of a request, shorter than timeout
	qps         float64
	sessionAge  time.Duration
	keychain    Keychain
	userAgent   string
	transport   http.RoundTripper
	concurrency int
	metrics     *metrics

	mu    sync.Mutex
	hosts map[string]*host
}

// New returns a Client. Two clients cannot share a Registerer.
func New(o Options) *Client {
	c := &Client{
		policy:      newPolicy(o),
		timeout:     o.Timeout,
		qps:         o.QPS,
		sessionAge:  sessionAge,
		keychain:    o.Keychain,
		userAgent:   o.UserAgent,
		transport:   o.Transport,
		concurrency: o.Concurrency,
		metrics:     newMetrics(o.Registerer),
		hosts:       map[string]*host{},
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	c.step = min(stepTimeout, c.timeout)
	if c.qps <= 0 {
		c.qps = defaultQPS
	}
	if c.keychain == nil {
		c.keychain = &credentials.Keychain{}
	}
	if c.userAgent == "" {
		c.userAgent = "digestlock"
	}
	if c.concurrency <= 0 {
		c.concurrency = defaultConcurrency
	}
	if c.transport == nil {
		d := &dialer{Dialer: net.Dialer{Timeout: c.step}, policy: c.policy}
		c.transport = newTransport(d, c.step, c.concurrency)
	}
	return c
}

// Resolve looks every reference up, concurrently, with the credentials of a scope, and returns one Resolution per
// reference in the same order. Scopes share a registry's limits and connections, and no session. A reference that has a
// digest is answered with it. What goes wrong with one registry concerns no other. Errors match [image.ErrNotFound],
// [image.ErrUnauthorized] or [image.ErrUnavailable] where one of them fits, and the cause of ctx when it ended first.
func (c *Client) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	start := time.Now()
	results := make([]image.Resolution, len(refs))
	var tasks []*task
	for i, ref := range refs {
		r := &results[i]
		*r = image.Resolution{Ref: ref, Digest: ref.Digest, At: start}
		if ref.Digest != "" {
			continue
		}
		tasks = append(tasks, &task{
			ref: ref,
			ask: func(ctx context.Context, h *host, s *session) (err error) {
				r.Digest, err = h.fetch(ctx, s, ref)
				return err
			},
			done: func(h *host, err error) {
				r.Err = err
				c.metrics.looked(h, err)
			},
		})
	}
	c.do(ctx, scope, tasks)
	return results
}

// task is what is to be asked about one reference in a session of its registry.
type task struct {
	ref  image.Ref
	ask  func(ctx context.Context, h *host, s *session) error // keeps what it finds; it may be called again after an error
	done func(h *host, err error)                             // called once; h is nil for a registry that is not allowed
}

// do does the tasks concurrently, with the credentials of a scope.
func (c *Client) do(ctx context.Context, scope string, tasks []*task) {
	batches := map[string][]*task{}
	for _, t := range tasks {
		batches[t.ref.Registry] = append(batches[t.ref.Registry], t)
	}
	var wg sync.WaitGroup
	for name, batch := range batches {
		if c.policy.registry(name) {
			wg.Go(func() { c.host(name).do(ctx, scope, batch) })
			continue
		}
		for _, t := range batch {
			t.done(nil, errNotAllowed(name))
		}
	}
	wg.Wait()
}

func (c *Client) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.hosts[name]
	if !ok {
		if len(c.hosts) >= maxHosts {
			least := slices.MinFunc(slices.Collect(maps.Values(c.hosts)), func(a, b *host) int { return a.used.Compare(b.used) })
			delete(c.hosts, least.name) // whoever uses it goes on to; a session is lost
		}
		h = newHost(c, name)
		c.hosts[name] = h
	}
	h.used = time.Now()
	return h
}

// host is one registry: what is known of it and the slots for talking to it.
type host struct {
	*Client
	name   string
	scheme string
	label  string            // in metrics
	wire   http.RoundTripper // over the client's transport: retries, guard, pace, metrics
	slots  chan struct{}
	spare  chan struct{} // those of the slots that look-ups may have which nobody waits for
	limit  *rate.Limiter
	used   time.Time // last, guarded by the client's lock

	mu     sync.Mutex
	until  time.Time     // the registry has asked for silence
	guess  time.Duration // our last pause for a registry that does not say how long, 0 once it has served
	groups map[member]*group
	open   map[string]*group // by scope, the one that takes new repositories
}

// member is a repository as one scope sees it.
type member struct{ scope, repo string }

func newHost(c *Client, name string) *host {
	h := &host{
		Client: c,
		name:   name,
		scheme: "https",
		label:  c.metrics.label(name),
		slots:  make(chan struct{}, c.concurrency),
		spare:  make(chan struct{}, max(1, min(c.concurrency, int(c.qps))/2)),
		limit:  newLimiter(c.qps),
		groups: map[member]*group{},
		open:   map[string]*group{},
	}
	if c.policy.insecure[name] {
		h.scheme = "http"
	}
	h.wire = retry{h, guard{h, pace{h, meter{h, c.transport}}}}
	return h
}

// do does a batch. All its repositories join their groups before the first session opens, so that one session covers
// them.
func (h *host) do(ctx context.Context, scope string, batch []*task) {
	var wg sync.WaitGroup
	for g, part := range h.join(scope, batch) {
		wg.Go(func() { h.doGroup(ctx, g, part) })
	}
	wg.Wait()
}

// doGroup does tasks that share a session. Once one has met silence, those still waiting for their turn are not begun,
// or a silent registry would cost its deadline again for every handful of them.
func (h *host) doGroup(ctx context.Context, g *group, batch []*task) {
	start := time.Now()
	s, denial := g.session(ctx, repositories(batch), nil)
	if denial != nil && !denied(denial) {
		for _, t := range batch {
			t.done(h, denial)
		}
		return
	}
	queue, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	var wg sync.WaitGroup
	for _, t := range batch {
		wg.Go(func() {
			release, err := h.acquire(queue)
			if err != nil {
				t.done(h, err)
				return
			}
			defer release()
			ctx, cancel := h.deadline(ctx)
			defer cancel()
			err = h.lookup(ctx, lookup{t, g, s, denial, start})
			if errors.Is(err, errSilence) {
				leave(cmp.Or(context.Cause(ctx), silence(h.step)))
			}
			t.done(h, err)
		})
	}
	wg.Wait()
}

func repositories(batch []*task) []string {
	var repos []string
	for _, t := range batch {
		repos = append(repos, t.ref.Repository)
	}
	return repos
}

// acquire waits for one of the registry's slots. Look-ups that nobody waits for have half a second's worth of requests under
// way at most, and half of the slots: that is what a hurried one may have to wait for.
func (h *host) acquire(ctx context.Context) (release func(), err error) {
	all := []chan struct{}{h.slots}
	if image.IsPatient(ctx) {
		all = []chan struct{}{h.spare, h.slots}
	}
	var mine []chan struct{}
	release = func() {
		for _, slots := range mine {
			<-slots
		}
	}
	for _, slots := range all {
		select {
		case slots <- struct{}{}:
			mine = append(mine, slots)
		case <-ctx.Done():
		}
		if ctx.Err() != nil { // both may have been possible
			release()
			return nil, h.netError(ctx, ctx.Err())
		}
	}
	return release, nil
}

// errSilence is the cause of a context that our own deadline ended.
var errSilence = errors.New("no answer")

func (h *host) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, h.timeout, silence(h.timeout))
}

func silence(d time.Duration) error { return fmt.Errorf("%w within %v", errSilence, d) }

// lookup is how one task begins.
type lookup struct {
	*task
	group   *group
	session *session  // nil when the registry denied the group one
	denied  error     // and with what
	start   time.Time // credentials read before are not fresh
}

// lookup asks once. Denied, it asks again with credentials read since the lookup began, for they may have been rotated,
// and at last in a session for nothing but this repository, because some registries refuse a token for several when they
// deny one, and because the docker config may have credentials for just this one.
func (h *host) lookup(ctx context.Context, l lookup) error {
	s, err := l.session, l.denied
	if s != nil {
		err = l.ask(ctx, h, s)
		if denied(err) && s.opened.Before(l.start) {
			s, err = h.askAnew(ctx, l.group, s, l.task)
		}
	}
	if denied(err) && h.worthAlone(ctx, l, s, err) {
		_, err = h.askAnew(ctx, h.isolate(member{l.group.scope, l.ref.Repository}), nil, l.task)
	}
	return err
}

func (h *host) askAnew(ctx context.Context, g *group, refused *session, t *task) (*session, error) {
	s, err := g.session(ctx, []string{t.ref.Repository}, refused)
	if err != nil {
		return nil, err
	}
	return s, t.ask(ctx, h, s)
}

// join puts the batch's repositories into groups.
func (h *host) join(scope string, batch []*task) map[*group][]*task {
	h.mu.Lock()
	defer h.mu.Unlock()
	parts := map[*group][]*task{}
	for _, t := range batch {
		g := h.groupOf(member{scope, t.ref.Repository})
		parts[g] = append(parts[g], t)
	}
	return parts
}

// groupOf returns the group of a repository, a new one if need be. It forgets a group that is too old, and with a new one
// all that are: nobody may ask for them again. The caller holds the lock.
func (h *host) groupOf(m member) *group {
	if g := h.groups[m]; g != nil && !g.old() {
		return g
	} else if g != nil {
		h.forget(g)
	}
	open := h.open[m.scope]
	if open == nil || len(open.repos) >= maxScopes || open.old() {
		maps.DeleteFunc(h.groups, func(_ member, g *group) bool { return g.old() })
		open = &group{host: h, scope: m.scope, made: time.Now()}
		h.open[m.scope] = open
	}
	open.repos = append(open.repos, m.repo)
	h.groups[m] = open
	return open
}

func (h *host) forget(old *group) {
	for _, repo := range old.repos {
		if m := (member{old.scope, repo}); h.groups[m] == old {
			delete(h.groups, m)
		}
	}
}

// isolate gives a repository a group of its own.
func (h *host) isolate(m member) *group {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[m]
	if g != nil && g.alone {
		return g
	}
	if g != nil {
		g.repos = slices.DeleteFunc(slices.Clone(g.repos), func(r string) bool { return r == m.repo })
	}
	g = &group{host: h, scope: m.scope, made: time.Now(), alone: true, repos: []string{m.repo}}
	h.groups[m] = g
	return g
}
