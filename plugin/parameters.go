package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/pin"
	"github.com/digestlock/digestlock/internal/render"
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
	Build      render.Options // Helm.Command and Remote are the operator's alone

	SubstituteAnnotations bool
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
	Type    string // collectionType of Argo CD: "string", "array" or "map"
	Default string // as text, comma separated for an array
	Bool    bool   // a string that is true or false; as a flag it needs no value
	Text    bool   // an array whose elements are texts: as a flag, one each time

	set func(s *Settings, v value) error
}

// value is what a parameter is set to.
type value struct {
	text  string            // of type string
	list  []string          // of type array
	pairs map[string]string // of type map
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

// Set changes s as the flag of this parameter with the given text says. A list is comma separated, and so are the
// NAME=VALUE of a map.
func (p Parameter) Set(s *Settings, text string) error {
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	switch {
	case p.Text && text != "":
		return p.set(s, value{list: []string{text}})
	case p.Type == "array":
		return p.set(s, value{list: parts})
	case p.Type == "map":
		v := value{pairs: map[string]string{}}
		for _, part := range parts {
			name, is, found := strings.Cut(part, "=")
			if !found {
				return fmt.Errorf("%q is not NAME=VALUE", part)
			}
			v.pairs[name] = is
		}
		return p.set(s, v)
	}
	return p.set(s, value{text: text})
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
		var v value
		switch {
		case p.Type == "string" && g.String != nil && g.Array == nil && g.Map == nil:
			v.text = *g.String
		case p.Type == "array" && g.Array != nil && g.String == nil && g.Map == nil:
			v.list = g.Array
		case p.Type == "map" && g.Map != nil && g.String == nil && g.Array == nil:
			v.pairs = g.Map
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
