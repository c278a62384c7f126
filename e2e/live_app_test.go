package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/yaml"
)

// liveApp is an Application with an overlay, a namespace and an image of its own.
type liveApp struct {
	*liveStack
	home      string // namespace of the Application
	name      string // of the Application, the namespace that it deploys to and its image's repository
	path      string // of the overlay
	reference string // of the image, as the overlay has it
}

// deployment is a manifest whose image an overlay names.
const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      containers:
        - name: server
          image: server
          imagePullPolicy: Always
`

// overlay is the base and an overlay of a scenario: a Deployment of an image of its own. More are added by path.
func (s *liveStack) overlay(name, stage, tag string) (app *liveApp, files map[string]string) {
	dir := "k8s/namespaces/" + name
	app = &liveApp{liveStack: s, home: "argocd", name: name, path: dir + "/overlays/" + stage, reference: s.registry.image(name + "/server:" + tag)}
	return app, map[string]string{
		dir + "/base/kustomization.yaml": "resources: [deployment.yaml]\n",
		dir + "/base/deployment.yaml":    deployment,
		app.path + "/kustomization.yaml": fmt.Sprintf(`resources: [../../base]
images: [{name: server, newName: %s, newTag: %s}]
`, s.registry.image(name+"/server"), tag),
	}
}

// autoSync is how most Applications are synced.
const autoSync = "syncPolicy: {automated: {}, syncOptions: [CreateNamespace=true]}"

// createLive creates the Application. spec is added to it, parameters are the plugin's.
func (a *liveApp) createLive(t *testing.T, parameters, spec string) {
	t.Helper()
	a.createFrom(t, "source: "+a.source(parameters), spec)
}

// source is the overlay, rendered by the plugin.
func (a *liveApp) source(parameters string) string {
	return fmt.Sprintf("{repoURL: %q, targetRevision: main, path: %s, plugin: {name: digestlock, parameters: [%s]}}", a.git.url, a.path, parameters)
}

// createFrom creates the Application with another source, sources or sourceHydrator.
func (a *liveApp) createFrom(t *testing.T, source, spec string) {
	t.Helper()
	a.cluster.create(t, "/apis/argoproj.io/v1alpha1/namespaces/"+a.home+"/applications", fmt.Sprintf(`
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: %[1]s}
spec:
  project: default
  destination: {server: https://kubernetes.default.svc, namespace: %[1]s}
  %[2]s
  %[3]s
`, a.name, source, spec))
}

// begin pushes an image, commits an overlay on its tag latest and creates the Application. more is added to the overlay's
// directory.
func (s *liveStack) begin(t *testing.T, name string, more map[string]string) (app *liveApp, digest string) {
	t.Helper()
	app, files := s.overlay(name, "dev", "latest")
	for path, content := range more {
		files[filepath.Join(app.path, path)] = content
	}
	digest = pushImage(t, app.reference)
	s.git.commit(t, name+": add the overlay", files)
	app.createLive(t, "", autoSync)
	return app, digest
}

// deploy waits, after begin, until the lock is committed and everything is at rest.
func (s *liveStack) deploy(t *testing.T, name string) (app *liveApp, digest string) {
	t.Helper()
	app, digest = s.begin(t, name, nil)
	app.awaitLock(t, digest)
	app.awaitRest(t, digest)
	return app, digest
}

// push moves the tag, tells the companion, and waits until the new digest is committed, deployed and at rest.
func (a *liveApp) push(t *testing.T) (digest string) {
	t.Helper()
	digest = pushImage(t, a.reference)
	a.flushLive(t)
	a.awaitLock(t, digest)
	a.awaitRest(t, digest)
	return digest
}

func (a *liveApp) url() string {
	return "/apis/argoproj.io/v1alpha1/namespaces/" + a.home + "/applications/" + a.name
}

// application is what Argo CD says of it now.
func (a *liveApp) application(t *testing.T) *v1alpha1.Application {
	t.Helper()
	app := &v1alpha1.Application{}
	a.cluster.read(t, a.url(), app)
	return app
}

// patch changes the Application, by a merge patch in YAML.
func (a *liveApp) patch(t *testing.T, patch string) {
	t.Helper()
	body, err := yaml.YAMLToJSON([]byte(patch))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cluster.do(t.Context(), http.MethodPatch, a.url(), string(body)); err != nil {
		t.Fatal(err)
	}
}

// refresh asks for a refresh, normal or hard, and waits until Argo CD has done it.
func (a *liveApp) refresh(t *testing.T, kind v1alpha1.RefreshType) {
	t.Helper()
	a.patch(t, fmt.Sprintf(`{"metadata": {"annotations": {%q: %q}}}`, v1alpha1.AnnotationKeyRefresh, kind))
	await(t, func() error {
		if app := a.application(t); app.Annotations[v1alpha1.AnnotationKeyRefresh] != "" {
			return fmt.Errorf("%s waits for its refresh", a.name)
		}
		return nil
	})
}

// live is the Deployment in the cluster; one without containers while there is none.
func (a *liveApp) live(t *testing.T) *appsv1.Deployment {
	t.Helper()
	d := &appsv1.Deployment{}
	answer, err := a.cluster.call(t.Context(), http.MethodGet, "/apis/apps/v1/namespaces/"+a.name+"/deployments/server", "")
	if err == nil {
		err = json.Unmarshal(answer, d)
	}
	if err != nil && !strings.Contains(err.Error(), "404") {
		t.Fatal(err)
	}
	return d
}

// image is the one that the Deployment has in the cluster, "" while there is none.
func (a *liveApp) image(t *testing.T) string {
	t.Helper()
	containers := a.live(t).Spec.Template.Spec.Containers
	if len(containers) == 0 {
		return ""
	}
	return containers[0].Image
}

// awaitImage waits until the cluster has the digest, and no operation is under way.
func (a *liveApp) awaitImage(t *testing.T, digest string) {
	t.Helper()
	await(t, func() error {
		app := a.application(t)
		if got := a.image(t); got != a.reference+"@"+digest {
			return fmt.Errorf("%s: the cluster has %s, want %s", a.name, got, digest)
		}
		if state := app.Status.OperationState; app.Operation != nil || state == nil || !state.Phase.Successful() {
			return fmt.Errorf("%s: operation %+v, state %+v", a.name, app.Operation, state)
		}
		return nil
	})
}

// awaitRest waits until the cluster has the digest, and Argo CD is done with the tip of main.
func (a *liveApp) awaitRest(t *testing.T, digest string) {
	t.Helper()
	want := a.reference
	if digest != "" {
		want += "@" + digest
	}
	await(t, func() error {
		app, tip := a.application(t), a.tip(t)
		state := app.Status.OperationState
		switch got := a.image(t); {
		case got != want:
			return fmt.Errorf("%s: the cluster has %q, want %s; %+v, operation %+v", a.name, got, want, app.Status.Conditions, state)
		case app.Status.Sync.Status != v1alpha1.SyncStatusCodeSynced || slices.ContainsFunc(app.Status.GetRevisions(), func(r string) bool { return r != tip }):
			return fmt.Errorf("%s is %s at %s, want Synced at %s; %+v", a.name, app.Status.Sync.Status, app.Status.GetRevisions(), tip, app.Status.Conditions)
		case app.Operation != nil || state == nil || !state.Phase.Successful():
			return fmt.Errorf("%s: operation %+v, state %+v", a.name, app.Operation, state)
		}
		return nil
	})
}

// awaitCondition waits until Argo CD says words of the Application, and returns all of what it says.
func (a *liveApp) awaitCondition(t *testing.T, kind v1alpha1.ApplicationConditionType, words string) (message string) {
	t.Helper()
	await(t, func() error {
		conditions := a.application(t).Status.Conditions
		for _, c := range conditions {
			if c.Type == kind && strings.Contains(c.Message, words) {
				message = c.Message
				return nil
			}
		}
		return fmt.Errorf("%s: Argo CD says %+v, want %s with %q", a.name, conditions, kind, words)
	})
	return message
}

// lockPin is the pin in the lock at a revision, the zero value while there is none.
func (a *liveApp) lockPin(t *testing.T, revision string) kubePin {
	t.Helper()
	return a.pinOf(t, revision, a.path, a.reference)
}

// awaitLock waits until the lock at the tip has the digest.
func (a *liveApp) awaitLock(t *testing.T, digest string) {
	t.Helper()
	await(t, func() error {
		if p := a.lockPin(t, "main"); p.Digest != digest {
			return fmt.Errorf("the lock of %s has %q, want %s", a.name, p.Digest, digest)
		}
		return nil
	})
}

// lockCommits lists the commits of main that changed the lock, oldest first, as "HASH AUTHOR".
func (a *liveApp) lockCommits(t *testing.T) (commits []string) {
	t.Helper()
	for line := range strings.Lines(git(t, a.git.bare, "log", "--reverse", "--format=%H %an", "main", "--", a.path+"/digest-lock.yaml")) {
		commits = append(commits, strings.TrimSpace(line))
	}
	return commits
}

// wantLockCommits checks who has changed the lock, oldest first.
func (a *liveApp) wantLockCommits(t *testing.T, authors ...string) {
	t.Helper()
	var got []string
	for _, commit := range a.lockCommits(t) {
		_, who, _ := strings.Cut(commit, " ")
		got = append(got, who)
	}
	if !slices.Equal(got, authors) {
		t.Errorf("commits of the lock of %s are by %q, want %q", a.name, got, authors)
	}
}

// history is what Argo CD could roll back to, oldest first.
func (a *liveApp) history(t *testing.T) v1alpha1.RevisionHistories {
	t.Helper()
	return a.application(t).Status.History
}

// wantHistory checks how many deployments there were.
func (a *liveApp) wantHistory(t *testing.T, n int) v1alpha1.RevisionHistories {
	t.Helper()
	history := a.history(t)
	if len(history) != n {
		t.Fatalf("%d deployments of %s, want %d: %+v", len(history), a.name, n, history)
	}
	return history
}

// hooks lists what the last sync ran, as "PHASE KIND/NAME RESULT".
func (a *liveApp) hooks(t *testing.T) (ran []string) {
	t.Helper()
	for _, r := range a.application(t).Status.OperationState.SyncResult.Resources {
		if r.HookType != "" {
			ran = append(ran, fmt.Sprintf("%s %s/%s %s", r.HookType, r.Kind, r.Name, r.HookPhase))
		}
	}
	return ran
}

// endJob does what Kubernetes' controllers would: it lets go of a Job migrate that Argo CD deletes, waits for one with the
// digest, and ends it with success. It returns the Deployment's image at the time.
func (a *liveApp) endJob(t *testing.T, digest string) (deployed string) {
	t.Helper()
	path := "/apis/batch/v1/namespaces/" + a.name + "/jobs/migrate"
	await(t, func() error {
		var job batchv1.Job
		answer, err := a.cluster.call(t.Context(), http.MethodGet, path, "")
		if err == nil {
			err = json.Unmarshal(answer, &job)
		}
		if err != nil {
			return err
		}
		if job.DeletionTimestamp != nil && slices.Equal(job.Finalizers, []string{"foregroundDeletion"}) { // Argo CD replaces the last one
			return cmp.Or(a.cluster.do(t.Context(), http.MethodPatch, path, `{"metadata": {"finalizers": null}}`), fmt.Errorf("%s: there is no hook", a.name))
		}
		if image := job.Spec.Template.Spec.Containers[0].Image; image != a.reference+"@"+digest {
			return fmt.Errorf("%s: the hook has image %s, want %s", a.name, image, digest)
		}
		return nil
	})
	deployed = a.image(t)
	now := time.Now().UTC().Format(time.RFC3339)
	if err := a.cluster.do(t.Context(), http.MethodPatch, path+"/status", fmt.Sprintf(`{"status": {
		"startTime": %[1]q, "completionTime": %[1]q, "succeeded": 1,
		"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]
	}}`, now)); err != nil {
		t.Fatal(err)
	}
	return deployed
}

// flushLive tells the companion of a push, as CI does.
func (a *liveApp) flushLive(t *testing.T) {
	t.Helper()
	if err := a.flushReference(t, a.companionAddr, a.reference); err != nil {
		t.Fatal(err)
	}
}
