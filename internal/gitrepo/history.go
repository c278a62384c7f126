package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/digestlock/digestlock/internal/fault"
)

// Commit is one commit of a repository's history. It never changes, and is safe for concurrent use.
type Commit struct {
	Hash              string
	Parents           []string
	Message           string // as it was recorded, its last line break included
	Author, Committer Signature
	When              time.Time // the committer's

	found *Snapshot // what it was found from
	at    *Snapshot // what found would be at this commit
}

// marks is where the marks of branches are: in the place of refs/heads/.
const marks = "refs/digestlock/"

func markName(branch plumbing.ReferenceName) plumbing.ReferenceName {
	return plumbing.ReferenceName(marks + branch.Short())
}

// MarkRefused returns why the server took the branch, a short name, but not its mark, and nil as long as it did not. The
// mark of such a branch is not tried again after that.
func (r *Remote) MarkRefused(branch string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused[plumbing.NewBranchReferenceName(branch)]
}

func (r *Remote) refuseMark(branch plumbing.ReferenceName, why *refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused == nil {
		r.refused = map[plumbing.ReferenceName]error{}
	}
	r.refused[branch] = fault.New(fault.GitRefused, "allow the pusher to write "+marks+"*, where it is kept which commit was the last of ours",
		"push to %s: %s was rejected: %s", r.name, markName(branch), r.clean(why.reason))
}

// MarkIsHere reports whether the branch's mark stood at s itself when s was read.
func (s *Snapshot) MarkIsHere() bool { return s.mark == s.commit }

// Mark moves the branch's mark to s, wherever the branch is by now. A server that refuses it is no error, see
// [Remote.MarkRefused].
func (s *Snapshot) Mark(ctx context.Context) error {
	if s.remote.MarkRefused(s.Branch()) != nil {
		return nil
	}
	ctx, cancel := deadline(ctx)
	defer cancel()
	err := s.sendMark(ctx, move{branch: s.branch, to: s.commit}, memory.NewStorage())
	if refused, ok := errors.AsType[*refusal](err); ok {
		s.remote.refuseMark(s.branch, refused)
		return nil
	}
	if err != nil {
		return s.remote.explain(ctx, "mark a branch of", err)
	}
	return nil
}

func (r *Remote) noteOrphans(refs *packp.AdvRefs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.orphans = orphans(refs)
}

// orphans returns the branches that have a mark and nothing else.
func orphans(refs *packp.AdvRefs) []plumbing.ReferenceName {
	var found []plumbing.ReferenceName
	for name := range refs.References {
		short, ok := strings.CutPrefix(name, marks)
		if branch := plumbing.NewBranchReferenceName(short); ok && refs.References[branch.String()].IsZero() {
			found = append(found, branch)
		}
	}
	slices.Sort(found)
	return found
}

// Sweep deletes the marks of branches that are gone, of which Read saw some when it listed the refs last, and returns the short
// names of those branches. A branch that is made anew under such a name has a history of its own, which the mark knows nothing of.
// Without such marks it asks the server for nothing, and a server that has refused for nothing more.
func (r *Remote) Sweep(ctx context.Context) (branches []string, err error) {
	r.mu.Lock()
	nothing := len(r.orphans) == 0 || r.keeps
	r.orphans = nil
	r.mu.Unlock()
	if nothing {
		return nil, nil
	}
	ctx, cancel := deadline(ctx)
	defer cancel()
	if branches, err = r.sweep(ctx); err == nil {
		return branches, nil
	}
	refused, _ := errors.AsType[*refusal](err)
	if refused != nil {
		err = fault.New(fault.GitRefused, "allow the pusher to delete "+marks+"*, or delete those of branches that are gone by hand", "%s", r.clean(refused.reason))
	}
	err = r.explain(ctx, "delete marks of branches that are gone of", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keeps = refused != nil || errors.Is(err, ErrAuth)
	return nil, err
}

func (r *Remote) sweep(ctx context.Context) (branches []string, err error) {
	s := r.empty("")
	session, refs, err := s.receiver(ctx)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	req := packp.NewReferenceUpdateRequestFromCapabilities(refs.Capabilities)
	for _, branch := range orphans(refs) {
		name := markName(branch)
		req.Commands = append(req.Commands, &packp.Command{Name: name, Old: refs.References[name.String()], New: plumbing.ZeroHash})
		branches = append(branches, branch.Short())
	}
	if len(branches) == 0 {
		return nil, nil
	}
	return branches, s.exchange(ctx, session, refs, req, nil)
}

// Marked returns the commit that the branch's mark stood at when s was read, reachable from the branch or not, and nil
// when there is no mark, or one that somebody set to what is no commit: the next push moves it. A mark that is not to be had
// is an error.
// ErrMoved means that the branch has moved on, and the mark with it.
func (s *Snapshot) Marked(ctx context.Context) (*Commit, error) {
	if s.mark.IsZero() {
		return nil, nil
	}
	ctx, cancel := deadline(ctx)
	defer cancel()
	c, err := s.marked(ctx)
	if errors.Is(err, plumbing.ErrObjectNotFound) && s.has(s.mark) { // among the commits
		return nil, nil
	}
	if err != nil {
		return nil, s.unread(ctx, "read the mark of", fmt.Errorf("%s at %s: %w", markName(s.branch), s.names.hex(s.mark), err))
	}
	return s.commitOf(c, s.mark, 1), nil
}

func (s *Snapshot) marked(ctx context.Context) (*object.Commit, error) {
	if !s.has(s.mark) {
		if err := s.fetchAnew(ctx, s.below(s.mark, 1), s.maxBytes); err != nil {
			return nil, err
		}
	}
	return s.object(s.mark)
}

// Log returns the commits that s descends from, s itself first: children before their parents, otherwise the newest
// first, at most most of them. Fewer mean that there are no more, or none on a server that is shallow itself.
//
// ErrMoved means that the history is no longer to be had because the branch has moved on.
func (s *Snapshot) Log(ctx context.Context, most int) ([]*Commit, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	found, err := s.log(ctx, most)
	if err != nil {
		return nil, s.unread(ctx, "read the history of", err)
	}
	var commits []*Commit
	for i, c := range found {
		commits = append(commits, s.commitOf(c, s.commit, generations(i)))
	}
	return commits, nil
}

// generations returns with how many generations to fetch the trees of the commit at index i of a log, which is no
// further from the tip than i: so that looking at one after the other takes few fetches, and memory for as far as
// somebody looked, not for all of the log.
func generations(i int) int {
	const least = 16
	return max(least, 1<<bits.Len(uint(i)))
}

func (s *Snapshot) log(ctx context.Context, most int) ([]*object.Commit, error) {
	if err := s.deepen(ctx, most); err != nil {
		return nil, err
	}
	commits, children, _ := s.history()
	var log, ready []*object.Commit
	for next := commits[s.commit]; next != nil && len(log) < most; {
		log = append(log, next)
		for _, p := range next.ParentHashes {
			if children[p]--; children[p] == 0 && commits[p] != nil {
				ready = append(ready, commits[p])
			}
		}
		slices.SortStableFunc(ready, func(a, b *object.Commit) int { return b.Committer.When.Compare(a.Committer.When) })
		if next = nil; len(ready) > 0 {
			next, ready = ready[0], ready[1:]
		}
	}
	return log, nil
}

// deepen fetches as many generations of commits, unless they are here or there are no more. Their trees stay away, where
// the server can do that: the trees of one directory with a thousand entries weigh 20 MiB for 500 commits below it.
func (s *Snapshot) deepen(ctx context.Context, generations int) error {
	s.mu.Lock()
	depth := max(1, s.depth[s.commit])
	s.mu.Unlock()
	if _, _, complete := s.history(); complete || generations <= depth || !s.caps.Supports(capability.Shallow) {
		return nil
	}
	bare := s.below(s.commit, generations)
	if s.partial {
		bare.Filter = packp.FilterTreeDepth(0)
	}
	err := s.fetchAnew(ctx, bare, s.maxBytes)
	if err != nil && s.partial && ctx.Err() == nil { // a server may offer filters, and not this one
		err = s.fetchAnew(ctx, s.below(s.commit, generations), s.maxBytes)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.depth[s.commit] = max(s.depth[s.commit], generations)
	return nil
}

// history returns those of s's ancestors that are here, how many children each has among them, and whether they are all
// of them.
func (s *Snapshot) history() (commits map[plumbing.Hash]*object.Commit, children map[plumbing.Hash]int, complete bool) {
	commits, children, complete = map[plumbing.Hash]*object.Commit{}, map[plumbing.Hash]int{}, true
	for todo := []plumbing.Hash{s.commit}; len(todo) > 0; {
		h := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if commits[h] != nil {
			continue
		}
		c, err := s.object(h)
		if err != nil {
			complete = false
			continue
		}
		commits[h] = c
		for _, p := range c.ParentHashes {
			children[p]++
			todo = append(todo, p)
		}
	}
	return commits, children, complete
}

func (s *Snapshot) object(h plumbing.Hash) (*object.Commit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return object.GetCommit(s.objects, h)
}

// commitOf returns c, which was fetched as one of the generations below root.
func (s *Snapshot) commitOf(c *object.Commit, root plumbing.Hash, generations int) *Commit {
	at := *s
	at.commit, at.tree, at.root, at.generations = c.Hash, c.TreeHash, root, generations
	commit := &Commit{
		Hash: s.names.hex(c.Hash), Message: c.Message, When: c.Committer.When,
		Author:    Signature{Name: c.Author.Name, Email: c.Author.Email},
		Committer: Signature{Name: c.Committer.Name, Email: c.Committer.Email},
		found:     s, at: &at,
	}
	for _, p := range c.ParentHashes {
		commit.Parents = append(commit.Parents, s.names.hex(p))
	}
	return commit
}

// Log is [Snapshot.Log] of a commit that [Snapshot.Marked] returned: what it descends from need not be on the branch any
// more.
func (c *Commit) Log(ctx context.Context, most int) ([]*Commit, error) { return c.at.Log(ctx, most) }

// Files returns the contents of those of paths that are regular files at this commit. What is not here yet is fetched in
// one round trip, and one before that for the trees of a commit of a log, and of those around it.
//
// A file of more than 1 MiB fails inside an [fs.PathError]. ErrMoved means that the contents are no longer to be had
// because the branch has moved on.
func (c *Commit) Files(ctx context.Context, paths []string) (map[string][]byte, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	if err := c.needTrees(ctx); err != nil {
		return nil, c.found.unread(ctx, "read files of", err)
	}
	var regular []string
	for _, p := range paths {
		_, ok, err := c.at.find(p)
		if err != nil && !errors.Is(err, ErrNotRegular) {
			return nil, c.found.unread(ctx, "read files of", err)
		}
		if ok && err == nil {
			regular = append(regular, p)
		}
	}
	files, err := c.at.files(ctx, regular)
	if err != nil {
		return nil, c.found.unread(ctx, "read files of", err)
	}
	return files, nil
}

// needTrees fetches the trees of the commit. They come all or not at all, so that the root stands for those below it.
func (c *Commit) needTrees(ctx context.Context) error {
	if c.at.has(c.at.tree) {
		return nil
	}
	return c.found.fetchAnew(ctx, c.found.below(c.at.root, c.at.generations), c.at.maxBytes)
}
