package pin

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/image"
)

// Policy says which references are pinned. The zero Policy pins none.
//
// A glob of Include and Exclude is matched with registry and repository ("ghcr.io/acme/web", "docker.io/library/nginx"),
// and with the name as its author wrote it ("nginx"), never with the tag. "*" stays within one component of the path,
// "**" is any number of components.
type Policy struct {
	Tags             image.Tags // that are mutable
	Include, Exclude []string   // empty Include means all; Exclude wins
	ExcludeKinds     []string   // globs of the kind of an object, or of one around it; what they hold is not even checked
	Fields           []Field    // more places, on top of the built-in ones
}

// Check returns an error for the first malformed glob or field.
func (p Policy) Check() error {
	if err := p.Tags.Check(); err != nil {
		return err
	}
	for _, list := range [][]string{p.Include, p.Exclude} {
		for _, glob := range list {
			if err := checkGlob(glob); err != nil {
				return fmt.Errorf("image pattern %q: %w", glob, err)
			}
		}
	}
	for _, glob := range p.ExcludeKinds {
		if _, err := path.Match(glob, ""); err != nil || glob == "" || strings.Contains(glob, "/") {
			return fmt.Errorf("kind pattern %q is not a glob of kinds such as Job", glob)
		}
	}
	for _, f := range p.Fields {
		if slices.Contains(segments(f.Path), "") {
			return fmt.Errorf("field path %q is not keys separated by slashes, such as spec/containers[]/image", f.Path)
		}
	}
	return nil
}

// Why a reference is not pinned.
const (
	digested     = "has a digest"
	empty        = "empty"
	excluded     = "excluded by exclude-images"
	excludedKind = "kind excluded"
	fixed        = "fixed tag"
	koBuild      = "built by ko"
	lookalike    = "not a field digestlock knows, see image-fields"
	noText       = "not a text"
	notIncluded  = "not in include-images"
	pattern      = "pattern of a policy"
	template     = "template"
)

// skip returns why ref is not pinned, "" when it is.
func (p Policy) skip(ref image.Ref) string {
	switch {
	case ref.Digest != "":
		return digested
	case !p.Tags.Mutable(ref):
		return fixed
	case slices.ContainsFunc(p.Exclude, func(glob string) bool { return named(glob, ref) }):
		return excluded
	case len(p.Include) > 0 && !slices.ContainsFunc(p.Include, func(glob string) bool { return named(glob, ref) }):
		return notIncluded
	}
	return ""
}

func (p Policy) excludesKind(kind string) bool {
	return slices.ContainsFunc(p.ExcludeKinds, func(glob string) bool {
		ok, _ := path.Match(glob, kind)
		return ok
	})
}

// named reports whether glob matches one of the names that ref goes by.
func named(glob string, ref image.Ref) bool {
	return match(glob, ref.Registry+"/"+ref.Repository) || match(glob, ref.Name) ||
		ref.Registry == image.DefaultRegistry && match(glob, "docker.io/"+ref.Repository) // what people call it
}

// checkGlob returns what is wrong with a pattern of images.
func checkGlob(glob string) error {
	components := strings.Split(glob, "/")
	for _, c := range components {
		if c == "" {
			return errors.New("empty path component")
		}
		if _, err := path.Match(c, ""); err != nil {
			return err
		}
	}
	if strings.ContainsAny(components[len(components)-1], ":@") {
		return errors.New("give the name without tag and digest: tags has the patterns of those")
	}
	return nil
}

// match reports whether name, slash-separated, matches glob: each component in the syntax of [path.Match], and "**"
// for any number of components. It takes at most the product of their lengths, whatever the pattern.
func match(glob, name string) bool {
	globs, names := strings.Split(glob, "/"), strings.Split(name, "/")
	g, n := 0, 0
	star, retry := -1, 0 // the last "**", and the first name that it does not take yet
	for n < len(names) {
		switch {
		case g < len(globs) && globs[g] == "**":
			star, retry = g, n
			g++
		case g < len(globs) && matchComponent(globs[g], names[n]):
			g++
			n++
		case star >= 0:
			retry++
			g, n = star+1, retry
		default:
			return false
		}
	}
	for g < len(globs) && globs[g] == "**" {
		g++
	}
	return g == len(globs)
}

func matchComponent(glob, name string) bool {
	ok, _ := path.Match(glob, name)
	return ok
}
