package access

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/image"
)

// rule lets those whose token has all Claims flush the images below one of Images. Both are globs of [path.Match], in
// which * stops at a slash.
type rule struct {
	Claims map[string]string `yaml:"claims"`
	Images []string          `yaml:"images"`
}

// owners are the claims that tell one customer of an issuer from another, for issuers that serve everybody: there,
// anybody gets a token, for whatever audience, with "ref: refs/heads/main" in it.
var owners = map[string][]string{
	"https://token.actions.githubusercontent.com": {"repository", "repository_id", "repository_owner", "repository_owner_id", "sub"},
	"https://gitlab.com":                          {"namespace_id", "namespace_path", "project_id", "project_path", "sub"},
	"https://accounts.google.com":                 {"email", "sub"},
}

func (r rule) check(issuer string) error {
	if len(r.Claims) == 0 || len(r.Images) == 0 {
		return errors.New("claims and images are needed, at least one each")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		if _, err := path.Match(r.Claims[name], ""); err != nil || r.Claims[name] == "" {
			return fmt.Errorf("claim %s: %q is not a pattern", name, r.Claims[name])
		}
	}
	if names, public := owners[issuer]; public && !slices.ContainsFunc(names, func(n string) bool { return owned(r.Claims[n]) }) {
		return fmt.Errorf("everybody gets tokens of this issuer: name their owner by one of the claims %s, without a wildcard up to the first slash",
			strings.Join(names, ", "))
	}
	for _, p := range r.Images {
		if err := checkImage(p); err != nil {
			return err
		}
	}
	return nil
}

// owned reports whether a claim's pattern fits one owner only.
func owned(pattern string) bool {
	owner, _, _ := strings.Cut(pattern, "/")
	return owner != "" && !wild(owner)
}

func wild(pattern string) bool { return strings.ContainsAny(pattern, `*?[\`) }

// checkImage refuses patterns that fit no reference, or those of a registry that anybody may run.
func checkImage(pattern string) error {
	host, _, _ := strings.Cut(pattern, "/")
	if wild(host) || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return fmt.Errorf("image %q: begin with the registry's host, without a wildcard", pattern)
	}
	// A reference in the pattern's place tells what the pattern's host means: docker.io has other names.
	ref, err := image.Parse(host + "/a/b")
	if err != nil {
		return err
	}
	if ref.Registry != host {
		return fmt.Errorf("image %q: write %s instead of %s", pattern, ref.Registry, host)
	}
	if _, err := path.Match(pattern, ""); err != nil || strings.HasSuffix(pattern, "/") {
		return fmt.Errorf("image %q is not a pattern", pattern)
	}
	if i := strings.LastIndexByte(pattern, '/'); i > 0 && strings.ContainsAny(pattern[i:], ":@") {
		return fmt.Errorf("image %q: a repository, without a tag", pattern)
	}
	return nil
}

// fits reports whether t has all claims of r.
func (r rule) fits(t Token) bool {
	for name, pattern := range r.Claims {
		value := t.Claim(name)
		if ok, _ := path.Match(pattern, value); !ok || value == "" {
			return false
		}
	}
	return true
}

// covers reports whether pattern fits ref's repository, or one of the paths above it: "ghcr.io/acme" covers all of
// "ghcr.io/acme/…" and nothing of "ghcr.io/acme-labs/…".
func covers(pattern string, ref image.Ref) bool {
	parts := strings.Split(ref.Registry+"/"+ref.Repository, "/")
	n := strings.Count(pattern, "/") + 1
	if n > len(parts) {
		return false
	}
	ok, _ := path.Match(pattern, strings.Join(parts[:n], "/"))
	return ok
}

// describe lists the claims that rules look at, as t has them.
func describe(rules []rule, t Token) string {
	has := map[string]string{}
	for _, r := range rules {
		for name := range r.Claims {
			has[name] = t.Claim(name)
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(has)) {
		out = append(out, fmt.Sprintf("%s %q", name, has[name]))
	}
	return strings.Join(out, ", ")
}
