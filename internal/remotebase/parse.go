package remotebase

import (
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// spec is a base in somebody's Git repository, as kustomize's internal/git/repospec.go (api v0.21.2) reads it.
type spec struct {
	repo *url.URL
	ref  string
	path string // of the base in the repository, clean
}

// refPattern is what a tag's name may be here, narrower than Git: nothing that a command line, a path or a person
// could take for something else. Its length is checked apart: a count in the pattern would cost every start of the
// program a millisecond to compile.
var refPattern = lazy.Regexp(`^[A-Za-z0-9][A-Za-z0-9._+/@-]*$`)

// maxRef is how many bytes a tag's name may have.
const maxRef = 201

// parse reads an entry of a kustomization. It returns false for one that is no Git base over https: a path, the
// address of a file, ssh. An error is for a base that cannot be had as it is named; it does not repeat the entry.
func parse(entry string) (spec, bool, error) {
	rest, ok := afterScheme(entry)
	if !ok {
		return spec{}, false, nil
	}
	rest, query, _ := strings.Cut(rest, "?")
	values, _ := url.ParseQuery(query)
	ref := values.Get("ref")
	if ref == "" {
		ref = values.Get("version")
	}
	host, at, _ := strings.Cut(rest, "/")
	if strings.Contains(entry, "://") && !isBase(at, ref) {
		return spec{}, false, nil
	}
	repo, dir := split(at)
	u, err := url.Parse("https://" + host + "/" + repo)
	if err != nil {
		return spec{}, true, fault.New(fault.RemoteBase, formsHint, "not an address")
	}
	s := spec{repo: u, ref: ref, path: path.Clean(strings.Trim(dir, "/"))}
	if wanted, err := strconv.ParseBool(values.Get("submodules")); err == nil && wanted {
		return s, true, fault.New(fault.RemoteBase, "drop submodules from the address, or copy the base into this repository", "submodules are not fetched")
	}
	return s, true, s.check(dir)
}

// afterScheme cuts what stands for https in front of an address, and returns false where something else stands there.
func afterScheme(entry string) (string, bool) {
	rest, _ := cutFold(entry, "git::")
	for _, short := range []string{"github.com/", "github.com:"} {
		if path, ok := cutFold(rest, short); ok {
			return "github.com/" + path, true
		}
	}
	return cutFold(rest, "https://")
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return s, false
}

// isBase tells a base on some host from a file there. Kustomize tries to fetch a file first, whatever the address: that
// would be a request for each base, and a guess by what a server answers.
func isBase(at, ref string) bool {
	switch strings.ToLower(path.Ext(at)) {
	case ".yaml", ".yml", ".json":
		return false
	}
	explicit := strings.Contains(at, "_git/") || strings.Contains(at, "//") || strings.Contains(at, ".git")
	return ref != "" || explicit
}

// split tells the repository from the path in it as kustomize does, mistakes included: by a mark, or after two names.
func split(at string) (repo, dir string) {
	if i := strings.Index(at, "_git/"); i >= 0 {
		name, dir, _ := strings.Cut(at[i+len("_git/"):], "/")
		return at[:i+len("_git/")] + name, dir
	}
	if repo, dir, ok := strings.Cut(at, "//"); ok {
		return repo, dir
	}
	if i := strings.Index(at, ".git"); i >= 0 {
		return at[:i+len(".git")], at[i+len(".git"):]
	}
	parts := strings.SplitN(at, "/", 3)
	if len(parts) < 3 {
		return at, ""
	}
	return parts[0] + "/" + parts[1], parts[2]
}

const (
	formsHint = "write https://HOST/ORG/REPO//PATH?ref=TAG"
	userHint  = "write the address without a user: remote bases are fetched without credentials"
	refHint   = "add ?ref= with a tag or the full hash of a commit: what a branch serves changes without a commit here"
)

// check says what is wrong with s; dir is its path as it is written.
func (s spec) check(dir string) error {
	at := s.repo.Path + "/" + dir
	switch {
	case s.repo.User != nil:
		return fault.New(fault.RemoteBase, userHint, "a user in the address")
	case strings.ContainsFunc(at, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' || c == '#' }):
		return fault.New(fault.RemoteBase, formsHint, "characters that have no place in an address")
	case strings.Trim(s.repo.Path, "/") == "":
		return fault.New(fault.RemoteBase, formsHint, "no repository in the address")
	case strings.Contains(at, "/-") || slices.Contains(strings.Split(at, "/"), ".."):
		return fault.New(fault.RemoteBase, formsHint, "a path that leads upwards or begins with -")
	case s.ref == "":
		return fault.New(fault.RemoteBase, refHint, "no ref")
	case len(s.ref) > maxRef, !refPattern().MatchString(s.ref), strings.Contains(s.ref, ".."):
		return fault.New(fault.RemoteBase, refHint, "ref %q is no name for a tag", s.ref[:min(len(s.ref), maxRef)])
	}
	return nil
}
