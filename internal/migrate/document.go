package migrate

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/lazy"
)

// document is one YAML document of a file, which can be edited where it stands: an entry of a block map, or an item of a
// block list, is whole lines. Each edit is made twice, in the text and in what was parsed from it, and result compares the
// two: what this idea of YAML does not cover is an error and no broken file.
type document struct {
	file  *file
	lines []string // with their ends
	root  *yaml.Node
	cuts  []cut
}

// file is a file of a checkout.
type file struct {
	path string // for people, and for writing
	docs []*document
}

// cut replaces the lines from from to to, counted from 0.
type cut struct {
	from, to int
	with     string
}

var (
	separator = lazy.Regexp(`^---(?:\s|$)`)

	errStyle = errors.New("it is not written in block style there, one entry a line, without aliases")
)

// split returns the documents of a text, unparsed. A line that begins with --- separates, wherever it stands.
func split(f *file, text string) []*document {
	docs := []*document{{file: f}}
	for line := range strings.Lines(text) {
		if separator().MatchString(line) {
			docs = append(docs, &document{file: f})
		}
		d := docs[len(docs)-1]
		d.lines = append(d.lines, line)
	}
	return docs
}

func (d *document) text() string { return strings.Join(d.lines, "") }

// parse reads the document anew and forgets the edits. Root is nil where there is no map.
func (d *document) parse() error {
	text := d.text()
	root, err := parse(text)
	if strings.ContainsAny(strings.ReplaceAll(text, "\r\n", "\n"), "\r\u0085\u2028\u2029") {
		root, err = nil, errors.New("it has ends of lines that only YAML knows") // whose numbers would not be those of lines
	}
	d.root, d.cuts = root, nil
	return err
}

func parse(text string) (root *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, fmt.Errorf("yaml panicked: %v", p)
		}
	}()
	var n yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&n); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	if dec.Decode(new(yaml.Node)) == nil {
		return nil, errors.New("more than one document")
	}
	if n.Content[0].Kind != yaml.MappingNode {
		return nil, nil
	}
	return n.Content[0], nil
}

// remove takes an entry out of a map.
func (d *document) remove(m *yaml.Node, key string) error { return d.replace(m, key, "") }

// replace puts the YAML text, the lines of one entry without indentation, or none, in the place of an entry.
func (d *document) replace(m *yaml.Node, key, with string) error {
	i := index(m, key)
	if m.Style&yaml.FlowStyle != 0 {
		return errStyle
	}
	k, v := m.Content[i], m.Content[i+1]
	at := k.Line - 1
	before := runes(d.lines[at], k.Column-1)
	c := cut{from: at, to: d.end(at, k.Column-1, v.Kind == yaml.SequenceNode)}
	if with != "" {
		c.with = before + indented(with, k.Column-1, d.lineEnd())
	} else if strings.TrimSpace(before) != "" { // "- " stands in front of it, which goes to the next entry
		if i+3 >= len(m.Content) || m.Content[i+2].Line == k.Line {
			return errStyle
		}
		next := m.Content[i+2]
		c.to = next.Line
		c.with = before + d.lines[next.Line-1][len(runes(d.lines[next.Line-1], next.Column-1)):]
	}
	d.cuts = append(d.cuts, c)
	entry, err := entries(with)
	m.Content = slices.Replace(m.Content, i, i+2, entry...)
	return err
}

// insert puts the YAML text of one entry below the entry of a key.
func (d *document) insert(m *yaml.Node, key, text string) error {
	i := index(m, key)
	if m.Style&yaml.FlowStyle != 0 {
		return errStyle
	}
	k, v := m.Content[i], m.Content[i+1]
	at := d.end(k.Line-1, k.Column-1, v.Kind == yaml.SequenceNode)
	if last := d.lines[at-1]; !strings.HasSuffix(last, "\n") {
		d.lines[at-1] = last + d.lineEnd()
	}
	d.cuts = append(d.cuts, cut{at, at, strings.Repeat(" ", k.Column-1) + indented(text, k.Column-1, d.lineEnd())})
	entry, err := entries(text)
	m.Content = slices.Insert(m.Content, i+2, entry...)
	return err
}

// removeItem takes an item out of a list.
func (d *document) removeItem(list *yaml.Node, item *yaml.Node) error {
	at := item.Line - 1
	line := d.lines[at]
	dash := len(line) - len(strings.TrimLeft(line, " "))
	if list.Style&yaml.FlowStyle != 0 || !strings.HasPrefix(line[dash:], "-") {
		return errStyle
	}
	d.cuts = append(d.cuts, cut{from: at, to: d.end(at, dash, false)})
	list.Content = slices.DeleteFunc(list.Content, func(n *yaml.Node) bool { return n == item })
	return nil
}

// end returns the line behind an entry that begins in the line from and is indented by indent.
func (d *document) end(from, indent int, list bool) int {
	end := from + 1
	for i := end; i < len(d.lines); i++ {
		text := strings.TrimSpace(d.lines[i])
		if text == "" {
			continue
		}
		has := len(d.lines[i]) - len(strings.TrimLeft(d.lines[i], " "))
		if has <= indent && (!list || has < indent || text != "-" && !strings.HasPrefix(text, "- ")) {
			break
		}
		end = i + 1
	}
	return end
}

// result returns the edited text.
func (d *document) result() (string, error) {
	slices.SortFunc(d.cuts, func(a, b cut) int { return cmp.Compare(a.from, b.from) })
	var out strings.Builder
	last := 0
	for _, c := range d.cuts {
		if c.from < last {
			return "", errStyle
		}
		out.WriteString(strings.Join(d.lines[last:c.from], "") + c.with)
		last = c.to
	}
	out.WriteString(strings.Join(d.lines[last:], ""))
	again, err := parse(out.String())
	if err != nil || again == nil && len(d.root.Content) > 0 || again != nil && !same(again, d.root) {
		return "", errStyle
	}
	return out.String(), nil
}

// same reports whether two nodes say the same. What holds an alias does not: an edit may have changed what it stands for.
func same(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Kind != yaml.AliasNode && a.ShortTag() == b.ShortTag() && a.Value == b.Value && slices.EqualFunc(a.Content, b.Content, same)
}

// entries returns the key and value nodes of a map's text.
func entries(text string) ([]*yaml.Node, error) {
	if text == "" {
		return nil, nil
	}
	root, err := parse(text)
	if err != nil {
		return nil, err
	}
	return root.Content, nil
}

// indented returns text with each line but the first indented, and the given ends of lines.
func indented(text string, by int, lineEnd string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return strings.Join(lines, lineEnd+strings.Repeat(" ", by)) + lineEnd
}

func (d *document) lineEnd() string {
	if len(d.lines) > 0 && strings.HasSuffix(d.lines[0], "\r\n") {
		return "\r\n"
	}
	return "\n"
}

// runes returns the first n characters of s: YAML counts columns in them.
func runes(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}

// index returns where a key stands in a map that has it, or -1.
func index(m *yaml.Node, key string) int {
	if m != nil && m.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if m.Content[i].Value == key {
				return i
			}
		}
	}
	return -1
}

// at returns what lies behind keys, nil where there is nothing.
func at(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		i := index(n, key)
		if i < 0 {
			return nil
		}
		n = n.Content[i+1]
	}
	return n
}

// stringAt returns the text behind keys, "" for anything else.
func stringAt(n *yaml.Node, keys ...string) string {
	if v := at(n, keys...); v != nil && v.Kind == yaml.ScalarNode && v.ShortTag() != "!!null" {
		return v.Value
	}
	return ""
}

// list returns the texts of a list.
func list(n *yaml.Node) (out []string) {
	if n != nil && n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			out = append(out, item.Value)
		}
	}
	return out
}
