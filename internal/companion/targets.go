package companion

import (
	"maps"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/lock"
)

// target is one branch of one repository, and what was rendered there.
type target struct {
	repository Repository
	revision   string                  // target revision: "main", "" or "HEAD"
	paths      map[string]*observation // by path
}

// observation is what the ledgers say of one path: Applications may share it.
type observation struct {
	apps []string
	pins []lock.Pin // newest look at each image, sorted by image
}

// targets groups the ledgers' documents by the branch that they would be written to, sorted. Documents of repositories
// that the companion does not write to are returned as refused.
func (c *Companion) targets(docs []lock.Document) (targets []*target, refused []string) {
	byBranch := map[[2]string]*target{}
	for _, d := range newest(docs) {
		i := slices.IndexFunc(c.o.Repositories, func(r Repository) bool {
			return SameRepository(r.URL, d.Source.Repository) && (r.Branch == "" || r.Branch == d.Source.TargetRevision)
		})
		if i < 0 {
			refused = append(refused, d.Source.Repository+"@"+d.Source.TargetRevision)
			continue
		}
		key := [2]string{c.o.Repositories[i].URL, d.Source.TargetRevision}
		t := byBranch[key]
		if t == nil {
			t = &target{repository: c.o.Repositories[i], revision: d.Source.TargetRevision, paths: map[string]*observation{}}
			byBranch[key] = t
		}
		o := t.paths[d.Source.Path]
		if o == nil {
			o = &observation{}
			t.paths[d.Source.Path] = o
		}
		o.apps = append(o.apps, d.Source.Application)
		o.pins = newestPins(append(o.pins, d.Pins...))
	}
	keys := slices.SortedFunc(maps.Keys(byBranch), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		targets = append(targets, byBranch[k])
	}
	slices.Sort(refused)
	return targets, slices.Compact(refused)
}

// newest keeps the last render of each source: replicas remember each their own.
func newest(docs []lock.Document) []lock.Document {
	last := map[[5]string]lock.Document{}
	var order [][5]string
	for _, d := range docs {
		if d.Source == nil {
			continue
		}
		s := *d.Source
		key := [5]string{s.Repository, s.TargetRevision, s.Path, s.Project, s.Application}
		seen, ok := last[key]
		if !ok {
			order = append(order, key)
		}
		if !ok || s.RenderedAt.After(seen.Source.RenderedAt) {
			last[key] = d
		}
	}
	slices.SortFunc(order, func(a, b [5]string) int { return slices.Compare(a[:], b[:]) })
	out := make([]lock.Document, len(order))
	for i, k := range order {
		out[i] = last[k]
	}
	return out
}

// newestPins keeps the newest look at each image, sorted by image.
func newestPins(pins []lock.Pin) []lock.Pin {
	last := map[string]lock.Pin{}
	for _, p := range pins {
		if q, ok := last[p.Image]; !ok || p.ResolvedAt.After(q.ResolvedAt) {
			last[p.Image] = p
		}
	}
	out := make([]lock.Pin, 0, len(last))
	for _, k := range slices.Sorted(maps.Keys(last)) {
		out = append(out, last[k])
	}
	return out
}

// SameRepository reports whether two URLs mean one repository: case of the host, a trailing slash and ".git" aside.
func SameRepository(a, b string) bool { return normalise(a) == normalise(b) }

func normalise(url string) string {
	url = strings.TrimSuffix(strings.TrimRight(url, "/"), ".git")
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		host, path, _ := strings.Cut(url, ":")
		return strings.ToLower(host) + ":" + path
	}
	host, path, _ := strings.Cut(rest, "/")
	return strings.ToLower(scheme+"://"+host) + "/" + path
}
