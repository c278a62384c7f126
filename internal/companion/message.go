package companion

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"text/template"
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
}

// changes returns what differs between two locks, sorted by image.
func changes(old, next *lock.Document) []move {
	var all []move
	for _, ch := range lock.Diff(old, next) {
		all = append(all, move{image: ch.Image, old: ch.Old, new: ch.New})
	}
	for _, p := range next.Pins {
		if q, ok := old.Find(p.Image); ok && p.Hold != nil && q.Hold == nil && p.Digest == q.Digest {
			all = append(all, move{image: p.Image, old: p.Digest, new: p.Digest, hold: p.Hold})
		}
	}
	slices.SortStableFunc(all, func(a, b move) int { return strings.Compare(a.image, b.image) })
	return all
}

// Message is what a template of commit messages is given.
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
	Places   []MessagePlace
}

// MessagePlace is one lock that has the image, and the Applications that render it, by name.
type MessagePlace struct {
	File         string
	Applications []string
}

// DefaultMessage is the template of commit messages unless another is given.
const DefaultMessage = `{{.Subject}}
{{range .Images}}
{{.Image}}
{{- if .Rejected}}
  stays at {{.New}}
  rejected {{.Rejected}}: {{.Reason}}
{{- else}}
  {{or .Old "(new)"}} → {{or .New "(no longer rendered)"}}
{{- end}}
{{- range .Places}}
  in {{.File}} for {{join .Applications ", "}}
{{- end}}
{{end}}`

var defaultMessage = template.Must(ParseMessage(DefaultMessage))

// ParseMessage parses a template of commit messages, which is given a [Message]. It has the functions short (a digest's
// first 12 digits) and join (strings.Join). It returns an error for one that fails on an example.
func ParseMessage(text string) (*template.Template, error) {
	t, err := template.New("message").Option("missingkey=error").Funcs(template.FuncMap{"short": short, "join": strings.Join}).Parse(text)
	if err != nil {
		return nil, err
	}
	example := Message{Subject: "s", Repository: "r", Branch: "b", Images: []MessageImage{{
		Image: "i", Name: "n", Old: "o", New: "n", Places: []MessagePlace{{File: "f", Applications: []string{"a"}}},
	}}}
	var b bytes.Buffer
	if err := t.Execute(&b, example); err != nil {
		return nil, err
	}
	if strings.TrimSpace(b.String()) == "" {
		return nil, fmt.Errorf("the message is empty")
	}
	return t, nil
}

// message returns the message of a commit. The trailer, by which the companion knows its own commits again, is in all.
func (c *Companion) message(t *target, moves []move) (string, error) {
	m := Message{Repository: withoutUser(t.repository.URL), Branch: t.branch, Images: images(moves)}
	m.Subject = subject(m.Images)
	var b bytes.Buffer
	if err := c.o.Message.Execute(&b, m); err != nil {
		return "", fault.New(fault.Usage, "mend the template of --message-template", "commit message: %w", err)
	}
	text := strings.TrimSpace(b.String())
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
		next := MessageImage{Image: m.image, Name: shortName(m.image), Old: m.old, New: m.new}
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
		return fmt.Sprintf("build: hold %s at %s", m.Name, short(m.New))
	case "drop":
		return fmt.Sprintf("build: drop %s", m.Name)
	}
	return fmt.Sprintf("build: auto-update %s to %s", m.Name, short(m.New))
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

func short(digest string) string {
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
