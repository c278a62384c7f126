package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
)

// liveFleet is fifty Applications that a real ApplicationSet makes of one monorepo. Their overlays share a base and an image.
type liveFleet struct {
	*liveStack
	reference string
}

const (
	fleet         = 50
	fleetPatience = 5 * time.Minute
	fleetPath     = "k8s/namespaces/fleet"
	fleetURL      = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications?labelSelector=fleet%3Dyes"
	setsURL       = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applicationsets"
)

// testFleet: a push to the image of fifty Applications is one commit, which renders each of them once. What
// manifest-generate-paths saves are the renders of all the others when somebody changes one.
func testFleet(t *testing.T, s *liveStack) {
	f := &liveFleet{liveStack: s, reference: s.registry.image("fleet/server:latest")}
	s.with(t, setController)
	s.stopFollowing(t) // so that all fifty get their first lock at once
	f.create(t)
	f.awaitFleet(t, func(app v1alpha1.Application) error { return f.deployed(app, s.tip(t)) })
	digest, pushed := f.push(t)
	edited := f.edit(t, digest, 2)
	f.annotate(t, "")
	editedAll := f.edit(t, digest, 3)
	t.Logf("renders of %d Applications: a push %d, an edit of one overlay %d; without manifest-generate-paths %d", fleet, pushed, edited, editedAll)
	f.wantCommits(t, 1)
	for _, c := range []struct {
		what      string
		got, want int
	}{
		{"a push", pushed, fleet},
		{"an edit", edited, 1},
		{"an edit without manifest-generate-paths", editedAll, fleet},
	} {
		if c.got != c.want {
			t.Errorf("%s costs %d renders, want %d", c.what, c.got, c.want)
		}
	}
}

// create pushes the image, commits the overlays and creates the ApplicationSet, which it removes again.
func (f *liveFleet) create(t *testing.T) {
	t.Helper()
	_, files := f.overlay("fleet", "app-01", "latest")
	for i := range fleet {
		files[fmt.Sprintf("%s/overlays/app-%02d/kustomization.yaml", fleetPath, i)] = f.kustomization(i, 1)
	}
	pushImage(t, f.reference)
	f.git.commit(t, "fleet: add the overlays", files)
	f.cluster.create(t, setsURL, fmt.Sprintf(`
apiVersion: argoproj.io/v1alpha1
kind: ApplicationSet
metadata: {name: fleet, annotations: {argocd.argoproj.io/application-set-refresh: "true"}}
spec:
  goTemplate: true
  generators:
    - git: {repoURL: %[1]q, revision: main, directories: [{path: %[2]s/overlays/*}]}
  syncPolicy: {preserveResourcesOnDeletion: true}
  template:
    metadata:
      name: "fleet-{{.path.basename}}"
      labels: {fleet: "yes"}
      annotations: {%[3]s: ".;../../base"}
    spec:
      project: default
      destination: {server: https://kubernetes.default.svc, namespace: fleet}
      source: {repoURL: %[1]q, targetRevision: main, path: "{{.path.path}}", plugin: {name: digestlock}}
      %[4]s
`, f.git.url, fleetPath, v1alpha1.AnnotationKeyManifestGeneratePaths, autoSync))
	t.Cleanup(func() { // no other scenario is to pay for their looks at Git
		for _, url := range []string{setsURL + "/fleet", fleetURL} { // in this order
			if err := f.cluster.do(f.t.Context(), http.MethodDelete, url, ""); err != nil {
				t.Error(err)
			}
		}
	})
}

func (f *liveFleet) kustomization(i, replicas int) string {
	return fmt.Sprintf(`resources: [../../base]
nameSuffix: "-%02d"
replicas: [{name: server, count: %d}]
images: [{name: server, newName: %s}]
`, i, replicas, strings.TrimSuffix(f.reference, ":latest"))
}

// annotate has the ApplicationSet give its Applications other paths that count; "" for all.
func (f *liveFleet) annotate(t *testing.T, paths string) {
	t.Helper()
	value := "null"
	if paths != "" {
		value = fmt.Sprintf("%q", paths)
	}
	if err := f.cluster.do(t.Context(), http.MethodPatch, setsURL+"/fleet", fmt.Sprintf(
		`{"spec": {"template": {"metadata": {"annotations": {%q: %s}}}}}`, v1alpha1.AnnotationKeyManifestGeneratePaths, value)); err != nil {
		t.Fatal(err)
	}
	f.awaitFleet(t, func(app v1alpha1.Application) error {
		if got := app.Annotations[v1alpha1.AnnotationKeyManifestGeneratePaths]; got != paths {
			return fmt.Errorf("%s renders at changes of %q, want %q", app.Name, got, paths)
		}
		return nil
	})
}

// push counts the renders of a push, the first: with it come the locks.
func (f *liveFleet) push(t *testing.T) (digest string, renders int) {
	t.Helper()
	before := f.renders(t, fleetPath+"/overlays")
	digest = pushImage(t, f.reference)
	f.flush(t, f.reference)
	f.startFollowing()
	f.awaitRest(t, digest)
	return digest, f.renders(t, fleetPath+"/overlays") - before
}

// edit counts the renders of an edit of one overlay that all look at.
func (f *liveFleet) edit(t *testing.T, digest string, replicas int) (renders int) {
	t.Helper()
	before := f.renders(t, fleetPath+"/overlays")
	f.git.commit(t, "fleet: scale one", map[string]string{fleetPath + "/overlays/app-07/kustomization.yaml": f.kustomization(7, replicas)})
	for _, app := range f.applications(t) {
		if err := f.cluster.do(t.Context(), http.MethodPatch, f.appURL(app.Name), fmt.Sprintf(
			`{"metadata": {"annotations": {%q: %q}}}`, v1alpha1.AnnotationKeyRefresh, v1alpha1.RefreshTypeNormal)); err != nil {
			t.Fatal(err)
		}
	}
	f.awaitRest(t, digest)
	return f.renders(t, fleetPath+"/overlays") - before
}

func (f *liveFleet) appURL(name string) string {
	return "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/" + name
}

func (f *liveFleet) applications(t *testing.T) []v1alpha1.Application {
	t.Helper()
	var list v1alpha1.ApplicationList
	f.cluster.read(t, fleetURL, &list)
	return list.Items
}

// awaitFleet waits until there are fifty Applications that pass the check.
func (f *liveFleet) awaitFleet(t *testing.T, check func(v1alpha1.Application) error) {
	t.Helper()
	awaitLong(t, fleetPatience, 200*time.Millisecond, func() error {
		apps := f.applications(t)
		if len(apps) != fleet {
			return fmt.Errorf("%d Applications, want %d", len(apps), fleet)
		}
		for _, app := range apps {
			if err := check(app); err != nil {
				return err
			}
		}
		return nil
	})
}

// deployed checks that an Application is Synced at a revision and done.
func (f *liveFleet) deployed(app v1alpha1.Application, revision string) error {
	sync, state := app.Status.Sync, app.Status.OperationState
	switch {
	case app.Annotations[v1alpha1.AnnotationKeyRefresh] != "":
		return fmt.Errorf("%s waits for its refresh", app.Name)
	case sync.Status != v1alpha1.SyncStatusCodeSynced || sync.Revision != revision:
		return fmt.Errorf("%s is %s at %s, want Synced at %s; %+v", app.Name, sync.Status, sync.Revision, revision, app.Status.Conditions)
	case app.Operation != nil || state == nil || !state.Phase.Successful():
		return fmt.Errorf("%s: operation %+v, state %+v", app.Name, app.Operation, state)
	}
	return nil
}

// awaitRest waits until all fifty have the digest in their lock and in the cluster, at the tip of main.
func (f *liveFleet) awaitRest(t *testing.T, digest string) {
	t.Helper()
	awaitLong(t, fleetPatience, 100*time.Millisecond, func() error {
		out, err := exec.CommandContext(t.Context(), "git", "-C", f.git.bare, "grep", "-l", "digest: "+digest, "main", "--", fleetPath).Output()
		if locks := strings.Fields(string(out)); err != nil || len(locks) != fleet {
			return fmt.Errorf("%d locks have %s, want %d: %v", len(locks), digest, fleet, err)
		}
		return nil
	})
	awaitLong(t, fleetPatience, 200*time.Millisecond, func() error {
		var list appsv1.DeploymentList
		f.cluster.read(t, "/apis/apps/v1/namespaces/fleet/deployments", &list)
		n := 0
		for _, d := range list.Items {
			if d.Spec.Template.Spec.Containers[0].Image == f.reference+"@"+digest {
				n++
			}
		}
		if n != fleet {
			return fmt.Errorf("%d Deployments have %s, want %d", n, digest, fleet)
		}
		return nil
	})
	f.awaitFleet(t, func(app v1alpha1.Application) error { return f.deployed(app, f.tip(t)) })
}

// wantCommits checks how many commits there were to the locks, each to all fifty.
func (f *liveFleet) wantCommits(t *testing.T, n int) {
	t.Helper()
	commits := strings.Fields(git(t, f.git.bare, "log", "--format=%H", "--author="+author, "main", "--", fleetPath))
	if len(commits) != n {
		t.Errorf("%d commits of locks, want %d", len(commits), n)
	}
	for _, c := range commits {
		if files := strings.Fields(git(t, f.git.bare, "show", "--format=", "--name-only", c)); len(files) != fleet {
			t.Errorf("commit %s is of %d files, want %d", c, len(files), fleet)
		}
	}
}
