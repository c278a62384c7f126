package companion

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lock"
)

// target is one branch of one repository, and what was rendered there.
type target struct {
	repository Repository
	branch     string
	tip        *gitrepo.Snapshot       // where the branch was at the start of the cycle
	paths      map[string]*observation // by path, as [path.Clean] spells it
}

// observation is what the ledgers say of one path: Applications may share it.
type observation struct {
	apps     []string
	projects map[string]bool // whose credentials may look at its images
	pins     []lock.Pin      // newest look at each image, sorted by image
}

// followed is a target revision of a repository, and the renders of Applications that follow it.
type followed struct {
	repositories []Repository // the entries for this repository that may be meant, never none
	revision     string
	docs         []lock.Document
}

// targets groups the ledgers' documents by the branch that they would be written to, sorted. It reads the branches'
// tips, because only they say what HEAD is: two revisions may mean one branch.
func (c *Companion) targets(ctx context.Context, docs []lock.Document) ([]*target, []error) {
	all := c.followed(docs)
	tips, errs := make([]*gitrepo.Snapshot, len(all)), make([]error, len(all))
	each(all, func(i int, f *followed) {
		ctx, cancel := within(ctx, readTimeout)
		defer cancel()
		tips[i], errs[i] = f.repositories[0].Remote.Read(ctx, f.revision)
	})
	var problems []error
	byBranch := map[string]*target{}
	for i, f := range all {
		log := c.o.Log.With("repository", f.repositories[0].URL, "revision", f.revision)
		switch {
		case errors.Is(errs[i], gitrepo.ErrBranch):
			log.Info("nothing to write, the target revision is not a branch", "reason", errs[i], "code", fault.CodeOf(errs[i]), "hint", fault.Hint(errs[i]))
			continue
		case errs[i] != nil:
			problems = append(problems, fmt.Errorf("revision %s: %w", f.revision, errs[i]))
			continue
		}
		branch := tips[i].Branch()
		r := slices.IndexFunc(f.repositories, func(r Repository) bool { return r.Branch == "" || r.Branch == branch })
		if r < 0 {
			log.Warn("render refused: not a branch this companion writes to", "branch", branch)
			continue
		}
		key := normalise(f.repositories[r].URL) + "@" + branch
		if byBranch[key] == nil {
			byBranch[key] = &target{repository: f.repositories[r], branch: branch, tip: tips[i], paths: map[string]*observation{}}
		}
		byBranch[key].add(f.docs)
	}
	var targets []*target
	for _, k := range slices.Sorted(maps.Keys(byBranch)) {
		targets = append(targets, byBranch[k])
	}
	return targets, problems
}

// followed groups the documents by repository and target revision, sorted. Those of repositories or branches that the
// companion does not write to are left out, and their servers never contacted.
func (c *Companion) followed(docs []lock.Document) []*followed {
	found := map[string]*followed{}
	for _, d := range newest(docs) {
		revision := cmp.Or(strings.TrimPrefix(d.Source.TargetRevision, "refs/heads/"), "HEAD")
		key := normalise(d.Source.Repository) + "@" + revision
		f := found[key]
		if f == nil {
			f = &followed{revision: revision}
			for _, r := range c.o.Repositories {
				if SameRepository(r.URL, d.Source.Repository) && (r.Branch == "" || r.Branch == revision || revision == "HEAD") {
					f.repositories = append(f.repositories, r)
				}
			}
			if len(f.repositories) == 0 {
				c.o.Log.Warn("render refused: not a repository and branch this companion writes to", "repository",
					withoutUser(d.Source.Repository), "revision", revision)
			}
			found[key] = f
		}
		f.docs = append(f.docs, d)
	}
	maps.DeleteFunc(found, func(_ string, f *followed) bool { return len(f.repositories) == 0 })
	var all []*followed
	for _, k := range slices.Sorted(maps.Keys(found)) {
		all = append(all, found[k])
	}
	return all
}

func (t *target) add(docs []lock.Document) {
	for _, d := range docs {
		dir := path.Clean(d.Source.Path) // Argo CD takes "./a", "a/" and "" for the root
		o := t.paths[dir]
		if o == nil {
			o = &observation{projects: map[string]bool{}}
			t.paths[dir] = o
		}
		o.apps = append(o.apps, d.Source.Application)
		o.projects[d.Source.Project] = true
		o.pins = newestPins(append(o.pins, d.Pins...))
	}
}

// newest keeps the last render of each source: replicas remember each their own.
func newest(docs []lock.Document) []lock.Document {
	last := map[[5]string]lock.Document{}
	for _, d := range docs {
		if d.Source == nil {
			continue
		}
		key := keyOf(d)
		if seen, ok := last[key]; !ok || d.Source.RenderedAt.After(seen.Source.RenderedAt) {
			last[key] = d
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b lock.Document) int {
		x, y := keyOf(a), keyOf(b)
		return slices.Compare(x[:], y[:])
	})
}

func keyOf(d lock.Document) [5]string {
	s := d.Source
	return [5]string{s.Repository, s.TargetRevision, s.Path, s.Project, s.Application}
}

// newestPins keeps the newest look at each image, sorted by image, and drops what a lock could not hold: a ledger comes
// over the network.
func newestPins(pins []lock.Pin) []lock.Pin {
	last := map[string]lock.Pin{}
	for _, p := range pins {
		if p.Check() != nil {
			continue
		}
		if q, ok := last[p.Image]; !ok || p.ResolvedAt.After(q.ResolvedAt) {
			last[p.Image] = p
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b lock.Pin) int { return strings.Compare(a.Image, b.Image) })
}

// SameRepository reports whether two URLs mean one repository, as Argo CD sees it: the host's case, the scheme's own
// port, a trailing slash, ".git", the user of http, and the short form of ssh (git@host:path) aside.
func SameRepository(a, b string) bool { return normalise(a) == normalise(b) }

func normalise(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok { // git@host:path
		scheme, rest = "ssh", strings.Replace(url, ":", "/", 1)
	}
	scheme = strings.ToLower(scheme)
	host, path, _ := strings.Cut(rest, "/")
	host = strings.ToLower(host)
	if scheme != "ssh" { // of an ssh address it may decide whose home directory a path starts from
		host = host[strings.LastIndexByte(host, '@')+1:]
	}
	host = strings.TrimSuffix(host, map[string]string{"https": ":443", "http": ":80", "ssh": ":22"}[scheme])
	return scheme + "://" + host + "/" + strings.TrimSuffix(strings.Trim(path, "/"), ".git")
}

// withoutUser makes a URL that an Application names fit for a log: it may hold a password.
func withoutUser(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	host, path, _ := strings.Cut(rest, "/")
	return scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + "/" + path
}
