package companion

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// tell has Argo CD look at each Application again whose lock a commit changed, and notes beside it what happened to its
// images.
func (u *updater) tell(ctx context.Context, commit string, moves []move) {
	u.toEach(moves, func(cluster Cluster, app Application, moves []move) {
		cluster.Tell(ctx, app, commit)
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

// failed notes beside the Applications of a branch that their locks could not be brought up to date, once per reason.
func (u *updater) failed(ctx context.Context) {
	why := strings.Join(texts(u.problems), "; ")
	if u.c.o.Cluster == nil || why == u.branch.failed {
		return
	}
	u.branch.failed = why
	if why == "" {
		return
	}
	var apps []Application
	for _, o := range u.target.paths {
		for _, s := range o.sources {
			if !slices.Contains(apps, s.Application) {
				apps = append(apps, s.Application)
			}
		}
	}
	each(apps, func(_ int, app Application) {
		u.c.o.Cluster.Event(ctx, app, true, "LockNotUpdated", why)
	})
}

// stale has Argo CD render those Applications of mode live again under which a tag has moved: it would not by itself.
// Each move is told of once.
func (u *updater) stale(ctx context.Context) {
	if u.c.o.Cluster == nil {
		return
	}
	for dir, o := range u.target.paths {
		for _, s := range o.sources {
			if s.Mode != live || len(s.renders) == 0 {
				continue
			}
			moved := u.moved(dir, s)
			if moved != "" && u.branch.told[s.Application] != moved {
				u.c.o.Cluster.Stale(ctx, s.Application)
			}
			u.branch.told[s.Application] = moved
		}
	}
}

// moved returns which images of a source stand elsewhere than when it was rendered, and where. One that a hold keeps back
// is rendered from the lock.
func (u *updater) moved(dir string, s source) string {
	var b strings.Builder
	for _, p := range s.renders[0].Pins {
		now := u.looks.stands([]string{s.Project}, p.Image).Digest
		if now == "" || now == p.Digest {
			continue
		}
		if q, ok := u.locks[dir].Find(p.Image); ok && q.Hold.Keeps(now, time.Now()) {
			continue
		}
		fmt.Fprintln(&b, p.Image, now)
	}
	return b.String()
}
