package argocd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The tests named TestReal… want a real API server with Argo CD's kinds, which e2e starts: make e2e. All that is done
// by the package in them is done as the service account that manifests/companion is for.

// serviceAccount is whom the manifests give their roles to.
const serviceAccount = "system:serviceaccount:argocd:digestlock-companion"

const (
	kubeconfigVariable = "DIGESTLOCK_TEST_KUBECONFIG"
	candidateVariable  = "DIGESTLOCK_TEST_CANDIDATE"
)

// waitTimeout bounds each wait. A lease that nobody gave up takes up to 24 s.
const waitTimeout = time.Minute

// TestMain is a candidate for the lease when a test starts the test binary as one.
func TestMain(m *testing.M) {
	if identity := os.Getenv(candidateVariable); identity != "" {
		os.Exit(candidate(identity))
	}
	os.Exit(m.Run())
}

// candidate says when it leads, until it is told to end.
func candidate(identity string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := asServiceAccount(os.Getenv(kubeconfigVariable), Options{})
	if err == nil {
		err = c.Lead(ctx, identity, func(ctx context.Context) {
			fmt.Println(identity, "leads")
			<-ctx.Done()
		})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// asServiceAccount is Open with the identity changed.
func asServiceAccount(kubeconfig string, o Options) (*Cluster, error) {
	config, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: serviceAccount}
	return newCluster(o, dynamic.NewForConfigOrDie(config), kubernetes.NewForConfigOrDie(config))
}

// admin may do all.
type admin struct {
	dynamic dynamic.Interface
	kube    kubernetes.Interface
}

// real is an administrator of the cluster that e2e started, with the roles in place.
func real(t *testing.T) (a admin, kubeconfig string) {
	t.Helper()
	kubeconfig = os.Getenv(kubeconfigVariable)
	if kubeconfig == "" {
		t.Skip("wants a real API server: make e2e")
	}
	config, err := restConfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	a = admin{dynamic.NewForConfigOrDie(config), kubernetes.NewForConfigOrDie(config)}
	for _, ns := range []string{"team-a", "team-b"} {
		_, err := a.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		must(t, err)
	}
	a.apply(t, "../../manifests/companion/rbac.yaml", "argocd")
	a.apply(t, "../../manifests/companion/rbac-applications.yaml", "team-a")
	a.createProject(t, appProject("default", []string{"*"}, []string{"*"}))
	a.createProject(t, appProject("web", []string{"https://git.example.com/web"}, []string{"team-a", "large"}))
	return a, kubeconfig
}

// must fails the test for an error, unless what was to be made is there, from another test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// apply creates the objects of a file.
func (a admin) apply(t *testing.T, file, namespace string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := dec.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		if !slices.Contains([]string{"", namespace}, u.GetNamespace()) {
			t.Fatalf("%s: %s is of namespace %s", file, u.GetKind(), u.GetNamespace())
		}
		gvr, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
		_, err = a.dynamic.Resource(gvr).Namespace(namespace).Create(t.Context(), u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
		must(t, err)
	}
}

func (a admin) createProject(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	_, err := a.dynamic.Resource(projects).Namespace("argocd").Create(t.Context(), u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	must(t, err)
}

func (a admin) createApplication(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	spec := u.Object["spec"].(map[string]any)
	spec["destination"] = map[string]any{"server": "https://kubernetes.default.svc"} // the schema wants one
	if spec["project"] == nil {
		spec["project"] = "default"
	}
	_, err := a.dynamic.Resource(applications).Namespace(u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.dynamic.Resource(applications).Namespace(u.GetNamespace()).Delete(context.Background(), u.GetName(), metav1.DeleteOptions{})
	})
}

func (a admin) patchApplication(t *testing.T, namespace, name, patch string) {
	t.Helper()
	_, err := a.dynamic.Resource(applications).Namespace(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(t, err)
}

func (a admin) application(t *testing.T, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	u, err := a.dynamic.Resource(applications).Namespace(namespace).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	return u
}

// awaitSources waits for signals until the sources are these, each as "name path".
func awaitSources(t *testing.T, c *Cluster, want ...string) {
	t.Helper()
	timeout := time.After(waitTimeout)
	for {
		var got []string
		for _, a := range c.Applications() {
			got = append(got, a.Name+" "+a.Path)
		}
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-c.Changed():
		case <-timeout:
			t.Fatalf("sources are %q and nothing changes, want %q", got, want)
		}
	}
}

func TestRealApplications(t *testing.T) {
	a, kubeconfig := real(t)
	c, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"team-a"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	run(t, c)
	awaitSources(t, c)

	a.createApplication(t, application(t, "argocd", "web", oneSource))
	awaitSources(t, c, "web overlays/dev")
	a.createApplication(t, application(t, "team-b", "not-allowed", oneSource))
	a.createApplication(t, application(t, "argocd", "plain", strings.ReplaceAll(oneSource, "name: digestlock", "name: other")))
	a.createApplication(t, application(t, "team-a", "web", `{sources: [{repoURL: https://git.example.com/values, ref: values},
		{repoURL: https://git.example.com/web, path: one, plugin: {name: digestlock}}, {repoURL: https://git.example.com/web, path: two, plugin: {name: digestlock}}]}`))
	awaitSources(t, c, "team-a_web one", "team-a_web two", "web overlays/dev")

	a.patchApplication(t, "argocd", "web", `{"spec": {"source": {"path": "overlays/prod"}}}`)
	awaitSources(t, c, "team-a_web one", "team-a_web two", "web overlays/prod")
	a.patchApplication(t, "argocd", "plain", `{"spec": {"source": {"plugin": {"name": "digestlock"}}}}`)
	awaitSources(t, c, "plain overlays/dev", "team-a_web one", "team-a_web two", "web overlays/prod")
	must(t, a.dynamic.Resource(applications).Namespace("team-a").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	awaitSources(t, c, "plain overlays/dev", "web overlays/prod")
}

// TestRealProjects: an Application is there while Argo CD permits it, whatever of the rules changes.
func TestRealProjects(t *testing.T) {
	a, kubeconfig := real(t)
	c, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"team-a"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	run(t, c)
	const mine, victim = "team-a_mine overlays/dev", "team-a_victim overlays/dev"
	inProject := func(name, repo string) *unstructured.Unstructured {
		return application(t, "team-a", name, strings.NewReplacer("project: web", "project: restricted", "git.example.com/web", repo).Replace(oneSource))
	}
	a.createApplication(t, inProject("mine", "git.example.com/team-a/web"))
	a.createApplication(t, inProject("victim", "git.example.com/team-b/web"))
	a.createApplication(t, application(t, "team-a", "sentinel", oneSource)) // read after the others
	awaitSources(t, c, "team-a_sentinel overlays/dev")
	must(t, a.dynamic.Resource(applications).Namespace("team-a").Delete(t.Context(), "sentinel", metav1.DeleteOptions{}))
	awaitSources(t, c)

	restricted := a.dynamic.Resource(projects).Namespace("argocd")
	patch := func(patch string) {
		t.Helper()
		_, err := restricted.Patch(t.Context(), "restricted", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
	}
	a.createProject(t, appProject("restricted", []string{"https://git.example.com/team-a/*"}, []string{"team-a"}))
	awaitSources(t, c, mine)
	patch(`{"spec": {"sourceNamespaces": ["team-b"]}}`)
	awaitSources(t, c)
	patch(`{"spec": {"sourceNamespaces": ["team-?"]}}`)
	awaitSources(t, c, mine)

	secrets := a.kube.CoreV1().Secrets("argocd")
	_, err = secrets.Create(t.Context(), repositorySecret("victim", "repository", "url", "https://git.example.com/team-b/web", "project", "restricted"), metav1.CreateOptions{})
	must(t, err)
	awaitSources(t, c, mine, victim)
	must(t, secrets.Delete(t.Context(), "victim", metav1.DeleteOptions{}))
	awaitSources(t, c, mine)

	a.createProject(t, appProject("global", []string{"!https://git.example.com/team-a/web"}, nil))
	_, err = a.kube.CoreV1().ConfigMaps("argocd").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: settingsMap}}, metav1.CreateOptions{})
	must(t, err)
	settings := func(globalProjects string) {
		t.Helper()
		_, err := a.kube.CoreV1().ConfigMaps("argocd").Patch(t.Context(), settingsMap, types.MergePatchType, fmt.Appendf(nil, `{"data": {"globalProjects": %q}}`, globalProjects), metav1.PatchOptions{})
		must(t, err)
	}
	settings("[{projectName: global, labelSelector: {matchLabels: {tier: shared}}}]")
	patch(`{"metadata": {"labels": {"tier": "shared"}}}`)
	awaitSources(t, c, victim) // a denial of something else permits, as in Argo CD
	settings("")
	awaitSources(t, c, mine)
	must(t, restricted.Delete(t.Context(), "restricted", metav1.DeleteOptions{}))
	awaitSources(t, c)
}

func TestRealCredentials(t *testing.T) {
	a, kubeconfig := real(t)
	objects := a.kube.CoreV1()
	for _, s := range []*corev1.Secret{
		repositorySecret("web-write", "repository-write", "url", "https://git.example.com/web", "password", "1"),
		repositorySecret("web-read", "repository", "url", "https://git.example.com/web", "password", "2"),
		repositorySecret("cluster", "cluster", "url", "https://git.example.com/web", "password", "3"),
	} {
		_, err := objects.Secrets("argocd").Create(t.Context(), s, metav1.CreateOptions{})
		must(t, err)
	}
	for name, key := range map[string]string{knownHostsMap: knownHostsKey, certificatesMap: "git.example.com", "argocd-cm": "url"} {
		_, err := objects.ConfigMaps("argocd").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{key: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	c, err := asServiceAccount(kubeconfig, Options{})
	must(t, err)
	run(t, c)
	creds, ok, err := c.Credentials("https://git.example.com/web.git", "web")
	if err != nil || !ok || creds.Password != "1" || string(creds.KnownHosts) != knownHostsMap || string(creds.CA) != certificatesMap {
		t.Errorf("Credentials() = %v, %v, %v", creds, ok, err)
	}
	for _, obj := range c.secrets.List() {
		if s := obj.(*corev1.Secret); s.Name != "web-write" && (s.Name != "web-read" || s.Data["password"] != nil) {
			t.Errorf("of secret %s more is kept than is used", s.Name)
		}
	}

	// A secret that is rotated is seen.
	_, err = objects.Secrets("argocd").Patch(t.Context(), "web-write", types.MergePatchType, []byte(`{"stringData": {"password": "4"}}`), metav1.PatchOptions{})
	must(t, err)
	await(t, func() error {
		if creds, _, err := c.Credentials("https://git.example.com/web", ""); err != nil || creds.Password != "4" {
			return fmt.Errorf("the password is still the old one: %v", err)
		}
		return nil
	})
}

func await(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(waitTimeout)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal(err)
		}
	}
}

func TestRealRefreshAndSync(t *testing.T) {
	a, kubeconfig := real(t)
	c, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"team-a"}})
	must(t, err)
	a.createApplication(t, application(t, "team-a", "live", `{source: {repoURL: https://git.example.com/web, path: live, plugin: {name: digestlock, parameters: [{name: mode, string: live}]}},
		syncPolicy: {automated: {prune: true}, syncOptions: [CreateNamespace=true], retry: {limit: 2}}}`))
	app := Application{Name: "team-a_live", Namespace: "team-a", AppName: "live"}
	for _, hard := range []bool{false, true} {
		if again, err := c.Refresh(t.Context(), app, hard); err != nil || again != hard {
			t.Errorf("Refresh(%v) = %v, %v, want %v: it was asked before", hard, again, err, hard)
		}
		want := map[bool]string{false: "normal", true: "hard"}[hard]
		if got := a.application(t, "team-a", "live").GetAnnotations()[refreshAnnotation]; got != want {
			t.Errorf("Refresh(%v) annotates %q, want %q", hard, got, want)
		}
	}

	busy := func(want string) {
		t.Helper()
		if done, why, err := (&attempt{Cluster: c, app: app}).sync(t.Context()); done || err != nil || why == nil || why.Error() != want {
			t.Errorf("sync() = %v, %v, %v, want to wait because %s", done, why, err, want)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("time is up"))
		defer cancel()
		if err, want := c.Sync(ctx, app), "sync Application team-a_live: "+want+": time is up"; err == nil || err.Error() != want {
			t.Errorf("Sync() = %v, want %s", err, want)
		}
	}
	busy("its refresh is not done")
	if op := a.application(t, "team-a", "live").Object["operation"]; op != nil {
		t.Errorf("operation %v before the refresh is done", op)
	}
	a.patchApplication(t, "team-a", "live", `{"metadata": {"annotations": {"`+refreshAnnotation+`": null}}, "status": {"operationState":
		{"phase": "Running", "startedAt": "2026-11-23T00:00:00Z", "operation": {}}}}`)
	busy("another operation is in progress")
	a.patchApplication(t, "team-a", "live", `{"status": {"operationState": {"phase": "Succeeded"}}}`)
	must(t, c.Sync(t.Context(), app))
	want := map[string]any{
		"initiatedBy": map[string]any{"username": "digestlock", "automated": true},
		"retry":       map[string]any{"limit": int64(2)},
		"sync":        map[string]any{"prune": true, "syncOptions": []any{"CreateNamespace=true"}},
	}
	if diff := cmp.Diff(want, a.application(t, "team-a", "live").Object["operation"]); diff != "" {
		t.Errorf("operation (-want +got):\n%s", diff)
	}
	busy("another operation is in progress")

	// Not touched when automated sync was switched off meanwhile, or what was seen is no more.
	a.patchApplication(t, "team-a", "live", `{"operation": null, "spec": {"syncPolicy": {"automated": {"enabled": false}}}}`)
	must(t, c.Sync(t.Context(), app))
	if op := a.application(t, "team-a", "live").Object["operation"]; op != nil {
		t.Errorf("operation %v without automated sync", op)
	}
	stale := map[string]any{"metadata": map[string]any{"resourceVersion": "1"}, "operation": map[string]any{}}
	if err := c.patch(t.Context(), app, stale); !apierrors.IsConflict(err) {
		t.Errorf("patch of what has changed since: %v, want a conflict", err)
	}
	if _, err := c.Refresh(t.Context(), Application{Name: "gone", Namespace: "argocd", AppName: "gone"}, true); !apierrors.IsNotFound(err) {
		t.Errorf("Refresh(gone) = %v, want not found", err)
	}
}

func TestRealEvents(t *testing.T) {
	a, kubeconfig := real(t)
	c, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"team-a"}})
	must(t, err)
	run(t, c)
	a.createApplication(t, application(t, "team-a", "eventful", oneSource))
	awaitSources(t, c, "team-a_eventful overlays/dev")
	app := c.Applications()[0]
	c.Event(t.Context(), app, false, "Adopted", "web:latest is sha256:1")
	c.Event(t.Context(), app, false, "Adopted", "web:latest is sha256:1")
	c.Event(t.Context(), app, true, "Refused", strings.Repeat("é", maxEventMessage))
	list, err := a.kube.CoreV1().Events("team-a").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	var got []string
	for _, e := range list.Items {
		if e.InvolvedObject.UID != a.application(t, "team-a", "eventful").GetUID() || e.InvolvedObject.Kind != "Application" || e.Source.Component != component {
			t.Errorf("event is about %v, from %v", e.InvolvedObject, e.Source)
		}
		got = append(got, fmt.Sprintf("%s %s %d times, %d bytes", e.Type, e.Reason, e.Count, len(e.Message)))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"Normal Adopted 2 times, 22 bytes", "Warning Refused 1 times, 1024 bytes"}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for i := range 100 {
		c.Event(t.Context(), app, true, "Failed", fmt.Sprint("attempt ", i))
	}
	list, err = a.kube.CoreV1().Events("team-a").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(list.Items) > 15 {
		t.Errorf("100 failures are %d events, want them to be one after the tenth", len(list.Items)-2)
	}
}

// TestRealForbidden: the roles are no larger than they have to be.
func TestRealForbidden(t *testing.T) {
	a, kubeconfig := real(t)
	c, err := asServiceAccount(kubeconfig, Options{})
	must(t, err)
	a.createApplication(t, application(t, "argocd", "victim", oneSource))
	ctx, core, apps, leases := t.Context(), c.kube.CoreV1(), c.dynamic.Resource(applications), c.kube.CoordinationV1().Leases("argocd")
	_, getSecret := core.Secrets("argocd").Get(ctx, "web-write", metav1.GetOptions{})
	_, otherSecrets := core.Secrets("team-a").List(ctx, metav1.ListOptions{})
	_, allSecrets := core.Secrets("").List(ctx, metav1.ListOptions{})
	_, writeSecret := core.Secrets("argocd").Create(ctx, repositorySecret("mine", "repository"), metav1.CreateOptions{})
	_, configMaps := core.ConfigMaps("argocd").List(ctx, metav1.ListOptions{})
	_, otherSettings := core.ConfigMaps("argocd").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=argocd-rbac-cm"})
	_, writeProject := c.dynamic.Resource(projects).Namespace("argocd").Create(ctx, appProject("new", nil, nil), metav1.CreateOptions{})
	_, create := apps.Namespace("argocd").Create(ctx, application(t, "argocd", "new", oneSource), metav1.CreateOptions{})
	_, update := apps.Namespace("argocd").Update(ctx, a.application(t, "argocd", "victim"), metav1.UpdateOptions{})
	_, otherApps := apps.Namespace("team-b").List(ctx, metav1.ListOptions{})
	_, readEvents := core.Events("argocd").List(ctx, metav1.ListOptions{})
	_, otherLease := leases.Get(ctx, "argocd-application-controller", metav1.GetOptions{})
	_, pods := core.Pods("argocd").List(ctx, metav1.ListOptions{})
	for what, err := range map[string]error{
		"delete an Application":                  apps.Namespace("argocd").Delete(ctx, "victim", metav1.DeleteOptions{}),
		"create an Application":                  create,
		"update an Application as a whole":       update,
		"list Applications of another namespace": otherApps,
		"refresh an Application of another":      c.refresh(ctx, Application{Namespace: "team-b", AppName: "x"}, false),
		"get a secret":                           getSecret,
		"write a secret":                         writeSecret,
		"list secrets of another namespace":      otherSecrets,
		"list secrets of all":                    allSecrets,
		"list all config maps":                   configMaps,
		"read others of Argo CD's settings":      otherSettings,
		"write an AppProject":                    writeProject,
		"read events":                            readEvents,
		"get another lease":                      otherLease,
		"delete the lease":                       leases.Delete(ctx, component, metav1.DeleteOptions{}),
		"list pods":                              pods,
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want forbidden", what, err)
		}
	}

	// And Synced tells of a role that is too small.
	small, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"team-b"}})
	must(t, err)
	watching, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		small.Run(watching)
	}()
	await(t, func() error {
		for _, w := range small.watches {
			if w.informer.HasSynced() {
				continue
			}
			if apierrors.IsForbidden(w.lastError()) {
				return nil
			}
			break // Synced tells of the first
		}
		return errors.New("the first watch that is open was not refused yet")
	})
	cancel()
	<-done
	if err := small.Synced(watching); !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "read Applications from Kubernetes: ") {
		t.Errorf("Synced() = %v, want that Applications are forbidden", err)
	}
}

// TestRealLead: the leader is killed, another takes over; that one is asked to end, and the next leads at once.
func TestRealLead(t *testing.T) {
	a, kubeconfig := real(t)
	first, firstSays := startCandidate(t, kubeconfig, "first")
	expect(t, firstSays, "first leads")
	second, secondSays := startCandidate(t, kubeconfig, "second")
	if got := a.holder(t); got != "first" {
		t.Errorf("%q holds the lease, want first", got)
	}
	first.Process.Kill()
	expect(t, secondSays, "second leads")
	second.Process.Signal(syscall.SIGTERM)
	if _, ok := <-secondSays; ok || second.Wait() != nil {
		t.Errorf("second ended with %v", second.ProcessState)
	}
	if got := a.holder(t); got != "" {
		t.Errorf("%q holds the lease after it ended, want nobody", got)
	}

	// In process: the lease is given up only after run has returned.
	c, err := asServiceAccount(kubeconfig, Options{})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ran := false
	if err := c.Lead(ctx, "third", func(ctx context.Context) {
		cancel()
		<-ctx.Done()
		if got := a.holder(t); got != "third" || c.Leader() != "third" {
			t.Errorf("%q holds the lease, seen as %q, while third still works", got, c.Leader())
		}
		ran = true
	}); err != nil || !ran {
		t.Errorf("Lead() = %v, ran: %v", err, ran)
	}
	if got := a.holder(t); got != "" || c.Leader() != "" {
		t.Errorf("%q holds the lease, seen as %q, after run has returned, want nobody", got, c.Leader())
	}

	// One whose lease is taken away, for longer than it may go without, stops, and tries again.
	var contexts []context.Context
	ctx, cancel = context.WithCancel(t.Context())
	if err := c.Lead(ctx, "fourth", func(ctx context.Context) {
		if contexts = append(contexts, ctx); len(contexts) == 2 {
			cancel()
			return
		}
		_, err := a.kube.CoordinationV1().Leases("argocd").Patch(t.Context(), component, types.MergePatchType,
			fmt.Appendf(nil, `{"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 12, "renewTime": %q}}`, time.Now().Format(metav1.RFC3339Micro)), metav1.PatchOptions{})
		must(t, err)
		<-ctx.Done()
	}); err != nil || len(contexts) != 2 {
		t.Errorf("Lead() = %v after %d times, want 2", err, len(contexts))
	}
	if err := c.Lead(t.Context(), "", nil); err == nil {
		t.Error("Lead() without an identity is no error")
	}
}

func (a admin) holder(t *testing.T) string {
	t.Helper()
	l, err := a.kube.CoordinationV1().Leases("argocd").Get(t.Context(), component, metav1.GetOptions{})
	must(t, err)
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// startCandidate runs [candidate] in a process of its own; the channel has its lines, and is closed when it ends.
func startCandidate(t *testing.T, kubeconfig, identity string) (*exec.Cmd, <-chan string) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), candidateVariable+"="+identity, kubeconfigVariable+"="+kubeconfig)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	says := make(chan string)
	go func() {
		defer close(says)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			says <- lines.Text()
		}
	}()
	return cmd, says
}

func expect(t *testing.T, says <-chan string, want string) {
	t.Helper()
	select {
	case got := <-says:
		if got != want {
			t.Fatalf("it says %q, want %q", got, want)
		}
	case <-time.After(waitTimeout):
		t.Fatalf("it does not say %q", want)
	}
}

// TestRealMemory: an Application costs what its sources do, not what its status does.
func TestRealMemory(t *testing.T) {
	a, kubeconfig := real(t)
	const count, status, most = 300, 100 << 10, 8 << 10 // bytes each
	_, err := a.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "large"}}, metav1.CreateOptions{})
	must(t, err)
	a.apply(t, "../../manifests/companion/rbac-applications.yaml", "large")
	large := application(t, "large", "", oneSource)
	large.Object["status"] = map[string]any{"conditions": []any{map[string]any{"type": "x", "message": strings.Repeat("x", status)}}}
	for i := range count {
		u := large.DeepCopy()
		u.SetName(fmt.Sprint("app-", i))
		a.createApplication(t, u)
	}
	before := heap()
	c, err := asServiceAccount(kubeconfig, Options{Namespaces: []string{"large"}})
	must(t, err)
	run(t, c)
	awaitCount := func() error {
		if got := len(c.Applications()); got != count {
			return fmt.Errorf("%d Applications, want %d", got, count)
		}
		return nil
	}
	await(t, awaitCount)
	each := (heap() - before) / count
	t.Logf("%d bytes for each Application", each)
	if each > most {
		t.Errorf("%d bytes for each Application, want at most %d", each, most)
	}
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
