package companion

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// pushAttempts bounds how often a commit is applied anew to a branch that moved. 8 writers without any other
// coordination needed 167 attempts for 40 commits, a handful each (measured).
const pushAttempts = 10

// updater brings one branch up to date, in as many attempts as that takes.
type updater struct {
	c        *Companion
	target   *target
	branch   *branch
	looks    *looks
	quiet    Quiet
	complete bool // every resolver told what it knows

	origins  map[string]image.Origin // by reference with digest; nil before they were asked for
	tip      *gitrepo.Snapshot
	locks    map[string]*lock.Document // as the last attempt left them, by path
	commit   *Commit                   // nil when there was nothing to do
	waits    bool                      // for the quiet window
	page     string                    // of the request that is open
	problems []error                   // of the last attempt
	byPath   map[string][]error        // those by what they are about: a path, or everyPath
}

// run sets what the last attempt came to. Where the branch moves in between, what to write is worked out anew on the
// new tip: a commit is applied again, never rebased.
func (u *updater) run(ctx context.Context) {
	u.update(ctx)
	u.stale(ctx)
}

func (u *updater) update(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, updateTimeout, fmt.Errorf("not done within %v", updateTimeout))
	defer cancel()
	log := u.c.o.Log.With("repository", u.target.repository.URL, "branch", u.target.branch)
	tip := u.target.tip
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		var err error
		if tip == nil {
			tip, err = u.target.read(ctx)
		}
		if err == nil {
			u.tip = tip
			err = u.attempt(ctx, tip)
		}
		if errors.Is(err, gitrepo.ErrMoved) {
			log.Info("branch moved, applying again")
			tip = nil
			return struct{}{}, err
		}
		if err != nil {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, nil
	}, backoff.WithMaxTries(pushAttempts), backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.9, Multiplier: 1.6, MaxInterval: 2 * time.Second,
	}))
	switch {
	case errors.Is(err, gitrepo.ErrBranch):
		log.Info("branch is gone, nothing to write")
	case err != nil:
		u.problems = append(u.problems, fmt.Errorf("branch %s: %w", u.target.branch, err))
		u.byPath[everyPath] = append(u.byPath[everyPath], err)
	case u.commit != nil:
		subject, _, _ := strings.Cut(u.commit.Message, "\n")
		log.Info("committed", "commit", u.commit.Hash, "subject", subject)
	}
}

// attempt works out the commit on top of tip and pushes it. It returns what [gitrepo.Snapshot.Files],
// [gitrepo.Snapshot.Log] and [gitrepo.Snapshot.Push] return.
func (u *updater) attempt(ctx context.Context, tip *gitrepo.Snapshot) error {
	u.problems, u.byPath = nil, map[string][]error{}
	if u.target.refused != nil {
		return u.target.refused
	}
	locks, err := u.read(ctx, tip)
	if err != nil {
		return err
	}
	u.locks = locks
	seen := u.looks.at(ctx, u.wanted(locks))
	edits := u.edits(tip, locks, seen)
	if len(edits) == 0 {
		u.branch.pause.settled(time.Time{})
		return nil
	}
	if u.target.records == nil { // nobody decides on a lock branch
		if err := u.respect(ctx, tip, locks, edits); err != nil {
			return err
		}
	}
	change := gitrepo.Change{Files: map[string][]byte{}, Author: u.c.o.Author, Committer: u.c.o.Committer, Sign: u.c.o.Sign, Mark: u.target.records == nil, When: time.Now()}
	var moves []move
	after := maps.Clone(locks)
	for _, dir := range slices.Sorted(maps.Keys(edits)) {
		next := edits[dir]
		found := changes(locks[dir], next)
		if len(found) == 0 {
			continue
		}
		change.Files[lockFile(dir)] = next.Format()
		after[dir] = next
		for _, m := range found {
			m.dir, m.sources = dir, u.target.paths[dir].sources
			moves = append(moves, m)
		}
	}
	if len(moves) == 0 {
		u.branch.pause.settled(time.Time{})
		return nil
	}
	if change.Message, err = u.c.message(u.target, moves); err != nil {
		return err
	}
	if u.target.head != "" {
		return u.propose(ctx, tip, change, moves, after)
	}
	if u.waits = u.branch.pause.wait(u.quiet, change.Message, change.When); u.waits {
		return nil
	}
	u.addOrigins(ctx, moves)
	if change.Message, err = u.c.message(u.target, moves); err != nil {
		return err
	}
	u.branch.pause.settled(time.Time{})
	hash, err := tip.Push(ctx, change)
	if err != nil {
		u.branch.pushed = "" // the branch may have moved, and its mark not
		return err
	}
	u.branch.pause.settled(change.When)
	u.branch.pushed = hash
	for dir, doc := range after {
		u.branch.left[dir] = left{hash, tip.Commit(), doc}
	}
	maps.DeleteFunc(u.branch.left, func(dir string, _ left) bool { // paths come and go, as those of previews do
		_, here := after[dir]
		return !here && gone(u.target.rendered(tip), dir)
	})
	u.locks = after
	u.committed(hash, change)
	u.unmarked()
	u.tell(ctx, hash, moves)
	return nil
}

// unmarked says once where a server takes the branch and not its mark.
func (u *updater) unmarked() {
	err := u.target.repository.Remote.MarkRefused(u.target.branch)
	if err != nil && !u.branch.unmarked {
		u.c.o.Log.Warn("mark refused, the branch was pushed without", "repository", u.target.repository.URL, "branch", u.target.branch,
			"error", err, "code", fault.CodeOf(err), "hint", fault.Hint(err))
	}
	u.branch.unmarked = err != nil
}

// committed notes what was pushed.
func (u *updater) committed(hash string, change gitrepo.Change) {
	u.commit = &Commit{Repository: u.target.repository.URL, Branch: cmp.Or(change.Onto, u.target.branch), Hash: hash, Message: change.Message}
	u.branch.last, u.branch.at = u.commit, change.When
}

// edits returns what the locks are to be, where that is not what they are.
func (u *updater) edits(tip *gitrepo.Snapshot, locks map[string]*lock.Document, seen map[look]lock.Pin) map[string]*lock.Document {
	edits := map[string]*lock.Document{}
	rendered := u.target.rendered(tip).Commit()
	for dir, doc := range locks {
		o := u.target.paths[dir]
		next := merge(doc, observed(doc, o, seen, rendered))
		if u.complete && u.c.o.Cluster != nil {
			next = dropped(next, o, rendered)
		}
		if len(changes(doc, next)) > 0 {
			edits[dir] = next
		}
	}
	return edits
}

// merge is [lock.Merge] for a lock that may have times in the future, which a clock that jumped has left there: they keep
// no pin from moving.
func merge(doc *lock.Document, seen []lock.Pin) *lock.Document {
	if doc == nil {
		return lock.Merge(nil, seen)
	}
	past := &lock.Document{Pins: slices.Clone(doc.Pins)}
	for i, p := range past.Pins {
		if future(p.ResolvedAt) {
			past.Pins[i].ResolvedAt = time.Time{}
		}
	}
	next := lock.Merge(past, seen)
	for i, p := range next.Pins {
		if q, ok := doc.Find(p.Image); ok && q.Digest == p.Digest {
			next.Pins[i] = q
		}
	}
	return next
}

// dropped leaves out the pins of images that no Application of the path rendered at commit. Nothing is dropped before
// all of them have been rendered there, and a pin that a person holds never is.
func dropped(doc *lock.Document, o *observation, commit string) *lock.Document {
	images, all := o.rendered(commit)
	if !all {
		return doc
	}
	return &lock.Document{Pins: slices.DeleteFunc(slices.Clone(doc.Pins), func(p lock.Pin) bool {
		return !images[p.Image] && p.Hold == nil
	})}
}

// read returns the lock of each path, nil where there is none yet. A path that may not be written, or whose lock a
// person broke, is a problem of its own and left as it is.
func (u *updater) read(ctx context.Context, tip *gitrepo.Snapshot) (map[string]*lock.Document, error) {
	locks := map[string]*lock.Document{}
	dirs := map[string]string{} // by lock file
	rendered := u.target.rendered(tip)
	for _, dir := range slices.Sorted(maps.Keys(u.target.paths)) {
		switch err := holdsKustomization(rendered, dir); {
		case err != nil && gone(rendered, dir): // a ledger remembers what was rendered there before
			u.c.o.Log.Info("path is gone, nothing to write", "repository", u.target.repository.URL, "branch", u.target.branch, "path", dir)
		case err != nil:
			u.leave(dir, err)
		default:
			dirs[lockFile(dir)] = dir
		}
	}
	data, err := u.files(ctx, tip, dirs)
	if err != nil {
		return nil, err
	}
	for _, file := range slices.Sorted(maps.Keys(dirs)) {
		content, ok := data[file]
		if !ok {
			locks[dirs[file]] = nil
			continue
		}
		doc, err := lock.Parse(file, content)
		if err != nil {
			u.leave(dirs[file], err)
			continue
		}
		locks[dirs[file]] = doc
	}
	return locks, nil
}

// files reads the locks that exist. It takes those that cannot be one out of dirs.
func (u *updater) files(ctx context.Context, tip *gitrepo.Snapshot, dirs map[string]string) (map[string][]byte, error) {
	for {
		data, err := tip.Files(ctx, slices.Sorted(maps.Keys(dirs)))
		bad, ok := errors.AsType[*fs.PathError](err)
		if !ok || dirs[bad.Path] == "" {
			return data, err
		}
		dir := dirs[bad.Path]
		delete(dirs, bad.Path)
		u.leave(dir, fault.New(fault.LockNotAFile, "put a regular file there, or delete it and let the companion write it anew", "%s: %w", bad.Path, bad.Err))
	}
}

// everyPath is no path of a repository, and stands for all.
const everyPath = ""

// leave notes why a path is left as it is.
func (u *updater) leave(dir string, err error) {
	u.problems = append(u.problems, fmt.Errorf("%s@%s: %w", u.target.repository.URL, u.target.branch, err))
	u.byPath[dir] = append(u.byPath[dir], err)
}

// report adds what keeps locks from being brought up to date: a path's problem for its sources, a branch's for all.
func (u *updater) report(t trouble) {
	for dir, o := range u.target.paths {
		t.add(o.sources, u.byPath[everyPath]...)
		t.add(o.sources, u.byPath[dir]...)
	}
}

// holdsKustomization refuses a path that is no overlay: whoever renders also names the path.
func holdsKustomization(tip *gitrepo.Snapshot, dir string) error {
	const hint = "a lock is written only beside a kustomization, in a directory of the repository"
	if !fs.ValidPath(dir) {
		return fault.New(fault.NoKustomization, hint, "path %q leads out of the repository", dir)
	}
	names, err := tip.Names(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NoKustomization, hint, "path %q is not a directory", dir)
	}
	if err != nil {
		return err
	}
	for _, n := range lock.Kustomizations {
		if slices.Contains(names, n) {
			return nil
		}
	}
	return fault.New(fault.NoKustomization, hint, "no kustomization in %q", dir)
}

// gone reports whether the repository has nothing at dir, not even something else.
func gone(tip *gitrepo.Snapshot, dir string) bool {
	if dir == "." || !fs.ValidPath(dir) {
		return false
	}
	names, err := tip.Names(path.Dir(dir))
	if err != nil {
		return gone(tip, path.Dir(dir))
	}
	return !slices.Contains(names, path.Base(dir))
}

func lockFile(dir string) string { return path.Join(dir, lock.FileName) }

// wanted returns what the locks track and what is rendered beside them, as each project sees it that renders there.
func (u *updater) wanted(locks map[string]*lock.Document) map[look]bool {
	wanted := map[look]bool{}
	for dir, doc := range locks {
		o := u.target.paths[dir]
		pins := o.pins
		if doc != nil {
			pins = slices.Concat(pins, doc.Pins)
		}
		for _, project := range o.projects() {
			for _, p := range pins {
				wanted[look{project, p.Image}] = true
			}
		}
	}
	return wanted
}

// observed returns what a path's lock is to learn: the newest look at each of its images, and at those rendered there
// that it lacks. Only a look at the registry moves a pin. What a ledger says of an image that the lock has comes from
// the lock of the commit that was rendered, which may be anybody's, and dated as they please.
//
// Where no Application of the path follows it, the lock is the record of what those of mode live rendered at the tip,
// where they take no digest from a lock, and is not ahead of it.
func observed(doc *lock.Document, o *observation, seen map[look]lock.Pin, tip string) []lock.Pin {
	if !o.has(follow) {
		return o.recorded(tip)
	}
	var pins []lock.Pin
	for _, p := range o.pins {
		if _, locked := doc.Find(p.Image); !locked {
			pins = append(pins, p)
		}
	}
	tracked := o.pins
	if doc != nil {
		tracked = slices.Concat(tracked, doc.Pins)
	}
	for _, project := range o.projects() {
		for _, p := range tracked {
			if now, ok := seen[look{project, p.Image}]; ok {
				pins = append(pins, now)
			}
		}
	}
	return newestPins(pins)
}
