package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
)

// testLiveMode: in mode live a push is deployed without a commit by what the companion asks Argo CD for, a hard refresh and
// an operation, as a full sync. What docs/modes.md says of less than that, and of rollbacks, is so.
func testLiveMode(t *testing.T, s *liveStack) {
	a, files := s.overlay("live", "dev", "latest")
	files[filepath.Join(a.path, "../../base/kustomization.yaml")] = "resources: [deployment.yaml, job.yaml]\n"
	files[filepath.Join(a.path, "../../base/job.yaml")] = hook
	first := pushImage(t, a.reference)
	s.git.commit(t, "live: add the overlay", files)
	a.createLive(t, "{name: mode, string: live}", autoSync)
	a.endJob(t, first)
	a.awaitLock(t, first)
	a.awaitRest(t, first)

	second := pushImage(t, a.reference)
	a.flushLive(t)
	if got, want := a.endJob(t, second), a.reference+"@"+first; got != want {
		t.Errorf("the cluster has %s while the hook runs, want %s", got, want)
	}
	a.awaitLock(t, second)
	a.awaitRest(t, second)
	await(t, func() error { // the commit of the first lock was new to Argo CD, so that it did not wait for the operation
		if !strings.Contains(readFile(t, s.followerLog()), `"msg":"synced by Argo CD itself","application":"live"`) {
			return errors.New("the companion has not seen that Argo CD has synced")
		}
		return nil
	})
	history := a.wantHistory(t, 2)
	if p := a.lockPin(t, history[1].Revision); p.Digest != first {
		t.Errorf("the commit that was deployed locks %s, want %s: the lock follows", p.Digest, first)
	}

	// Without the companion it takes a hard refresh. At a commit that Argo CD has not synced yet, as that of the last record,
	// that is enough; at one that it has, nothing is deployed.
	s.stopFollowing(t)
	next := func(kinds ...v1alpha1.RefreshType) (digest string) {
		digest = pushImage(t, a.reference)
		s.flush(t, a.reference)
		for _, kind := range kinds {
			before := a.renders(t, a.path)
			a.refresh(t, kind)
			if n := a.renders(t, a.path) - before; n == 1 != (kind == v1alpha1.RefreshTypeHard) {
				t.Errorf("a %s refresh costs %d renders", kind, n)
			}
		}
		return digest
	}
	third := next(v1alpha1.RefreshTypeNormal, v1alpha1.RefreshTypeHard)
	a.endJob(t, third)
	a.awaitRest(t, third)
	a.wantHistory(t, 3)
	fourth := next(v1alpha1.RefreshTypeNormal, v1alpha1.RefreshTypeHard)
	a.awaitOutOfSync(t)
	s.awaitLog(t, controller, "Skipping auto-sync: most recent sync already to ["+a.tip(t)+"]", "application=live ")
	a.wantImage(t, third)

	// With selfHeal it is deployed, without hooks or a trace in the history, and later each time.
	a.patch(t, `{"spec": {"syncPolicy": {"automated": {"selfHeal": true}}}}`)
	a.awaitImage(t, fourth)
	fifth := next(v1alpha1.RefreshTypeHard)
	a.awaitImage(t, fifth)
	if state := a.application(t).Status.OperationState; state.Operation.Sync.SelfHealAttemptsCount != 2 || len(state.Operation.Sync.Resources) == 0 {
		t.Errorf("selfHeal is a sync of %+v, number %d in a row; want one of what differs, and 2",
			state.Operation.Sync.Resources, state.Operation.Sync.SelfHealAttemptsCount)
	}
	if ran := a.hooks(t); len(ran) != 0 {
		t.Errorf("selfHeal ran hooks: %q", ran)
	}
	a.wantHistory(t, 3)
	a.patch(t, `{"spec": {"syncPolicy": {"automated": {"selfHeal": false}}}}`)

	// Without .git nobody knows which commit is the tip: the lock decides.
	a.wantManifests(t, fifth)
	restart := s.exclude(".git")
	a.refresh(t, v1alpha1.RefreshTypeHard)
	a.wantManifests(t, second)
	restart()

	s.startFollowing() // its first cycle sees that what was rendered last is not where the tag stands
	a.endJob(t, fifth)
	a.awaitLock(t, fifth)
	a.awaitRest(t, fifth)
	a.wantHistory(t, 4)
	a.wantLockCommits(t, author, author, author)

	// What an entry of the history deployed is not in the lock of its commit, but in the next one.
	a.patch(t, `{"spec": {"syncPolicy": {"automated": null}}}`)
	s.flushRedis(t)
	if out, err := a.cli(t, "app", "rollback", a.name, fmt.Sprint(history[1].ID)); err != nil {
		t.Fatalf("rollback: %v\n%s", err, out)
	}
	a.awaitImage(t, first)
	if ran := a.hooks(t); len(ran) != 0 {
		t.Errorf("the rollback ran hooks: %q", ran)
	}
	if history = a.wantHistory(t, 5); history[4].Revision != history[1].Revision {
		t.Errorf("rolled back to %s, want %s", history[4].Revision, history[1].Revision)
	}
}

// wantImage checks what the cluster has.
func (a *liveApp) wantImage(t *testing.T, digest string) {
	t.Helper()
	if got, want := a.image(t), a.reference+"@"+digest; got != want {
		t.Errorf("the cluster has %s, want %s", got, want)
	}
}

// wantManifests checks what Argo CD has rendered.
func (a *liveApp) wantManifests(t *testing.T, digest string) {
	t.Helper()
	out, err := a.cli(t, "app", "manifests", a.name)
	if err != nil {
		t.Fatalf("app manifests: %v\n%s", err, out)
	}
	if !strings.Contains(out, a.reference+"@"+digest) || strings.Count(out, "@sha256:") != strings.Count(out, "@"+digest) {
		t.Errorf("Argo CD has rendered\n%s\nwant %s", out, digest)
	}
}

// awaitLog waits until a part has logged a line with all of the words.
func (s *liveStack) awaitLog(t *testing.T, name string, words ...string) {
	t.Helper()
	await(t, func() error {
		for line := range strings.Lines(readFile(t, s.parts[name].log)) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("the log of %s has no line with %q", name, words)
	})
}

// exclude restarts the repo-server so that it does not send files of a pattern to plugins, until restart is called.
func (s *liveStack) exclude(pattern string) (restart func()) {
	p := s.parts[repoServer]
	env := p.command.Env
	p.command.Env = append(slices.Clip(env), "ARGOCD_REPO_SERVER_PLUGIN_TAR_EXCLUSIONS="+pattern)
	p.proc.kill()
	s.startPart(repoServer)
	p.command.Env = env
	return func() {
		p.proc.kill()
		s.startPart(repoServer)
	}
}
