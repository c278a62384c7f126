package render

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// Read takes manifests that somebody else rendered, within the limits of a file. Their Output has the very bytes that
// were read but for the scalars that are changed: comments, quoting, anchors, line ends and order stay.
//
// Read honours ctx by returning early. Somebody who reads from a pipe cannot be stopped, so that the caller is expected
// to end the process then.
func Read(ctx context.Context, from io.Reader) (*Output, error) { return readWithin(ctx, from, usual) }

func readWithin(ctx context.Context, from io.Reader, l limits) (*Output, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(io.LimitReader(from, l.file+1))
		done <- result{text, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("read manifests from stdin: %w", context.Cause(ctx))
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("read manifests from stdin: %w", r.err)
		}
		if int64(len(r.text)) > l.file {
			return nil, fault.New(fault.TooLarge, "pin less at once", "stdin has more than %d bytes", l.file)
		}
		s, err := parse(string(r.text), l.aliased)
		if err != nil {
			return nil, err
		}
		return &Output{objects: s.objects, encode: s.edited, maxBytes: l.output}, nil
	}
}

// stream is a YAML stream and what it says: its objects, with aliases and merge keys written out.
type stream struct {
	text    string
	objects []*yaml.Node
	uses    []use
	aliased int // nodes that its aliases may still add
}

// use is a scalar of an object. Its token, where it stands in the text, may be that of several: behind an anchor.
type use struct {
	scalar *yaml.Node
	token  *yaml.Node // a scalar, or an alias of one
}

// parse reads a stream whose aliases stand for at most maxAliased nodes.
func parse(text string, maxAliased int) (s *stream, err error) {
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("read manifests from stdin: yaml panicked: %v", p)
		}
	}()
	if !utf8.ValidString(text) {
		return nil, fault.New(fault.Manifests, "convert them to UTF-8", "the manifests on stdin are not UTF-8")
	}
	s = &stream{text: text, aliased: maxAliased}
	dec := yaml.NewDecoder(strings.NewReader(text))
	for number := 1; ; number++ {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err == nil {
			err = s.add(&doc)
		}
		if err != nil {
			code, hint := cmp.Or(fault.CodeOf(err), fault.Manifests), cmp.Or(fault.Hint(err), "correct it there, or see what the command in front of the pipe printed")
			return nil, fault.New(code, hint, "stdin: document %d: %w", number, err)
		}
	}
}

// add takes a document. One without content, between two separators, is none.
func (s *stream) add(doc *yaml.Node) error {
	c := counter{sizes: map[*yaml.Node]int{}}
	size := c.size(doc)
	if c.endless {
		return fault.New(fault.YAMLAlias, "write out what the alias stands for", "%w", errEndless)
	}
	if s.aliased -= size - c.written; s.aliased < 0 {
		return fault.New(fault.YAMLAlias, "write out what the aliases stand for", "yaml: aliases that stand for too much")
	}
	content := doc.Content[0]
	if content.Kind == yaml.ScalarNode && content.ShortTag() == "!!null" {
		return nil
	}
	o, err := s.expand(content)
	if err != nil {
		return err
	}
	kind := stringAt(o, "kind")
	if stringAt(o, "apiVersion") == "" || kind == "" {
		return atLine(content, "not a Kubernetes object, which has apiVersion and kind")
	}
	if items := lookup(o, "items"); kind == "List" && items != nil && len(items.Content) == 0 {
		return nil
	}
	s.objects = append(s.objects, o)
	return nil
}

func atLine(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...)
}

// stringAt returns the text under key, "" for anything else.
func stringAt(n *yaml.Node, key string) string {
	if v := lookup(n, key); v != nil && v.Kind == yaml.ScalarNode && v.ShortTag() == "!!str" {
		return v.Value
	}
	return ""
}

func lookup(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

// expand returns a copy of n in which no node stands for another one.
func (s *stream) expand(n *yaml.Node) (*yaml.Node, error) {
	target := resolved(n)
	out := *target
	out.Anchor, out.Content = "", nil
	children := target.Content
	switch target.Kind {
	case yaml.ScalarNode:
		s.uses = append(s.uses, use{&out, n})
	case yaml.MappingNode:
		var err error
		if children, err = pairs(target); err != nil {
			return nil, err
		}
	}
	for _, child := range children {
		c, err := s.expand(child)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, c)
	}
	return &out, nil
}

// pairs returns the keys and values of a map, in their order, with those that it merges in the place of the merge key.
// Readers of YAML disagree about which of two equal keys counts, so that they are an error.
func pairs(m *yaml.Node) ([]*yaml.Node, error) {
	own, merges := map[string]bool{}, false
	for i := 0; i+1 < len(m.Content); i += 2 {
		key := resolved(m.Content[i])
		if key.Kind != yaml.ScalarNode {
			return nil, atLine(m.Content[i], "a key that is not a text")
		}
		if own[key.Value] {
			return nil, atLine(m.Content[i], "key %q is there twice", key.Value)
		}
		own[key.Value] = true
		merges = merges || isMerge(key)
	}
	if !merges {
		return m.Content, nil
	}
	var out []*yaml.Node
	before := map[string]bool{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		if !isMerge(key) {
			before[resolved(key).Value] = true
			out = append(out, key, value)
			continue
		}
		merged, err := mergedPairs(value)
		if err != nil {
			return nil, err
		}
		for j := 0; j < len(merged); j += 2 {
			name := resolved(merged[j]).Value
			if before[name] {
				return nil, atLine(key, "<< merges key %q, which stands in front of it", name)
			}
			if !own[name] {
				own[name] = true
				out = append(out, merged[j], merged[j+1])
			}
		}
	}
	return out, nil
}

// resolved returns the node that n is or stands for.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isMerge(key *yaml.Node) bool { return key.ShortTag() == "!!merge" }

// mergedPairs returns the keys and values behind a merge key: those of a map, or of each in a list of maps.
func mergedPairs(n *yaml.Node) ([]*yaml.Node, error) {
	switch m := resolved(n); m.Kind {
	case yaml.MappingNode:
		return pairs(m)
	case yaml.SequenceNode:
		var out []*yaml.Node
		for _, item := range m.Content {
			more, err := mergedPairs(item)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
		return out, nil
	}
	return nil, atLine(n, "<< merges what is not a map")
}

// edited returns the text with the scalars that were changed since it was parsed.
func (s *stream) edited() ([]byte, error) {
	changes, err := s.changes()
	if err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return []byte(s.text), nil
	}
	tokens := slices.SortedFunc(maps.Keys(changes), func(a, b *yaml.Node) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var out strings.Builder
	last, c := 0, newCursor(s.text)
	for _, token := range tokens {
		if token.Kind == yaml.AliasNode && changes[token.Alias] == changes[token] {
			continue // what it stands for is changed
		}
		e, err := place(s.text, c.seek(token), token, changes[token])
		if err != nil {
			return nil, err
		}
		out.WriteString(s.text[last:e.start] + e.text)
		last = e.end
	}
	out.WriteString(s.text[last:])
	if err := s.verify(out.String()); err != nil {
		return nil, err
	}
	return []byte(out.String()), nil
}

// changes returns the new values by token. A token of several scalars must become the same for all of them.
func (s *stream) changes() (map[*yaml.Node]string, error) {
	changed := map[*yaml.Node]string{}
	for _, u := range s.uses {
		if u.scalar.Value != resolved(u.token).Value {
			changed[u.token] = u.scalar.Value
		}
	}
	if len(changed) == 0 {
		return nil, nil
	}
	for _, u := range s.uses {
		value, ok := changed[u.token]
		if !ok && u.token.Kind == yaml.AliasNode {
			value, ok = changed[u.token.Alias]
		}
		if ok && value != u.scalar.Value {
			return nil, fault.New(fault.Manifests, "write the image out in each place, without anchors and aliases",
				"stdin:%d: %q is pinned in one place and, through an anchor, stands unchanged in another", u.token.Line, resolved(u.token).Value)
		}
	}
	return changed, nil
}

// verify parses the edited text and compares what it says with what it should.
func (s *stream) verify(text string) error {
	again, err := parse(text, huge)
	if err == nil && !slices.EqualFunc(s.objects, again.objects, same) {
		err = errors.New("the YAML means something else then")
	}
	if err != nil {
		return fault.New(fault.Manifests, "write images as plain or quoted text of one line, and report this as a bug", "put digests into stdin: %w", err)
	}
	return nil
}

func same(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.ShortTag() == b.ShortTag() && a.Value == b.Value && slices.EqualFunc(a.Content, b.Content, same)
}

// cursor goes forward through a text.
type cursor struct {
	text             string
	at, line, column int
}

func newCursor(text string) *cursor {
	const byteOrderMark = "\ufeff" // is in no column
	return &cursor{text, len(text) - len(strings.TrimPrefix(text, byteOrderMark)), 1, 1}
}

// seek returns where n stands, which is not in front of the one before. Columns are characters, and lines are YAML's.
func (c *cursor) seek(n *yaml.Node) int {
	for c.at < len(c.text) && (c.line < n.Line || c.line == n.Line && c.column < n.Column) {
		r, size := utf8.DecodeRuneInString(c.text[c.at:])
		c.at += size
		c.column++
		if strings.ContainsRune("\n\u0085\u2028\u2029", r) || r == '\r' && !strings.HasPrefix(c.text[c.at:], "\n") {
			c.line++
			c.column = 1
		}
	}
	return c.at
}

// edit replaces the bytes from start to end.
type edit struct {
	start, end int
	text       string
}

var (
	// lead is what may stand between where a scalar begins and its text: an anchor, a tag, comments, the header of a block.
	lead         = lazy.Regexp(`^(?:[&!]\S*\s+(?:#.*\s+)*)*(?:[|>].*\n[ \r\n]*)?`)
	doubleQuoted = lazy.Regexp(`^"(?:[^"\\]|\\(?s:.))*"`) // with whatever escapes: "ghcr.io\/acme\/web"
)

// place returns the edit that gives value to the token that stands at start.
func place(text string, start int, token *yaml.Node, value string) (edit, error) {
	found := resolved(token).Value
	if token.Kind == yaml.ScalarNode {
		start += len(lead().FindString(text[start:]))
	}
	switch {
	case token.Kind == yaml.AliasNode:
		found, value = "*"+token.Value, strconv.Quote(value)
	case token.Style&yaml.SingleQuotedStyle != 0:
		found, value = "'"+found+"'", "'"+value+"'"
	case token.Style&yaml.DoubleQuotedStyle != 0:
		found, value = doubleQuoted().FindString(text[start:]), strconv.Quote(value)
	}
	if found == "" || !strings.HasPrefix(text[start:], found) {
		return edit{}, fault.New(fault.Manifests, "write the image as plain or quoted text of one line",
			"stdin:%d: %q cannot be replaced where it stands", token.Line, resolved(token).Value)
	}
	return edit{start, start + len(found), value}, nil
}
