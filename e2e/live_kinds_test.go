package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// testSources: an Application whose overlay is one source of three follows its tag like any other, by commits and, in mode
// live, by an operation that leaves the sources to the Application.
func testSources(t *testing.T, s *liveStack) {
	a, files := s.overlay("sources", "dev", "latest")
	extra := "k8s/namespaces/sources/extra"
	files[extra+"/settings.yaml"] = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n"
	first := pushImage(t, a.reference)
	s.git.commit(t, "sources: add the overlay", files)
	sources := func(parameters string) string {
		return fmt.Sprintf("sources: [{repoURL: %[1]q, targetRevision: main, ref: values}, {repoURL: %[1]q, targetRevision: main, path: %[2]s}, %[3]s]",
			a.git.url, extra, a.source(parameters))
	}
	a.createFrom(t, sources(""), autoSync)
	a.awaitLock(t, first)
	a.awaitRest(t, first)
	var settings corev1.ConfigMap
	s.cluster.read(t, "/api/v1/namespaces/sources/configmaps/settings", &settings)
	if settings.Data["colour"] != "blue" {
		t.Errorf("the other source is deployed as %v", settings.Data)
	}

	second := a.push(t)
	a.wantLockCommits(t, author, author)
	history := a.wantHistory(t, 2)
	if got := history[1].Revisions; len(got) != 3 || got[2] != a.tip(t) {
		t.Errorf("the last deployment is of %q, want the commit of the lock, %s", got, a.tip(t))
	}

	a.patch(t, "spec: {"+sources("{name: mode, string: live}")+"}")
	a.awaitMode(t, "live")
	third := pushImage(t, a.reference)
	a.flushLive(t)
	a.awaitLock(t, third)
	a.awaitRest(t, third)
	history = a.wantHistory(t, 3)
	if p := a.lockPin(t, history[2].Revisions[2]); p.Digest != second {
		t.Errorf("the commit that was deployed locks %s, want %s: nobody waited for a commit", p.Digest, second)
	}
}

// awaitMode waits until a render in a mode was recorded: the companion goes by what renders tell.
func (a *liveApp) awaitMode(t *testing.T, mode string) {
	t.Helper()
	await(t, func() error {
		_, answer := a.call(t, http.MethodGet, "/v1/pins", "", "s3cret")
		if !strings.Contains(answer, fmt.Sprintf(`"path":%q,"mode":%q`, a.path, mode)) {
			return fmt.Errorf("no render of %s in mode %s in %s", a.path, mode, answer)
		}
		return nil
	})
}

// testElsewhere: an Application outside of Argo CD's own namespace, whose name is told to plugins with it.
func testElsewhere(t *testing.T, s *liveStack) {
	a, files := s.overlay("elsewhere", "dev", "latest")
	a.home = "team-a"
	first := pushImage(t, a.reference)
	s.git.commit(t, "elsewhere: add the overlay", files)
	a.createLive(t, "", autoSync)
	a.awaitLock(t, first)
	a.awaitRest(t, first)
	second := a.push(t)
	a.wantLockCommits(t, author, author)
	a.wantHistory(t, 2)
	s.awaitEvent(t, kubeApp{namespace: a.home, name: a.name}, corev1.EventTypeNormal, "DigestAdopted", a.reference, second)
}

// testHydrator: Argo CD's source hydrator commits what the plugin rendered of a lock, and deploys that. The lock is a
// person's, and the tag alone moves nothing.
func testHydrator(t *testing.T, s *liveStack) {
	const branch = "env/dev"
	s.with(t, commitServer)
	a, files := s.overlay("hydrated", "dev", "latest")
	first := pushImage(t, a.reference)
	files[a.path+"/digest-lock.yaml"] = lockOf(a.reference, first)
	s.git.commit(t, "hydrated: add the overlay", files)
	a.createFrom(t, fmt.Sprintf(`sourceHydrator:
    drySource: %s
    syncSource: {targetBranch: %s, path: hydrated}`, a.source("{name: mode, string: locked}"), branch), autoSync)
	a.awaitImage(t, first)

	second := pushImage(t, a.reference)
	a.hydrate(t)
	a.wantImage(t, first)
	s.git.commit(t, "hydrated: move the lock", map[string]string{a.path + "/digest-lock.yaml": lockOf(a.reference, second)})
	a.hydrate(t)
	a.awaitImage(t, second)
	a.wantLockCommits(t, "Dev Eloper", "Dev Eloper")
	for i, digest := range []string{second, first} {
		if got := git(t, s.git.bare, "show", fmt.Sprintf("%s~%d:hydrated/manifest.yaml", branch, i)); !strings.Contains(got, a.reference+"@"+digest) {
			t.Errorf("%s~%d has\n%s\nwant %s", branch, i, got, digest)
		}
	}
	if n := strings.Count(git(t, s.git.bare, "log", "--format=%s", branch, "--", "hydrated/manifest.yaml"), "\n") + 1; n != 2 {
		t.Errorf("%d commits of hydrated manifests, want 2", n)
	}
}

// hydrate asks for it, and waits until the tip of main was looked at.
func (a *liveApp) hydrate(t *testing.T) {
	t.Helper()
	a.patch(t, fmt.Sprintf(`{"metadata": {"annotations": {%q: %q}}}`, v1alpha1.AnnotationKeyHydrate, v1alpha1.HydrateTypeNormal))
	await(t, func() error {
		app := a.application(t)
		op := app.Status.SourceHydrator.CurrentOperation
		if app.Annotations[v1alpha1.AnnotationKeyHydrate] != "" || op == nil || op.Phase != v1alpha1.HydrateOperationPhaseHydrated || op.DrySHA != a.tip(t) {
			return fmt.Errorf("%s is not hydrated: %+v", a.name, op)
		}
		return nil
	})
}

// testLocalDiff: what a developer has on their disk is rendered like a commit, and recorded nowhere.
func testLocalDiff(t *testing.T, s *liveStack) {
	a, digest := s.deploy(t, "localdiff")
	other := s.registry.image("localdiff/other:latest")
	wanted := pushImage(t, other)
	local := filepath.Join(t.TempDir(), "local")
	git(t, s.git.bare, "clone", "-q", ".", local)
	writeFile(t, filepath.Join(local, a.path, "kustomization.yaml"), readFile(t, filepath.Join(local, a.path, "kustomization.yaml"))+fmt.Sprintf(`patches:
  - target: {kind: Deployment}
    patch: |
      - {op: add, path: /spec/template/spec/containers/-, value: {name: other, image: %q}}
`, other))
	out, err := a.cli(t, "app", "diff", a.name, "--local", local, "--server-side-generate")
	if err == nil || !strings.Contains(out, other+"@"+wanted) {
		t.Errorf("app diff --local: %v\n%s\nwant a difference with %s", err, out, wanted)
	}
	if _, pins := s.call(t, http.MethodGet, "/v1/pins", "", "s3cret"); strings.Contains(pins, "localdiff/other") || !strings.Contains(pins, "localdiff/server") {
		t.Errorf("the resolver remembers a render of nobody's commit: %s", pins)
	}
	a.flushLive(t)
	a.wantLockCommits(t, author) // with one pin, or this fails
	a.awaitRest(t, digest)
}
