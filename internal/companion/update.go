package companion

import (
	"context"
	"errors"
	"fmt"
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

// update brings one branch up to date. Where the branch moves in between, what to write is worked out anew on the new
// tip: a commit is applied again, never rebased.
func (c *Companion) update(ctx context.Context, t *target, replicas []Replica) (*Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	log := c.o.Log.With("repository", t.repository.URL, "revision", t.revision)
	u := &updater{c: c, target: t, replicas: replicas, seen: map[string]lock.Pin{}}
	commit, err := backoff.Retry(ctx, func() (*Commit, error) {
		commit, err := u.attempt(ctx)
		if errors.Is(err, gitrepo.ErrMoved) {
			log.Info("branch moved, applying again")
			return nil, err
		}
		if err != nil {
			return nil, backoff.Permanent(err)
		}
		return commit, nil
	}, backoff.WithMaxTries(pushAttempts), backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.9, Multiplier: 1.6, MaxInterval: 2 * time.Second,
	}))
	switch {
	case errors.Is(err, gitrepo.ErrBranch):
		log.Info("target revision is not a branch, nothing to write there")
		return nil, nil
	case err != nil:
		u.skipped = append(u.skipped, fmt.Errorf("%s@%s: %w", t.repository.URL, t.revision, err))
	case commit != nil:
		subject, _, _ := strings.Cut(commit.Message, "\n")
		log.Info("committed", "branch", commit.Branch, "commit", commit.Hash, "subject", subject)
	}
	return commit, errors.Join(u.skipped...)
}

// updater is the work on one branch over all its attempts.
type updater struct {
	c        *Companion
	target   *target
	replicas []Replica
	seen     map[string]lock.Pin // looks at the registries, taken once for all attempts
	skipped  []error             // what stood in the way of single paths at the last attempt
}

// attempt works out the commit for the branch as it is now and pushes it. A nil commit means nothing to do. It returns
// what [gitrepo.Remote.Read] and [gitrepo.Snapshot.Push] return.
func (u *updater) attempt(ctx context.Context) (*Commit, error) {
	u.skipped = nil
	snapshot, err := u.target.repository.Remote.Read(ctx, u.target.revision)
	if err != nil {
		return nil, err
	}
	locks, err := u.read(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	u.look(ctx, locks)
	change := gitrepo.Change{Files: map[string][]byte{}, Author: u.c.o.Author, Committer: u.c.o.Author, When: time.Now()}
	var moves []move
	for _, dir := range slices.Sorted(maps.Keys(locks)) {
		o := u.target.paths[dir]
		next := lock.Merge(locks[dir], u.observed(locks[dir], o))
		changes := lock.Diff(locks[dir], next)
		if len(changes) == 0 {
			continue
		}
		change.Files[lockFile(dir)] = next.Format()
		for _, ch := range changes {
			moves = append(moves, move{Change: ch, dir: dir, apps: o.apps})
		}
	}
	if len(moves) == 0 {
		return nil, nil
	}
	change.Message = message(moves)
	hash, err := snapshot.Push(ctx, change)
	if errors.Is(err, gitrepo.ErrNoChange) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &Commit{Repository: u.target.repository.URL, Branch: snapshot.Branch(), Hash: hash, Message: change.Message}, nil
}

// read returns the lock of each path, nil where there is none yet. A path that may not be written, or whose lock a
// person broke, is skipped and left as it is.
func (u *updater) read(ctx context.Context, s *gitrepo.Snapshot) (map[string]*lock.Document, error) {
	var files []string
	var dirs []string
	for _, dir := range slices.Sorted(maps.Keys(u.target.paths)) {
		if err := holdsKustomization(s, dir); err != nil {
			u.skip(dir, err)
			continue
		}
		dirs = append(dirs, dir)
		files = append(files, lockFile(dir))
	}
	all, err := s.Files(ctx, files)
	if err != nil && !errors.Is(err, gitrepo.ErrNotRegular) {
		return nil, err
	}
	locks := map[string]*lock.Document{}
	for i, dir := range dirs {
		found := all
		if err != nil { // one of them is a link: find out which
			one, err := s.Files(ctx, files[i:i+1])
			if err != nil {
				u.skip(dir, err)
				continue
			}
			found = one
		}
		data, ok := found[files[i]]
		if !ok {
			locks[dir] = nil
			continue
		}
		doc, err := lock.Parse(files[i], data)
		if err != nil {
			u.skip(dir, err)
			continue
		}
		locks[dir] = doc
	}
	return locks, nil
}

func (u *updater) skip(dir string, err error) {
	u.skipped = append(u.skipped, fmt.Errorf("%s@%s, path %s: %w", u.target.repository.URL, u.target.revision, dir, err))
}

// holdsKustomization refuses a path that is no overlay: whoever renders also names the path.
func holdsKustomization(s *gitrepo.Snapshot, dir string) error {
	names, err := s.Names(clean(dir))
	if err != nil {
		return err
	}
	for _, n := range lock.Kustomizations {
		if slices.Contains(names, n) {
			return nil
		}
	}
	return fault.New("a lock is written only beside a kustomization", "no kustomization in %q", dir)
}

// clean turns Argo CD's spelling of a path ("./", "a/b/") into Git's. What escapes the repository is left for gitrepo
// to refuse.
func clean(dir string) string { return path.Clean(strings.TrimLeft(dir, "/")) }

func lockFile(dir string) string { return path.Join(clean(dir), lock.FileName) }

// look asks the resolvers where the tags stand that the locks and the renders name, unless it did so for an earlier
// attempt. Of several replicas' looks the newest counts. An image that cannot be resolved keeps its pin.
func (u *updater) look(ctx context.Context, locks map[string]*lock.Document) {
	refs := u.unseen(locks)
	if len(refs) == 0 {
		return
	}
	failed := map[string]error{}
	for _, r := range u.replicas {
		results, err := r.Resolve(ctx, nil, nil, refs)
		if err != nil {
			u.skipped = append(u.skipped, err)
			continue
		}
		for _, res := range results {
			key := res.Ref.String()
			switch {
			case res.Err != nil:
				failed[key] = res.Err
			case res.At.After(u.seen[key].ResolvedAt):
				u.seen[key] = lock.Pin{Image: key, Digest: res.Digest, ResolvedAt: res.At}
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(failed)) {
		if _, ok := u.seen[key]; !ok {
			u.c.o.Log.Warn("image not resolved, its pin stays", "image", key, "error", failed[key])
		}
	}
}

func (u *updater) unseen(locks map[string]*lock.Document) []image.Ref {
	wanted := map[string]image.Ref{}
	add := func(pins []lock.Pin) {
		for _, p := range pins {
			if _, ok := u.seen[p.Image]; ok {
				continue
			}
			if ref, err := image.Parse(p.Image); err == nil { // a lock has no others, a ledger is not ours to trust
				wanted[p.Image] = ref
			}
		}
	}
	for dir, doc := range locks {
		add(u.target.paths[dir].pins)
		if doc != nil {
			add(doc.Pins)
		}
	}
	refs := make([]image.Ref, 0, len(wanted))
	for _, k := range slices.Sorted(maps.Keys(wanted)) {
		refs = append(refs, wanted[k])
	}
	return refs
}

// observed returns the newest look at each image of a path: of those that its lock tracks, and those rendered there.
func (u *updater) observed(doc *lock.Document, o *observation) []lock.Pin {
	pins := slices.Clone(o.pins)
	for _, p := range o.pins {
		if s, ok := u.seen[p.Image]; ok {
			pins = append(pins, s)
		}
	}
	if doc != nil {
		for _, p := range doc.Pins {
			if s, ok := u.seen[p.Image]; ok {
				pins = append(pins, s)
			}
		}
	}
	return newestPins(pins)
}
