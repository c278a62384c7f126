package gitrepo

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// Commit is one commit of a branch's history. It never changes, and is safe for concurrent use.
type Commit struct {
	Hash              string
	Parents           []string
	Message           string
	Author, Committer Signature
	When              time.Time // it was committed

	snapshot *Snapshot
}

// Files returns the contents of those of paths that are regular files of at most 1 MiB at that commit. What is not here
// yet is fetched in one round trip.
func (c *Commit) Files(ctx context.Context, paths []string) (map[string][]byte, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	found := map[string]plumbing.Hash{}
	for _, p := range paths {
		e, ok, err := c.snapshot.find(p)
		if err != nil && !errors.Is(err, ErrNotRegular) {
			return nil, err
		}
		if ok && err == nil {
			found[p] = e.Hash
		}
	}
	files := map[string][]byte{}
	err := c.snapshot.need(ctx, found)
	if err != nil && !errors.Is(err, errTooLarge) {
		return nil, c.snapshot.remote.explain(ctx, "read files of", err)
	}
	for p, h := range found {
		content, err := c.snapshot.blob(h)
		switch {
		case err == nil:
			files[p] = content
		case !errors.Is(err, errTooLarge) && !errors.Is(err, plumbing.ErrObjectNotFound):
			return nil, err
		}
	}
	return files, nil
}

// markOf returns the name of a branch's mark. It lies outside of refs/heads and refs/tags, so that nobody checks it out,
// builds it or sees it in a list of branches.
func markOf(branch plumbing.ReferenceName) plumbing.ReferenceName {
	return plumbing.ReferenceName("refs/digestlock/" + branch.Short())
}

// Marked returns the commit that was last pushed to the branch with [Change.Mark], as of when s was read, also when the
// branch was set back behind it since. It returns nil when there is none, as with a server that
// takes no such refs, or no two refs as one.
func (s *Snapshot) Marked(ctx context.Context) (*Commit, error) {
	if s.mark.IsZero() || s.mark == s.commit {
		return s.at(s.mark)
	}
	ctx, cancel := deadline(ctx)
	defer cancel()
	m := newSnapshot(s.remote, s.branch, s.mark, s.caps)
	m.endpoint = s.endpoint
	if err := m.deepen(ctx, 1); err != nil {
		return nil, s.remote.explain(ctx, "read the mark of "+s.branch.Short()+" in", err)
	}
	return m.at(m.commit)
}

// Log returns the commits that the tip descends from, itself first: no parent before its children, and else the latest
// first. It returns at most max commits, and fewer of a history that is shorter or cut off on the server.
func (s *Snapshot) Log(ctx context.Context, max int) ([]*Commit, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	h := newSnapshot(s.remote, s.branch, s.commit, s.caps)
	h.endpoint = s.endpoint
	if err := h.deepen(ctx, max); err != nil {
		return nil, s.remote.explain(ctx, "read the history of", err)
	}
	return h.log(max)
}

func (s *Snapshot) deepen(ctx context.Context, depth int) error {
	ep := s.endpoint
	session, err := s.remote.uploadPack(ctx, &ep)
	if err != nil {
		return err
	}
	defer session.Close()
	return s.loadHistory(ctx, session, depth)
}

func (s *Snapshot) log(max int) ([]*Commit, error) {
	tip, err := s.at(s.commit)
	if err != nil {
		return nil, err
	}
	known := map[string]*Commit{tip.Hash: tip}
	children := map[string]int{} // that were not returned yet
	for open := []*Commit{tip}; len(open) > 0; {
		c := open[len(open)-1]
		open = open[:len(open)-1]
		for _, hash := range c.Parents {
			children[hash]++
			if known[hash] != nil {
				continue
			}
			parent, err := s.at(plumbing.NewHash(hash))
			if errors.Is(err, plumbing.ErrObjectNotFound) {
				continue // beyond the depth that was fetched
			}
			if err != nil {
				return nil, err
			}
			known[hash] = parent
			open = append(open, parent)
		}
	}
	var all []*Commit
	for ready := (latest{tip}); len(ready) > 0 && len(all) < max; {
		c := heap.Pop(&ready).(*Commit)
		all = append(all, c)
		for _, hash := range c.Parents {
			if children[hash]--; children[hash] == 0 && known[hash] != nil {
				heap.Push(&ready, known[hash])
			}
		}
	}
	return all, nil
}

// at returns a commit that is here, nil for the zero hash.
func (s *Snapshot) at(hash plumbing.Hash) (*Commit, error) {
	if hash.IsZero() {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := object.GetCommit(s.objects, hash)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", hash, err)
	}
	snapshot := *s
	snapshot.commit, snapshot.tree = hash, c.TreeHash
	out := &Commit{
		Hash: hash.String(), Message: c.Message, When: c.Committer.When, snapshot: &snapshot,
		Author:    Signature{Name: c.Author.Name, Email: c.Author.Email},
		Committer: Signature{Name: c.Committer.Name, Email: c.Committer.Email},
	}
	for _, p := range c.ParentHashes {
		out.Parents = append(out.Parents, p.String())
	}
	return out, nil
}

// latest is a heap with the latest commit on top.
type latest []*Commit

func (l latest) Len() int           { return len(l) }
func (l latest) Less(i, j int) bool { return l[i].When.After(l[j].When) }
func (l latest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *latest) Push(c any)        { *l = append(*l, c.(*Commit)) }

func (l *latest) Pop() any {
	old := *l
	c := old[len(old)-1]
	*l = old[:len(old)-1]
	return c
}
