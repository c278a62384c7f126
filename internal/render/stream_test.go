package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/pin"
)

const atDigest = "@sha256:1111111111111111111111111111111111111111111111111111111111111111"

// pinned puts a digest to all mutable images of a stream, found as a render finds them.
func pinned(t *testing.T, text string) (string, error) {
	t.Helper()
	out, err := Read(t.Context(), strings.NewReader(text))
	if err != nil {
		return "", err
	}
	p, err := pin.New(out.Objects(), pin.Policy{Tags: image.Tags{"latest"}})
	if err != nil {
		return "", err
	}
	digests := map[string]string{}
	for _, r := range p.Images() {
		digests[r.String()] = atDigest[1:]
	}
	if err := p.Apply(digests, pin.TagAndDigest); err != nil {
		t.Fatal(err)
	}
	data, err := out.YAML()
	return string(data), err
}

// TestRead: of every way to write a scalar, the reference changes and no other byte does.
func TestRead(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, want string }{
		{"plain", "- image: x:latest # note\n", "- image: x:latest@ # note\n"},
		{"no tag", "- image:   x\n", "- image:   x:latest@\n"},
		{"single quotes", "- image: 'x:latest'\n", "- image: 'x:latest@'\n"},
		{"double quotes", `- {"image":"x:latest"}` + "\n", `- {"image":"x:latest@"}` + "\n"},
		{"escapes", `- image: "x.io/\x79\u003alatest"` + "\n", `- image: "x.io/y:latest@"` + "\n"},
		{"escaped line break", "- image: \"x:\\\n    latest\"\n", "- image: \"x:latest@\"\n"},
		{"flow", "- {image: x, name: y}\n", "- {image: x:latest@, name: y}\n"},
		{"flow over lines", "- {\n    image:\n      x:latest\n  }\n", "- {\n    image:\n      x:latest@\n  }\n"},
		{"tag and anchor", "- image: !!str &a x\n- image: &b !!str 'y'\n", "- image: !!str &a x:latest@\n- image: &b !!str 'y:latest@'\n"},
		{"comment after the anchor", "- image: &a # one\n    # two\n\n    x\n", "- image: &a # one\n    # two\n\n    x:latest@\n"},
		{"complex key", "- ? image\n  : x\n", "- ? image\n  : x:latest@\n"},
		{"literal", "- image: |-\n    x:latest\n  name: n\n", "- image: |-\n    x:latest@\n  name: n\n"},
		{"folded", "- image: >- # note\n    x:latest\n  name: n\n", "- image: >- # note\n    x:latest@\n  name: n\n"},
		{"CRLF", "- image: x\r\n- image: |-\r\n    y\r\n- image: z\r\n", "- image: x:latest@\r\n- image: |-\r\n    y:latest@\r\n- image: z:latest@\r\n"},
		{"lone CR", "- image: x\r- image: y\r", "- image: x:latest@\r- image: y:latest@\r"},
		{"no newline at the end", "- image: x", "- image: x:latest@"},
		{"letters of several bytes", "- {name: \"日本 ä 😀\", image: x, note: \"\u2028\"}\n- image: y\n", "- {name: \"日本 ä 😀\", image: x:latest@, note: \"\u2028\"}\n- image: y:latest@\n"},
		{"tabs", "- image:\tx\t# note\n", "- image:\tx:latest@\t# note\n"},
		{"aliases follow their anchor", "- image: &a x\n- image: *a\n", "- image: &a x:latest@\n- image: *a\n"},
		{"aliased container", "- &c {image: x}\n- *c\n", "- &c {image: x:latest@}\n- *c\n"},
		{"alias of another field", "- {name: &a x, image: *a}\n- image: *a\n", "- {name: &a x, image: \"x:latest@\"}\n- image: \"x:latest@\"\n"},
		{"two anchors of a name", "- image: &a x\n- image: &a y\n- image: *a\n", "- image: &a x:latest@\n- image: &a y:latest@\n- image: *a\n"},
		{"merge", "- &c {image: x, name: n}\n- <<: *c\n  name: m\n", "- &c {image: x:latest@, name: n}\n- <<: *c\n  name: m\n"},
		{"merge of a list", "- &c {image: x}\n- &d {image: y, name: n}\n- <<: [*d, *c, {tty: true}]\n  name: m\n", "- &c {image: x:latest@}\n- &d {image: y:latest@, name: n}\n- <<: [*d, *c, {tty: true}]\n  name: m\n"},
		{"overridden merge", "- &c {image: x}\n- {<<: *c, image: 'y:v1'}\n", "- &c {image: x:latest@}\n- {<<: *c, image: 'y:v1'}\n"},
		{"quoted merge key", "- {\"<<\": {image: x}, image: y}\n", "- {\"<<\": {image: x}, image: y:latest@}\n"},
	}
	for _, tt := range tests {
		for _, mark := range []string{"", "\ufeff"} {
			const head = "# ä\n---\napiVersion: v1\nkind: Pod\ncontainers:\n"
			got, err := pinned(t, mark+head+tt.in)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if diff := cmp.Diff(mark+head+strings.ReplaceAll(tt.want, "latest@", "latest"+atDigest), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

// TestReadByteOrderMark: the mark is no column of the line that it begins.
func TestReadByteOrderMark(t *testing.T) {
	t.Parallel()
	const in = "\ufeff{apiVersion: v1, kind: Pod, containers: [{image: x:latest}]}\n"
	got, err := pinned(t, in)
	if want := strings.Replace(in, "latest", "latest"+atDigest, 1); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// TestReadRefuses: what cannot be edited in place, or be read in two ways, is an error with its line.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	const pod = "apiVersion: v1\nkind: Pod\n"
	tests := []struct{ name, in, want string }{
		{"no YAML", pod + "---\na: b\n c: d\n", "stdin: document 2: yaml: line 5: "},
		{"text", "Error: chart not found\n", "stdin: document 1: line 1: not a Kubernetes object"},
		{"a word", "oops\n", "stdin: document 1: line 1: not a Kubernetes object"},
		{"a list", pod + "---\n- " + strings.ReplaceAll(pod, "\n", "\n  "), "stdin: document 2: line 4: not a Kubernetes object"},
		{"no kind", pod + "---\napiVersion: v1\n", "stdin: document 2: line 4: not a Kubernetes object"},
		{"kind null", "apiVersion: v1\nkind:\n", "stdin: document 1: line 1: not a Kubernetes object"},
		{"kind map", "apiVersion: v1\nkind: {}\n", "stdin: document 1: line 1: not a Kubernetes object"},
		{"doubled key", pod + "kind: ConfigMap\n", `stdin: document 1: line 3: key "kind" is there twice`},
		{"doubled by an alias", pod + "a: &a a\n*a : b\n", `line 4: key "a" is there twice`},
		{"map as a key", pod + "{a: b}: c\n", "line 3: a key that is not a text"},
		{"merge of a text", pod + "<<: x\n", "line 3: << merges what is not a map"},
		{"merge below", pod + "a: &a {image: x}\ncontainers: [{image: y, <<: *a}]\n", `line 4: << merges key "image", which stands in front of it`},
		{"endless", pod + "a: &a [*a]\n", "an alias inside of its own anchor"},
		{"bomb", pod + bomb, "aliases that stand for too much"},
		{"UTF-16", "\xff\xfea\x00", "not UTF-8"},
		{"too large", strings.Repeat("#", 2000), "more than 1000 bytes"},
		{"anchor elsewhere", pod + "a: &a {image: x}\ncontainers: [*a]\n", `stdin:3: "x" is pinned in one place and, through an anchor, stands unchanged in another`},
		{"alias elsewhere", pod + "containers: [{image: &a x, name: *a}]\n", `stdin:3: "x" is pinned in one place`},
		{"unknown anchor", pod + "a: [*a]\n", `unknown anchor 'a' referenced`},
	}
	l := usual
	l.file, l.aliased = 1000, 1000
	for _, tt := range tests {
		out, err := readWithin(t.Context(), strings.NewReader(tt.in), l)
		if err == nil {
			var p *pin.Plan
			if p, err = pin.New(out.Objects(), pin.Policy{Tags: image.Tags{"latest"}}); err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if err := p.Apply(map[string]string{"index.docker.io/library/x:latest": atDigest[1:]}, pin.TagAndDigest); err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			_, err = out.YAML()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" {
			t.Errorf("%s: %v with hint %q, want %q and a hint", tt.name, err, fault.Hint(err), tt.want)
		}
	}
}

// bomb stands for 10^4 nodes.
var bomb = func() string {
	text := "b0: &b0 x\n"
	for i := 1; i < 5; i++ {
		text += fmt.Sprintf("b%d: &b%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*b%d,", i-1), 10), ","))
	}
	return text
}()

// TestReadNothing: a stream without objects is no error here, and no byte of it is lost.
func TestReadNothing(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "\n", "---\n", "# only a comment\n", "---\nnull\n---\n# x\n---\n...\n", "\ufeff", "apiVersion: v1\nkind: List\nitems: []\n"} {
		out, err := Read(t.Context(), strings.NewReader(in))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got, err := out.YAML(); len(out.Objects()) != 0 || string(got) != in || err != nil {
			t.Errorf("%q: %d objects, %q, %v", in, len(out.Objects()), got, err)
		}
	}
}

// TestReadGivesUp: somebody who never closes the pipe, and one that breaks.
func TestReadGivesUp(t *testing.T) {
	t.Parallel()
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(late)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	if _, err := Read(ctx, r); !errors.Is(err, late) {
		t.Errorf("open pipe: %v, want %v", err, late)
	}
	if _, err := Read(t.Context(), iotest.ErrReader(late)); !errors.Is(err, late) {
		t.Errorf("broken pipe: %v, want %v", err, late)
	}
}

// TestVerify: an edit that means something else than it should is not printed.
func TestVerify(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, value string }{
		{"x", "1"}, {"x", "a: b"}, {"x", "y # z"}, {"x", "[y"}, {"x", "y\nkind: Secret"}, {"'x'", "it's"}, {"'x'", "y' # z"}, {"|-\n  x", "y\n z"},
	} {
		in := "apiVersion: v1\nkind: Pod\nname: " + tt.name + "\n"
		out, err := Read(t.Context(), strings.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		lookup(out.Objects()[0], "name").Value = tt.value
		if got, err := out.YAML(); err == nil || got != nil {
			t.Errorf("%s as %q gave %q, %v", tt.name, tt.value, got, err)
		}
	}
	s, err := parse("apiVersion: v1\nkind: Pod\nname: x\n", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", s.text + "more: 1\n", s.text + "---\n" + s.text, "kind: Pod\napiVersion: v1\nname: x\n"} {
		if s.verify(text) == nil {
			t.Errorf("verify(%q) is content", text)
		}
	}
	if err := s.verify("# c\n'apiVersion': \"v1\"\nkind: Pod\nname: x"); err != nil {
		t.Errorf("verify refuses another spelling: %v", err)
	}
}

// FuzzRead: whatever is read, there is an error, or pinning changes image scalars only. What the output says is told by
// the library's own decoder, which knows aliases and merges by itself, and line by line the bytes are those of the input.
func FuzzRead(f *testing.F) {
	f.Add("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: a # c\n  - {\"image\": \"b\\u003alatest\"}\n  - image: 'c:latest'\n")
	f.Add("# ä\r\napiVersion: v1\r\nkind: Pod\r\ncontainers:\r\n- image: !!str &a x\r\n- image: *a\r\n---\r\n")
	f.Add("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  containers: [&c {image: x}, {<<: *c, name: y}]\n")
	f.Add("apiVersion: v1\nkind: Pod\ncontainers:\n- image: |-\n    x:latest\n- image: >-\n\n    y\n- ? image\n  : z\n")
	f.Add("\ufeff{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"containers\":[{\"image\":\"日本\"},{\"image\":\"x\"}]}")
	f.Add("apiVersion: v1\nkind: Pod\na: &a x\ncontainers:\n- image: *a\n- image: &a y\n- image: *a\n")
	f.Add("- image: x:latest\n- image: \"y\"\n")
	f.Add("- &c {image: !!str 'x', name: n}\n- {<<: *c, name: m} # ä\n- image: >-\r\n    y\r\n")
	f.Add("- image: &a x\n  name: *a\n- image: |2-\n\n    z:latest\n...\n")
	f.Fuzz(func(t *testing.T, in string) {
		if !strings.Contains(in, "kind") { // most of what a fuzzer finds would not be an object
			in = "apiVersion: v1\nkind: Pod\ncontainers:\n" + in
		}
		out, err := pinned(t, in)
		if err != nil {
			return
		}
		was, ok := values(in)
		if !ok {
			return
		}
		is, ok := values(out)
		if !ok {
			t.Fatalf("%q\nbecame what is no YAML:\n%q", in, out)
		}
		if diff := cmp.Diff(was, is, cmp.Comparer(func(a, b string) bool { return a == b || wasPinned(a, b) || wasPinned(b, a) })); diff != "" {
			t.Errorf("%q\nbecame\n%q\nchanged (-before +after):\n%s", in, out, diff)
		}
		before, after := strings.Split(in, "\n"), strings.Split(out, "\n")
		if len(before) != len(after) {
			return // a scalar over several lines
		}
		for i := range before {
			if before[i] != after[i] && !strings.Contains(after[i], atDigest) {
				t.Errorf("%q became %q", before[i], after[i])
			}
		}
	})
}

func wasPinned(before, after string) bool {
	return after == strings.TrimSuffix(before, ":latest")+":latest"+atDigest
}

// values returns what the documents of a stream say.
func values(text string) (docs []any, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	dec := yaml.NewDecoder(strings.NewReader(text))
	for {
		var v any
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return docs, true
		}
		if err != nil {
			return nil, false
		}
		docs = append(docs, v)
	}
}
