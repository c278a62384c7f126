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

// The modes of an Application, as package plugin has them.
const (
	follow = "follow"
	live   = "live"
	locked = "locked"
)

// Modes returns the modes that an Application may have.
func Modes() []string { return []string{follow, live, locked} }

// target is one branch of one repository, and what was rendered there.
type target struct {
	repository Repository
	branch     string
	tip        *gitrepo.Snapshot       // where the branch was at the start of the cycle
	paths      map[string]*observation // by path, as [path.Clean] spells it
	head       string                  // the branch to push to, "" for the same; see Options.PushBranch
	refused    error                   // why there is none to push to

	// Of a lock branch, the tip of the branch that is followed, whose renders its locks record, and the locks in there by
	// path; nil of any other.
	records *gitrepo.Snapshot
	beside  map[string]*lock.Document
}

func (t *target) key() string { return t.at(t.branch) }

func (t *target) at(branch string) string { return normalise(t.repository.URL) + "@" + branch }

// observation is what is known of one path: Applications may share it.
type observation struct {
	sources []source
	pins    []lock.Pin // newest look at each image that was rendered, sorted by image
}

// source is one source of an Application, and what the ledgers say of it.
type source struct {
	Application
	renders []lock.Document // its own, the newest first, and of a target's sources the last; none when no resolver knows of one
}

// projects returns whose credentials may look at the images of the path: those of Applications that do not leave the
// lock alone.
func (o *observation) projects() []string {
	found := map[string]bool{}
	for _, s := range o.sources {
		if s.Mode != locked {
			found[s.Project] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// has reports whether an Application of that mode renders the path.
func (o *observation) has(mode string) bool {
	return slices.ContainsFunc(o.sources, func(s source) bool { return s.Mode == mode })
}

// rendered returns the images that were rendered at commit, and whether that is all of them: each Application of the
// path has been rendered there. One that takes its digests from the lock alone reports nothing. Of one that has the path
// in two sources, as with other parameters, only the last report is known: the other source may render more.
func (o *observation) rendered(commit string) (images map[string]bool, all bool) {
	images = map[string]bool{}
	once := map[string]bool{}
	for _, s := range o.sources {
		if once[s.Name] || len(s.renders) == 0 || s.renders[0].Source.Revision != commit {
			return nil, false
		}
		once[s.Name] = true
		for _, p := range s.renders[0].Pins {
			images[p.Image] = true
		}
	}
	return images, true
}

// recorded returns what was rendered at commit.
func (o *observation) recorded(commit string) []lock.Pin {
	var pins []lock.Pin
	for _, s := range o.sources {
		for _, d := range s.renders {
			if d.Source.Revision == commit {
				pins = append(pins, d.Pins...)
			}
		}
	}
	return newestPins(pins)
}

// followed is a target revision of a repository, and what follows it.
type followed struct {
	repositories []Repository // the entries for this repository that may be meant, never none
	revision     string
	sources      []source
}

// targets groups what is followed of one repository by the branch that its locks are written to, sorted. It reads the
// branches' tips, because only they say what HEAD is: two revisions may mean one branch. What follows no branch is counted.
func (c *Companion) targets(ctx context.Context, server slots, all []*followed, trouble trouble) (targets []*target, fixed int, problems []error) {
	tips, errs := make([]*gitrepo.Snapshot, len(all)), make([]error, len(all))
	eachAt(server, all, func(i int, f *followed) {
		ctx, cancel := within(ctx, readTimeout)
		defer cancel()
		tips[i], errs[i] = f.repositories[0].Remote.Read(ctx, f.revision)
	})
	c.sweep(ctx, all)
	byBranch := map[string]*target{}
	for i, f := range all {
		log := c.o.Log.With("repository", f.repositories[0].URL, "revision", f.revision)
		switch {
		case errors.Is(errs[i], gitrepo.ErrBranch):
			fixed += len(f.sources)
			c.gone(f.repositories[0], strings.TrimPrefix(f.revision, "refs/heads/"))
			log.Info("nothing to write, the target revision is not a branch", "reason", errs[i], "code", fault.CodeOf(errs[i]), "hint", fault.Hint(errs[i]))
			continue
		case errs[i] != nil:
			problems = append(problems, fmt.Errorf("revision %s: %w", f.revision, errs[i]))
			trouble.add(f.sources, errs[i])
			continue
		}
		name := tips[i].Branch()
		r := slices.IndexFunc(f.repositories, func(r Repository) bool { return r.Branch == "" || r.Branch == name })
		if r < 0 {
			if c.refuse(len(f.sources), f.repositories[0].URL, f.revision, name) {
				log.Warn("render refused: not a branch this companion writes to", "branch", name)
			}
			continue
		}
		t := &target{repository: f.repositories[r], branch: name, tip: tips[i], paths: map[string]*observation{}}
		if known := byBranch[t.key()]; known != nil {
			t = known
		}
		byBranch[t.key()] = t
		t.add(f.sources)
	}
	for _, k := range slices.Sorted(maps.Keys(byBranch)) {
		targets = append(targets, byBranch[k])
	}
	return targets, fixed, problems
}

// sweep forgets branches that are gone, here and at the server: one that is made anew under the name of an old one has lost
// nothing that a person would have taken back.
func (c *Companion) sweep(ctx context.Context, all []*followed) {
	done := map[*gitrepo.Remote]bool{}
	for _, f := range all {
		r := f.repositories[0]
		if done[r.Remote] {
			continue
		}
		done[r.Remote] = true
		ctx, cancel := within(ctx, readTimeout)
		branches, err := r.Remote.Sweep(ctx)
		cancel()
		if err != nil {
			c.o.Log.Warn("marks of branches that are gone stay", "repository", r.URL, "error", err, "code", fault.CodeOf(err), "hint", fault.Hint(err))
		}
		for _, b := range branches {
			c.o.Log.Info("branch is gone, and its mark now, too", "repository", r.URL, "branch", b)
			c.gone(r, b)
		}
	}
}

// gone forgets a branch.
func (c *Companion) gone(r Repository, branch string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.branches, (&target{repository: r, branch: branch}).key())
}

// sources returns what has a lock to be kept. Where the Applications are known, renders of others are refused: whoever
// can write an Application, or reach the resolver's socket, names any repository and path in one.
func (c *Companion) sources(docs []lock.Document) ([]source, error) {
	docs = newestFirst(docs)
	if c.o.Cluster == nil {
		return named(docs), nil
	}
	apps, err := c.o.Cluster.Applications()
	if err != nil {
		return nil, err
	}
	var all []source
	at := map[place][]int{}
	for i, a := range apps {
		a.Mode = cmp.Or(a.Mode, c.o.DefaultMode, follow)
		all = append(all, source{Application: a})
		p := place{normalise(a.Repository), revision(a.TargetRevision), path.Clean(a.Path), a.Project}
		at[p] = append(at[p], i)
	}
	for _, d := range docs {
		s := d.Source
		found, ok := at[place{normalise(s.Repository), revision(s.TargetRevision), path.Clean(s.Path), s.Project}]
		if !ok && c.refuse(1, s.Repository, s.TargetRevision, s.Path, s.Project) {
			c.o.Log.Warn("render refused: no Application that uses the plugin has this repository, revision, path and project",
				"repository", lock.WithoutUser(s.Repository), "revision", s.TargetRevision, "path", s.Path, "project", s.Project)
		}
		for _, i := range found {
			if all[i].Name == s.Application {
				if apps[i].Mode == "" && len(all[i].renders) == 0 {
					all[i].Mode = cmp.Or(s.Mode, all[i].Mode)
				}
				all[i].renders = append(all[i].renders, d)
			}
		}
	}
	return unlocked(all), nil
}

// named returns the sources that renders name, sorted.
func named(docs []lock.Document) []source {
	found := map[[5]string]source{}
	for _, d := range docs {
		s, ok := found[keyOf(d)]
		if !ok {
			s.Application = Application{
				Name: d.Source.Application, Project: d.Source.Project, Repository: d.Source.Repository,
				TargetRevision: d.Source.TargetRevision, Path: d.Source.Path, Mode: cmp.Or(d.Source.Mode, follow),
			}
		}
		s.renders = append(s.renders, d)
		found[keyOf(d)] = s
	}
	return slices.SortedFunc(maps.Values(found), func(a, b source) int {
		x, y := keyOf(a.renders[0]), keyOf(b.renders[0])
		return slices.Compare(x[:], y[:])
	})
}

// unlocked leaves out the sources of mode locked, to which there is nothing to write, but for those whose path others
// share: what they render must stay in its lock.
func unlocked(all []source) []source {
	used := map[[2]string]bool{}
	for _, s := range all {
		if s.Mode != locked {
			used[[2]string{normalise(s.Repository), path.Clean(s.Path)}] = true
		}
	}
	return slices.DeleteFunc(all, func(s source) bool { return !used[[2]string{normalise(s.Repository), path.Clean(s.Path)}] })
}

// place is where a source is, as several spellings of it agree on.
type place struct{ repository, revision, path, project string }

// revision spells a target revision in one way.
func revision(target string) string {
	return cmp.Or(strings.TrimPrefix(target, "refs/heads/"), "HEAD")
}

// followed groups the sources by repository and target revision, sorted. Those of repositories or branches that the
// companion does not write to are left out, and their servers never contacted. So are sources that nothing is written for,
// of mode locked or of a project without access, unless others share their repository: they count there as ones that
// render nobody knows what, so that no pin is dropped which they need.
func (c *Companion) followed(ctx context.Context, sources []source, trouble trouble) ([]*followed, []error) {
	found, access, refused := map[string]*followed{}, map[string][]Repository{}, map[string]error{}
	var problems []error
	for _, s := range sources {
		key := normalise(s.Repository) + "@" + revision(s.TargetRevision)
		mine := key + " " + s.Project
		repositories, asked := access[mine]
		if !asked && s.Mode != locked {
			repositories, refused[mine] = c.repositories(ctx, s)
			if err := refused[mine]; err != nil {
				problems = append(problems, fmt.Errorf("application %s: %w", s.Name, err))
			}
			access[mine] = repositories
		}
		f := found[key]
		if f == nil {
			f = &followed{revision: revision(s.TargetRevision)}
			found[key] = f
		}
		if err := refused[mine]; err != nil {
			trouble.add([]source{s}, err)
		}
		switch {
		case s.Mode == locked || len(repositories) == 0:
			s.Mode, s.renders = locked, nil
		case f.repositories == nil:
			f.repositories = repositories
		}
		f.sources = append(f.sources, s)
	}
	maps.DeleteFunc(found, func(_ string, f *followed) bool { return f.repositories == nil })
	var all []*followed
	for _, k := range slices.Sorted(maps.Keys(found)) {
		all = append(all, found[k])
	}
	return all, problems
}

// repositories returns which repositories a source may mean, none when it is refused.
func (c *Companion) repositories(ctx context.Context, s source) ([]Repository, error) {
	revision := revision(s.TargetRevision)
	var out []Repository
	listed := false
	for _, r := range c.o.Repositories {
		same := SameRepository(r.URL, s.Repository)
		listed = listed || same
		if same && (r.Branch == "" || r.Branch == revision || revision == "HEAD") {
			out = append(out, r)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if c.o.Cluster == nil || listed {
		if c.refuse(1, s.Repository, revision, s.Project) {
			c.o.Log.Warn("render refused: not a repository and branch this companion writes to",
				"repository", lock.WithoutUser(s.Repository), "revision", revision, "project", s.Project)
		}
		return nil, nil
	}
	r, err := c.o.Cluster.Open(ctx, s.Repository, s.Project)
	if err != nil {
		return nil, err
	}
	return []Repository{{Remote: r.Remote, URL: lock.WithoutUser(s.Repository), Ensure: r.Ensure}}, nil
}

func (t *target) add(sources []source) {
	for _, s := range sources {
		s.renders = last(s.renders, t.tip.Commit())
		dir := path.Clean(s.Path) // Argo CD takes "./a", "a/" and "" for the root
		o := t.paths[dir]
		if o == nil {
			o = &observation{}
			t.paths[dir] = o
		}
		o.sources = append(o.sources, s)
		for _, d := range s.renders {
			o.pins = newestPins(append(o.pins, d.Pins...))
		}
	}
}

// newestFirst returns the renders that have a source: replicas remember each their own.
func newestFirst(docs []lock.Document) []lock.Document {
	docs = slices.DeleteFunc(slices.Clone(docs), func(d lock.Document) bool { return d.Source == nil })
	slices.SortStableFunc(docs, func(a, b lock.Document) int { return b.Source.RenderedAt.Compare(a.Source.RenderedAt) })
	return docs
}

// last returns the render that counts: the newest of the tip, or else of any commit. Replicas' clocks differ, and the tip is
// the same for all.
func last(renders []lock.Document, tip string) []lock.Document {
	i := max(0, slices.IndexFunc(renders, func(d lock.Document) bool { return d.Source.Revision == tip }))
	return renders[i:min(i+1, len(renders))]
}

func keyOf(d lock.Document) [5]string {
	s := d.Source
	return [5]string{s.Repository, s.TargetRevision, s.Path, s.Project, s.Application}
}

// newestPins keeps the newest look at each image, sorted by image, and drops what a lock should not hold: a ledger comes
// over the network.
func newestPins(pins []lock.Pin) []lock.Pin {
	last := map[string]lock.Pin{}
	for _, p := range pins {
		if p.Check() != nil || future(p.ResolvedAt) {
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
