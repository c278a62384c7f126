package argocd

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/gobwas/glob"
	"k8s.io/apimachinery/pkg/util/validation"
)

// globs match as Argo CD's lists of namespaces do: names, globs of the library that it uses, and regular expressions
// between slashes, which are not anchored. Argo CD's have look-around, these are Go's.
type globs []func(string) bool

func compile(patterns []string) (globs, error) {
	var all globs
	for _, p := range patterns {
		m, err := compileOne(p)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func compileOne(pattern string) (func(string) bool, error) {
	if inner, ok := regular(pattern); ok {
		re, err := regexp.Compile(inner)
		if err != nil {
			return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
		}
		return re.MatchString, nil
	}
	g, err := glob.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("glob %q: %w", pattern, err)
	}
	return g.Match, nil
}

func regular(pattern string) (string, bool) {
	if len(pattern) > 2 && strings.HasPrefix(pattern, "/") && strings.HasSuffix(pattern, "/") {
		return pattern[1 : len(pattern)-1], true
	}
	return "", false
}

func (g globs) match(s string) bool {
	for _, m := range g {
		if m(s) {
			return true
		}
	}
	return false
}

// isName reports whether a pattern can only be the name of one namespace.
func isName(pattern string) bool { return len(validation.IsDNS1123Label(pattern)) == 0 }
