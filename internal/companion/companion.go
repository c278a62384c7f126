// Package companion is the only writer to Git: it collects what was rendered, asks where the tags stand now, and
// brings the digest-lock files up to date with one commit per repository and branch.
//
// It knows no Kubernetes; cmd/digestlock-companion wires it to its surroundings, and "digestlock demo" runs it as it is.
package companion

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// stepTimeout bounds one step: asking the resolvers, or bringing one branch up to date.
const stepTimeout = time.Minute

// Replica is one resolver: its ledger, and its look at the registries.
type Replica interface {
	Pins(ctx context.Context) ([]lock.Document, error)
	Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error)
	String() string
}

// Repository is one repository that the companion may write to, and how to reach it.
type Repository struct {
	Remote *gitrepo.Remote
	URL    string // as Applications write it; compared with [SameRepository]
	Branch string // the only branch to write to; "" for every branch that an Application follows
}

// Options are what a Companion is made of.
type Options struct {
	// Replicas returns the resolvers, anew for each cycle because replicas come and go.
	Replicas     func(ctx context.Context) ([]Replica, error)
	Repositories []Repository // renders of any other repository are refused: whoever renders names the URL
	Author       gitrepo.Signature
	Log          *slog.Logger
}

// Companion brings lock files up to date. Once and Run must not run concurrently on one Companion; any number of
// companions may work on one repository, each commit is a compare-and-swap.
type Companion struct{ o Options }

// New returns a companion.
func New(o Options) *Companion { return &Companion{o: o} }

// Commit is one commit that was pushed.
type Commit struct {
	Repository, Branch, Hash string
	Message                  string
}

// Run does a cycle every interval, give or take a tenth so that companions do not march in step, until ctx ends. Its
// errors are logged: the next cycle tries again.
func (c *Companion) Run(ctx context.Context, interval time.Duration) {
	for {
		if _, err := c.Once(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.Error("cycle incomplete", "error", err)
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
	replicas, docs, err := c.collect(ctx)
	if len(replicas) == 0 {
		return nil, err
	}
	problems := []error{err}
	targets, refused := c.targets(docs)
	for _, r := range refused {
		c.o.Log.Warn("render refused: not a repository this companion writes to", "repository", r)
	}
	var commits []Commit
	for _, t := range targets {
		commit, err := c.update(ctx, t, replicas)
		problems = append(problems, err)
		if commit != nil {
			commits = append(commits, *commit)
		}
	}
	return commits, errors.Join(problems...)
}

// collect asks every replica for its ledger. One that does not answer is an error and left out; the others count.
func (c *Companion) collect(ctx context.Context) ([]Replica, []lock.Document, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	all, err := c.o.Replicas(ctx)
	if err != nil {
		return nil, nil, err
	}
	var alive []Replica
	var docs []lock.Document
	var problems []error
	for _, r := range all {
		d, err := r.Pins(ctx)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		alive = append(alive, r)
		docs = append(docs, d...)
	}
	return alive, docs, errors.Join(problems...)
}
