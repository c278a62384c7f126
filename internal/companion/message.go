package companion

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// move is one pin that a commit changes.
type move struct {
	image    string
	old, new string     // digests; old is "" for a new image, new for one that is dropped; equal when only the hold changes
	hold     *lock.Hold // that the commit adds
	dir      string
	sources  []source

	revision, source string // what the new image says it was built from; "" where that is not known
}

// changes returns what differs between two locks, sorted by image.
func changes(old, next *lock.Document) []move {
	var all []move
	for _, ch := range lock.Diff(old, next) {
		all = append(all, move{image: ch.Image, old: ch.Old, new: ch.New})
	}
	for _, p := range next.Pins {
		if q, ok := old.Find(p.Image); ok && p.Hold != nil && (q.Hold == nil || p.Hold.Rejected != q.Hold.Rejected) && p.Digest == q.Digest {
			all = append(all, move{image: p.Image, old: p.Digest, new: p.Digest, hold: p.Hold})
		}
	}
	slices.SortStableFunc(all, func(a, b move) int { return strings.Compare(a.image, b.image) })
	return all
}

// Message is what a commit message is made of.
type Message struct {
	Subject    string // as the default message has it
	Repository string // its URL
	Branch     string
	Images     []MessageImage // sorted by image
}

// MessageImage is one image that a commit changes in the same way wherever it does.
type MessageImage struct {
	Image    string // full reference, with its tag
	Name     string // the last two components of its repository: what a team calls it
	Old, New string // digests; Old is "" for a new image, New for one that is no longer rendered
	Rejected string // with Reason: the digest that the pin is held back from
	Reason   string
	Revision string // of the source that the new image was built from, as the image says; "" when that is not known
	Source   string // URL of that source, without user and password; "" when it is not known
	Places   []MessagePlace
}

// MessagePlace is one lock that has the image, and the Applications that render it, by name.
type MessagePlace struct {
	File         string
	Applications []string
}

// DefaultMessage is what a commit says unless another message is wanted: what moved in the subject, and for each image its
// full reference, both digests, where the new one comes from as far as that is known, and where it is rendered.
func DefaultMessage(m Message) (string, error) {
	var b strings.Builder
	b.WriteString(m.Subject + "\n")
	for _, i := range m.Images {
		b.WriteString("\n" + i.Image + "\n")
		if i.Rejected != "" {
			b.WriteString("  stays at " + i.New + "\n  rejected " + i.Rejected + ": " + i.Reason + "\n")
		} else {
			b.WriteString("  " + cmp.Or(i.Old, "(new)") + " → " + cmp.Or(i.New, "(no longer rendered)") + "\n")
		}
		switch {
		case i.Source != "" && i.Revision != "":
			b.WriteString("  source " + i.Source + " at " + i.Revision + "\n")
		case i.Source != "":
			b.WriteString("  source " + i.Source + "\n")
		case i.Revision != "":
			b.WriteString("  revision " + i.Revision + "\n")
		}
		for _, p := range i.Places {
			b.WriteString("  in " + p.File + " for " + strings.Join(p.Applications, ", ") + "\n")
		}
	}
	return b.String(), nil
}

// message returns the message of a commit. The trailer, by which the companion knows its own commits again, is in all.
func (c *Companion) message(t *target, moves []move) (string, error) {
	m := Message{Repository: lock.WithoutUser(t.repository.URL), Branch: t.branch, Images: images(moves)}
	m.Subject = subject(m.Images)
	text, err := c.o.Message(m)
	if text = strings.TrimSpace(text); err == nil && text == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fault.New(fault.Usage, "mend the template of --message-template", "commit message: %w", err)
	}
	if c.o.SkipCI {
		text += "\n\n[skip ci]"
	}
	return text + "\n\n" + trailer + " " + oneLine(c.o.Version) + "\n", nil
}

// images puts together what happens to one image in several places.
func images(moves []move) []MessageImage {
	slices.SortStableFunc(moves, func(a, b move) int {
		return strings.Compare(a.image+" "+a.old+" "+a.new+" "+a.dir, b.image+" "+b.old+" "+b.new+" "+b.dir)
	})
	var all []MessageImage
	for _, m := range moves {
		next := MessageImage{Image: m.image, Name: shortName(m.image), Old: m.old, New: m.new, Revision: m.revision, Source: m.source}
		if m.hold != nil {
			next.Rejected, next.Reason = m.hold.Rejected, oneLine(m.hold.Reason)
		}
		if n := len(all); n == 0 || !all[n-1].same(next) {
			all = append(all, next)
		}
		place := MessagePlace{File: oneLine(lockFile(m.dir))}
		for _, s := range m.sources {
			place.Applications = append(place.Applications, oneLine(s.Name))
		}
		place.Applications = slices.Compact(slices.Sorted(slices.Values(place.Applications)))
		last := &all[len(all)-1]
		last.Places = append(last.Places, place)
	}
	return all
}

func (m MessageImage) same(n MessageImage) bool {
	return m.Image == n.Image && m.Old == n.Old && m.New == n.New && m.Rejected == n.Rejected && m.Reason == n.Reason
}

func subject(images []MessageImage) string {
	names := map[string]bool{}
	verbs := map[string]bool{}
	for _, m := range images {
		names[m.Image] = true
		verbs[m.verb()] = true
	}
	verb := "auto-update"
	if len(verbs) == 1 {
		verb = images[0].verb()
	}
	if len(names) > 1 {
		return fmt.Sprintf("build: %s %d images", verb, len(names))
	}
	m := images[0]
	switch verb {
	case "hold":
		return fmt.Sprintf("build: hold %s at %s", m.Name, Short(m.New))
	case "drop":
		return fmt.Sprintf("build: drop %s", m.Name)
	}
	return fmt.Sprintf("build: auto-update %s to %s", m.Name, Short(m.New))
}

func (m MessageImage) verb() string {
	switch {
	case m.Rejected != "":
		return "hold"
	case m.New == "":
		return "drop"
	}
	return "auto-update"
}

// shortName returns the last two components of an image's repository: what a team calls it.
func shortName(full string) string {
	ref, err := image.Parse(full)
	if err != nil {
		return full
	}
	parts := strings.Split(ref.Repository, "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/")
}

// shortDigest is how many hex digits of a digest a subject shows, as many as docker shows of an image ID.
const shortDigest = 12

// Short returns a digest in few digits, for people.
func Short(digest string) string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	return algorithm + ":" + hex[:min(shortDigest, len(hex))] + "…"
}

// oneLine keeps line breaks, and whatever else does not show as it is, out of a commit message: whoever renders names
// applications and paths.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
