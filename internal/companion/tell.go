package companion

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// tell has Argo CD look at each Application again whose lock a commit changed, and notes beside it what happened to its
// images.
func (u *updater) tell(ctx context.Context, commit string, moves []move) {
	u.toEach(moves, func(cluster Cluster, app Application, moves []move) {
		if u.target.records == nil { // Argo CD does not look at lock branches
			cluster.Tell(ctx, app)
		}
		for _, m := range moves {
			warning, reason, text := m.event(commit)
			cluster.Event(ctx, app, warning, reason, text)
		}
	})
}

// announce notes beside each Application what will happen to its images once the request is merged.
func (u *updater) announce(ctx context.Context, page string, moves []move) {
	u.toEach(moves, func(cluster Cluster, app Application, moves []move) {
		for _, m := range moves {
			cluster.Event(ctx, app, false, "DigestProposed", m.proposal(page))
		}
	})
}

// toEach calls f for each Application whose locks the moves are in, with those that are.
func (u *updater) toEach(moves []move, f func(Cluster, Application, []move)) {
	if u.c.o.Cluster == nil {
		return
	}
	var apps []Application
	notes := map[Application][]move{}
	for _, m := range moves {
		for _, s := range m.sources {
			if notes[s.Application] == nil {
				apps = append(apps, s.Application)
			}
			notes[s.Application] = append(notes[s.Application], m)
		}
	}
	each(apps, func(_ int, app Application) { f(u.c.o.Cluster, app, notes[app]) })
}

func (m move) proposal(page string) string {
	switch {
	case m.hold != nil:
		return fmt.Sprintf("%s is held at %s once %s is merged: %s", m.image, m.new, page, m.hold.Reason)
	case m.new == "":
		return fmt.Sprintf("%s is no longer rendered, its pin is dropped once %s is merged", m.image, page)
	}
	return fmt.Sprintf("%s moves to %s once %s is merged", m.image, m.new, page)
}

func (m move) event(commit string) (warning bool, reason, text string) {
	switch {
	case m.hold != nil:
		return true, "DigestHeld", fmt.Sprintf("%s stays at %s, %s is not adopted: %s", m.image, m.new, m.hold.Rejected, m.hold.Reason)
	case m.new == "":
		return false, "DigestDropped", fmt.Sprintf("%s is no longer rendered, its pin was dropped in commit %s", m.image, commit)
	}
	return false, "DigestAdopted", fmt.Sprintf("%s moved to %s in commit %s", m.image, m.new, commit)
}

// trouble is what keeps the locks of Applications from being brought up to date. Each learns what is in its own way: what
// is wrong with a path is its Applications' business alone.
type trouble map[Application][]error

func (t trouble) add(sources []source, problems ...error) {
	for _, s := range sources {
		if s.Mode != locked {
			t[s.Application] = append(t[s.Application], problems...)
		}
	}
}

func (t trouble) into(other trouble) {
	for app, problems := range t {
		other[app] = append(other[app], problems...)
	}
}

// complain notes trouble beside each Application, once for as long as it stays the same.
func (c *Companion) complain(ctx context.Context, t trouble) {
	if c.o.Cluster == nil {
		return
	}
	said := map[Application]string{}
	var fresh []Application
	for app, problems := range t {
		said[app] = strings.Join(texts(problems), "; ")
		if said[app] != "" && c.said.fresh(fmt.Sprintf("%v %q", app, said[app])) {
			fresh = append(fresh, app)
		}
	}
	each(fresh, func(_ int, app Application) { c.o.Cluster.Event(ctx, app, true, "LockNotUpdated", said[app]) })
}

// stale has Argo CD render those Applications of mode live again under which a tag has moved: it would not by itself.
// Each move is told of once.
func (u *updater) stale(ctx context.Context) {
	if u.c.o.Cluster == nil {
		return
	}
	told := map[Application]string{}
	for dir, o := range u.target.paths {
		for _, s := range o.sources {
			if s.Mode != live {
				continue
			}
			before := u.branch.told[s.Application]
			told[s.Application] = before
			if len(s.renders) == 0 {
				continue
			}
			moved := u.moved(dir, s)
			if moved != "" && before != moved {
				u.c.o.Cluster.Stale(ctx, s.Application)
			}
			told[s.Application] = moved
		}
	}
	u.branch.told = told
}

// moved returns which images of a source stand elsewhere than when it was rendered, and where. One that a hold keeps back
// is rendered from the lock.
func (u *updater) moved(dir string, s source) string {
	var b strings.Builder
	for _, p := range s.renders[0].Pins {
		now := u.looks.stands([]string{s.Project}, p.Image)
		if now.Digest == p.Digest || !now.ResolvedAt.After(p.ResolvedAt) {
			continue
		}
		if q, ok := u.rendersWith(dir).Find(p.Image); ok && q.Hold.Keeps(now.Digest, time.Now()) {
			continue
		}
		fmt.Fprintln(&b, p.Image, now.Digest)
	}
	return b.String()
}
