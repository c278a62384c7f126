package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/pin"
)

// Mode says who decides on the digest of a mutable tag.
type Mode string

// The modes. Docs/design.md tells when to use which.
const (
	Follow Mode = "follow" // the lock; the registry for images that the lock does not have yet
	Live   Mode = "live"   // the registry at the tip of the branch, else as Follow
	Locked Mode = "locked" // the lock only
)

// Settings are what an Application may decide about its render. They come from people who can write Applications or
// .argocd-source files, so that none of them names an endpoint, a credential or a command.
type Settings struct {
	Mode       Mode
	Policy     pin.Policy
	PinFormat  pin.Format
	AllowEmpty bool
}

// Defaults returns the settings of a render about which nobody said anything.
func Defaults() Settings {
	return Settings{Mode: Follow, Policy: pin.Policy{Tags: image.Tags{image.DefaultTag}}, PinFormat: pin.TagAndDigest}
}

// Parameter is one of the settings as Argo CD announces it and as a flag of generate: same name, same meaning.
type Parameter struct {
	Name    string
	Title   string // what Argo CD's UI shows
	Tooltip string // one sentence; also the flag's help
	Type    string // collectionType of Argo CD: "string" or "array"
	Default string // as text, comma separated for an array
	Bool    bool   // a string that is true or false; as a flag it needs no value

	set func(s *Settings, v []string) error // one value for a string, any number for an array
}

// Parameters returns every parameter, sorted by name. Plugin.yaml, docs/parameters.md, the flags of generate and the
// reading of ARGOCD_APP_PARAMETERS all come from this table.
func Parameters() []Parameter {
	return []Parameter{
		{
			Name: "allow-empty", Title: "Allow no objects", Type: "string", Default: "false", Bool: true,
			Tooltip: "Accept a render without any object. By default it is an error, because Argo CD would prune everything.",
			set: func(s *Settings, v []string) (err error) {
				s.AllowEmpty, err = strconv.ParseBool(v[0])
				if err != nil {
					return fmt.Errorf("%q is neither true nor false", v[0])
				}
				return nil
			},
		},
		{
			Name: "exclude-images", Title: "Images left alone", Type: "array",
			Tooltip: "Globs of images that are never pinned, by registry and repository or as written: ghcr.io/acme/**, nginx.",
			set: func(s *Settings, v []string) error {
				s.Policy.Exclude = slices.Clone(v)
				return s.Policy.Check()
			},
		},
		{
			Name: "exclude-kinds", Title: "Kinds left alone", Type: "array",
			Tooltip: "Globs of kinds in which nothing is pinned, such as Job: a Job is immutable, a new digest makes its sync fail.",
			set: func(s *Settings, v []string) error {
				s.Policy.ExcludeKinds = slices.Clone(v)
				return s.Policy.Check()
			},
		},
		{
			Name: "image-fields", Title: "More image fields", Type: "array",
			Tooltip: "More places of images, as KIND.GROUP:path with kustomize's field paths: Backup.acme.io:spec/runner/image. KIND.GROUP: may be left out.",
			set: func(s *Settings, v []string) error {
				s.Policy.Fields = make([]pin.Field, len(v))
				for i, text := range v {
					s.Policy.Fields[i] = parseField(text)
				}
				return s.Policy.Check()
			},
		},
		{
			Name: "include-images", Title: "Images to pin", Type: "array",
			Tooltip: "Globs of the only images that are pinned, in the form of exclude-images. None means all.",
			set: func(s *Settings, v []string) error {
				s.Policy.Include = slices.Clone(v)
				return s.Policy.Check()
			},
		},
		{
			Name: "mode", Title: "Mode", Type: "string", Default: string(Follow),
			Tooltip: "Who decides on digests: follow (the lock, the registry for images it lacks), live (the registry at the branch's tip) or locked (the lock only).",
			set: func(s *Settings, v []string) error {
				return oneOf(&s.Mode, v[0], Follow, Live, Locked)
			},
		},
		{
			Name: "pin-format", Title: "Pin format", Type: "string", Default: string(pin.TagAndDigest),
			Tooltip: "How a pinned reference is written: tag (name:tag@digest) or digest (name@digest).",
			set: func(s *Settings, v []string) error {
				return oneOf(&s.PinFormat, v[0], pin.TagAndDigest, pin.DigestOnly)
			},
		},
		{
			Name: "tags", Title: "Mutable tags", Type: "array", Default: image.DefaultTag,
			Tooltip: "Globs of the tags that move and are replaced by digests. An image without tag counts as latest.",
			set: func(s *Settings, v []string) error {
				if len(v) == 0 {
					return errors.New("no tags: nothing would be pinned")
				}
				s.Policy.Tags = slices.Clone(image.Tags(v))
				return s.Policy.Check()
			},
		},
	}
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

// Modes returns all modes, the one that asks most of a registry last.
func Modes() []Mode { return []Mode{Locked, Follow, Live} }

// Allow returns an error when the operator does not allow the mode that was chosen.
func (s Settings) Allow(modes []Mode) error {
	if slices.Contains(modes, s.Mode) {
		return nil
	}
	return fault.New(fault.ModeNotAllowed, "this installation allows "+join(modes), "mode %s is not allowed here", s.Mode)
}

func join(modes []Mode) string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = string(m)
	}
	return strings.Join(names, ", ")
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

// Set changes s as the flag of this parameter with the given text says. A list is comma separated.
func (p Parameter) Set(s *Settings, text string) error {
	v := []string{text}
	if p.Type == "array" {
		v = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return p.set(s, v)
}

// Read changes s as the parameters of an Application say: the JSON of ARGOCD_APP_PARAMETERS, where empty and "null"
// mean none. Unknown names, a name given twice and values of the wrong type are errors that say what is valid. On an
// error s may be partly changed.
func (s *Settings) Read(parameters string) error {
	if parameters == "" {
		return nil
	}
	var given []struct {
		Name   string            `json:"name"`
		String *string           `json:"string"`
		Array  []string          `json:"array"`
		Map    map[string]string `json:"map"`
	}
	if err := json.Unmarshal([]byte(parameters), &given); err != nil {
		return fault.New(fault.Parameter, "parameters is a list of entries with name and one of string, array, map",
			"source.plugin.parameters: %w", err)
	}
	known := Parameters()
	seen := map[string]bool{}
	for _, g := range given {
		i := slices.IndexFunc(known, func(p Parameter) bool { return p.Name == g.Name })
		if i < 0 {
			return fault.New(fault.Parameter, "valid parameters are "+names(known), "unknown parameter %q", g.Name)
		}
		p := known[i]
		if seen[p.Name] {
			return fault.New(fault.Parameter, "keep one of the two", "parameter %q is given twice", p.Name)
		}
		seen[p.Name] = true
		var v []string
		switch {
		case p.Type == "string" && g.String != nil && g.Array == nil && g.Map == nil:
			v = []string{*g.String}
		case p.Type == "array" && g.Array != nil && g.String == nil && g.Map == nil:
			v = g.Array
		default:
			return fault.New(fault.Parameter, fmt.Sprintf("write it as {name: %s, %s: …}", p.Name, p.Type),
				"parameter %q is not of type %s", p.Name, p.Type)
		}
		if err := p.set(s, v); err != nil {
			return fault.New(fault.Parameter, p.Tooltip, "parameter %q: %w", p.Name, err)
		}
	}
	return nil
}

func names(ps []Parameter) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.Name
	}
	return strings.Join(out, ", ")
}
