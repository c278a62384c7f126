// Package history says from Git alone when each digest of a lock was adopted, by which commit, and who took it back or held
// it.
//
// It follows first parents: what the branch itself stood at, one commit after the other, which is what Argo CD rendered. A
// merge is one step of that, with its own author, whatever it brought. It reads a checkout with the git binary: the
// companion, which has no checkout, has package gitrepo.
package history

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/lock"
)

// Commit is a commit that changed a lock.
type Commit struct {
	Hash      string    `json:"hash"`
	When      time.Time `json:"when"` // when it was committed, which is when it was rebased or picked, if it was
	Author    string    `json:"author"`
	Email     string    `json:"email"`
	Subject   string    `json:"subject"`
	Companion string    `json:"companion,omitempty"` // the version of the companion that made it, "" for a person
	Merge     bool      `json:"merge,omitempty"`
}

// Kind is what happened to an image.
type Kind string

// The kinds.
const (
	Added      Kind = "added"      // to the lock
	Moved      Kind = "moved"      // to a digest that it was not at before
	Reverted   Kind = "reverted"   // to one that it was at before
	Dropped    Kind = "dropped"    // from the lock
	Held       Kind = "held"       // or held otherwise than before
	Released   Kind = "released"   // from a hold, by a person, or because it moved past it
	Known      Kind = "known"      // there when the history that is here begins
	Unreadable Kind = "unreadable" // the lock of the commit; what it did shows in the next one
)

// Event is something that a commit did to an image.
type Event struct {
	Commit *Commit    `json:"commit"`
	Kind   Kind       `json:"kind"`
	Image  string     `json:"image,omitempty"`  // "" when the lock cannot be read
	Old    string     `json:"old,omitempty"`    // digest
	New    string     `json:"new,omitempty"`    // digest; of Held and Released, where the pin is
	Undoes string     `json:"undoes,omitempty"` // of Reverted: the commit that had adopted Old
	Hold   *lock.Hold `json:"hold,omitempty"`   // of Held what it is, of Released what it was
	Error  string     `json:"error,omitempty"`  // of Unreadable
}

// History is what happened to a lock.
type History struct {
	Events []Event `json:"events"` // newest first; those of one commit by image
	CutOff bool    `json:"cutOff"` // the checkout is shallow, and there may be more
}

// Read returns the history of the lock in dir, which is in a checkout, up to the commit that is checked out. Errors of git
// are faults with a hint.
func Read(ctx context.Context, dir string, getenv func(string) string) (History, error) {
	g, err := newGit(dir, getenv)
	if err != nil {
		return History{}, err
	}
	shallow, err := g.shallow(ctx)
	if err != nil {
		return History{}, err
	}
	changes, err := g.log(ctx, lock.FileName)
	if err != nil {
		return History{}, err
	}
	b, err := g.blobs(ctx)
	if err != nil {
		return History{}, err
	}
	defer b.close()
	t := teller{doc: &lock.Document{}, seen: map[[2]string]bool{}, adopter: map[string]string{}}
	known := shallow && len(changes) > 0 && changes[0].root // not what the first commit did, but what it found
	var steps [][]Event
	for _, c := range changes {
		d, why, err := c.read(b)
		if err != nil {
			return History{}, err
		}
		if why != "" {
			steps = append(steps, []Event{{Commit: c.commit, Kind: Unreadable, Error: why}})
			continue
		}
		steps = append(steps, t.tell(c.commit, d, known))
		known = false
	}
	slices.Reverse(steps)
	return History{Events: append([]Event{}, slices.Concat(steps...)...), CutOff: shallow}, nil
}

// read returns the lock after the change, empty when it is gone. Why is set when it is there and no lock.
func (c change) read(b *blobs) (d *lock.Document, why string, err error) {
	switch {
	case c.blob == "":
		return &lock.Document{}, "", nil
	case !c.file:
		return nil, lock.FileName + " is not a regular file", nil
	}
	data, err := b.read(c.blob)
	if errors.Is(err, errMissing) {
		return nil, err.Error(), nil
	}
	if err != nil {
		return nil, "", err
	}
	if d, err = lock.Parse(lock.FileName, data); err != nil {
		return nil, err.Error(), nil
	}
	return d, "", nil
}

// teller goes through a history, oldest first.
type teller struct {
	doc     *lock.Document     // the newest that could be read
	seen    map[[2]string]bool // image and digest that were deployed
	adopter map[string]string  // by image: the commit that adopted the digest which it is at
}

// tell returns what the commit did to the lock, which is d after it, by image. Known says that who did that is not here.
func (t *teller) tell(c *Commit, d *lock.Document, known bool) []Event {
	var out []Event
	for _, ch := range lock.Diff(t.doc, d) {
		e := Event{Commit: c, Kind: Moved, Image: ch.Image, Old: ch.Old, New: ch.New}
		switch {
		case known:
			e.Kind = Known
		case ch.Old == "":
			e.Kind = Added
		case ch.New == "":
			e.Kind = Dropped
		case t.seen[[2]string{ch.Image, ch.New}]:
			e.Kind, e.Undoes = Reverted, t.adopter[ch.Image]
		}
		out = append(out, e)
		t.seen[[2]string{ch.Image, ch.New}] = true
		t.adopter[ch.Image] = c.Hash
	}
	for _, p := range d.Pins {
		was, _ := t.doc.Find(p.Image)
		switch {
		case p.Hold != nil && (was.Hold == nil || *p.Hold != *was.Hold):
			out = append(out, Event{Commit: c, Kind: Held, Image: p.Image, New: p.Digest, Hold: p.Hold})
		case p.Hold == nil && was.Hold != nil:
			out = append(out, Event{Commit: c, Kind: Released, Image: p.Image, New: p.Digest, Hold: was.Hold})
		}
	}
	slices.SortStableFunc(out, func(a, b Event) int { return strings.Compare(a.Image, b.Image) })
	t.doc = d
	return out
}
