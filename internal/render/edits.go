package render

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/pkg/util"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/digestlock/digestlock/internal/fault"
)

// Edits change the overlay's own kustomization before it is built, as Argo CD's native kustomize does by calling
// "kustomize edit" in a fixed order (util/kustomize of v3.5.7): same fields, same result, but in memory. The zero value
// changes nothing.
type Edits struct {
	NamePrefix, NameSuffix, Namespace string            // "" leaves the overlay's own
	Images                            []string          // NAME=NEWNAME:TAG@DIGEST and its parts, as "kustomize edit set image" takes them
	Replicas                          map[string]string // name → count
	Labels, Annotations               map[string]string
	ForceLabels, ForceAnnotations     bool     // replace what the overlay has; else that is an error
	WithoutSelector, IncludeTemplates bool     // of Labels
	Patches                           []string // each a patch of a kustomization, as YAML or JSON
	Components                        []string // paths or globs, from the overlay
	IgnoreMissing                     bool     // of Components
}

// apply reads the kustomization of the overlay in dir and keeps what it is after the edits, for krusty to read.
func (d *disk) apply(e Edits, dir string) error {
	name := ""
	for _, n := range konfig.RecognizedKustomizationFileNames() {
		if _, err := os.Stat(filepath.Join(dir, n)); err == nil {
			name = filepath.Join(dir, n) // of several, krusty refuses all
		}
	}
	original, err := d.read(name)
	if err != nil {
		return err
	}
	var k types.Kustomization
	if k.Unmarshal(original) != nil {
		return nil // an error that krusty reports better
	}
	k.FixKustomization()
	for _, edit := range []func(*types.Kustomization) error{e.names, e.images, e.replicas, e.labels, e.annotations, e.patches, func(k *types.Kustomization) error {
		return e.components(k, d, dir)
	}} {
		if err := edit(&k); err != nil {
			return err
		}
	}
	edited, err := json.Marshal(k) // YAML, too
	if err != nil {
		return err
	}
	d.edited[name] = edited
	return d.expand(name, edited)
}

// None reports whether they change nothing.
func (e Edits) None() bool {
	return e.NamePrefix == "" && e.NameSuffix == "" && e.Namespace == "" && len(e.Images)+len(e.Replicas)+len(e.Labels)+
		len(e.Annotations)+len(e.Patches)+len(e.Components) == 0
}

func badEdit(parameter, hint, format string, args ...any) error {
	return fault.New(fault.Parameter, hint, "parameter %q: %w", parameter, fmt.Errorf(format, args...))
}

func (e Edits) names(k *types.Kustomization) error {
	k.NamePrefix = cmp.Or(e.NamePrefix, k.NamePrefix)
	k.NameSuffix = cmp.Or(e.NameSuffix, k.NameSuffix)
	k.Namespace = cmp.Or(e.Namespace, k.Namespace)
	return nil
}

// images merges like "kustomize edit set image": by name, ours win, "*" keeps a part of the overlay's own.
func (e Edits) images(k *types.Kustomization) error {
	if len(e.Images) == 0 {
		return nil
	}
	all := map[string]types.Image{}
	for _, text := range e.Images {
		img, err := parseImage(text)
		if err != nil {
			return err
		}
		all[img.Name] = img
	}
	for _, own := range k.Images {
		img, ok := all[own.Name]
		if !ok {
			img = own
		}
		all[own.Name] = kept(img, own)
	}
	k.Images = nil
	for _, name := range slices.Sorted(maps.Keys(all)) {
		k.Images = append(k.Images, kept(all[name], types.Image{}))
	}
	return nil
}

// kept replaces the parts of img that are "*" by those of own.
func kept(img, own types.Image) types.Image {
	keep := func(part *string, own string) {
		if *part == "*" {
			*part, img.TagSuffix = own, ""
		}
	}
	keep(&img.NewName, own.NewName)
	keep(&img.NewTag, own.NewTag)
	keep(&img.Digest, own.Digest)
	return img
}

func parseImage(text string) (types.Image, error) {
	key, value, renames := strings.Cut(text, "=")
	if !renames {
		key, value = "", text
	}
	name, tag, digest := util.SplitImageName(value)
	if name == text || strings.HasPrefix(text, "-") {
		return types.Image{}, badEdit("images", "write NAME:TAG, NAME@DIGEST, NAME=NEWNAME or NAME=NEWNAME:TAG", "%q overrides no image", text)
	}
	if key == "" {
		return types.Image{Name: name, NewTag: tag, Digest: digest}, nil
	}
	return types.Image{Name: key, NewName: name, NewTag: tag, Digest: digest}, nil
}

func (e Edits) replicas(k *types.Kustomization) error {
	if len(e.Replicas) == 0 {
		return nil
	}
	all := map[string]types.Replica{}
	for name, text := range e.Replicas {
		count, err := strconv.ParseInt(text, 10, 64)
		if err != nil || name == "" || strings.ContainsAny(name, "=") {
			return badEdit("replicas", "write NAME: \"3\"", "%q: %q is no number of replicas", name, text)
		}
		all[name] = types.Replica{Name: name, Count: count}
	}
	for _, own := range k.Replicas {
		if _, ok := all[own.Name]; !ok {
			all[own.Name] = own
		}
	}
	k.Replicas = nil
	for _, name := range slices.Sorted(maps.Keys(all)) {
		k.Replicas = append(k.Replicas, all[name])
	}
	return nil
}

func (e Edits) labels(k *types.Kustomization) error {
	const name = "common-labels"
	if len(e.Labels) == 0 {
		return nil
	}
	if !e.WithoutSelector {
		if e.IncludeTemplates {
			return badEdit("label-include-templates", "give label-without-selector as well", "selectors are not left out")
		}
		//lint:ignore SA1019 it is where "kustomize edit" writes, and Labels would not conflict with what the overlay has here
		return merge(name, &k.CommonLabels, e.Labels, e.ForceLabels)
	}
	i := slices.IndexFunc(k.Labels, func(l types.Label) bool {
		return !l.IncludeSelectors && l.IncludeTemplates == e.IncludeTemplates
	})
	if i < 0 {
		i = len(k.Labels)
		k.Labels = append(k.Labels, types.Label{IncludeTemplates: e.IncludeTemplates})
	}
	return merge(name, &k.Labels[i].Pairs, e.Labels, e.ForceLabels)
}

func (e Edits) annotations(k *types.Kustomization) error {
	return merge("common-annotations", &k.CommonAnnotations, e.Annotations, e.ForceAnnotations)
}

// merge adds pairs to what the overlay has. As with "kustomize edit", a value may be quoted.
func merge(parameter string, into *map[string]string, pairs map[string]string, force bool) error {
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		if key == "" || key[0] == '-' || strings.Contains(key, ":") {
			return badEdit(parameter, "keys are like app.kubernetes.io/name", "%q is no key", key)
		}
		if _, has := (*into)[key]; has && !force {
			return badEdit(parameter, "give parameter force-"+parameter+" to replace it", "the overlay has %q already", key)
		}
		value := pairs[key]
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		if *into == nil {
			*into = map[string]string{}
		}
		(*into)[key] = value
	}
	return nil
}

func (e Edits) patches(k *types.Kustomization) error {
	for i, text := range e.Patches {
		var v any
		err := yaml.Unmarshal([]byte(text), &v)
		var data []byte
		if err == nil {
			data, err = json.Marshal(v)
		}
		var p types.Patch
		if err == nil {
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.DisallowUnknownFields()
			err = dec.Decode(&p)
		}
		if err != nil {
			return badEdit("patches", "each is a patch of a kustomization as text: {path: …} or {patch: …}, with target and options", "item %d: %w", i+1, err)
		}
		k.Patches = append(k.Patches, p)
	}
	return nil
}

func (e Edits) components(k *types.Kustomization, d *disk, dir string) error {
	for _, pattern := range e.Components {
		if e.IgnoreMissing {
			if _, err := d.resolve(filepath.Join(dir, pattern)); err != nil {
				continue
			}
		}
		found, err := d.glob(dir, pattern)
		if err != nil {
			return badEdit("components", "give paths from the overlay", "%q: %w", pattern, err)
		}
		for _, c := range found {
			if !slices.Contains(k.Components, c) {
				k.Components = append(k.Components, c)
			}
		}
	}
	return nil
}

// glob returns the paths from dir that match pattern, without hidden ones, or the pattern itself: what is not there is
// krusty's to say.
func (d *disk) glob(dir, pattern string) ([]string, error) {
	if !strings.ContainsAny(pattern, `*?[\`) {
		return []string{pattern}, nil
	}
	matches, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(matches) == 0 {
		return []string{pattern}, err
	}
	for i, m := range matches {
		if _, err := d.resolve(m); err != nil {
			return nil, errOutside // without a word of what is there
		}
		if matches[i], err = filepath.Rel(dir, m); err != nil {
			return nil, err
		}
	}
	if !filesys.IsHiddenFilePath(pattern) {
		matches = filesys.RemoveHiddenFiles(matches)
	}
	return matches, nil
}
