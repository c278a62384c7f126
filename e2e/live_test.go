package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
)

// TestArgoCD: the promises of docs/design.md on the real Argo CD, one scenario after the other on one stack. One alone:
//
//	go test -count=1 -v -run '^TestArgoCD$/^FirstSync$' .
//
// Beside all of them stands an overlay of prod, which none may touch.
func TestArgoCD(t *testing.T) {
	s := newLiveStack(t)
	prod := s.deployProd(t)
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, *liveStack)
	}{
		{"FirstSync", testFirstSync},
		{"Push", testPush},
		{"Hook", testHook},
		{"Rollback", testRollback},
		{"Revert", testRevert},
		{"Locked", testLocked},
		{"Outage", testOutage},
		{"Fleet", testFleet},
		{"LiveMode", testLiveMode},
		{"Sources", testSources},
		{"Elsewhere", testElsewhere},
		{"Hydrator", testHydrator},
		{"LocalDiff", testLocalDiff},
		{"Hostile", testHostile},
		{"Install", testInstall},
	} {
		t.Run(scenario.name, func(t *testing.T) { scenario.run(t, s) })
	}
	t.Run("Prod", func(t *testing.T) { testProd(t, prod) })
}

// testFirstSync: an overlay on latest without a lock is deployed by digest, and gets its lock in one commit. After that
// nothing moves, however often Argo CD looks.
func testFirstSync(t *testing.T, s *liveStack) {
	a, digest := s.deploy(t, "first")
	a.wantLockCommits(t, author)
	a.wantHistory(t, 1) // the lock says what is deployed already
	generation := a.live(t).Generation
	for i := range 10 {
		kind := v1alpha1.RefreshTypeNormal
		if i%2 == 1 {
			kind = v1alpha1.RefreshTypeHard
		}
		a.flushLive(t) // a cycle of the companion
		a.refresh(t, kind)
		a.awaitRest(t, digest)
	}
	a.wantLockCommits(t, author)
	a.wantHistory(t, 1)
	if got := a.live(t).Generation; got != generation {
		t.Errorf("the Deployment is at generation %d after ten refreshes, want %d", got, generation)
	}
}

// testPush: CI pushes and tells the companion, and the cluster has the new digest by a commit. It prints where the time goes.
func testPush(t *testing.T, s *liveStack) {
	a, last := s.deploy(t, "push")
	for range 3 {
		digest := pushImage(t, a.reference)
		before := a.tip(t)
		var commit, synced, live time.Duration
		began := time.Now()
		flushed := make(chan error, 1)
		go func() { flushed <- a.flushReference(t, a.companionAddr, a.reference) }()
		await(t, func() error {
			now := time.Since(began)
			if commit == 0 && a.tip(t) != before {
				commit = now
			}
			if commit != 0 && synced == 0 && a.application(t).Status.Sync.Revision != before {
				synced = now
			}
			if strings.HasSuffix(a.image(t), digest) {
				live = time.Since(began)
				return nil
			}
			return fmt.Errorf("%v after the flush the cluster has %s, want %s", now, a.image(t), digest)
		})
		if err := <-flushed; err != nil {
			t.Error(err)
		}
		ms := time.Millisecond
		t.Logf("flush to commit %v, to Argo CD's comparison %v, to live %v: %v in all",
			commit.Round(ms), (synced - commit).Round(ms), (live - synced).Round(ms), live.Round(ms))
		a.awaitRest(t, digest)
	}
	a.wantLockCommits(t, author, author, author, author)
	history := a.wantHistory(t, 4)
	if got := history[3].Revision; got != a.tip(t) {
		t.Errorf("the last deployment is of %s, want the commit of the lock, %s", got, a.tip(t))
	}

	// Argo CD looks at one commit while the next is made, and would not hear of that.
	for range 2 {
		digest := pushImage(t, a.reference)
		a.flushLive(t)
		a.awaitLock(t, digest)
		last = digest
	}
	a.awaitRest(t, last)
}

// hook is a Job that Argo CD runs before a sync, with the image that it is about to deploy.
const hook = `apiVersion: batch/v1
kind: Job
metadata:
  name: migrate
  annotations: {argocd.argoproj.io/hook: PreSync, argocd.argoproj.io/hook-delete-policy: BeforeHookCreation}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: migrate, image: server}]
`

// testHook: a commit of the lock is a full sync. Its hook runs, with the new digest and before anything else, and the
// deployment is one that can be rolled back to.
func testHook(t *testing.T, s *liveStack) {
	a, first := s.begin(t, "hook", map[string]string{"../../base/kustomization.yaml": "resources: [deployment.yaml, job.yaml]\n", "../../base/job.yaml": hook})
	a.endJob(t, first)
	a.awaitLock(t, first)
	a.awaitRest(t, first)
	a.wantHistory(t, 1)

	second := pushImage(t, a.reference)
	a.flushLive(t)
	if got, want := a.endJob(t, second), a.reference+"@"+first; got != want {
		t.Errorf("the cluster has %s while the hook runs, want %s", got, want)
	}
	a.awaitRest(t, second)
	history := a.wantHistory(t, 2)
	if last := history[1].Revision; last != a.tip(t) {
		t.Errorf("the last deployment is of %s, want the commit of the lock, %s", last, a.tip(t))
	}
	if ran := a.hooks(t); !slices.Equal(ran, []string{"PreSync Job/migrate Succeeded"}) {
		t.Errorf("the sync ran hooks %q", ran)
	}
}

// testRollback: what Argo CD rolls back to is the digest of that time, whether it remembers the manifests or renders again.
func testRollback(t *testing.T, s *liveStack) {
	a, _ := s.deploy(t, "rollback")
	second := a.push(t)
	third := a.push(t)
	history := a.wantHistory(t, 3)
	id, commits := fmt.Sprint(history[1].ID), a.lockCommits(t)

	if out, err := a.cli(t, "app", "rollback", a.name, id); err == nil || !strings.Contains(out, "auto-sync is enabled") {
		t.Errorf("rollback with auto-sync: %v\n%s", err, out)
	}
	a.patch(t, `{"spec": {"syncPolicy": {"automated": null}}}`)
	for _, cache := range []string{"warm", "flushed"} {
		rendered := a.renders(t, a.path)
		if cache == "flushed" {
			a.flushRedis(t)
		}
		if out, err := a.cli(t, "app", "rollback", a.name, id); err != nil {
			t.Fatalf("rollback, cache %s: %v\n%s", cache, err, out)
		}
		a.awaitImage(t, second)
		if again := a.renders(t, a.path) - rendered; again == 0 == (cache == "flushed") {
			t.Errorf("rollback, cache %s: %d renders", cache, again)
		}
		history = a.history(t)
		if last := history[len(history)-1].Revision; last != strings.Fields(commits[1])[0] {
			t.Errorf("rollback, cache %s: the last deployment is of %s, want %s", cache, last, commits[1])
		}
		a.flushLive(t)
		if got := a.lockCommits(t); !slices.Equal(got, commits) {
			t.Errorf("rollback, cache %s: commits of the lock %q, want as before: %q", cache, got, commits)
		}
		if got := a.image(t); got != a.reference+"@"+second {
			t.Errorf("rollback, cache %s: a cycle later the cluster has %s, want %s", cache, got, second)
		}
		if out, err := a.cli(t, "app", "sync", a.name); err != nil {
			t.Fatalf("sync: %v\n%s", err, out)
		}
		a.awaitRest(t, third)
	}

	// The first deployment was of the commit before the lock. Rendered again, it is what the tag stands for now.
	if out, err := a.cli(t, "app", "rollback", a.name, fmt.Sprint(history[0].ID)); err != nil {
		t.Fatalf("rollback to before the lock: %v\n%s", err, out)
	}
	a.awaitImage(t, third)
	if got := a.history(t); got[len(got)-1].Revision != history[0].Revision {
		t.Errorf("rollback to before the lock: the last deployment is of %s, want %s", got[len(got)-1].Revision, history[0].Revision)
	}
}

// testRevert: a git revert of the lock's commit deploys the old digest. It stays, over cycles of the companion and a
// restart of every process, until the next push.
func testRevert(t *testing.T, s *liveStack) {
	a, old := s.deploy(t, "revert")
	rejected := a.push(t)
	commits := a.lockCommits(t)
	git(t, a.git.work, "pull", "-q", "--ff-only", "origin", "main")
	git(t, a.git.work, "revert", "--no-edit", strings.Fields(commits[1])[0])
	git(t, a.git.work, "push", "-q", "origin", "main")
	revert := a.git.head(t)
	a.refresh(t, v1alpha1.RefreshTypeNormal) // which a webhook of the Git server would ask for

	held := func(when string) {
		for range 5 {
			a.flushLive(t)
		}
		a.awaitRest(t, old)
		p := a.lockPin(t, "main")
		if p.Digest != old || p.Hold == nil || p.Hold.Rejected != rejected || p.Hold.Reason != "reverted in "+revert[:7]+" by Dev Eloper" {
			t.Errorf("%s: the lock has %+v with hold %+v, want %s", when, p, p.Hold, old)
		}
		a.wantLockCommits(t, author, author, "Dev Eloper", author)
		a.wantHistory(t, 3)
	}
	held("after the revert")
	s.stop()
	s.registry.stop()
	s.registry.start(s.t)
	s.start()
	held("after the restart")
	a.refresh(t, v1alpha1.RefreshTypeHard)
	held("after a hard refresh")

	next := a.push(t)
	if p := a.lockPin(t, "main"); p.Digest != next || p.Hold != nil {
		t.Errorf("after the next push the lock has %+v with hold %+v, want %s", p, p.Hold, next)
	}
	a.wantLockCommits(t, author, author, "Dev Eloper", author, author)
	a.wantHistory(t, 4)
}

// testLocked: what is locked is deployed with nobody there to ask.
func testLocked(t *testing.T, s *liveStack) {
	a, files := s.overlay("locked", "dev", "latest")
	digest := pushImage(t, a.reference)
	files[a.path+"/digest-lock.yaml"] = lockOf(a.reference, digest)
	s.registry.stop()
	s.resolver.terminate(t)
	t.Cleanup(func() {
		s.registry.start(s.t)
		s.startResolver(s.t, s.dir, s.resolverAddr)
	})
	s.git.commit(t, "locked: add the overlay", files)
	a.createLive(t, "{name: mode, string: locked}", autoSync)
	a.awaitRest(t, digest)
	a.refresh(t, v1alpha1.RefreshTypeHard)
	a.awaitRest(t, digest)
	a.wantLockCommits(t, "Dev Eloper")
	a.wantHistory(t, 1)
}

// lockOf is a lock that a person wrote.
func lockOf(reference, digest string) string {
	return fmt.Sprintf(`apiVersion: digestlock.dev/v1
kind: DigestLock
pins:
  - image: %s
    digest: %s
    resolvedAt: "2026-11-22T20:57:00Z"
`, reference, digest)
}

// deployProd deploys an overlay with a fixed tag, in the mode of all others.
func (s *liveStack) deployProd(t *testing.T) *liveApp {
	t.Helper()
	prod, files := s.overlay("shop", "prod", "v1.2.3")
	pushImage(t, prod.reference)
	s.git.commit(t, "shop: add prod", files)
	prod.createLive(t, "", autoSync)
	prod.awaitRest(t, "")
	return prod
}

// testProd: nothing that happened has touched it, nor does a push to its own tag.
func testProd(t *testing.T, prod *liveApp) {
	pushImage(t, prod.reference)
	prod.flushLive(t)
	prod.refresh(t, v1alpha1.RefreshTypeHard)
	prod.awaitRest(t, "")
	prod.wantHistory(t, 1)
	if got := prod.live(t).Generation; got != 1 {
		t.Errorf("the Deployment is at generation %d, want 1", got)
	}
	if got := git(t, prod.git.bare, "log", "--format=%an %s", "main", "--", "k8s/namespaces/shop"); got != "Dev Eloper shop: add prod" {
		t.Errorf("commits to prod: %q", got)
	}
}
