package render

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/types"

	"github.com/digestlock/digestlock/internal/lazy"
)

// FieldSpec is a place where the user's kustomize configuration says that images are. An empty Group, Version or Kind
// means any. Path is in kustomize's syntax: names separated by "/", with "[]" after that of a list.
type FieldSpec struct{ Group, Version, Kind, Path string }

// ImageFields returns the images of the "configurations" files that the kustomizations of this build name, sorted and
// each once. Those that kustomize knows by itself are not among them.
func (o *Output) ImageFields() []FieldSpec {
	var fields []FieldSpec
	for _, data := range o.configurations {
		var config struct{ Images []FieldSpec }
		// An error was krusty's to report.
		if decode(data, &config) == nil {
			fields = append(fields, config.Images...)
		}
	}
	slices.SortFunc(fields, func(a, b FieldSpec) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Path, b.Path))
	})
	return slices.Compact(fields)
}

// decode reads YAML as krusty does, by way of JSON: the case of keys does not matter.
func decode(data []byte, into any) error {
	var v any
	if err := yaml.Unmarshal(data, &v); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// note keeps a kustomization and waits for the configurations that it names.
func (d *disk) note(f file) error {
	d.kustomizations = append(d.kustomizations, f)
	var k types.Kustomization
	if !d.helm && !bytes.Contains(bytes.ToLower(f.data), []byte("configurations")) || k.Unmarshal(f.data) != nil {
		return nil
	}
	for _, name := range k.Configurations {
		if real, err := d.resolve(filepath.Join(filepath.Dir(f.name), name)); err == nil && d.configurations[real] == nil {
			d.configurations[real] = nil
		}
	}
	if d.helm {
		return f.charts(k)
	}
	return nil
}

// remoteEntry matches what kustomize may take for a URL, of a generator's "key=file" the file.
var remoteEntry = lazy.Regexp(`(?i)^(?:[^=:/]*=)?((?:git::)?(?:\w+://|[^/\s@]+@[^/\s@]+|github\.com[:/])\S*)$`)

// remote returns the entry that text, a krusty error without secrets, is about, with its file and line, or "". Of
// several kustomizations with the same entry the last is the one: krusty was still busy with what it named before. The
// error about a component names none; then it is the first one of the last kustomization that has any.
func (d *disk) remote(text string) string {
	return cmp.Or(d.lastEntry(text), d.lastEntry(""))
}

// lastEntry returns the longest entry that text has, or with "" the first.
func (d *disk) lastEntry(text string) string {
	for _, f := range slices.Backward(d.kustomizations) {
		var n yaml.Node
		if yaml.Unmarshal(f.data, &n) != nil {
			continue
		}
		line, entry := 0, ""
		scalars(&n, func(s *yaml.Node) {
			m := remoteEntry().FindStringSubmatch(s.Value)
			if m == nil {
				return
			}
			if e := withoutSecrets(m[1]); entry == "" && text == "" || len(e) > len(entry) && strings.Contains(text, e) {
				line, entry = s.Line, e
			}
		})
		if entry != "" {
			return fmt.Sprintf("in %s:%d: %s", f.name, line, entry)
		}
	}
	return ""
}

// scalars calls f for each scalar below n. It does not follow aliases.
func scalars(n *yaml.Node, f func(*yaml.Node)) {
	if n.Kind == yaml.ScalarNode {
		f(n)
	}
	for _, c := range n.Content {
		scalars(c, f)
	}
}
