package companion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/lock"
)

// maxHistory is how many commits of a branch are looked through for the companion's own last one, and for the one that
// took a pin back. Both are near the tip: the companion looks at each tip, and only a branch on which nothing was ever
// committed, or that has no mark, has it look far.
const maxHistory = 500

// maxOwn is how many of the companion's own commits are looked through for the one that last changed the lock of a path
// which this process has not looked at yet.
const maxOwn = 64

// trailer begins the last line of the companion's messages.
const trailer = lock.Trailer + ":"

// left is how the companion left the lock of one path.
type left struct {
	commit string // in which, or before which, it looked at the path
	parent string // of the commit, its first
	lock   *lock.Document
}

// respect keeps edits from undoing what a person decided. A digest that the companion had committed, and that is not in
// the lock any more, was taken back by somebody: where the tag still stands at it, the pin stays where that person put
// it, with a hold that rejects the digest. It is over when the tag moves past it, as every hold is.
//
// What the companion had committed last is in Git: the branch's mark, which moves with each of its pushes, or else the
// newest commit with its trailer. So nothing is lost with a process, and a branch that was reset tells too. A mark also
// moves past paths that nobody could look at: so what this process has left in the lock of a path counts beside it, or
// else, where a pin is to move, what the newest commit of ours that changed that lock has.
func (u *updater) respect(ctx context.Context, tip *gitrepo.Snapshot, locks, edits map[string]*lock.Document) error {
	log := history{tip: tip, merged: u.c.o.PushBranch != nil, fetched: map[string]bool{}}
	for dir := range u.target.paths {
		log.files = append(log.files, lockFile(dir))
	}
	last, err := u.lastOurs(ctx, &log)
	if err != nil {
		return err
	}
	for dir, doc := range locks {
		if doc == nil {
			continue
		}
		before, err := u.before(ctx, &log, dir, last, edits[dir] != nil)
		if err != nil {
			return err
		}
		for _, p := range doc.Pins {
			for _, b := range before {
				held, ok, err := u.judge(ctx, &log, dir, p, b)
				if err != nil {
					return err
				}
				if !ok {
					continue
				}
				if edits[dir] == nil {
					edits[dir] = doc
				}
				edits[dir] = edits[dir].With(held)
				break
			}
		}
	}
	return nil
}

// before returns how the companion left the lock of a path, as far as anybody knows.
func (u *updater) before(ctx context.Context, log *history, dir string, last *gitrepo.Commit, moves bool) ([]left, error) {
	var all []left
	mine, known := u.branch.left[dir]
	if known {
		all = append(all, mine)
	}
	if last == nil {
		return all, nil
	}
	if last.Hash != log.tip.Commit() && (!known || mine.commit != last.Hash) {
		committed, err := log.lockAt(ctx, last, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, left{last.Hash, first(last.Parents), committed})
	}
	if !known && moves {
		own, err := log.own(ctx, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, own...)
	}
	return all, nil
}

// judge returns p, a pin at the tip, as it is to be held back from what the companion had left it at; false when there is no
// reason to. It is dated like what is rejected: a resolver that lags behind, and knows what was rejected before that, is
// not to move it.
func (u *updater) judge(ctx context.Context, log *history, dir string, p lock.Pin, before left) (held lock.Pin, ok bool, err error) {
	q, ok := before.lock.Find(p.Image)
	if !ok || q.Digest == p.Digest || p.Hold.Keeps(q.Digest, time.Now()) {
		return p, false, nil
	}
	// Without a look it is open where the tag stands, and the commit to come will be the last one of ours. A look that is
	// older than the one that found the digest says nothing either.
	now := u.looks.surely(ctx, u.target.paths[dir].projects(), p.Image)
	if now.Digest != "" && now.Digest != q.Digest && now.ResolvedAt.After(q.ResolvedAt) {
		return p, false, nil
	}
	cause, err := log.cause(ctx, dir, p, q, before)
	if err != nil || cause == "" {
		return p, false, err
	}
	p.Hold = &lock.Hold{Rejected: q.Digest, Reason: cause}
	if q.ResolvedAt.After(p.ResolvedAt) {
		p.ResolvedAt = q.ResolvedAt
	}
	return p, true, nil
}

// lastOurs returns what the companion last committed to the branch, nil when it never has. A mark that this process has
// not set itself may lag behind, when the server refused one for a while: then the newer of the two ways to know counts.
func (u *updater) lastOurs(ctx context.Context, log *history) (*gitrepo.Commit, error) {
	marked, err := log.tip.Marked(ctx)
	if err != nil {
		return nil, fmt.Errorf("what was last committed: %w", err)
	}
	log.marked = marked
	if marked != nil && (marked.Hash == log.tip.Commit() || u.branch.pushed == marked.Hash) {
		return marked, nil
	}
	if err := log.read(ctx); err != nil {
		return nil, err
	}
	var last *gitrepo.Commit
	for last = range log.ours() {
		break
	}
	if marked != nil && (last == nil || log.find(marked.Hash) == nil && !marked.When.Before(last.When)) {
		last = marked
	}
	return last, nil
}

// history is the branch's, read when it is first needed.
type history struct {
	tip     *gitrepo.Snapshot
	merged  bool     // the companion's commits come by merges of requests
	files   []string // the locks of all paths
	marked  *gitrepo.Commit
	commits []*gitrepo.Commit
	fetched map[string]bool // commits whose locks are here
}

// fetch gets the locks of a commit, all at once: whoever asks for that of one path asks for those of others next.
func (h *history) fetch(ctx context.Context, c *gitrepo.Commit) error {
	if h.fetched[c.Hash] {
		return nil
	}
	_, err := c.Files(ctx, h.files)
	if _, huge := errors.AsType[*fs.PathError](err); err != nil && !huge {
		return fmt.Errorf("commit %s: %w", c.Hash, err)
	}
	h.fetched[c.Hash] = true
	return nil
}

func (h *history) lockAt(ctx context.Context, c *gitrepo.Commit, dir string) (*lock.Document, error) {
	if err := h.fetch(ctx, c); err != nil {
		return nil, err
	}
	return lockAt(ctx, c, dir)
}

func (h *history) lockText(ctx context.Context, c *gitrepo.Commit, dir string) ([]byte, error) {
	if err := h.fetch(ctx, c); err != nil {
		return nil, err
	}
	return lockText(ctx, c, dir)
}

// lockAt returns the lock of a path as it was in a commit, nil when there was none that can be read.
func lockAt(ctx context.Context, c *gitrepo.Commit, dir string) (*lock.Document, error) {
	text, err := lockText(ctx, c, dir)
	if text == nil || err != nil {
		return nil, err
	}
	doc, err := lock.Parse(lockFile(dir), text)
	if err != nil {
		return nil, nil // broken then, and somebody's to mend
	}
	return doc, nil
}

// lockText returns the content of the lock of a path, nil for none, or one that is too large: whoever puts that there must
// keep no other path from its commits.
func lockText(ctx context.Context, c *gitrepo.Commit, dir string) ([]byte, error) {
	files, err := c.Files(ctx, []string{lockFile(dir)})
	if _, huge := errors.AsType[*fs.PathError](err); huge {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", c.Hash, err)
	}
	return files[lockFile(dir)], nil
}

func (h *history) read(ctx context.Context) (err error) {
	if h.commits == nil {
		if h.commits, err = h.tip.Log(ctx, maxHistory); err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
	return nil
}

// ours are the companion's commits, newest first. What it committed to other branches comes by merges, and says nothing
// of this one.
func (h *history) ours() iter.Seq[*gitrepo.Commit] {
	return func(yield func(*gitrepo.Commit) bool) {
		if h.merged {
			for _, c := range h.commits {
				if h.byUs(c) && !yield(c) {
					return
				}
			}
			return
		}
		for c := h.commits[0]; c != nil; c = h.parent(c) {
			if h.byUs(c) && !yield(c) {
				return
			}
		}
	}
}

// own returns how the newest commit of ours that changed the lock of a path left it, if that is one of the last maxOwn.
func (h *history) own(ctx context.Context, dir string) ([]left, error) {
	if err := h.read(ctx); err != nil {
		return nil, err
	}
	n := 0
	for c := range h.ours() {
		parent := h.parent(c)
		if n++; n > maxOwn || parent == nil && len(c.Parents) > 0 { // further back than what was read
			break
		}
		now, err := h.lockText(ctx, c, dir)
		if err != nil {
			return nil, err
		}
		var before []byte
		if parent != nil {
			if before, err = h.lockText(ctx, parent, dir); err != nil {
				return nil, err
			}
		}
		if now != nil && !bytes.Equal(now, before) {
			doc, err := h.lockAt(ctx, c, dir)
			return []left{{c.Hash, first(c.Parents), doc}}, err
		}
	}
	return nil, nil
}

// parent returns c's first parent, nil for none that is known.
func (h *history) parent(c *gitrepo.Commit) *gitrepo.Commit {
	return h.find(first(c.Parents))
}

// first returns the parent along which a branch's own history runs, "" for none.
func first(parents []string) string {
	if len(parents) == 0 {
		return ""
	}
	return parents[0]
}

// descends reports whether the commit has ancestor among those before it, or is it.
func (h *history) descends(hash, ancestor string) bool {
	seen := map[string]bool{}
	for open := []string{hash}; len(open) > 0; {
		c := h.find(open[0])
		open = open[1:]
		if c == nil || seen[c.Hash] {
			continue
		}
		if c.Hash == ancestor {
			return true
		}
		seen[c.Hash] = true
		open = append(open, c.Parents...)
	}
	return false
}

func (h *history) find(hash string) *gitrepo.Commit {
	i := slices.IndexFunc(h.commits, func(c *gitrepo.Commit) bool { return c.Hash == hash })
	if i < 0 {
		return nil
	}
	return h.commits[i]
}

// cause says which commit since the companion's own moved the pin of p's image to where it is, in words for a hold:
// "reverted in 3f2c1ab by Jane Doe". It follows first parents, along which a branch's own history runs. It returns "" when
// nobody took the digest away: when the last to move the pin was the companion itself, which is so where a mark lags behind,
// when that came with a hold which is over by now, or when the companion had moved the pin from that digest to what people
// then changed, of which another companion knows more.
func (h *history) cause(ctx context.Context, dir string, p, taken lock.Pin, before left) (cause string, err error) {
	if err := h.read(ctx); err != nil {
		return "", err
	}
	last := before.commit
	lost, err := h.lost(ctx, before)
	if err != nil {
		return "", err
	}
	if lost {
		if passed, err := h.passed(ctx, dir, p, taken); passed || err != nil {
			return "", err
		}
		return "branch reset past " + last[:7], nil
	}
	cause = "changed by hand"
	for c, moves := h.commits[0], 0; c.Hash != last; {
		parent := h.parent(c)
		if parent == nil {
			break
		}
		doc, err := h.lockAt(ctx, parent, dir)
		if err != nil {
			return "", err
		}
		q, ok := doc.Find(p.Image)
		if ok && q.Digest == p.Digest && q.Hold != nil && p.Hold == nil && moves == 0 {
			return "", nil // somebody let the pin follow its tag again
		}
		if !ok || q.Digest != p.Digest {
			if unaware, err := h.unaware(ctx, c, dir, p, last); h.byUs(c) || unaware || err != nil {
				return "", err
			}
			if moves++; moves == 1 {
				if p.Hold.Keeps(taken.Digest, c.When) {
					return "", nil // it was taken back for a while, and that is over
				}
				cause = became(c)
			}
			if !ok || q.Digest == taken.Digest {
				break
			}
			p = q
		}
		c = parent
	}
	return cause, nil
}

// passed reports whether companions have moved the pin on from what is taken, on the branch as it is now. Then no reset has
// taken that away, whatever else it took.
func (h *history) passed(ctx context.Context, dir string, p, taken lock.Pin) (bool, error) {
	for c := h.commits[0]; !c.When.Add(maxSkew).Before(taken.ResolvedAt); {
		parent := h.parent(c)
		if parent == nil {
			break
		}
		doc, err := h.lockAt(ctx, parent, dir)
		if err != nil {
			return false, err
		}
		q, ok := doc.Find(p.Image)
		switch {
		case q.Digest == p.Digest:
		case !ok || !h.byUs(c):
			return false, nil
		case q.Digest == taken.Digest:
			return true, nil
		}
		c, p = parent, q
	}
	return false, nil
}

// lost reports whether a commit of the companion's is not on the branch any more. Where the branch is longer than what was
// read, one that is not there may be further back: then the branch was reset if it has a commit that came before.
func (h *history) lost(ctx context.Context, ours left) (bool, error) {
	if h.find(ours.commit) != nil {
		return false, nil
	}
	if len(h.commits) < maxHistory {
		return true, nil
	}
	own := map[string]bool{}
	for c := h.commits[0]; c != nil; c = h.parent(c) {
		own[c.Hash] = true
	}
	if own[ours.parent] {
		return true, nil
	}
	if h.marked == nil || h.marked.Hash != ours.commit {
		return false, nil
	}
	before, err := h.marked.Log(ctx, maxHistory)
	if err != nil {
		return false, fmt.Errorf("history of what was last committed: %w", err)
	}
	theirs := history{commits: before}
	for c := before[0]; c != nil; c = theirs.parent(c) {
		if own[c.Hash] {
			return true, nil
		}
	}
	return false, nil
}

// unaware reports whether a merge brought the pin from a branch that did not know of the companion's last commit: nobody
// took anything back there. Where that commit is further back than what was read, none is known to be unaware.
func (h *history) unaware(ctx context.Context, merge *gitrepo.Commit, dir string, p lock.Pin, last string) (bool, error) {
	if h.find(last) == nil {
		return false, nil
	}
	for _, hash := range merge.Parents[min(1, len(merge.Parents)):] {
		other := h.find(hash)
		if other == nil || h.descends(hash, last) {
			continue
		}
		theirs, err := h.lockAt(ctx, other, dir)
		if err != nil {
			return false, err
		}
		if q, ok := theirs.Find(p.Image); ok && q.Digest == p.Digest {
			return true, nil
		}
	}
	return false, nil
}

var reverts = lazy.Regexp(`(?m)^(Revert |This reverts commit )`)

func became(c *gitrepo.Commit) string {
	verb := "changed by hand in "
	if reverts().MatchString(c.Message) {
		verb = "reverted in "
	}
	return oneLine(verb + c.Hash[:7] + " by " + c.Author.Name)
}

// byUs reports whether a companion made the commit: the trailer is the last line of its messages. Where requests are
// squashed, what the forge puts around it does not count.
func (h *history) byUs(c *gitrepo.Commit) bool {
	if h.merged {
		return byUs(c)
	}
	message := strings.TrimSpace(c.Message)
	return strings.HasPrefix(message[strings.LastIndexByte(message, '\n')+1:], trailer)
}

// byUs reports whether a companion made the commit, or one of its commits was squashed into it.
func byUs(c *gitrepo.Commit) bool {
	for line := range strings.Lines(c.Message) {
		if strings.HasPrefix(line, trailer) {
			return true
		}
	}
	return false
}
