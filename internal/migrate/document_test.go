package migrate

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEdit: what is taken out is gone with its lines, all other bytes stay, and what cannot be edited so is refused.
func TestEdit(t *testing.T) {
	t.Parallel()
	remove := func(d *document) error { return d.remove(at(d.root, "m"), "b") }
	replace := func(d *document) error { return d.replace(at(d.root, "m"), "b", "x:\n  - y\n") }
	insert := func(d *document) error { return d.insert(at(d.root, "m"), "b", "x:\n  - y\n") }
	tests := []struct {
		name       string
		edit       func(*document) error
		text, want string // want is "" for a refusal
	}{
		{"in the middle", remove, "m:\n  a: 1\n  b: 2 # two\n  c: 3\n", "m:\n  a: 1\n  c: 3\n"},
		{"with what is below", remove, "m:\n  a: 1\n  b:\n    - 2\n\n    # of b\n    - 3\n\n  # of c\n  c: 3\n", "m:\n  a: 1\n\n  # of c\n  c: 3\n"},
		{"a list at its key's indentation", remove, "m:\n  b:\n  - 2\n  - c: 3\n  c: 3\n", "m:\n  c: 3\n"},
		{"a literal text", remove, "m:\n  b: |\n    2\n\n      3\n  c: 3\n", "m:\n  c: 3\n"},
		{"a text over lines", remove, "m:\n  b: 2\n    3\n  c: 3\n", "m:\n  c: 3\n"},
		{"a text that goes on in front of its key", remove, "m:\n  b: \"2\n\n 3\"\n  c: 3\n", ""},
		{"a flow map", remove, "m: {a: 1, b: 2}\n", ""},
		{"an alias elsewhere", remove, "m:\n  b: &b 2\n  c: 3\nn: &b 4\no: *b\n", ""},
		{"an anchor that is needed", remove, "m:\n  b: &b 2\n  c: *b\n", ""},
		{"a key that is asked for", remove, "m:\n  ? b\n  : 2\n  c: 3\n", ""},
		{"at the end without a line's end", remove, "m:\n  a: 1\n  b: 2", "m:\n  a: 1\n"},
		{"the only one", remove, "m:\n  b: 2\nn: 1\n", ""}, // a map would become null

		{"for another", replace, "m:\n  a: 1\n  b: {c: 2}\n\n  d: 3\n", "m:\n  a: 1\n  x:\n    - y\n\n  d: 3\n"},
		{"for another after a dash", replace, "m: \n  b: {c: 2}\n", "m: \n  x:\n    - y\n"},
		{"below", insert, "m:\n  b: 2 # two\n\n  c: 3\n", "m:\n  b: 2 # two\n  x:\n    - y\n\n  c: 3\n"},
		{"below at the end", insert, "m:\n    b: 2", "m:\n    b: 2\n    x:\n      - y\n"},
		{"below, with other letters", insert, "m:\n  \"b\": ä # ö\n", "m:\n  \"b\": ä # ö\n  x:\n    - y\n"},
		{"below, as Windows writes", insert, "m:\r\n  b: 2\r\n", "m:\r\n  b: 2\r\n  x:\r\n    - y\r\n"},
	}
	for _, tt := range tests {
		d := &document{lines: slices.Collect(strings.Lines(tt.text))}
		if err := d.parse(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		err := tt.edit(d)
		got := ""
		if err == nil {
			got, err = d.result()
		}
		if (err != nil) != (tt.want == "") || got != tt.want {
			t.Errorf("%s: %v\n%s", tt.name, err, cmp.Diff(tt.want, got))
		}
	}
}

// TestFirstEntryOfAnItem: what stands behind a dash leaves it to the next entry.
func TestFirstEntryOfAnItem(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"l:\n- a: 1\n  b: 2\n": "l:\n- b: 2\n",
		"l:\n  -   a: 1\n      # of b\n      b: 2 # two\n      c: 3\n": "l:\n  -   b: 2 # two\n      c: 3\n",
		"l:\n- a: 1\n": "",
	} {
		d := &document{lines: slices.Collect(strings.Lines(text))}
		if err := d.parse(); err != nil {
			t.Fatal(err)
		}
		err := d.remove(at(d.root, "l").Content[0], "a")
		got := ""
		if err == nil {
			got, err = d.result()
		}
		if (err != nil) != (want == "") || got != want {
			t.Errorf("%q: %v\n%s", text, err, cmp.Diff(want, got))
		}
	}
}

func TestSameURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"https://git.example.com/acme/k8s.git", "https://git.example.com/acme/k8s/", "https://user:secret@git.example.com:8443/acme/k8s",
		"git@git.example.com:acme/k8s.git", "ssh://git@git.example.com:22/acme/k8s.git", "HTTPS://Git.Example.com/Acme/K8s",
	} {
		if got, want := sameURL(url), "git.example.com/acme/k8s"; got != want {
			t.Errorf("sameURL(%q) = %q, want %q", url, got, want)
		}
	}
}

// FuzzEdit: an edit is refused, or leaves exactly what is left of the text's meaning, and never panics.
func FuzzEdit(f *testing.F) {
	f.Add("a: 1\nb: 2\n")
	f.Add("a: 1\rb: 2\u0085c: \"\u2028\"\n")
	f.Add("a:\n- b\n- c: {d: e}\n\n# x\nf: |\n  g\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, part := range split(&file{}, text) {
			if part.parse() != nil || part.root == nil || len(part.root.Content) < 4 {
				continue
			}
			key := part.root.Content[0].Value
			before, err := parse(part.text())
			if err != nil || index(before, key) != 0 || part.remove(part.root, key) != nil {
				continue
			}
			got, err := part.result()
			if err != nil {
				continue
			}
			after, err := parse(got)
			if err != nil {
				t.Fatalf("%q: %v", got, err)
			}
			before.Content = before.Content[2:]
			if !same(before, after) {
				t.Errorf("%q without %q became %q", text, key, got)
			}
		}
	})
}

// TestEndsOfLines: where YAML counts lines in another way than the edits do, there are none.
func TestEndsOfLines(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"a: 1\rb: 2\n", "a: 1 #\u0085b: 2\n", "a: \"\u2028\"\n"} {
		d := &document{lines: slices.Collect(strings.Lines(text))}
		if err := d.parse(); err == nil || d.root != nil {
			t.Errorf("parse(%q) = nil, want an error", text)
		}
	}
}
