package companion

import (
	"context"
	"slices"
	"sync"

	"github.com/digestlock/digestlock/internal/lock"
)

// cycle brings all branches up to date, each repository at its own pace. It waits for all
// looks; with rings for what was flushed, and for the rest as long as there is patience.
func (c *Companion) cycle(ctx context.Context, quiet Quiet, r *rings) outcome {
	replicas, docs, problems := c.collect(ctx)
	if len(replicas) == 0 {
		return outcome{problems: problems}
	}
	complete := len(problems) == 0
	if len(docs) == 0 && complete {
		c.o.Log.Warn("no resolver knows of a render", "hint", "nothing to do until Argo CD renders; a hard refresh makes it")
	}
	trouble := trouble{}
	followed, unread := c.targetRevisions(ctx, docs, trouble)
	looks := c.sights.newLooks(ctx, replicas, c.o.Log)
	if r != nil {
		looks.hasten(r)
	}
	parts := byRepository(followed)
	slots := newSlots()
	var wg sync.WaitGroup
	for _, p := range parts {
		p.updater = updater{c: c, looks: looks, quiet: quiet, complete: complete}
		wg.Go(func() { p.run(ctx, slots.of(p.followed[0].repositories[0].URL)) })
	}
	wg.Wait()
	problems = append(problems, unread...)
	var updates []*updater
	fixed := 0
	for _, p := range parts {
		problems = append(problems, p.unread...)
		p.trouble.into(trouble)
		fixed += p.fixed
		updates = append(updates, p.updates...)
	}
	c.board.branches(updates)
	c.metrics.leftOut.WithLabelValues(byRevision).Set(float64(fixed))
	if c.o.Cluster != nil {
		c.metrics.leftOut.WithLabelValues(byProject).Set(float64(c.o.Cluster.LeftOut()))
	}
	problems = append(problems, c.sights.keep()...)
	var commits []Commit
	for _, u := range updates {
		u.report(trouble)
		problems = append(problems, u.problems...)
		if u.commit != nil {
			commits = append(commits, *u.commit)
		}
	}
	c.complain(ctx, trouble)
	c.forget()
	c.said.ended()
	return outcome{commits, problems}
}

// targetRevisions returns what is followed, as far as the companion writes for it.
func (c *Companion) targetRevisions(ctx context.Context, docs []lock.Document, trouble trouble) ([]*followed, []error) {
	sources, err := c.sources(docs)
	if err != nil {
		return nil, []error{err}
	}
	return c.followed(ctx, sources, trouble)
}

// part is one repository's share of a cycle. Repositories have nothing to do with each other, so that none waits for
// another's server.
type part struct {
	followed []*followed // never none
	updater  updater     // what those of all branches have in common

	updates []*updater // sorted by branch
	unread  []error
	trouble trouble
	fixed   int // sources whose target revision is no branch
}

// byRepository cuts what is sorted by repository.
func byRepository(all []*followed) []*part {
	var parts []*part
	for _, f := range all {
		if n := len(parts); n > 0 && SameRepository(parts[n-1].followed[0].repositories[0].URL, f.repositories[0].URL) {
			parts[n-1].followed = append(parts[n-1].followed, f)
		} else {
			parts = append(parts, &part{followed: []*followed{f}, trouble: trouble{}})
		}
	}
	return parts
}

func (p *part) run(ctx context.Context, server slots) {
	c := p.updater.c
	targets, fixed, unread := c.targets(ctx, server, p.followed, p.trouble)
	p.fixed = fixed
	targets, unrecorded := c.recording(ctx, server, targets, p.trouble)
	p.unread = slices.Concat(unread, unrecorded)
	c.heads(targets)
	for _, t := range targets {
		u := p.updater
		u.target, u.branch, u.byPath = t, c.branch(t), map[string][]error{}
		p.updates = append(p.updates, &u)
	}
	p.updater.looks.ahead(ctx, targets)
	eachAt(server, p.updates, func(_ int, u *updater) { u.run(ctx) })
}
