// Package lock reads, writes and combines digest-lock documents: which digest stands behind each mutable tag of an
// overlay. It is pure: bytes in, bytes out, no files and no clock.
//
// The same document serves twice. Beside an overlay in Git it is digest-lock.yaml and carries no source; in the
// resolver's ledger it carries the source whose render it describes.
package lock

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/image"
)

const (
	// FileName is the lock's name beside the overlay. The .yaml matters: Argo CD's server-side local diff uploads
	// only *.yaml and a few others (measured, v3.5.7).
	FileName = "digest-lock.yaml"

	apiVersion = "digestlock.dev/v1"
	kind       = "DigestLock"
)

// Kustomizations are the names of the file that a lock lies beside: those under which kustomize looks for it.
var Kustomizations = [...]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// Document is one digest-lock document. A parsed Document has its pins sorted by image, each image once.
type Document struct {
	Source *Source `json:"source,omitempty"` // nil in a lock file, set in a ledger entry
	Pins   []Pin   `json:"pins"`
}

// Trailer is the key of the last line of the companion's commit messages, which has its version. It tells its commits from
// people's.
const Trailer = "Digestlock-Companion"

// Pin is the digest behind one mutable tag.
type Pin struct {
	Image      string    `json:"image"`          // normalised full reference, "registry/repository:tag"
	Digest     string    `json:"digest"`         // "sha256:…": what is deployed
	ResolvedAt time.Time `json:"resolvedAt"`     // when the registry was asked; to the millisecond in a file
	Hold       *Hold     `json:"hold,omitempty"` // nil when the pin follows its tag
}

// Hold keeps a pin where it is although its tag has moved.
type Hold struct {
	Rejected string    `json:"rejected,omitempty"` // the one digest that is not adopted; "" keeps the pin whatever its tag does
	Reason   string    `json:"reason,omitempty"`
	Until    time.Time `json:"until,omitzero"` // when the hold is over; zero for never; to the millisecond in a file
}

// Keeps reports whether h is in force at the given time, when a pin's tag was seen at digest, and keeps the pin from
// moving there. A nil h keeps nothing.
func (h *Hold) Keeps(digest string, at time.Time) bool {
	switch {
	case h == nil, !h.Until.IsZero() && !h.Until.After(at):
		return false
	}
	return h.Rejected == "" || h.Rejected == digest
}

// Source is what a render rendered: one Application's view of one path of one repository.
type Source struct {
	Project        string    `json:"project"`
	Application    string    `json:"application"`
	Repository     string    `json:"repoURL"`
	TargetRevision string    `json:"targetRevision"`
	Path           string    `json:"path"`
	Mode           string    `json:"mode,omitempty"` // of the render; "" from programs before there was one
	Revision       string    `json:"revision"`       // commit, as Argo CD resolved it
	RenderedAt     time.Time `json:"renderedAt"`
}

// WithoutUser returns the URL of a repository without the user and password that it may hold, also where it is none that
// parses. It returns an address of another form, such as git@host:path, as it is.
func WithoutUser(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	host, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	return scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + path
}

// Find returns the pin of image, and whether there is one. It needs sorted pins, as [Parse] returns them.
func (d *Document) Find(image string) (Pin, bool) {
	if d == nil {
		return Pin{}, false
	}
	i, ok := slices.BinarySearchFunc(d.Pins, image, func(p Pin, s string) int { return strings.Compare(p.Image, s) })
	if !ok {
		return Pin{}, false
	}
	return d.Pins[i], true
}

// Check returns an error when a lock could not hold p. It is for pins that come from elsewhere than [Parse].
func (p Pin) Check() error {
	if _, err := image.ParseFull(p.Image); err != nil {
		return err
	}
	if !image.IsDigest(p.Digest) {
		return fmt.Errorf("image %s: %q is not a digest", p.Image, p.Digest)
	}
	if y := p.ResolvedAt.UTC().Year(); y < 1 || y > 9999 {
		return fmt.Errorf("image %s: resolvedAt is out of range", p.Image)
	}
	if h := p.Hold; h != nil {
		if h.Rejected != "" && !image.IsDigest(h.Rejected) {
			return fmt.Errorf("image %s: %q, which its hold rejects, is not a digest", p.Image, h.Rejected)
		}
		if y := h.Until.UTC().Year(); y < 1 || y > 9999 {
			return fmt.Errorf("image %s: its hold's until is out of range", p.Image)
		}
	}
	return nil
}

// Advance returns p as it should be once its tag was seen at digest at the given time, and whether that differs from
// p. What keeps p as it is: the same digest, its hold as [Hold.Keeps] says, and an observation that is not newer than
// p's own (a resolver replica that missed a flush answers from an older look). Moving ends the hold.
func (p Pin) Advance(digest string, at time.Time) (Pin, bool) {
	switch {
	case digest == p.Digest, !at.After(p.ResolvedAt), p.Hold.Keeps(digest, at):
		return p, false
	}
	return Pin{Image: p.Image, Digest: digest, ResolvedAt: at}, true
}

// Merge returns base with the pins of seen added for images that base does not have yet, and the pins that base has
// moved as [Pin.Advance] says. It never drops a pin, and never changes base.
func Merge(base *Document, seen []Pin) *Document {
	pins := map[string]Pin{}
	if base != nil {
		for _, p := range base.Pins {
			pins[p.Image] = p
		}
	}
	for _, s := range seen {
		p, ok := pins[s.Image]
		if !ok {
			p = s
			p.Hold = nil
		} else {
			p, _ = p.Advance(s.Digest, s.ResolvedAt)
		}
		pins[s.Image] = p
	}
	out := &Document{Pins: make([]Pin, 0, len(pins))}
	for _, p := range pins {
		out.Pins = append(out.Pins, p)
	}
	sortPins(out.Pins)
	return out
}

// With returns d with p in place of the pin of its image, or added to d's. It never changes d, which may be nil.
func (d *Document) With(p Pin) *Document {
	out := &Document{Pins: []Pin{p}}
	if d != nil {
		out.Source = d.Source
		out.Pins = append(out.Pins, slices.DeleteFunc(slices.Clone(d.Pins), func(q Pin) bool { return q.Image == p.Image })...)
	}
	sortPins(out.Pins)
	return out
}

// Change is one pin that differs between two documents. Old is "" for a new image, New is "" for one that is gone.
type Change struct{ Image, Old, New string }

// Diff returns the digests that differ between two documents, sorted by image. Either may be nil.
func Diff(old, cur *Document) []Change {
	var out []Change
	if cur != nil {
		for _, p := range cur.Pins {
			if q, _ := old.Find(p.Image); q.Digest != p.Digest {
				out = append(out, Change{Image: p.Image, Old: q.Digest, New: p.Digest})
			}
		}
	}
	if old != nil {
		for _, p := range old.Pins {
			if _, ok := cur.Find(p.Image); !ok {
				out = append(out, Change{Image: p.Image, Old: p.Digest})
			}
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Image, b.Image) })
	return out
}

func sortPins(pins []Pin) {
	slices.SortFunc(pins, func(a, b Pin) int { return strings.Compare(a.Image, b.Image) })
}
