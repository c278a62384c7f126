package companion_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestSecondRevert: reverting the commit that ended a hold brings the old hold back, which is not for this digest.
func TestSecondRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	once(t, f.Companion, 1) // hold on d2
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1) // d3
	wantHold(t, f.repo, server, 3, 0, "")
	revert(t, f.repo, "main") // d3 is bad too
	c, err := f.Companion.Once(t.Context())
	t.Log(len(c), err, show(t, f.repo, "main", app))
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestRevertToExpiredHold: a hold that is over keeps nothing, and excuses nothing.
func TestRevertToExpiredHold(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	p := pin(server, 1)
	p.Hold = &lock.Hold{Reason: "freeze", Until: at(0).Add(-time.Hour)}
	f.repo.Commit(t, "main", map[string]string{app: lockText(p)})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	revert(t, f.repo, "main")
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestTwoCompanionsOfOneBranch: a commit of another companion, for another path, moves the mark past a revert.
func TestTwoCompanionsOfOneBranch(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1))
	one := f.Companion
	other := &replica{name: "other"}
	other.rendered(f.repo.URL, "main", "b", "other", pin(worker, 1))
	other.sees(pin(worker, 1))
	f.use(t, "", other)
	two := f.Companion
	once(t, one, 1)
	once(t, two, 1)
	f.replica.sees(pin(server, 2))
	once(t, one, 1)
	revert(t, f.repo, "main")
	other.sees(pin(worker, 2))
	once(t, two, 1)
	one.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestResolverAwayAtRevert: the resolver that knows of the path is away while another path is committed.
func TestResolverAwayAtRevert(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	other := &replica{name: "other"}
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	other.rendered(f.repo.URL, "main", "b", "other", pin(worker, 1))
	f.replica.sees(pin(server, 2))
	other.sees(pin(worker, 1), pin(server, 2))
	f.use(t, "", f.replica, other)
	once(t, f.Companion, 1)
	f.replica.sees(pin(server, 3))
	other.sees(pin(server, 3))
	once(t, f.Companion, 1)
	revert(t, f.repo, "main")
	f.replica.down = errors.New("restarting")
	other.sees(pin(worker, 2))
	failing(t, f.Companion, 1, "restarting")
	f.replica.down = nil
	once(t, f.Companion, 1)
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(2) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestBrokenAtRevert: the lock cannot be read while another path is committed, and then says what it said before.
func TestBrokenAtRevert(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "b", "b", pin(worker, 1))
	f.replica.sees(pin(server, 2), pin(worker, 1))
	once(t, f.Companion, 1)
	f.repo.Commit(t, "main", map[string]string{app: "<<<<<<< HEAD\n" + lockText(pin(server, 1))})
	f.replica.sees(pin(worker, 2))
	failing(t, f.Companion, 1, "")
	f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 1))})
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestLockedNow: an Application that became locked keeps its lock, whatever it rendered before.
func TestLockedNow(t *testing.T) {
	t.Parallel()
	f, _ := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1))},
		companion.Application{Name: "prod", Path: "a", Mode: "locked"})
	f.replica.rendered(f.repo.URL, "", "a", "prod", pin(server, 1))
	f.replica.docs[0].Source.Mode = "follow"
	f.replica.sees(pin(server, 2))
	c, err := f.Companion.Once(t.Context())
	if len(c) != 0 {
		t.Errorf("WRITTEN for locked: %v %v", c[0].Message, err)
	}
}

// TestOtherProject: a project without credentials stops no other, and borrows none.
func TestOtherProject(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1)),
		"evil/kustomization.yaml": overlay, "evil/" + lock.FileName: lockText(pin(server, 1)),
	},
		companion.Application{Name: "aaa", Path: "evil"}, companion.Application{Name: "good", Path: "a"})
	c.apps[0].Project = "evil"
	f.Companion = companion.New(options(f.log, func(o *companion.Options) { o.Replicas, o.Cluster = replicas(f.replica), scoped{c} }))
	f.replica.sees(pin(server, 2))
	cs, err := f.Companion.Once(t.Context())
	if len(cs) != 1 {
		t.Errorf("DENIED: %v", err)
	}
	// the other way round
	c.apps[0].Name, c.apps[1].Name = "zzz", "good"
	c.apps[0], c.apps[1] = c.apps[1], c.apps[0]
	cs, err = f.Companion.Once(t.Context())
	t.Log(cs, err, c.opened)
	if doc, _ := lock.Parse("", []byte(show(t, f.repo, "main", "evil/"+lock.FileName))); doc.Pins[0].Digest == digest(2) {
		t.Error("WRITTEN with another project's credentials")
	}
}

// TestNotBusy: what waits for a branch that is gone does not keep the loop running.
func TestNotBusy(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a"})
	n := 0
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Cluster = c
		o.Quiet = companion.Quiet{Window: 2 * time.Second, Longest: 4 * time.Second}
		o.Replicas = func(ctx context.Context) ([]companion.Replica, error) { n++; return replicas(f.replica)(ctx) }
	}))
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
	f.replica.sees(pin(server, 1))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.Companion.Run(ctx, time.Hour); close(done) }()
	f.Companion.Sync(ctx)
	f.replica.sees(pin(server, 2))
	f.Companion.Sync(ctx)
	t.Log("waits", f.Companion.Waits())
	f.repo.Git(t, "update-ref", "refs/heads/x", "main")
	f.repo.Git(t, "symbolic-ref", "HEAD", "refs/heads/x") // HEAD's branch is another now
	time.Sleep(4 * time.Second)
	cancel()
	<-done
	t.Logf("%d cycles, want about 4", n)
	if n > 10 {
		t.Error("BUSY")
	}
}

// TestSpellingsOfOneSource: two renders of one source, spelled differently, are one.
func TestSpellingsOfOneSource(t *testing.T) {
	t.Parallel()
	f, _ := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1))},
		companion.Application{Name: "one", Path: "a"})
	f.replica.sees(pin(server, 1), pin(worker, 1))
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))                     // now
	f.replica.rendered(f.repo.URL, "HEAD", "a", "one", pin(server, 1), pin(worker, 1)) // before targetRevision: HEAD was taken out
	f.replica.docs[1].Source.RenderedAt = noon.Add(-time.Hour)
	total := 0
	for range 6 {
		f.replica.docs[0].Source.Revision = f.repo.Git(t, "rev-parse", "main") // Argo CD renders the tip
		f.replica.docs[0].Source.RenderedAt = time.Now()
		for range 2 {
			cs, err := f.Companion.Once(t.Context())
			for _, c := range cs {
				s, _, _ := strings.Cut(c.Message, "\n")
				t.Log(s, err)
			}
			total += len(cs)
		}
	}
	if total > 1 {
		t.Errorf("ENDLESS: %d commits", total)
	}
}

// TestStaleLookAtRevert: a look that is older than the digest does not say that the tag has moved past it.
func TestStaleLookAtRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	f.replica.looks = map[string]lock.Pin{worker: pin(worker, 5), server: pin(server, 1)} // a replica that is behind
	once(t, f.restarted(t).Companion, 1)
	f.replica.sees(pin(server, 2))
	f.restarted(t).Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestMergedForeignCommit: what the companion committed to another branch says nothing of this one.
func TestMergedForeignCommit(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "p/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1), pin(worker, 1))
	once(t, f.Companion, 1)
	f.repo.Git(t, "branch", "feature", "main")
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1) // main: d2
	time.Sleep(1100 * time.Millisecond)
	f.replica.rendered(f.repo.URL, "feature", "p", "preview", pin(worker, 1))
	once(t, f.Companion, 1) // feature: p
	c := f.repo.Clone(t, "main")
	c.Git(t, "revert", "--no-edit", "HEAD")
	c.Git(t, "merge", "--quiet", "--no-ff", "--message", "Merge feature", "origin/feature")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	f.replica.docs = f.replica.docs[:1]
	f.restarted(t).Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestMarkConflict: a mark that cannot be set costs no other branch its own.
func TestMarkConflict(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.repo.Git(t, "branch", "rel", "main")
	f.replica.rendered(f.repo.URL, "rel", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1))
	once(t, f.Companion, 1)
	f.repo.Git(t, "update-ref", "-d", "refs/heads/rel")
	f.repo.Git(t, "branch", "rel/1.0", "main")
	f.replica.docs = nil
	f.replica.rendered(f.repo.URL, "rel/1.0", "app", "backend", pin(server, 1))
	once(t, f.Companion, 1)
	f.replica.docs = nil
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	once(t, f.Companion, 1) // another branch
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	refs := f.repo.Git(t, "for-each-ref", "refs/digestlock")
	if !strings.Contains(refs, "digestlock/main") {
		t.Errorf("NO MARK for main:\n%s", refs)
	}
	// and so a reset is undone
	f.repo.Git(t, "update-ref", "refs/heads/main", "main~1")
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("RESET UNDONE: %s", p.Digest)
	}
}

type scoped struct{ *cluster }

func (s scoped) Open(ctx context.Context, url, project string) (companion.Repository, error) {
	if project != "default" {
		return companion.Repository{}, errors.New("no credentials for project " + project)
	}
	return s.cluster.Open(ctx, url, project)
}

// TestMergeOfAnOldLock: a conflict in the lock that was resolved by taking the side that knew of nothing accuses nobody.
func TestMergeOfAnOldLock(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1), pin(worker, 1))
	f.replica.sees(pin(server, 1), pin(worker, 1))
	once(t, f.Companion, 1)
	c := f.repo.Clone(t, "main")
	c.Git(t, "checkout", "--quiet", "-b", "feature")
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	// the feature has its lock as of before, with one more image
	f.repo.Git(t, "branch", "feature", "main~1")
	f.repo.Commit(t, "feature", map[string]string{app: lockText(pin(nginx, 1), pin(server, 1), pin(worker, 1))})
	c.Git(t, "fetch", "--quiet", "origin")
	c.Git(t, "checkout", "--quiet", "-B", "main", "origin/main")
	c.Git(t, "merge", "--no-commit", "--no-ff", "-X", "theirs", "origin/feature")
	c.Git(t, "checkout", "--quiet", "origin/feature", "--", app)
	c.Git(t, "commit", "--quiet", "-m", "Merge feature")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Hold != nil {
		t.Errorf("FALSE HOLD: %+v", p.Hold)
	}
}

// TestLaggingMark: a server that moves branch and mark one after the other, and answers for the first only.
func TestLaggingMark(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	f.repo.Git(t, "config", "receive.advertiseAtomic", "false")
	f.repo.Hook(t, "update", `case "$1" in refs/digestlock/*) sleep 8; exit 1;; esac`)
	f.replica.sees(pin(server, 3))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	cs, err := f.Companion.Once(ctx)
	cancel()
	t.Log(len(cs), err)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 3, worker: 1})
	time.Sleep(5 * time.Second)
	revert(t, f.repo, "main")
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(2) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}

// TestTrailerInTheMiddle: a person who squashes the companion's message into an own one is a person.
func TestTrailerInTheMiddle(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	msg := "Feature (#12)\n\n* build: auto-update x\n\nDigestlock-Companion: v0.4.0\n\n* take server back\n"
	c := f.repo.Clone(t, "main")
	c.Git(t, "revert", "--no-edit", "HEAD")
	c.Git(t, "commit", "--quiet", "--amend", "-m", msg)
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	f.Companion.Once(t.Context())
	doc, _ := lock.Parse(app, []byte(show(t, f.repo, "main", app)))
	if p, _ := doc.Find(server); p.Digest != digest(1) {
		t.Errorf("REVERT UNDONE: %s", p.Digest)
	}
}
