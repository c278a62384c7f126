package pin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

const (
	digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	other  = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
)

var latest = image.Tags{"latest"}

// decode returns the objects of a YAML stream as render.Output.Objects does.
func decode(tb testing.TB, text string) []*yaml.Node {
	tb.Helper()
	objects, err := documents([]byte(text))
	if err != nil {
		tb.Fatalf("%v in:\n%s", err, text)
	}
	return objects
}

func documents(text []byte) (objects []*yaml.Node, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, err
		}
		objects = append(objects, doc.Content...)
	}
}

func encode(tb testing.TB, objects []*yaml.Node) string {
	tb.Helper()
	var b strings.Builder
	for _, o := range objects {
		data, err := yaml.Marshal(o)
		if err != nil {
			tb.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(data)
	}
	return b.String()
}

// all answers every image of p with the digest above.
func all(p *Plan) map[string]string {
	digests := map[string]string{}
	for _, r := range p.Images() {
		digests[r.String()] = digest
	}
	return digests
}

// pinned renders objects with every image pinned.
func pinned(t *testing.T, text string, format Format) string {
	t.Helper()
	objects := decode(t, text)
	p, err := New(objects, Policy{Tags: latest})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(all(p), format); err != nil {
		t.Fatal(err)
	}
	return encode(t, objects)
}

// changed returns the lines of after that differ from those of before, trimmed.
func changed(t *testing.T, before, after string) []string {
	t.Helper()
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	if len(a) != len(b) {
		t.Fatalf("%d lines became %d:\n%s", len(a), len(b), after)
	}
	var out []string
	for i := range b {
		if a[i] != b[i] {
			out = append(out, strings.TrimLeft(b[i], " -"))
		}
	}
	return out
}

const podSpec = "containers: [{name: a, image: a}, {name: v, image: 'b:v1'}]\ninitContainers: [{name: i, image: 'ghcr.io/acme/i:latest'}]\n" +
	"ephemeralContainers: [{name: e, image: 'e:latest', targetContainerName: a}]\n"

// indent puts text below a key.
func indent(path, text string) string {
	keys := strings.Split(path, ".")
	var b strings.Builder
	for i, k := range keys {
		b.WriteString(strings.Repeat("  ", i) + k + ":\n")
	}
	for line := range strings.Lines(text) {
		b.WriteString(strings.Repeat("  ", len(keys)) + line)
	}
	return b.String()
}

// TestKinds: wherever a pod spec stands, its three lists of containers are pinned, and nothing but their image lines
// changes.
func TestKinds(t *testing.T) {
	t.Parallel()
	tests := []struct{ kind, path string }{
		{"Pod", "spec"},
		{"PodTemplate", "template.spec"},
		{"Deployment", "spec.template.spec"},
		{"StatefulSet", "spec.template.spec"},
		{"DaemonSet", "spec.template.spec"},
		{"ReplicaSet", "spec.template.spec"},
		{"ReplicationController", "spec.template.spec"},
		{"Job", "spec.template.spec"},
		{"CronJob", "spec.jobTemplate.spec.template.spec"},
		{"Rollout", "spec.template.spec"},
		{"Custom", "spec.deep.er.still"},
	}
	want := []string{"image: a:latest@" + digest, "image: ghcr.io/acme/i:latest@" + digest, "image: e:latest@" + digest}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			text := "kind: " + tt.kind + "\nmetadata:\n  name: x\n" + indent(tt.path, podSpec)
			text = block(t, text)
			if diff := cmp.Diff(want, changed(t, text, pinned(t, text, TagAndDigest))); diff != "" {
				t.Errorf("changed lines (-want +got):\n%s", diff)
			}
		})
	}
}

// block returns text as it comes back from a render: no flow style, one scalar a line.
func block(tb testing.TB, text string) string {
	tb.Helper()
	objects := decode(tb, text)
	var clear func(n *yaml.Node)
	clear = func(n *yaml.Node) {
		n.Style = 0
		for _, c := range n.Content {
			clear(c)
		}
	}
	for _, o := range objects {
		clear(o)
	}
	return encode(tb, objects)
}

// TestSeveralPodSpecs: several templates in one object, and containers in a container.
func TestSeveralPodSpecs(t *testing.T) {
	t.Parallel()
	text := block(t, "kind: Workflow\nspec:\n  steps:\n  - spec: {containers: [{image: a}]}\n  - spec: {containers: [{image: b}]}\n"+
		"  - containers:\n    - image: c\n      containers: [{image: d}]\n")
	want := []string{"image: a:latest@" + digest, "image: b:latest@" + digest, "image: d:latest@" + digest, "image: c:latest@" + digest}
	got := changed(t, text, pinned(t, text, TagAndDigest))
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changed lines (-want +got):\n%s", diff)
	}
}

func TestUntouched(t *testing.T) {
	t.Parallel()
	container := func(fields string) string {
		return "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, " + fields + "}]}\n"
	}
	tests := []struct{ name, text string }{
		{"schema defaults of a CRD", "kind: CustomResourceDefinition\nspec: {versions: [{schema: {default: {containers: [{image: 'x:latest'}]}}}]}\n"},
		{"data of a ConfigMap", "kind: ConfigMap\ndata: {image: 'x:latest', containers: [{image: 'x:latest'}]}\n"},
		{"data of a Secret", "kind: Secret\nstringData: {containers: [{image: 'x:latest'}]}\n"},
		{"YAML in a text", "kind: Custom\nspec: {text: 'containers: [{image: x}]'}\n"},
		{"environment", container("image: 'x:v1', env: [{name: IMAGE, value: 'x:latest'}]")},
		{"arguments", container("image: 'x:v1', args: ['--image=x:latest', 'x:latest'], command: [image, 'x:latest']")},
		{"other fields", container("image: 'x:v1', imagePullPolicy: Always, sidecarImage: 'x:latest'")},
		{"image outside of a container list", "kind: Custom\nspec: {image: 'x:latest', container: {image: 'x:latest'}, containers: {image: 'x:latest'}}\n"},
		{"fixed tag", container("image: 'x:v1'")},
		{"tag that contains latest", container("image: 'x:latest-2'")},
		{"digest", container("image: 'x@" + digest + "'")},
		{"tag and digest", container("image: 'x:latest@" + digest + "'")},
		{"no image", container("image: ''")},
		{"image that is null", container("image: null")},
		{"image that is a number", container("image: 1")},
		{"image that is a map", container("image: {repository: x, tag: latest}")},
		{"no field", container("tty: true")},
		{"shell template", container("image: '${REGISTRY}/x:latest'")},
		{"kubernetes variable", container("image: 'x:$(TAG)'")},
		{"go template", container("image: 'x:{{ .Values.tag }}'")},
		{"argo template", container("image: '{{inputs.parameters.image}}'")},
		{"ko", container("image: 'ko://github.com/acme/server'")},
		{"containers that are not containers", "kind: Custom\nspec: {containers: [x, 1, null, [{image: x}], {name: x}]}\n"},
		{"no containers", "kind: Pod\nspec: {containers: null}\n"},
		{"a list at the top", "[{image: x}]\n"},
		{"a text at the top", "image\n"},
		{"nothing", "null\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			objects := decode(t, tt.text)
			before := encode(t, objects)
			p, err := New(objects, Policy{Tags: latest})
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Images(); len(got) > 0 {
				t.Errorf("Images() = %v, want none", got)
			}
			if err := p.Apply(nil, TagAndDigest); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, encode(t, objects)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestSpelling: the author's name stays, whatever it is short for; the tag is written out.
func TestSpelling(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, tag, digest string }{
		{"nginx", "nginx:latest@", "nginx@"},
		{"nginx:latest", "nginx:latest@", "nginx@"},
		{"library/nginx", "library/nginx:latest@", "library/nginx@"},
		{"docker.io/nginx", "docker.io/nginx:latest@", "docker.io/nginx@"},
		{"index.docker.io/library/nginx:latest", "index.docker.io/library/nginx:latest@", "index.docker.io/library/nginx@"},
		{"grafana/loki", "grafana/loki:latest@", "grafana/loki@"},
		{"GHCR.io/acme/x", "GHCR.io/acme/x:latest@", "GHCR.io/acme/x@"},
		{"localhost:5000/x:latest", "localhost:5000/x:latest@", "localhost:5000/x@"},
		{"'[::1]:5000/x'", "[::1]:5000/x:latest@", "[::1]:5000/x@"},
	}
	for _, tt := range tests {
		for format, want := range map[Format]string{TagAndDigest: tt.tag, DigestOnly: tt.digest} {
			objects := decode(t, "kind: Pod\nspec:\n  containers:\n  - image: "+tt.in+"\n")
			p, err := New(objects, Policy{Tags: latest})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Apply(all(p), format); err != nil {
				t.Fatal(err)
			}
			got := value(value(objects[0], "spec"), "containers").Content[0].Content[1].Value
			if got != want+digest {
				t.Errorf("%s in format %s: %s, want %s%s", tt.in, format, got, want, digest)
			}
			if _, err := image.Parse(got); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestImages: every distinct image once, sorted; two tags of one repository are two images, two spellings of one
// are one.
func TestImages(t *testing.T) {
	t.Parallel()
	objects := decode(t, "kind: Pod\nspec: {containers: [{image: 'x:dev'}, {image: 'docker.io/x'}, {image: x}, {image: 'a.io/b'}, {image: 'x:v1'}]}\n")
	p, err := New(objects, Policy{Tags: image.Tags{"latest", "dev*"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range p.Images() {
		got = append(got, r.String())
	}
	want := []string{"a.io/b:latest", "index.docker.io/library/x:dev", "index.docker.io/library/x:latest"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Images (-want +got):\n%s", diff)
	}
	if err := p.Apply(map[string]string{want[0]: digest, want[1]: other, want[2]: digest}, TagAndDigest); err != nil {
		t.Fatal(err)
	}
	wantYAML := strings.NewReplacer("D", digest, "O", other).Replace(
		"image: x:dev@O\nimage: docker.io/x:latest@D\nimage: x:latest@D\nimage: a.io/b:latest@D\nimage: x:v1\n")
	var lines strings.Builder
	for _, c := range value(value(objects[0], "spec"), "containers").Content {
		fmt.Fprintf(&lines, "image: %s\n", scalar(c, "image"))
	}
	if diff := cmp.Diff(wantYAML, lines.String()); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
}

// TestInvalid: all of them are named, by object and field.
func TestInvalid(t *testing.T) {
	t.Parallel()
	_, err := New(decode(t, `kind: Deployment
metadata: {name: server, namespace: dev}
spec: {template: {spec: {initContainers: [{image: 'x:latest'}, {image: 'ACME/x'}], containers: [{image: 'x:'}]}}}
---
kind: Pod
spec: {containers: [{image: 'a b'}]}
---
kind: Pod
metadata: {name: long}
spec: {containers: [{image: '`+strings.Repeat("a", 5000)+`:x:y'}]}
`), Policy{Tags: latest})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`Deployment/server spec.template.spec.initContainers[1].image: image "ACME/x": "ACME" is not a repository path component`,
		`Deployment/server spec.template.spec.containers[0].image: image "x:": empty tag`,
		`Pod spec.containers[0].image: image "a b": "a b" is not a repository path component`,
		`Pod/long spec.containers[0].image: `,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not contain %s", err, want)
		}
	}
	if fault.Hint(err) == "" {
		t.Error("no hint")
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]string{"missing": "", "not a digest": "sha256:0123", "with more": digest + " # x"} {
		objects := decode(t, "kind: Pod\nspec: {containers: [{image: a}, {image: b}, {image: c}]}\n")
		before := encode(t, objects)
		p, err := New(objects, Policy{Tags: latest})
		if err != nil {
			t.Fatal(err)
		}
		digests := all(p)
		digests["index.docker.io/library/c:latest"] = last
		if err := p.Apply(digests, TagAndDigest); err == nil || !strings.Contains(err.Error(), "index.docker.io/library/c:latest") {
			t.Errorf("%s: Apply: %v, want an error about c", name, err)
		}
		if diff := cmp.Diff(before, encode(t, objects)); diff != "" {
			t.Errorf("%s: changed (-before +after):\n%s", name, diff)
		}
	}
}

// TestPlacesAreAllOrNothing: with one digest missing, whichever it is, no object of any kind changes.
func TestPlacesAreAllOrNothing(t *testing.T) {
	t.Parallel()
	objects := decode(t, manifests(t))
	before := encode(t, objects)
	p, err := New(objects, Policy{Tags: latest})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Images() {
		digests := all(p)
		delete(digests, r.String())
		if err := p.Apply(digests, TagAndDigest); err == nil || !strings.Contains(err.Error(), r.String()) {
			t.Errorf("Apply: %v, want an error about %s", err, r)
		}
	}
	if diff := cmp.Diff(before, encode(t, objects)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

// FuzzPlan: whatever the objects are, there is no panic, and pinning changes image scalars in known places and no other
// byte: each changed scalar stands where it may, became what it should, and with the old values put back the output
// is what it was.
func FuzzPlan(f *testing.F) {
	f.Add([]byte("kind: Pod\nspec:\n  containers:\n  - image: a\n  - image: 'b:latest'\n"))
	f.Add([]byte("kind: X\na: &a {containers: [{image: x}]}\nb: *a\n---\n[{containers: [{image: \"y\"}]}]\n"))
	f.Add([]byte("kind: ConfigMap\ndata: {containers: [{image: x}]}\n"))
	f.Add([]byte("containers:\n- image: |\n    x\n- image: >-\n    y\n- ? image\n  : !!str z\n- {image: ! w, image: v}\n"))
	f.Add([]byte("kind: List\nitems: [{kind: List, items: [{mine: [a, [b]], sidecarImage: 'x:y'}, 1, null]}]\n"))
	for doc := range strings.SplitSeq(manifests(f), "---\n") {
		f.Add([]byte(doc))
	}
	policy := Policy{Tags: latest, Exclude: []string{"**/x*"}, ExcludeKinds: []string{"Odd*"}, Fields: []Field{{Path: "mine[]"}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := documents(text)
		if err != nil {
			return
		}
		before, ok := marshal(objects)
		if !ok {
			return
		}
		was := scalars(objects)
		p, err := New(objects, policy)
		if err != nil {
			if after, _ := marshal(objects); after != before {
				t.Errorf("New changed\n%s\nto\n%s", before, after)
			}
			return
		}
		uses := p.Uses()
		if err := p.Apply(all(p), TagAndDigest); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(uses, p.Uses()); diff != "" {
			t.Errorf("Uses changed (-before +after):\n%s", diff)
		}
		changes := 0
		for i, s := range scalars(objects) {
			old := was[i].value
			if s.value == old {
				continue
			}
			changes++
			if r, err := image.Parse(old); err != nil || !latest.Mutable(r) || !mayHold(s.path) {
				t.Errorf("%s: %q is not a mutable reference in a known place", s.path, old)
			}
			if want := strings.TrimSuffix(old, ":latest") + ":latest@" + digest; s.value != want {
				t.Errorf("%s: %q became %q", s.path, old, s.value)
			}
			s.node.Value = old
		}
		if after, _ := marshal(objects); after != before {
			t.Errorf("changed more than image scalars:\n%s\nto\n%s", before, after)
		}
		pinned := slices.DeleteFunc(uses, func(u Use) bool { return u.Skipped != "" })
		if len(pinned) != changes || len(p.fields) != changes {
			t.Errorf("%d scalars changed, %d planned, %d told", changes, len(p.fields), len(pinned))
		}
	})
}

// located is a scalar, its value at some time, and its path without the items' numbers.
type located struct {
	node        *yaml.Node
	path, value string
}

// scalars returns all scalars, found without the code under test.
func scalars(objects []*yaml.Node) (all []located) {
	var visit func(n *yaml.Node, path string)
	visit = func(n *yaml.Node, path string) {
		switch n.Kind {
		case yaml.ScalarNode:
			all = append(all, located{n, path, n.Value})
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				visit(n.Content[i], path+"/(key)")
				visit(n.Content[i+1], path+"/"+n.Content[i].Value)
			}
		case yaml.SequenceNode:
			for _, item := range n.Content {
				visit(item, path+"[]")
			}
		}
	}
	for _, o := range objects {
		visit(o, "")
	}
	return all
}

// mayHold reports whether an image reference may stand at path.
func mayHold(path string) bool {
	for _, end := range []string{"/containers[]/image", "/initContainers[]/image", "/ephemeralContainers[]/image", "/volumes[]/image/reference"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	path = strings.ReplaceAll(path, "[]", "")
	if strings.HasSuffix(path, "/mine") {
		return true
	}
	for _, row := range places {
		for _, under := range row.under {
			for _, end := range row.paths {
				if strings.HasSuffix(path, "/"+strings.ReplaceAll(under+"/"+end, "[]", "")) {
					return true
				}
			}
		}
	}
	return false
}

// marshal returns the objects as YAML. The library panics on some documents that it reads, such as one that contains
// itself; kustomize has expanded those, so that they do not come here.
func marshal(objects []*yaml.Node) (text string, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	var b strings.Builder
	for _, o := range objects {
		data, err := yaml.Marshal(o)
		if err != nil {
			return "", false
		}
		b.Write(data)
	}
	return b.String(), true
}

// BenchmarkPlan is the pinning of a render: find the images, list them, put the digests in.
func BenchmarkPlan(b *testing.B) {
	const deployment = "kind: Deployment\nmetadata: {name: d%d}\nspec: {template: {spec: {containers: [" +
		"{name: c, image: 'ghcr.io/acme/app-%d:latest', args: [a, b], env: [{name: N, value: v}], ports: [{containerPort: 80}]}," +
		"{name: proxy, image: 'ghcr.io/mirror/envoy:v1.36.2'}]}}}\n---\n"
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, deployment, i, i%50)
	}
	source := decode(b, text.String())
	p, err := New(source, Policy{Tags: latest})
	if err != nil {
		b.Fatal(err)
	}
	digests := all(p)
	fields, old := p.fields, make([]string, len(p.fields))
	for i, f := range fields {
		old[i] = f.node.Value
	}
	b.ReportAllocs()
	for b.Loop() {
		p, err := New(source, Policy{Tags: latest})
		if err != nil {
			b.Fatal(err)
		}
		if len(p.Images()) != 50 {
			b.Fatalf("%d images, want 50", len(p.Images()))
		}
		if err := p.Apply(digests, TagAndDigest); err != nil {
			b.Fatal(err)
		}
		for i, f := range fields {
			f.node.Value = old[i]
		}
	}
}
