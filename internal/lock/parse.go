package lock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// MaxSize bounds a lock file. A pin is about 200 bytes, so this is some five thousand images in one overlay.
const MaxSize = 1 << 20

// Parse reads a lock file. Name is used in errors only. It refuses, naming file and line: anything over [MaxSize],
// merge conflict markers, unknown fields, other versions, more than one document, pins that are not a normalised
// reference with a digest, and an image listed twice. The error carries a hint.
func Parse(name string, data []byte) (*Document, error) {
	d, err := parse(name, data)
	if err == nil && d.Source != nil {
		return nil, broken(name, errors.New("source belongs into a resolver's ledger, not into a lock file"))
	}
	return d, err
}

// ParseEntry reads a ledger entry: a document that has a source.
func ParseEntry(name string, data []byte) (*Document, error) {
	d, err := parse(name, data)
	if err == nil && d.Source == nil {
		return nil, broken(name, errors.New("no source"))
	}
	return d, err
}

func parse(name string, data []byte) (*Document, error) {
	if len(data) > MaxSize {
		return nil, fault.New(fault.LockInvalid, "a lock this large was not written by digestlock: restore it from Git",
			"%s: %d bytes, more than the %d a lock may have", name, len(data), MaxSize)
	}
	if d := written(data); d != nil {
		return d, nil
	}
	return parseYAML(name, data)
}

func parseYAML(name string, data []byte) (*Document, error) {
	if line := conflictMarker(data); line > 0 {
		return nil, fault.New(fault.LockConflict, "resolve the merge: keep either side, the companion brings the digests up to date",
			"%s:%d: merge conflict marker", name, line)
	}
	if bytes.HasPrefix(data, []byte("version https://git-lfs.github.com/spec/")) {
		return nil, fault.New(fault.LockInvalid, "take "+FileName+" out of Git LFS in .gitattributes: with \"-filter -diff -merge\" after it",
			"%s: a pointer of Git LFS, not a lock", name)
	}
	root, err := document(data)
	if err != nil {
		return nil, broken(name, err)
	}
	// The version first: a newer format may have fields that this one does not know.
	if v := scalarAt(root, "apiVersion"); v.Value != apiVersion {
		return nil, fault.New(fault.LockVersion, "upgrade digestlock, or restore the lock from Git",
			"%s:%d: apiVersion %q, this digestlock reads %s", name, max(v.Line, 1), v.Value, apiVersion)
	}
	out := &Document{}
	err = mapping(root, map[string]func(*yaml.Node) error{
		"apiVersion": func(*yaml.Node) error { return nil },
		"kind": func(n *yaml.Node) error {
			if n.Value != kind {
				return at(n, "kind %q, want %s", n.Value, kind)
			}
			return nil
		},
		"source": func(n *yaml.Node) (err error) {
			out.Source, err = parseSource(n)
			return err
		},
		"pins": func(n *yaml.Node) (err error) {
			out.Pins, err = parsePins(n)
			return err
		},
	}, "kind", "pins")
	if err != nil {
		return nil, broken(name, err)
	}
	return out, nil
}

// document returns the one YAML document in data.
func document(data []byte) (*yaml.Node, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("empty")
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	return doc.Content[0], nil
}

func parseSource(n *yaml.Node) (*Source, error) {
	s := &Source{}
	keys := []string{"project", "application", "repoURL", "targetRevision", "path", "revision", "renderedAt"}
	return s, mapping(n, map[string]func(*yaml.Node) error{
		"project":        text(&s.Project),
		"application":    text(&s.Application),
		"repoURL":        text(&s.Repository),
		"targetRevision": text(&s.TargetRevision),
		"path":           text(&s.Path),
		"mode":           text(&s.Mode),
		"revision":       text(&s.Revision),
		"renderedAt":     timestamp(&s.RenderedAt),
	}, keys...)
}

func parsePins(n *yaml.Node) ([]Pin, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, at(n, "pins is not a list")
	}
	pins := make([]Pin, 0, len(n.Content))
	line := map[string]int{}
	for _, item := range n.Content {
		p := Pin{}
		if err := mapping(item, map[string]func(*yaml.Node) error{
			"image":      reference(&p.Image),
			"digest":     digest(&p.Digest),
			"resolvedAt": timestamp(&p.ResolvedAt),
			"hold": func(n *yaml.Node) error {
				p.Hold = &Hold{}
				return mapping(n, map[string]func(*yaml.Node) error{
					"rejected": digest(&p.Hold.Rejected),
					"reason":   text(&p.Hold.Reason),
					"until":    end(&p.Hold.Until),
				})
			},
		}, "image", "digest", "resolvedAt"); err != nil {
			return nil, err
		}
		if first, ok := line[p.Image]; ok {
			return nil, at(item, "image %s is listed already in line %d", p.Image, first)
		}
		line[p.Image] = item.Line
		pins = append(pins, p)
	}
	sortPins(pins)
	return pins, nil
}

// mapping hands each value of n to the function for its key. A key without function, a key given twice and a missing
// required key are errors.
func mapping(n *yaml.Node, fields map[string]func(*yaml.Node) error, required ...string) error {
	if n.Kind != yaml.MappingNode {
		return at(n, "want fields here (%s)", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		set, ok := fields[k.Value]
		switch {
		case !ok:
			return at(k, "unknown field %q", k.Value)
		case seen[k.Value]:
			return at(k, "field %q given twice", k.Value)
		}
		seen[k.Value] = true
		if err := set(v); err != nil {
			return err
		}
	}
	for _, k := range required {
		if !seen[k] {
			return at(n, "no field %q", k)
		}
	}
	return nil
}

func text(into *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode {
			return at(n, "want text here")
		}
		*into = n.Value
		return nil
	}
}

func timestamp(into *time.Time) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		t, err := time.Parse(time.RFC3339, n.Value)
		if err != nil {
			return at(n, "%q is not an RFC 3339 time", n.Value)
		}
		*into = t.UTC().Truncate(time.Millisecond)
		if y := into.Year(); y < 1 || y > 9999 {
			return at(n, "%q is out of range", n.Value)
		}
		return nil
	}
}

// end is timestamp without the zero time, which would mean no end.
func end(into *time.Time) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if err := timestamp(into)(n); err != nil {
			return err
		}
		if into.IsZero() {
			return at(n, "%q is out of range", n.Value)
		}
		return nil
	}
}

func digest(into *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if !image.IsDigest(n.Value) {
			return at(n, "digest %q is not sha256: and 64 lower-case hex digits", n.Value)
		}
		*into = n.Value
		return nil
	}
}

func reference(into *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if _, err := image.ParseFull(n.Value); err != nil {
			return at(n, "%v", err)
		}
		*into = n.Value
		return nil
	}
}

// scalarAt returns the value of key in n, or an empty node.
func scalarAt(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return &yaml.Node{}
}

// lineError is a mistake in one line of the document.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string { return e.text }

func at(n *yaml.Node, format string, args ...any) error {
	return &lineError{line: n.Line, text: fmt.Sprintf(format, args...)}
}

// conflictMarker returns the first line that starts like a Git conflict marker, or 0.
func conflictMarker(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		for _, m := range []string{"<<<<<<<", "|||||||", ">>>>>>>", "=======\n"} {
			if bytes.HasPrefix(line, []byte(m)) {
				return n
			}
		}
	}
	return 0
}

// broken is the error for a lock that only a person can have made. It names the line when err knows it.
func broken(name string, err error) error {
	if e, ok := errors.AsType[*lineError](err); ok {
		name = fmt.Sprintf("%s:%d", name, e.line)
	}
	return fault.New(fault.LockInvalid, "restore the file from Git, or delete it and let the companion write it anew", "%s: %w", name, err)
}
