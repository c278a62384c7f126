package migrate

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/lock"
)

// checkout is a directory of a repository: its root, and the URLs of its remotes where it says them.
type checkout struct {
	root    string
	remotes []string
}

func newCheckout(dir string) checkout {
	for up := dir; ; up = filepath.Join(up, "..") {
		abs, err := filepath.Abs(up)
		if err != nil || abs == filepath.Dir(abs) {
			return checkout{root: dir}
		}
		if _, err := os.Lstat(filepath.Join(up, ".git")); err == nil {
			return checkout{root: up, remotes: remotes(filepath.Join(up, ".git", "config"))}
		}
	}
}

var remoteURL = lazy.Regexp(`(?m)^\s*url\s*=\s*(\S+)\s*$`)

// remotes returns the normalised URLs of a Git configuration, none when it cannot be read.
func remotes(config string) (out []string) {
	data, err := os.ReadFile(config)
	if err != nil {
		return nil
	}
	for _, m := range remoteURL().FindAllStringSubmatch(string(data), -1) {
		out = append(out, sameURL(m[1]))
	}
	return out
}

// sameURL returns host and path of a repository's URL, in any of the forms of one.
func sameURL(s string) string {
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		s = u.Hostname() + u.Path
	} else if _, after, ok := strings.Cut(s, "@"); ok {
		s = strings.Replace(after, ":", "/", 1)
	}
	return strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(s, "/"), ".git"))
}

// overlay is a directory that an Application renders.
type overlay struct {
	dir, show string // absolute without links, and for people
	name      string // of the Application, which is one of several with an ApplicationSet
	pins      []lock.Pin
	from      string // where they were found
}

// locate returns the overlays of an Application's source, or why there are none.
func (p *planner) locate(a *application) (found []overlay, stays, fix string) {
	source := at(a.spec, "source")
	repo, where := stringAt(source, "repoURL"), stringAt(source, "path")
	generated, ok := a.generated(p)
	if !ok {
		return nil, fmt.Sprintf("its path %q is a template that only Argo CD can fill in", where), "move it by hand: the plan of an Application shows how, and each of its overlays needs a digest-lock.yaml and no " + sourceFile + "* with kustomize"
	}
	for _, with := range generated {
		dir, why, fix := p.find(repo, fill(where, with))
		if why != "" {
			return nil, why, fix
		}
		show := dir
		dir, err := filepath.EvalSymlinks(dir)
		if err == nil {
			dir, err = filepath.Abs(dir)
		}
		if err != nil {
			return nil, err.Error(), ""
		}
		found = append(found, overlay{dir: dir, show: show, name: fill(stringAt(a.meta, "name"), with)})
	}
	return found, "", ""
}

// find returns the directory of a path in the checkout of a repository.
func (p *planner) find(repo, where string) (dir, why, fix string) {
	if !filepath.IsLocal(where) {
		return "", fmt.Sprintf("its path %q leads out of its repository", where), "correct it there"
	}
	for _, c := range p.checkouts {
		if len(c.remotes) > 0 && !strings.Contains(repo, "{{") && !slices.Contains(c.remotes, sameURL(repo)) {
			continue
		}
		dir := filepath.Join(c.root, where)
		root, err := filepath.EvalSymlinks(c.root)
		if err != nil {
			continue
		}
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(root, real); err != nil || !filepath.IsLocal(rel) {
			return "", fmt.Sprintf("its path %q is a link that leads out of the checkout", where), "name the directory itself"
		}
		return dir, "", ""
	}
	return "", fmt.Sprintf("its overlay, %s of %s, is not in this checkout", where, lock.WithoutUser(repo)), "give the checkout that has it as well: digestlock migrate DIR OTHER-DIR"
}

// kustomization returns the path of a directory's kustomization, "" when it has none, or several.
func kustomization(dir string) string {
	name := ""
	for _, n := range lock.Kustomizations {
		if _, err := os.Lstat(filepath.Join(dir, n)); err == nil {
			if name != "" {
				return ""
			}
			name = filepath.Join(dir, n)
		}
	}
	return name
}

// generated returns the values for the templates of each Application that a generates: one without any for an
// Application. It knows lists and the directories of Git, and reports whether that is all there is.
func (a *application) generated(p *planner) ([]map[string]string, bool) {
	plain := []map[string]string{nil}
	if a.kind == "Application" || !strings.Contains(stringAt(a.spec, "source", "path")+stringAt(a.meta, "name"), "{{") {
		return plain, true
	}
	generators := at(a.doc.root, "spec", "generators")
	if generators == nil || generators.Kind != yaml.SequenceNode {
		return nil, false
	}
	var out []map[string]string
	for _, g := range generators.Content {
		switch {
		case len(g.Content) != 2:
			return nil, false
		case at(g, "list", "elements") != nil:
			for _, e := range at(g, "list", "elements").Content {
				values := map[string]string{}
				for i := 0; i+1 < len(e.Content); i += 2 {
					values[e.Content[i].Value] = e.Content[i+1].Value
				}
				out = append(out, values)
			}
		case at(g, "git", "directories") != nil:
			for _, dir := range p.directories(stringAt(g, "git", "repoURL"), at(g, "git", "directories").Content) {
				out = append(out, map[string]string{"path": dir, "path.path": dir, "path.basename": path.Base(dir)})
			}
		default:
			return nil, false
		}
	}
	for _, with := range out {
		if strings.Contains(fill(stringAt(a.spec, "source", "path")+stringAt(a.meta, "name"), with), "{{") {
			return nil, false
		}
	}
	return out, len(out) > 0
}

// directories returns the directories of a repository that a generator's globs match.
func (p *planner) directories(repo string, patterns []*yaml.Node) (out []string) {
	for _, c := range p.checkouts {
		if len(c.remotes) > 0 && !slices.Contains(c.remotes, sameURL(repo)) {
			continue
		}
		for _, n := range patterns {
			if stringAt(n, "exclude") == "true" || !filepath.IsLocal(stringAt(n, "path")) {
				continue
			}
			matches, _ := filepath.Glob(filepath.Join(c.root, stringAt(n, "path")))
			for _, m := range matches {
				rel, err := filepath.Rel(c.root, m)
				info, statErr := os.Stat(m)
				out = append(out, rel)
				if err != nil || statErr != nil || !info.IsDir() || slices.ContainsFunc(patterns, func(x *yaml.Node) bool {
					ok, _ := path.Match(stringAt(x, "path"), filepath.ToSlash(rel))
					return ok && stringAt(x, "exclude") == "true"
				}) {
					out = out[:len(out)-1]
				}
			}
		}
		break
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var placeholder = lazy.Regexp(`\{\{-?\s*\.?([\w.]+)\s*-?\}\}`)

// fill puts values into the placeholders of a template that it knows, and leaves the others.
func fill(template string, values map[string]string) string {
	return placeholder().ReplaceAllStringFunc(template, func(m string) string {
		if v, ok := values[placeholder().FindStringSubmatch(m)[1]]; ok {
			return v
		}
		return m
	})
}
