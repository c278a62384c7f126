package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
)

// testOutage: with the registry gone after the first sync, and then everything else of ours and the Git server, what is
// deployed stays deployed, and what was seen and pushed in the meantime is not lost.
func testOutage(t *testing.T, s *liveStack) {
	s.stopFollowing(t)
	a, digest := s.begin(t, "outage", nil)
	a.awaitImage(t, digest) // the first sync; nobody has committed a lock
	s.resolver.kill()
	s.registry.stop()
	s.startResolver(s.t, s.dir, s.resolverAddr)
	s.startFollowing()
	a.awaitLock(t, digest) // what the render was told outlives the resolver that told it
	a.awaitRest(t, digest)

	steady := func(when string) {
		t.Helper()
		a.refresh(t, v1alpha1.RefreshTypeHard)
		a.awaitRest(t, digest)
		if app := a.application(t); len(app.Status.Conditions) != 0 {
			t.Errorf("%s: Argo CD complains: %+v", when, app.Status.Conditions)
		}
	}
	steady("registry down")
	s.resolver.kill()
	steady("resolver killed")
	s.follower().kill()
	steady("companion killed")
	s.git.commit(t, "outage: add a label", map[string]string{a.path + "/../../base/kustomization.yaml": "resources: [deployment.yaml]\nlabels: [{pairs: {stage: dev}}]\n"})
	steady("an edit with nobody there")
	if got := a.live(t).Labels["stage"]; got != "dev" {
		t.Errorf("the edit is not deployed: label %q", got)
	}
	a.wantHistory(t, 2)

	gone := s.git.stop()
	a.refresh(t, v1alpha1.RefreshTypeHard)
	a.awaitCondition(t, v1alpha1.ApplicationConditionComparisonError, gone+": connect: connection refused")
	s.startResolver(s.t, s.dir, s.resolverAddr)
	s.startFollowing()
	s.registry.start(s.t)
	pushed := pushImage(t, a.reference)
	a.flushLive(t) // the resolvers took it; what the cycle could not do is in the log
	if !strings.Contains(readFile(t, s.followerLog()), `"code":"git-unavailable"`) {
		t.Error("the companion's log does not say that the Git server is away")
	}
	if got := a.image(t); got != a.reference+"@"+digest {
		t.Errorf("with the Git server away the cluster has %s, want %s", got, digest)
	}
	a.wantLockCommits(t, author)
	s.git.start(s.t, gone)
	a.awaitLock(t, pushed) // without another flush, and without a render
	a.awaitOutOfSync(t)    // its first look after an error Argo CD takes for no news (docs/modes.md)
	a.refresh(t, v1alpha1.RefreshTypeNormal)
	a.awaitRest(t, pushed)
	a.wantLockCommits(t, author, author)
	a.wantHistory(t, 3)

	s.resolver.kill()
	s.follower().kill()
	pushed = pushImage(t, a.reference)
	s.startResolver(s.t, s.dir, s.resolverAddr)
	s.startFollowing()
	a.awaitLock(t, pushed)
	a.awaitRest(t, pushed)
	a.wantLockCommits(t, author, author, author)
	a.wantHistory(t, 4)
}

// awaitOutOfSync waits until Argo CD has seen that what is deployed is not the tip of main.
func (a *liveApp) awaitOutOfSync(t *testing.T) {
	t.Helper()
	await(t, func() error {
		if sync := a.application(t).Status.Sync; sync.Status != v1alpha1.SyncStatusCodeOutOfSync || sync.Revision != a.tip(t) {
			return fmt.Errorf("%s is %s at %s, want OutOfSync at %s", a.name, sync.Status, sync.Revision, a.tip(t))
		}
		return nil
	})
}
