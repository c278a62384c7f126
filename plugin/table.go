package plugin

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/pin"
)

// Parameters returns every parameter, sorted by name. Plugin.yaml, docs/parameters.md, the flags of generate and the
// reading of ARGOCD_APP_PARAMETERS all come from this table.
//
// Those marked "as source.kustomize" are what an Application loses when it moves from Argo CD's native kustomize to a
// plugin: the same names in this spelling, the same meaning. E2e compares with Argo CD's own code.
func Parameters() []Parameter {
	return []Parameter{
		{
			Name: "allow-empty", Title: "Allow no objects", Type: "string", Default: "false", Bool: true,
			Tooltip: "Accept a render without any object. By default it is an error, because Argo CD would prune everything.",
			set:     yes(func(s *Settings) *bool { return &s.AllowEmpty }),
		},
		{
			Name: "api-versions", Title: "API versions", Type: "array",
			Tooltip: "API versions that helm charts see, as [GROUP/]VERSION/KIND; as source.kustomize. By default those of the cluster.",
			set:     list(func(s *Settings) *[]string { return &s.Build.Helm.APIVersions }),
		},
		{
			Name: "common-annotations", Title: "Common annotations", Type: "map",
			Tooltip: "Annotations to add to all objects; as source.kustomize.",
			set:     pairs(func(s *Settings) *map[string]string { return &s.Build.Edits.Annotations }),
		},
		{
			Name: "common-annotations-envsubst", Title: "Substitute in annotations", Type: "string", Default: "false", Bool: true,
			Tooltip: "Replace ${ARGOCD_APP_REVISION} and the like in common-annotations; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.SubstituteAnnotations }),
		},
		{
			Name: "common-labels", Title: "Common labels", Type: "map",
			Tooltip: "Labels to add to all objects and selectors, with ${ARGOCD_APP_NAME} and the like replaced; as source.kustomize.",
			set:     pairs(func(s *Settings) *map[string]string { return &s.Build.Edits.Labels }),
		},
		{
			Name: "components", Title: "Components", Type: "array",
			Tooltip: "Kustomize components to add, as paths or globs from the overlay; as source.kustomize.",
			set:     list(func(s *Settings) *[]string { return &s.Build.Edits.Components }),
		},
		{
			Name: "exclude-images", Title: "Images left alone", Type: "array",
			Tooltip: "Globs of images that are never pinned, by registry and repository or as written: ghcr.io/acme/**, nginx.",
			set:     policy(func(p *pin.Policy, v []string) { p.Exclude = v }),
		},
		{
			Name: "exclude-kinds", Title: "Kinds left alone", Type: "array",
			Tooltip: "Globs of kinds in which nothing is pinned, such as Job: a Job is immutable, a new digest makes its sync fail.",
			set:     policy(func(p *pin.Policy, v []string) { p.ExcludeKinds = v }),
		},
		{
			Name: "force-common-annotations", Title: "Replace annotations", Type: "string", Default: "false", Bool: true,
			Tooltip: "Let common-annotations replace those of the overlay's kustomization, which is an error otherwise; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.Build.Edits.ForceAnnotations }),
		},
		{
			Name: "force-common-labels", Title: "Replace labels", Type: "string", Default: "false", Bool: true,
			Tooltip: "Let common-labels replace those of the overlay's kustomization, which is an error otherwise; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.Build.Edits.ForceLabels }),
		},
		{
			Name: "ignore-missing-components", Title: "Ignore missing components", Type: "string", Default: "false", Bool: true,
			Tooltip: "Leave those of components out that are not there; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.Build.Edits.IgnoreMissing }),
		},
		{
			Name: "image-fields", Title: "More image fields", Type: "array",
			Tooltip: "More places of images, as KIND.GROUP:path with kustomize's field paths: Backup.acme.io:spec/runner/image. KIND.GROUP: may be left out.",
			set: policy(func(p *pin.Policy, v []string) {
				p.Fields = make([]pin.Field, len(v))
				for i, text := range v {
					p.Fields[i] = parseField(text)
				}
			}),
		},
		{
			Name: "images", Title: "Image overrides", Type: "array",
			Tooltip: "Kustomize image overrides, NAME=NEWNAME:TAG or a part of it, with ${ARGOCD_APP_REVISION} and the like replaced; as source.kustomize. What they give is pinned like anything else.",
			set:     list(func(s *Settings) *[]string { return &s.Build.Edits.Images }),
		},
		{
			Name: "include-images", Title: "Images to pin", Type: "array",
			Tooltip: "Globs of the only images that are pinned, in the form of exclude-images. None means all.",
			set:     policy(func(p *pin.Policy, v []string) { p.Include = v }),
		},
		{
			Name: "kube-version", Title: "Kubernetes version", Type: "string",
			Tooltip: "Kubernetes version that helm charts see; as source.kustomize. By default that of the cluster.",
			set:     text(func(s *Settings) *string { return &s.Build.Helm.KubeVersion }),
		},
		{
			Name: "label-include-templates", Title: "Labels in templates", Type: "string", Default: "false", Bool: true,
			Tooltip: "Add common-labels to pod templates as well; needs label-without-selector; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.Build.Edits.IncludeTemplates }),
		},
		{
			Name: "label-without-selector", Title: "Labels without selectors", Type: "string", Default: "false", Bool: true,
			Tooltip: "Leave selectors as they are when adding common-labels; as source.kustomize.",
			set:     yes(func(s *Settings) *bool { return &s.Build.Edits.WithoutSelector }),
		},
		{
			Name: "mode", Title: "Mode", Type: "string", Default: string(Follow),
			Tooltip: "Who decides on digests: follow (the lock, the registry for images it lacks), live (the registry at the branch's tip) or locked (the lock only).",
			set: func(s *Settings, v value) error {
				return oneOf(&s.Mode, v.text, Follow, Live, Locked)
			},
		},
		{
			Name: "name-prefix", Title: "Name prefix", Type: "string",
			Tooltip: "Replaces namePrefix of the overlay's kustomization; as source.kustomize.",
			set:     text(func(s *Settings) *string { return &s.Build.Edits.NamePrefix }),
		},
		{
			Name: "name-suffix", Title: "Name suffix", Type: "string",
			Tooltip: "Replaces nameSuffix of the overlay's kustomization; as source.kustomize.",
			set:     text(func(s *Settings) *string { return &s.Build.Edits.NameSuffix }),
		},
		{
			Name: "namespace", Title: "Namespace", Type: "string",
			Tooltip: "Replaces namespace of the overlay's kustomization; as source.kustomize.",
			set:     text(func(s *Settings) *string { return &s.Build.Edits.Namespace }),
		},
		{
			Name: "patches", Title: "Patches", Type: "array", Text: true,
			Tooltip: "Kustomize patches to add, each as a text of YAML or JSON with path or patch, target and options; as source.kustomize.",
			set: func(s *Settings, v value) error {
				s.Build.Edits.Patches = append(slices.Clip(s.Build.Edits.Patches), v.list...)
				return nil
			},
		},
		{
			Name: "pin-format", Title: "Pin format", Type: "string", Default: string(pin.TagAndDigest),
			Tooltip: "How a pinned reference is written: tag (name:tag@digest) or digest (name@digest).",
			set: func(s *Settings, v value) error {
				return oneOf(&s.PinFormat, v.text, pin.TagAndDigest, pin.DigestOnly)
			},
		},
		{
			Name: "replicas", Title: "Replicas", Type: "map",
			Tooltip: "Numbers of replicas by the name of what is scaled; as source.kustomize.",
			set:     pairs(func(s *Settings) *map[string]string { return &s.Build.Edits.Replicas }),
		},
		{
			Name: "tags", Title: "Mutable tags", Type: "array", Default: image.DefaultTag,
			Tooltip: "Globs of the tags that move and are replaced by digests. An image without tag counts as latest.",
			set: func(s *Settings, v value) error {
				if len(v.list) == 0 {
					return errors.New("no tags: nothing would be pinned")
				}
				return policy(func(p *pin.Policy, v []string) { p.Tags = v })(s, v)
			},
		},
	}
}

type setter = func(s *Settings, v value) error

func yes(field func(*Settings) *bool) setter {
	return func(s *Settings, v value) (err error) {
		*field(s), err = strconv.ParseBool(v.text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v.text)
		}
		return nil
	}
}

func text(field func(*Settings) *string) setter {
	return func(s *Settings, v value) error {
		*field(s) = v.text
		return nil
	}
}

func list(field func(*Settings) *[]string) setter {
	return func(s *Settings, v value) error {
		*field(s) = slices.Clone(v.list)
		return nil
	}
}

func pairs(field func(*Settings) *map[string]string) setter {
	return func(s *Settings, v value) error {
		*field(s) = v.pairs
		return nil
	}
}

func policy(change func(*pin.Policy, []string)) setter {
	return func(s *Settings, v value) error {
		change(&s.Policy, slices.Clone(v.list))
		return s.Policy.Check()
	}
}

func oneOf[T ~string](into *T, v string, valid ...T) error {
	if !slices.Contains(valid, T(v)) {
		names := make([]string, len(valid))
		for i, n := range valid {
			names[i] = string(n)
		}
		return fmt.Errorf("%q is not one of %s", v, strings.Join(names, ", "))
	}
	*into = T(v)
	return nil
}

// parseField reads KIND.GROUP:path, where KIND.GROUP: and .GROUP may be missing.
func parseField(text string) pin.Field {
	kind, path, found := strings.Cut(text, ":")
	if !found {
		return pin.Field{Path: text}
	}
	kind, group, _ := strings.Cut(kind, ".")
	return pin.Field{Kind: kind, Group: group, Path: path}
}
