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
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	// askTimeout bounds one question to one resolver, so that a silent one costs no other its turn. A resolver answers
	// from its cache, or within its --lookup-timeout, 10 s by default, and 5 s, or with Redis 10 s. The help of that flag
	// names what is given here.
	askTimeout = 25 * time.Second
	// readTimeout bounds reading the tip of one branch, updateTimeout all that follows, with every attempt to push.
	readTimeout   = 30 * time.Second
	updateTimeout = time.Minute
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

	// Ensure sees to it that exactly one open request is as r says, and returns the address of its page and whether it
	// was created. With [Options.PushBranch] it is called once for each state of that branch; nil leaves requests to others.
	Ensure func(ctx context.Context, r Request) (page string, created bool, err error)
}

// Application is one source of an Argo CD Application that uses the plugin.
type Application struct {
	Name               string // as renders report it: "name", or "namespace_name" outside of Argo CD's own namespace
	Namespace, AppName string // of the object
	Project            string
	Repository         string // its URL
	TargetRevision     string // "" and HEAD mean the default branch
	Path               string
	Mode               string // "follow", "live" or "locked"; "" for the default
	AutoSync           bool   // Argo CD syncs it without being told to
}

// Cluster is what the companion knows of Argo CD, and tells it. It must be safe for concurrent use.
type Cluster interface {
	// Applications returns all sources that use the plugin. An error means that they are not known now.
	Applications() ([]Application, error)
	// LeftOut returns how many sources Applications last left out, because Argo CD refuses their Application.
	LeftOut() int
	// Open returns how to reach the repository at url with the credentials that Argo CD has for it and project: its Remote,
	// the same again for as long as they do not change, and Ensure. The rest is not looked at.
	Open(ctx context.Context, url, project string) (Repository, error)
	// Tell has Argo CD look at an Application again at once, after a commit to its lock.
	Tell(ctx context.Context, app Application)
	// Stale has Argo CD render and sync an Application of mode live again: a tag that it renders has moved.
	Stale(ctx context.Context, app Application)
	// Event notes beside the Application what happened to it. reason is one word in CamelCase.
	Event(ctx context.Context, app Application, warning bool, reason, message string)
}

// Options are what a Companion is made of.
type Options struct {
	// Replicas returns the resolvers, anew for each cycle because replicas come and go.
	Replicas     func(ctx context.Context) ([]Replica, error)
	Repositories []Repository // what may be written to beside that which Cluster opens
	// Cluster says which Applications there are: renders of others are refused. Without one, every render of a
	// repository in Repositories counts, and no pin is ever dropped, because nobody knows who else renders it.
	Cluster     Cluster
	DefaultMode string // of Applications that name none and were not rendered yet; "" is follow
	Author      gitrepo.Signature
	Committer   gitrepo.Signature                                // the zero value means Author
	Sign        func(payload []byte) (armored string, err error) // of commits; nil for none
	Message     func(Message) (string, error)                    // of commits, but for the trailer; nil is [DefaultMessage]
	// PushBranch names the branch to push to in place of a followed one, see [CheckBranchName]. The followed branch is then
	// left to those who merge the request. Nil pushes to the followed branch.
	PushBranch func(branch string) (string, error)
	// LockBranch names the branch on which the locks of paths are kept that only Applications of mode live render, see
	// [CheckBranchName]: nobody but the companion commits there, and no render reads it. Nil keeps them on the followed branch.
	LockBranch func(branch string) (string, error)
	SkipCI     bool   // have the messages ask CI systems for no run
	Quiet      Quiet  // of Run; Once does not wait
	Version    string // of the trailer in the messages; "" is "devel"
	Log        *slog.Logger
	Registerer prometheus.Registerer // of the metrics of Run; nil for none
}

// Companion brings lock files up to date. Once and Run must not run concurrently on one Companion, its other methods
// may; any number of companions may work on one repository, each commit is a compare-and-swap.
type Companion struct {
	o       Options
	metrics metrics
	bell    *bell
	board   board
	sights  *sights
	said    said

	mu       sync.Mutex         // guards branches
	branches map[string]*branch // by repository and branch; what is remembered from cycle to cycle
}

// New returns a companion. Two companions cannot share a Registerer.
func New(o Options) *Companion {
	if o.Message == nil {
		o.Message = DefaultMessage
	}
	if o.Version == "" {
		o.Version = "devel"
	}
	c := &Companion{o: o, metrics: newMetrics(o.Registerer), bell: newBell(), branches: map[string]*branch{}}
	c.sights = newSights(func() { c.Wake() })
	return c
}

// Commit is one commit that was pushed.
type Commit struct {
	Repository, Branch, Hash string
	Message                  string
}

// Once does one cycle and returns the commits it pushed. It does as much as it can: an error is the sum of what could
// not be done, and the rest is done all the same.
func (c *Companion) Once(ctx context.Context) ([]Commit, error) {
	began := time.Now()
	o := c.cycle(ctx, Quiet{}, nil)
	c.sights.questions.Wait()
	c.board.ended(began, o)
	return o.commits, sum(o.problems)
}

// branch is what the companion remembers of one branch from cycle to cycle. Whatever it says can be lost: Git knows.
type branch struct {
	pause    pause
	left     map[string]left // how this process left each lock, by path
	pushed   string          // its last commit; "" when that is not known
	unmarked bool            // without a mark, once told
	last     *Commit         // and its commit, of this process
	at       time.Time       // when
	proposed proposal
	besides  string                 // which paths had a lock on the followed branch, too, once told
	told     map[Application]string // digests that moved under an Application of mode live, once told
	seen     time.Time              // when it was a target
}

// forgotten is how long a branch is remembered that is no target. A day outlasts an outage of Argo CD, of a resolver's
// ledger or of a Git server; after that, forgetting costs what a restart does.
const forgotten = 24 * time.Hour

// forget forgets branches that came and went, as those of previews do.
func (c *Companion) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.branches, func(_ string, b *branch) bool { return time.Since(b.seen) > forgotten })
}

func (c *Companion) branch(t *target) *branch {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := t.key()
	if c.branches[key] == nil {
		c.branches[key] = &branch{left: map[string]left{}}
	}
	c.branches[key].seen = time.Now()
	return c.branches[key]
}

// due returns when the first quiet window ends that something waits for, zero when nothing does.
func (c *Companion) due() time.Time {
	var first time.Time
	for _, b := range c.branches {
		if !b.pause.since.IsZero() && (first.IsZero() || b.pause.due.Before(first)) {
			first = b.pause.due
		}
	}
	return first
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

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %v", d))
}
