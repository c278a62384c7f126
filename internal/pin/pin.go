// Package pin finds the image references in rendered objects and puts digests to the mutable ones: all or none.
package pin

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
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

// Pinned returns ref with digest, under the name that its author wrote.
func (f Format) Pinned(ref image.Ref, digest string) string {
	if f == DigestOnly {
		return ref.Name + "@" + digest
	}
	return ref.Name + ":" + ref.Tag + "@" + digest
}

// maxQuote bounds how much of an invalid value an error repeats, so that one value cannot hide the others.
const maxQuote = 80

// Plan is the set of mutable image references of one render. It holds on to the objects' nodes and is not safe for
// concurrent use.
type Plan struct {
	objects []*yaml.Node
	policy  Policy
	fields  []field
}

// field is one scalar that holds a mutable reference.
type field struct {
	node   *yaml.Node
	object *yaml.Node
	ref    image.Ref
	before string // the scalar as its author wrote it
}

// New finds the image references of objects and keeps those that the policy pins. References that are empty or
// templated ("${TAG}", "{{ .tag }}") and ko:// are not references yet and are left alone. All other text that is not
// a valid reference is an error, which names each object and field. The policy must be one that Check accepts.
func New(objects []*yaml.Node, policy Policy) (*Plan, error) {
	p := &Plan{objects: single(objects), policy: policy}
	var bad []string
	w := walker{policy: policy}
	for _, o := range p.objects {
		w.found = func(n *yaml.Node) {
			if w.noReference(n) != "" {
				return
			}
			ref, err := image.Parse(n.Value)
			if err != nil {
				bad = append(bad, fmt.Sprintf("%s %s: %s", name(o), w.path(), complaint(n.Value, err)))
				return
			}
			if policy.skip(ref) == "" {
				p.fields = append(p.fields, field{node: n, object: o, ref: ref, before: n.Value})
			}
		}
		w.object(o)
	}
	if len(bad) > 0 {
		return nil, fault.New(fault.BadReference, "correct the reference: registry.example.com/path/name:tag, lower case",
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
		f.node.Value = format.Pinned(f.ref, digests[f.ref.String()])
	}
	return nil
}

// Jobs returns the Jobs in which a reference is pinned and whose sync fails once its digest moves, in output order:
// Kubernetes does not let a Job's image change. Not among them are Jobs that Argo CD makes anew: its hooks, those with a
// generated name, and those that a sync option replaces.
func (p *Plan) Jobs() []string {
	var jobs []string
	var last *yaml.Node
	for _, f := range p.fields {
		if group, _, kind := typeOf(f.object); group == "batch" && kind == "Job" && f.object != last && !remade(f.object) {
			jobs = append(jobs, name(f.object))
		}
		last = f.object
	}
	return jobs
}

func remade(job *yaml.Node) bool {
	meta := value(job, "metadata")
	if meta == nil {
		return false
	}
	if scalar(meta, "name") == "" && scalar(meta, "generateName") != "" {
		return true
	}
	annotations := value(meta, "annotations")
	if annotations == nil {
		return false
	}
	options := scalar(annotations, "argocd.argoproj.io/sync-options")
	return value(annotations, "argocd.argoproj.io/hook") != nil || value(annotations, "helm.sh/hook") != nil ||
		strings.Contains(options, "Replace=true") || strings.Contains(options, "Force=true")
}

// noReference returns why n, at the walker's place, is not even read as a reference, "" when it is.
func (w *walker) noReference(n *yaml.Node) string {
	v, tag := n.Value, n.ShortTag()
	switch {
	case tag == "!!null", tag == "!!str" && v == "":
		return empty
	case tag != "!!str":
		return noText
	case strings.HasPrefix(v, "ko://"):
		return koBuild
	case strings.Contains(v, "${"), strings.Contains(v, "$("), strings.Contains(v, "{{"):
		return template
	case w.excluded:
		return excludedKind
	case w.patterns && strings.ContainsAny(v, "*?!<>|& "):
		return pattern
	}
	return ""
}

// complaint is the text of an error of [image.Parse] about value, with what it quotes cut to a readable length.
func complaint(value string, err error) string {
	text, found := strings.CutPrefix(err.Error(), "image "+strconv.Quote(value)+": ")
	if !found {
		return text
	}
	if part, err := strconv.QuotedPrefix(text); err == nil {
		unquoted, _ := strconv.Unquote(part)
		text = quote(unquoted) + text[len(part):]
	}
	return "image " + quote(value) + ": " + text
}

func quote(s string) string {
	if len(s) > maxQuote {
		s = strings.ToValidUTF8(s[:maxQuote], "") + "…"
	}
	return strconv.Quote(s)
}
