package render

import (
	"cmp"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// rewrites take krusty's errors apart, which are text all the way down: each resource is tried as a file, then as a
// base, and the error holds both attempts of every level around the one sentence that helps. What none of them
// knows stays as it is.
var rewrites = []struct{ pattern, with string }{
	// From one base into the next.
	{`accumulating resources: accumulation err='accumulating resources from '[^']*': '[^']*' must resolve to a file': ` +
		`(?:recursed accumulation of path|recursed merging from path|couldn't make target for path) '([^']*)': `, `in $1: `},
	{`(?:in [^:]*: )+(in [^:]*: )`, `$1`},
	// A resource that is neither a file nor a base. What speaks about the wrong one of the two goes.
	{`accumulating resources: accumulation err='accumulating resources from '([^']*)': '[^']*' must resolve to a file': `, `$1: `},
	{`accumulating resources: accumulation err='(?:accumulating|merging) resources from '([^']*)': (.*)': ` +
		`(?:must build at directory: |no 'git' program on path: |new root ).*$`, `$1: $2`},
	{`accumulating resources: accumulating resources from '([^']*)': (?:MalformedYAMLError: )?(.*?)(?: in File: .*)?$`, `$1: $2`},
	{`^((?:in [^:]*: )?\S+: )evalsymlink failure on '[^']*' : lstat .*?: `, `$1`},
	{`evalsymlink failure on '([^']*)' : lstat .*?: `, `$1: `},
	{`accumulating components: loader.New "(?:must build at directory: not a valid directory: )?(.*)"$`, `a component: $1`},
	{`(?:: )?no 'git' program on path: .*$`, ``},
	{`: Get "[^"]*": ` + errRemote.Error() + `$`, ``},
	{`^Get "([^"]*)": ` + errRemote.Error() + `$`, `$1`},
	// The configuration is the user's own patch or generator, at full length.
	{"trouble configuring builtin (\\w+) with config: ` .*? `: ", `$1: `},
	{`from \[patch: "(.{60}).*"\]`, `from "$1…"`},
	{`: no matches for Id .*; failed to find unique target for patch .*$`, ``},
	{`\.?\[no(?:Grp|Ns|Ver)\]`, ``},
}

// hints are the ways out of the usual mistakes, by a part of the text.
var hints = []struct{ part, hint string }{
	{errOutside.Error(), "keep what an overlay uses in its repository; if it is there, manifest-generate-paths or a tar exclusion of Argo CD left it out of this render"},
	{"security; file", "kustomize reads files below their own kustomization only: move the file there, or make its directory a base"},
	{"cannot be absolute", "name the base by its path from this kustomization, inside of the repository"},
	{"external plugins disabled", "render what it generates into the repository: plugins, functions and containers never run here"},
	{"must specify --enable-helm", "render the chart into the repository with helm template, or let the operator start the plugin with --enable-helm"},
	{"no such file or directory", "commit the file or correct its name, case matters; if Git has it, manifest-generate-paths or a tar exclusion of Argo CD left it out of this render"},
	{"yaml: line", "correct the YAML there: tabs, indentation and conflict markers are the usual causes"},
	{"already registered id", "keep one of the two objects, or tell them apart by name or namespace"},
}

// explain makes a krusty error readable: the useful part first, paths relative to the overlay, one line, and the way
// out where we know it.
func explain(err error, dir string, d *disk) error {
	if hint := fault.Hint(err); hint != "" { // ours, from disk
		return fault.New(fault.CodeOf(err), hint, "kustomize build: %s", relative(d.remotes.named(err.Error()), dir))
	}
	remote := errors.Is(err, exec.ErrNotFound) || strings.Contains(err.Error(), errRemote.Error()) ||
		strings.Contains(err.Error(), "no 'git' program on path")
	text := strings.Join(strings.Fields(withoutSecrets(relative(err.Error(), dir))), " ")
	entry := ""
	if remote {
		entry = relative(d.remotes.named(d.remote(text)), dir)
	}
	for _, r := range rewrites {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	text = d.remotes.named(text)
	if addressWithKey().MatchString(err.Error()) { // what follows "=" may be a token, and krusty's words are about that
		return fault.New(fault.RemoteBase, "copy the file into this repository: a generator cannot have an address with = in it",
			"kustomize build: %w: %s", errRemote, cmp.Or(relative(d.remotes.named(d.lastEntry(text)), dir), "in a generator"))
	}
	if remote {
		return fault.New(fault.RemoteBase, "copy the base into this repository, what is served elsewhere can change without a commit; or the operator allows the host with --allow-remote, for https and with ?ref=TAG",
			"kustomize build: %w: %s", errRemote, cmp.Or(entry, strings.TrimSuffix(text, ": no such file or directory")))
	}
	code, hint := fault.Kustomize, "run \"kustomize build\" in this directory to see the same error with its context"
	if strings.Contains(text, errOutside.Error()) {
		code = fault.OutsideRepository
	}
	for _, h := range hints {
		if strings.Contains(text, h.part) {
			hint = h.hint
			break
		}
	}
	return fault.New(code, hint, "kustomize build: %s", text)
}

var (
	// addressWithKey is an entry of a generator's files that kustomize splits at the "=" of the address's query.
	addressWithKey = lazy.Regexp(`file sources: \[[^\]]*://[^\]\s]*=`)

	credentials = lazy.Regexp(`://[^/\s'"]*@`)
	query       = lazy.Regexp(`(://[^\s'"?]*)\?[^\s'"]*|\?[\w.-]+=[^\s'"]*`)
)

// withoutSecrets cuts passwords and tokens out of the URLs in text: they are in Git for all who may read that, and must
// not go further.
func withoutSecrets(text string) string {
	return query().ReplaceAllString(credentials().ReplaceAllString(text, "://"), "$1")
}

// relative rewrites the paths in text as seen from dir, as far as the way up from it: what is mounted where in the
// sidecar is nobody's business, and the author knows the files by where they are in the repository.
func relative(text, dir string) string {
	const before, after = `(^|[^\w./-])`, `($|[^\w./-])`
	itself, below := ".", ""
	for up := dir; filepath.Dir(up) != up; up = filepath.Dir(up) {
		name := regexp.QuoteMeta(up)
		text = regexp.MustCompile(before+name+"/").ReplaceAllString(text, "${1}"+below)
		text = regexp.MustCompile(before+name+after).ReplaceAllString(text, "${1}"+itself+"${2}")
		itself, below = below+"..", below+"../"
	}
	return text
}
