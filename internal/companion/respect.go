package companion

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lock"
)

// maxHistory is how many commits of a branch are looked through for the companion's own last one, and for the one that
// took a pin back. Both are near the tip: the companion looks at each tip, and only a branch on which nothing was ever
// committed, or that has no mark, has it look far.
const maxHistory = 500

// trailer begins the last line of the companion's messages. It tells its commits from people's.
const trailer = "Digestlock-Companion:"

// ours is what the companion last committed to a branch.
type ours struct {
	commit string
	locks  map[string]*lock.Document // by path; nil where there was no lock, or a broken one
}

// respect keeps edits from undoing what a person decided. A digest that the companion had committed, and that is not in
// the lock any more, was taken back by somebody: where the tag still stands at it, the pin stays where that person put
// it, with a hold that rejects the digest. It is over when the tag moves past it, as every hold is.
//
// What the companion had committed last is in Git: the branch's mark, which moves with each of its pushes, or else the
// newest commit with its trailer. So nothing is lost with a process, and a branch that was reset tells too.
func (u *updater) respect(ctx context.Context, tip *gitrepo.Snapshot, locks, edits map[string]*lock.Document) error {
	log := history{tip: tip}
	last, err := u.lastOurs(ctx, &log)
	if err != nil || last == nil || last.commit == tip.Commit() {
		return err
	}
	if last.locks == nil { // the contents in one round trip
		if _, err := last.tree.Files(ctx, lockFiles(locks)); err != nil {
			return fmt.Errorf("commit %s: %w", last.commit, err)
		}
	}
	for dir, doc := range locks {
		if doc == nil {
			continue
		}
		committed, err := last.lock(ctx, dir)
		if err != nil {
			return err
		}
		for _, p := range doc.Pins {
			q, ok := committed.Find(p.Image)
			if !ok || q.Digest == p.Digest || p.Hold != nil {
				continue
			}
			// Without a look it is open where the tag stands, and this commit will be the last one of ours.
			if now := u.looks.stands(u.target.paths[dir].projects(), p.Image); now != "" && now != q.Digest {
				continue
			}
			cause, err := log.cause(ctx, dir, p, last.commit)
			if err != nil {
				return err
			}
			if cause == "" {
				continue
			}
			if edits[dir] == nil {
				edits[dir] = doc
			}
			p.Hold = &lock.Hold{Rejected: q.Digest, Reason: cause}
			edits[dir] = edits[dir].With(p)
		}
	}
	return nil
}

// lastOurs returns what the companion last committed to the branch, nil when it never has. A mark that this process has
// not set itself may lag behind, when the server refused one for a while: then the newer of the two ways to know counts.
func (u *updater) lastOurs(ctx context.Context, log *history) (*lastCommit, error) {
	marked, err := log.tip.Marked(ctx)
	if err != nil {
		return nil, fmt.Errorf("what was last committed: %w", err)
	}
	if marked != nil && (marked.Hash == log.tip.Commit() || u.branch.ours != nil && u.branch.ours.commit == marked.Hash) {
		return u.remembered(marked), nil
	}
	if err := log.read(ctx); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(log.commits, byUs)
	switch {
	case i < 0 && marked == nil:
		return nil, nil
	case i < 0, marked != nil && log.find(marked.Hash) == nil && !marked.When.Before(log.commits[i].When):
		return u.remembered(marked), nil
	}
	return u.remembered(log.commits[i]), nil
}

func (u *updater) remembered(c *gitrepo.Commit) *lastCommit {
	l := &lastCommit{commit: c.Hash, tree: c}
	if o := u.branch.ours; o != nil && o.commit == c.Hash {
		l.locks = o.locks
	}
	return l
}

// lastCommit reads the locks of the companion's last commit, when they are asked for.
type lastCommit struct {
	commit string
	tree   *gitrepo.Commit
	locks  map[string]*lock.Document // those that are known already
}

// lock returns the lock of a path, nil when there was none that can be read.
func (l *lastCommit) lock(ctx context.Context, dir string) (*lock.Document, error) {
	if doc, ok := l.locks[dir]; ok {
		return doc, nil
	}
	return lockAt(ctx, l.tree, dir)
}

func lockAt(ctx context.Context, c *gitrepo.Commit, dir string) (*lock.Document, error) {
	file := lockFile(dir)
	files, err := c.Files(ctx, []string{file})
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", c.Hash, err)
	}
	doc, err := lock.Parse(file, files[file])
	if files[file] == nil || err != nil {
		return nil, nil // broken then, and somebody's to mend
	}
	return doc, nil
}

// history is the branch's, read when it is first needed.
type history struct {
	tip     *gitrepo.Snapshot
	commits []*gitrepo.Commit
}

func (h *history) read(ctx context.Context) (err error) {
	if h.commits == nil {
		if h.commits, err = h.tip.Log(ctx, maxHistory); err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
	return nil
}

func (h *history) find(hash string) *gitrepo.Commit {
	i := slices.IndexFunc(h.commits, func(c *gitrepo.Commit) bool { return c.Hash == hash })
	if i < 0 {
		return nil
	}
	return h.commits[i]
}

// cause says which commit since last, the companion's own, moved the pin of p's image to where it is, in words for a
// hold: "reverted in 3f2c1ab by Jane Doe". It follows first parents, along which a branch's own history runs. It returns
// "" when that was the companion itself, which is so where a mark lags behind.
func (h *history) cause(ctx context.Context, dir string, p lock.Pin, last string) (string, error) {
	if err := h.read(ctx); err != nil {
		return "", err
	}
	if h.find(last) == nil {
		return "branch reset past " + last[:7], nil
	}
	for c := h.commits[0]; c.Hash != last && len(c.Parents) > 0; {
		parent := h.find(c.Parents[0])
		if parent == nil {
			break
		}
		before, err := lockAt(ctx, parent, dir)
		if err != nil {
			return "", err
		}
		q, ok := before.Find(p.Image)
		if ok && q.Digest == p.Digest && q.Hold != nil {
			return "", nil // somebody let the pin follow its tag again
		}
		if !ok || q.Digest != p.Digest {
			if byUs(c) {
				return "", nil
			}
			return became(c), nil
		}
		c = parent
	}
	return "changed by hand", nil
}

var reverts = regexp.MustCompile(`(?m)^(Revert |This reverts commit )`)

func became(c *gitrepo.Commit) string {
	verb := "changed by hand in "
	if reverts.MatchString(c.Message) {
		verb = "reverted in "
	}
	return oneLine(verb + c.Hash[:7] + " by " + c.Author.Name)
}

// byUs reports whether a companion made the commit, or somebody squashed one of its commits into it.
func byUs(c *gitrepo.Commit) bool {
	for line := range strings.Lines(c.Message) {
		if strings.HasPrefix(line, trailer) {
			return true
		}
	}
	return false
}
