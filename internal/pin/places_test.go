package pin

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func manifests(tb testing.TB) string {
	tb.Helper()
	data, err := os.ReadFile("testdata/places.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

// TestPlaces: in every manifest, all references to pin.example are pinned and nothing else changes.
func TestPlaces(t *testing.T) {
	t.Parallel()
	for _, o := range decode(t, manifests(t)) {
		group, version, kind := typeOf(o)
		t.Run(strings.Trim(group+"/"+version+"/"+kind, "/"), func(t *testing.T) {
			t.Parallel()
			text := block(t, encode(t, []*yaml.Node{o}))
			var want []string
			for line := range strings.SplitSeq(text, "\n") {
				if strings.Contains(line, " pin.example/") {
					want = append(want, strings.TrimLeft(line, " -")+":latest@"+digest)
				}
			}
			if diff := cmp.Diff(want, changed(t, text, pinned(t, text, TagAndDigest))); diff != "" {
				t.Errorf("changed lines (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlacesHaveManifests: there is no row without an object in which it finds something, and the rows are sorted.
func TestPlacesHaveManifests(t *testing.T) {
	t.Parallel()
	objects := decode(t, manifests(t))
	for _, p := range places {
		for _, kind := range p.kinds {
			for _, under := range p.under {
				for _, path := range p.paths {
					found := nodes{}
					for _, o := range objects {
						if g, _, k := typeOf(o); g == p.group && k == kind {
							found.collect(o, segments(under+"/"+path))
						}
					}
					if len(found) == 0 {
						t.Errorf("%s %s: no manifest has %s/%s", p.group, kind, under, path)
					}
				}
			}
		}
		if !slices.IsSorted(p.kinds) || !slices.IsSorted(p.under) || !slices.IsSorted(p.paths) {
			t.Errorf("%s %v is not sorted", p.group, p.kinds)
		}
	}
	if !slices.IsSortedFunc(places, func(a, b place) int { return strings.Compare(a.group+" "+a.kinds[0], b.group+" "+b.kinds[0]) }) {
		t.Error("places is not sorted")
	}
}

// TestFields: the user's own places, in all forms of a path, restricted by group, version and kind.
func TestFields(t *testing.T) {
	t.Parallel()
	const text = `apiVersion: acme.io/v1
kind: App
metadata:
  name: x
  annotations: {acme.io/image: k}
spec:
  image: a
  list: [{image: b}, {image: c}, [{image: d}]]
  texts: [e, f]
  containers: [{image: g}]
  map: {image: {x: y}}
  items: [{apiVersion: v1, kind: Pod, spec: {image: h}}]
`
	tests := []struct {
		name   string
		fields []Field
		want   []string
	}{
		{"none", nil, []string{"g"}},
		{"scalar, in the object in the object too", []Field{{Path: "spec/image"}}, []string{"a", "g", "h"}},
		{"list with brackets", []Field{{Path: "spec/list[]/image"}}, []string{"b", "c", "d", "g"}},
		{"list without brackets", []Field{{Path: "spec/list/image"}}, []string{"b", "c", "d", "g"}},
		{"list of texts", []Field{{Path: "spec/texts"}}, []string{"e", "f", "g"}},
		{"list of texts with brackets", []Field{{Path: "spec/texts[]"}}, []string{"e", "f", "g"}},
		{"built in as well", []Field{{Path: "spec/containers[]/image"}, {Path: "spec/containers/image"}}, []string{"g"}},
		{"slash in a key", []Field{{Path: `metadata/annotations/acme.io\/image`}}, []string{"g", "k"}},
		{"nothing there", []Field{{Path: "spec/other/image"}, {Path: "image"}, {Path: "spec/image/x"}}, []string{"g"}},
		{"map", []Field{{Path: "spec/map/image"}, {Path: "spec"}}, []string{"g"}},
		{"all of it", []Field{{"acme.io", "v1", "App", "spec/image"}}, []string{"a", "g"}},
		{"other group", []Field{{"acme.com", "v1", "App", "spec/image"}}, []string{"g"}},
		{"other version", []Field{{"acme.io", "v2", "App", "spec/image"}}, []string{"g"}},
		{"other kind", []Field{{"acme.io", "v1", "app", "spec/image"}}, []string{"g"}},
		{"object in the object", []Field{{Kind: "Pod", Path: "spec/image"}}, []string{"g", "h"}},
		{"into the object in the object", []Field{{Kind: "App", Path: "spec/items[]/spec/image"}}, []string{"g", "h"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			policy := Policy{Tags: latest, Fields: tt.fields}
			if err := policy.Check(); err != nil {
				t.Fatal(err)
			}
			p, err := New(decode(t, text), policy)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range p.fields {
				got = append(got, f.before)
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("pinned (-want +got):\n%s", diff)
			}
		})
	}
}
