// Package pin finds the image references in rendered objects and puts digests to the mutable ones: all or none.
package pin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// Format says how a pinned reference is written.
type Format string

// The formats. The tag says to people what the digest was, and is what other updaters keep.
const (
	TagAndDigest Format = "tag"    // name:tag@sha256:…
	DigestOnly   Format = "digest" // name@sha256:…
)

// containerLists are the fields whose items are containers, wherever they stand: in a Pod, in a template of a
// template, in a custom resource that embeds a pod spec.
var containerLists = []string{"containers", "initContainers", "ephemeralContainers"}

// skippedKinds may contain a container list without running it: a CustomResourceDefinition in the defaults of its
// schema, a ConfigMap or Secret as data.
var skippedKinds = []string{"CustomResourceDefinition", "ConfigMap", "Secret"}

// Plan is the set of mutable image references of one render. It holds on to the objects' nodes and is not safe for
// concurrent use.
type Plan struct {
	fields []field
}

// field is one scalar that holds a mutable reference.
type field struct {
	node *yaml.Node
	ref  image.Ref
}

// New finds the image references of objects and keeps those that tags calls mutable. References that are empty or
// templated ("${TAG}", "{{ .tag }}") and ko:// are not references yet and are left alone. All other text that is not
// a valid reference is an error, which names each object and field.
func New(objects []*yaml.Node, tags image.Tags) (*Plan, error) {
	p := &Plan{}
	var bad []string
	for _, o := range objects {
		if slices.Contains(skippedKinds, scalar(o, "kind")) {
			continue
		}
		w := walker{}
		w.found = func(n *yaml.Node) {
			if !isReference(n) {
				return
			}
			ref, err := image.Parse(n.Value)
			if err != nil {
				bad = append(bad, fmt.Sprintf("%s %s: %v", name(o), w.path(), err))
				return
			}
			if tags.Mutable(ref) {
				p.fields = append(p.fields, field{node: n, ref: ref})
			}
		}
		w.walk(o)
	}
	if len(bad) > 0 {
		return nil, fault.New("correct the reference: registry.example.com/path/name:tag, lower case",
			"%s", strings.Join(bad, "; "))
	}
	return p, nil
}

// Images returns the distinct mutable references, sorted by their normalised form.
func (p *Plan) Images() []image.Ref {
	distinct := map[string]image.Ref{}
	for _, f := range p.fields {
		distinct[f.ref.String()] = f.ref
	}
	refs := make([]image.Ref, 0, len(distinct))
	for _, key := range slices.Sorted(maps.Keys(distinct)) {
		refs = append(refs, distinct[key])
	}
	return refs
}

// Apply writes the digests, keyed by normalised reference, into the objects. When one is missing it changes nothing
// and returns an error.
func (p *Plan) Apply(digests map[string]string, format Format) error {
	for _, f := range p.fields {
		if !image.IsDigest(digests[f.ref.String()]) {
			return fmt.Errorf("no digest for %s", f.ref)
		}
	}
	for _, f := range p.fields {
		f.node.Value = f.ref.Name
		if format != DigestOnly {
			f.node.Value += ":" + f.ref.Tag
		}
		f.node.Value += "@" + digests[f.ref.String()]
	}
	return nil
}

func isReference(n *yaml.Node) bool {
	v := n.Value
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && v != "" && !strings.HasPrefix(v, "ko://") &&
		!strings.Contains(v, "${") && !strings.Contains(v, "$(") && !strings.Contains(v, "{{")
}

// walker goes through an object and calls found with each container's image. It keeps the way to the current node so
// that a path is only put together for somebody who asks.
type walker struct {
	way   []step
	found func(n *yaml.Node)
}

type step struct {
	key   string
	index int // of an item of a list, when key is ""
}

func (w *walker) walk(n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			w.way = append(w.way, step{key: key})
			if value.Kind == yaml.SequenceNode && slices.Contains(containerLists, key) {
				w.containers(value)
			}
			w.walk(value)
			w.way = w.way[:len(w.way)-1]
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			w.way = append(w.way, step{index: i})
			w.walk(item)
			w.way = w.way[:len(w.way)-1]
		}
	}
}

func (w *walker) containers(list *yaml.Node) {
	for i, c := range list.Content {
		if img := value(c, "image"); img != nil {
			w.way = append(w.way, step{index: i}, step{key: "image"})
			w.found(img)
			w.way = w.way[:len(w.way)-2]
		}
	}
}

// path returns where the walker is: "spec.template.spec.containers[0].image".
func (w *walker) path() string {
	var b strings.Builder
	for _, s := range w.way {
		switch {
		case s.key == "":
			fmt.Fprintf(&b, "[%d]", s.index)
		case b.Len() > 0:
			b.WriteString("." + s.key)
		default:
			b.WriteString(s.key)
		}
	}
	return b.String()
}

func value(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

func scalar(n *yaml.Node, key string) string {
	if v := value(n, key); v != nil {
		return v.Value
	}
	return ""
}

// name returns "Deployment/backend", what kubectl calls the object.
func name(o *yaml.Node) string {
	meta := value(o, "metadata")
	if meta == nil {
		return scalar(o, "kind")
	}
	return scalar(o, "kind") + "/" + scalar(meta, "name")
}
