package companion

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lock"
)

// recording moves the paths that only Applications of mode live render to targets of their own, one for each lock branch.
// It returns all targets, sorted, without those that have no path left.
func (c *Companion) recording(ctx context.Context, server slots, targets []*target, trouble trouble) ([]*target, []error) {
	if c.o.LockBranch == nil {
		return targets, nil
	}
	var all, aside []*target
	taken := map[string]int{}
	for _, t := range targets {
		taken[t.key()]++
		live := t.split()
		if len(live) > 0 {
			aside = append(aside, &target{repository: t.repository, paths: live, records: t.tip})
		}
		if len(t.paths) > 0 {
			all = append(all, t)
		}
	}
	for _, t := range aside {
		t.branch, t.refused = branchBeside(c.o.LockBranch, t.records.Branch())
		taken[t.key()]++
	}
	errs := make([]error, len(aside))
	eachAt(server, aside, func(i int, t *target) { errs[i] = t.open(ctx, taken[t.key()] > 1) })
	var problems []error
	for i, t := range aside {
		if err := errs[i]; err != nil {
			err = fmt.Errorf("lock branch of %s: %w", t.records.Branch(), err)
			problems = append(problems, err)
			for _, o := range t.paths {
				trouble.add(o.sources, err)
			}
			continue
		}
		c.tellBesides(t)
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *target) int { return cmp.Compare(a.key(), b.key()) })
	return all, problems
}

// split takes the paths out of t that only Applications of mode live render, and returns them. One of mode locked needs
// the lock in the tree, and so does one that follows.
func (t *target) split() map[string]*observation {
	live := map[string]*observation{}
	for dir, o := range t.paths {
		if !o.has(follow) && !o.has(locked) {
			live[dir] = o
			delete(t.paths, dir)
		}
	}
	return live
}

// open reads the lock branch, and what locks there are beside it.
func (t *target) open(ctx context.Context, taken bool) error {
	if t.refused == nil && taken {
		t.refused = fmt.Errorf("%q is followed by an Application, or the lock branch of two", t.branch)
	}
	if t.refused != nil {
		return fault.New(fault.Usage, "mend the template of --lock-branch, as in digestlock-live/{{.Branch}}", "%w", t.refused)
	}
	ctx, cancel := within(ctx, readTimeout)
	defer cancel()
	var err error
	if t.beside, err = locksAt(ctx, t.records, slices.Sorted(maps.Keys(t.paths))); err != nil {
		return err
	}
	if t.tip, err = t.read(ctx); err != nil || t.tip.Commit() == "" {
		return err
	}
	last, err := t.tip.Log(ctx, 1)
	if err == nil && !byUs(last[0]) {
		return fault.New(fault.GitBranch, "give --lock-branch a template that makes another name, or delete the branch: the companion makes it anew",
			"the last commit on %s, %s by %s, was made by no companion", t.branch, last[0].Hash[:7], oneLine(last[0].Author.Name))
	}
	return err
}

// locksAt returns the locks of paths at a tip, without those that are none.
func locksAt(ctx context.Context, tip *gitrepo.Snapshot, dirs []string) (map[string]*lock.Document, error) {
	head, err := tip.Log(ctx, 1)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, dir := range dirs {
		files = append(files, lockFile(dir))
	}
	if _, err := head[0].Files(ctx, files); err != nil { // all in one round trip
		return nil, err
	}
	locks := map[string]*lock.Document{}
	for _, dir := range dirs {
		doc, err := lockAt(ctx, head[0], dir)
		if err != nil {
			return nil, err
		}
		if doc != nil {
			locks[dir] = doc
		}
	}
	return locks, nil
}

// tellBesides says once where a lock is on the followed branch, too: from before, or for its holds. It is somebody's to
// delete, because renders read it.
func (c *Companion) tellBesides(t *target) {
	paths := strings.Join(slices.Sorted(maps.Keys(t.beside)), ", ")
	b := c.branch(t)
	if paths != "" && paths != b.besides {
		c.o.Log.Warn("locks on the followed branch are left alone, and age there", "repository", t.repository.URL, "branch", t.records.Branch(), "recorded", t.branch,
			"paths", paths, "hint", "delete them there, but for those with a hold: renders of mode live take digests from them when the registry does not answer")
	}
	b.besides = paths
}

// read returns the tip of the branch that is written to.
func (t *target) read(ctx context.Context) (*gitrepo.Snapshot, error) {
	if t.records != nil {
		return t.repository.Remote.Own(ctx, t.branch)
	}
	return t.repository.Remote.Read(ctx, t.branch)
}

// rendered returns the tip of the branch that Argo CD renders, where the one that is written to is at tip.
func (t *target) rendered(tip *gitrepo.Snapshot) *gitrepo.Snapshot {
	if t.records != nil {
		return t.records
	}
	return tip
}

// rendersWith returns the lock that a render of the path reads.
func (u *updater) rendersWith(dir string) *lock.Document {
	if u.target.records != nil {
		return u.target.beside[dir]
	}
	return u.locks[dir]
}
