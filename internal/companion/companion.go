// Package companion is the only writer to Git: it collects what was rendered, asks where the tags stand now, and
// brings the digest-lock files up to date with one commit per repository and branch.
//
// It knows no Kubernetes; cmd/digestlock-companion wires it to its surroundings, and "digestlock demo" runs it as it is.
package companion

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	// askTimeout bounds one question to one resolver, so that a silent one costs no other its turn. A resolver answers
	// from its cache, or within the time that it gives a registry.
	askTimeout = 20 * time.Second
	// readTimeout bounds reading the tip of one branch, updateTimeout all that follows, with every attempt to push.
	readTimeout   = 30 * time.Second
	updateTimeout = time.Minute
	// parallel bounds how many branches are worked on at once: a Git server that is down must not hold up the others.
	parallel = 8
)

// Replica is one resolver: its ledger, and its look at the registries with the credentials of the source's project. It
// must be safe for concurrent use.
type Replica interface {
	Pins(ctx context.Context) ([]lock.Document, error)
	Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error)
	String() string
}

// Repository is one repository that the companion may write to, and how to reach it.
type Repository struct {
	Remote *gitrepo.Remote
	URL    string // as Applications write it; compared with [SameRepository]
	Branch string // the only branch to write to, its short name; "" for every branch that an Application follows
}

// Options are what a Companion is made of.
type Options struct {
	// Replicas returns the resolvers, anew for each cycle because replicas come and go.
	Replicas     func(ctx context.Context) ([]Replica, error)
	Repositories []Repository // renders of any other repository are refused: whoever renders names the URL
	Author       gitrepo.Signature
	Log          *slog.Logger
	Registerer   prometheus.Registerer // of the metrics of Run; nil for none
}

// Companion brings lock files up to date. Once and Run must not run concurrently on one Companion; any number of
// companions may work on one repository, each commit is a compare-and-swap.
type Companion struct {
	o       Options
	metrics metrics
}

// New returns a companion. Two companions cannot share a Registerer.
func New(o Options) *Companion { return &Companion{o: o, metrics: newMetrics(o.Registerer)} }

// Commit is one commit that was pushed.
type Commit struct {
	Repository, Branch, Hash string
	Message                  string
}

// Run does a cycle every interval, give or take a tenth so that companions do not march in step, until ctx ends. What
// could not be done is logged, one problem a line: the next cycle tries again.
func (c *Companion) Run(ctx context.Context, interval time.Duration) {
	for {
		commits, problems := c.cycle(ctx)
		if ctx.Err() == nil { // what was cut short says nothing
			c.metrics.ended(commits, problems)
		}
		for _, p := range problems {
			if ctx.Err() == nil {
				c.o.Log.Error("cycle incomplete", "error", p, "code", fault.CodeOf(p), "hint", fault.Hint(p))
			}
		}
		spread := time.Duration((rand.Float64() - 0.5) / 5 * float64(interval))
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval + spread):
		}
	}
}

// Once does one cycle and returns the commits it pushed. It does as much as it can: an error is the sum of what could
// not be done, and the rest is done all the same.
func (c *Companion) Once(ctx context.Context) ([]Commit, error) {
	commits, problems := c.cycle(ctx)
	return commits, sum(problems)
}

func (c *Companion) cycle(ctx context.Context) ([]Commit, []error) {
	replicas, docs, problems := c.collect(ctx)
	if len(replicas) == 0 {
		return nil, problems
	}
	if len(docs) == 0 && len(problems) == 0 {
		c.o.Log.Warn("no resolver knows of a render", "hint", "nothing to do until Argo CD renders; a hard refresh makes it")
	}
	targets, unread := c.targets(ctx, docs)
	looks := newLooks(replicas, c.o.Log)
	updates := make([]updater, len(targets))
	each(targets, func(i int, t *target) {
		updates[i] = updater{c: c, target: t, looks: looks}
		updates[i].run(ctx)
	})
	problems = append(problems, unread...)
	problems = append(problems, looks.problems...)
	var commits []Commit
	for _, u := range updates {
		problems = append(problems, u.problems...)
		if u.commit != nil {
			commits = append(commits, *u.commit)
		}
	}
	return commits, problems
}

// collect asks every replica for its ledger. One that does not answer is a problem and left out; the others count.
func (c *Companion) collect(ctx context.Context) (alive []Replica, docs []lock.Document, problems []error) {
	all, err := c.o.Replicas(ctx)
	if err == nil && len(all) == 0 {
		err = errors.New("there is no resolver to ask")
	}
	if err != nil {
		return nil, nil, []error{err}
	}
	ledgers, errs := make([][]lock.Document, len(all)), make([]error, len(all))
	each(all, func(i int, r Replica) {
		ctx, cancel := within(ctx, askTimeout)
		defer cancel()
		ledgers[i], errs[i] = r.Pins(ctx)
	})
	for i, r := range all {
		if errs[i] != nil {
			problems = append(problems, errs[i])
			continue
		}
		alive = append(alive, r)
		docs = append(docs, ledgers[i]...)
	}
	return alive, docs, problems
}

// each calls f for all items, some at a time, and returns when all calls have.
func each[T any](items []T, f func(i int, item T)) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, item := range items {
		g.Go(func() error {
			f(i, item)
			return nil
		})
	}
	_ = g.Wait() // f returns no error
}

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %v", d))
}
