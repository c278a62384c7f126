package pin

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/image"
)

// Use is one place that holds, or looks as if it held, an image reference.
type Use struct {
	Object  string // "Deployment/backend"
	Field   string // "spec.template.spec.containers[0].image"
	Value   string // as its author wrote it
	Image   string // normalised, "" if Value is no reference
	Skipped string // why it is not pinned, "" when it is
}

// Uses returns every place that holds an image reference, and those that only look like one, in output order. They
// say the same before and after Apply. Each call goes through the objects once more: a render that explains nothing
// does not pay for it.
func (p *Plan) Uses() []Use {
	pinned := make(map[*yaml.Node]field, len(p.fields))
	for _, f := range p.fields {
		pinned[f.node] = f
	}
	var uses []Use
	w := walker{policy: p.policy}
	for _, o := range p.objects {
		add := func(value, normalised, skipped string) {
			uses = append(uses, Use{Object: name(o), Field: w.path(), Value: value, Image: normalised, Skipped: skipped})
		}
		w.found = func(n *yaml.Node) {
			if f, ok := pinned[n]; ok {
				add(f.before, f.ref.String(), "")
				return
			}
			normalised, skipped := "", w.noReference(n)
			if ref, err := image.Parse(n.Value); err == nil && (skipped == "" || skipped == excludedKind) {
				normalised = ref.String()
				if skipped == "" {
					skipped = p.policy.skip(ref)
				}
			}
			add(n.Value, normalised, skipped)
		}
		w.other = func(n *yaml.Node) {
			if !imageKey(w.key()) || n.ShortTag() != "!!str" || w.under("annotations", "labels") {
				return
			}
			if ref, err := image.Parse(n.Value); err == nil && explicit(n.Value, ref) {
				add(n.Value, ref.String(), lookalike)
			}
		}
		w.object(o)
	}
	return uses
}

func imageKey(key string) bool {
	return key == "image" || key == "imageName" || strings.HasSuffix(key, "Image")
}

// explicit reports whether value, which ref is, has a registry host, a tag or a digest: without one, any word is a
// reference.
func explicit(value string, ref image.Ref) bool {
	host, _, found := strings.Cut(ref.Name, "/")
	return len(value) > len(ref.Name) || found && (strings.ContainsAny(host, ".:") || host == "localhost")
}
