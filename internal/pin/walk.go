package pin

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// walker goes through an object in output order and calls found with each scalar in a place that holds an image
// reference, and other, where set, with all other scalars. It keeps the way to the current node so that a path is
// only put together for somebody who asks.
type walker struct {
	policy       Policy
	found, other func(n *yaml.Node)

	way      []step
	extra    nodes // of the object that the walker is in
	excluded bool  // by its kind
	patterns bool  // in the place of references
}

type step struct {
	key   string
	index int // of an item of a list, when key is ""
}

// role is what a node is for the search.
type role int

const (
	plain role = iota
	containerList
	container
	volumeList
	volume
	imageVolume
	reference
)

// object walks through an object, or one that stands in another one: in a Sensor of Argo Events, in a TriggerTemplate.
func (w *walker) object(n *yaml.Node) {
	group, _, kind := typeOf(n)
	if slices.Contains(skippedKinds, kind) {
		return
	}
	outer := *w
	w.extra = collected(n, w.policy.Fields)
	for scalar := range outer.extra { // what the outer object's fields say about this one
		if w.extra == nil {
			w.extra = nodes{}
		}
		w.extra[scalar] = true
	}
	w.excluded = outer.excluded || w.policy.excludesKind(kind)
	w.patterns = outer.patterns || group == policyGroup || strings.HasSuffix(group, "."+policyGroup)
	w.children(n, plain)
	w.extra, w.excluded, w.patterns = outer.extra, outer.excluded, outer.patterns
}

func (w *walker) walk(n *yaml.Node, r role) {
	switch {
	case n.Kind == yaml.ScalarNode:
		if r == reference || w.extra[n] {
			w.found(n)
		} else if w.other != nil {
			w.other(n)
		}
	case n.Kind == yaml.MappingNode && value(n, "apiVersion") != nil && value(n, "kind") != nil:
		w.object(n)
	default:
		w.children(n, r)
	}
}

func (w *walker) children(n *yaml.Node, r role) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			w.way = append(w.way, step{key: key})
			w.walk(value, r.field(key, value))
			w.way = w.way[:len(w.way)-1]
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			w.way = append(w.way, step{index: i})
			w.walk(item, r.item())
			w.way = w.way[:len(w.way)-1]
		}
	}
}

// field returns the role of what stands under key in a map of role r.
func (r role) field(key string, value *yaml.Node) role {
	switch {
	case value.Kind == yaml.SequenceNode && slices.Contains(containerLists, key):
		return containerList
	case value.Kind == yaml.SequenceNode && key == "volumes":
		return volumeList
	case r == container && key == "image", r == imageVolume && key == "reference":
		return reference
	case r == volume && key == "image":
		return imageVolume
	}
	return plain
}

// item returns the role of the items of a list of role r.
func (r role) item() role {
	switch r {
	case containerList:
		return container
	case volumeList:
		return volume
	}
	return plain
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

// key returns the key under which the walker is, "" in a list.
func (w *walker) key() string {
	if len(w.way) == 0 {
		return ""
	}
	return w.way[len(w.way)-1].key
}

// under reports whether the walker is somewhere below one of keys.
func (w *walker) under(keys ...string) bool {
	return slices.ContainsFunc(w.way, func(s step) bool { return slices.Contains(keys, s.key) })
}

// single returns the objects with each of kind List replaced by its items, as kubectl and Argo CD apply it.
func single(objects []*yaml.Node) []*yaml.Node {
	if !slices.ContainsFunc(objects, isList) {
		return objects
	}
	var out []*yaml.Node
	for _, o := range objects {
		if isList(o) {
			out = append(out, single(value(o, "items").Content)...)
		} else {
			out = append(out, o)
		}
	}
	return out
}

func isList(o *yaml.Node) bool {
	items := value(o, "items")
	return items != nil && items.Kind == yaml.SequenceNode && scalar(o, "kind") == "List"
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
