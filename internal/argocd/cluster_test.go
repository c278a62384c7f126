package argocd

import (
	stdcmp "cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

// fakes are an API server's parts in process: enough for what is decided here. What the server decides is tested with
// a real one, see real_test.go.
type fakes struct {
	dynamic *dynamicfake.FakeDynamicClient
	kube    *fake.Clientset
}

// started is a synced cluster that has the objects: Applications, AppProjects and typed ones. Where no AppProject is
// among them, the projects default and web permit all.
func started(t *testing.T, o Options, objects ...runtime.Object) (*Cluster, fakes) {
	t.Helper()
	if !slices.ContainsFunc(objects, func(o runtime.Object) bool { return o.GetObjectKind().GroupVersionKind().Kind == "AppProject" }) {
		objects = append(objects, appProject("default", []string{"*"}, []string{"*"}), appProject("web", []string{"*"}, []string{"*"}))
	}
	f := fakeAPI(objects...)
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	c, err := newCluster(o, f.dynamic, f.kube)
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	return c, f
}

func fakeAPI(objects ...runtime.Object) fakes {
	var ours, theirs []runtime.Object
	for _, obj := range objects {
		if _, ok := obj.(*unstructured.Unstructured); ok {
			ours = append(ours, obj)
		} else {
			theirs = append(theirs, obj)
		}
	}
	return fakes{
		dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{applications: "ApplicationList", projects: "AppProjectList"}, ours...),
		fake.NewClientset(theirs...),
	}
}

// run has c follow its cluster until the test ends, and waits until it has.
func run(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	if err := c.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// application is one from a namespace, a name and the YAML of its spec.
func application(t *testing.T, namespace, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{}}
	if err := yaml.Unmarshal([]byte(spec), &u.Object); err != nil {
		t.Fatal(err)
	}
	u.Object = map[string]any{"spec": u.Object}
	u.SetAPIVersion("argoproj.io/v1alpha1")
	u.SetKind("Application")
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

const oneSource = `
project: web
source: {repoURL: https://git.example.com/web, targetRevision: main, path: overlays/dev, plugin: {name: digestlock}}
`

func TestApplications(t *testing.T) {
	t.Parallel()
	web := Application{
		Name: "web", Namespace: "argocd", AppName: "web", Project: "web", Repository: "https://git.example.com/web",
		TargetRevision: "main", Path: "overlays/dev",
	}
	with := func(change func(*Application)) []Application {
		a := web
		change(&a)
		return []Application{a}
	}
	tests := []struct {
		name      string
		namespace string // "" is Argo CD's own
		allowed   []string
		spec      string
		want      []Application
	}{
		{name: "source", spec: oneSource, want: []Application{web}},
		{
			name: "mode and automated sync",
			spec: `{project: web, source: {repoURL: https://git.example.com/web, targetRevision: main, path: overlays/dev, plugin: {name: digestlock-v1.2,
				parameters: [{name: tags, array: [latest]}, {name: mode, string: live}]}}, syncPolicy: {automated: {}}}`,
			want: with(func(a *Application) { a.Mode, a.AutoSync = "live", true }),
		},
		{
			name: "automated sync switched off",
			spec: `{project: web, source: {repoURL: https://git.example.com/web, targetRevision: main, path: overlays/dev, plugin: {name: digestlock}}, syncPolicy: {automated: {enabled: false}}}`,
			want: []Application{web},
		},
		{name: "project and revision are optional", spec: `{source: {repoURL: https://git.example.com/web, path: overlays/dev, plugin: {name: digestlock}}}`, want: with(func(a *Application) { a.Project, a.TargetRevision = "default", "" })},
		{
			name: "sources, of which source is none",
			spec: `{project: web, source: {repoURL: https://git.example.com/old, plugin: {name: digestlock}}, sources: [
				{repoURL: https://git.example.com/values, ref: values},
				{repoURL: https://git.example.com/web, targetRevision: main, path: z, plugin: {name: digestlock}},
				{repoURL: https://git.example.com/web, targetRevision: main, path: a, plugin: {name: digestlock}}]}`,
			want: append(with(func(a *Application) { a.Path = "z" }), with(func(a *Application) { a.Path = "a" })...),
		},
		{
			name: "what is hydrated",
			spec: `{project: web, sourceHydrator: {drySource: {repoURL: https://git.example.com/web, targetRevision: main, path: overlays/dev, plugin: {name: digestlock}}, syncSource: {targetBranch: env/dev, path: dev}}}`,
			want: []Application{web},
		},
		{name: "no plugin", spec: `{project: web, source: {repoURL: https://git.example.com/web, path: overlays/dev}}`},
		{name: "another plugin", spec: strings.ReplaceAll(oneSource, "name: digestlock", "name: digestlocker")},
		{name: "another plugin of a like name", spec: strings.ReplaceAll(oneSource, "name: digestlock", "name: digestlock-helm")},
		{name: "a plugin that is to be discovered", spec: strings.ReplaceAll(oneSource, "name: digestlock", "")},
		{name: "nothing", spec: `{}`},
		{
			name: "another namespace", namespace: "team-a", allowed: []string{"team-*"}, spec: oneSource,
			want: with(func(a *Application) { a.Name, a.Namespace = "team-a_web", "team-a" }),
		},
		{
			name: "another namespace by name", namespace: "team-a", allowed: []string{"team-a"}, spec: oneSource,
			want: with(func(a *Application) { a.Name, a.Namespace = "team-a_web", "team-a" }),
		},
		{
			name: "another namespace by regular expression", namespace: "team-a", allowed: []string{"/^team-[ab]$/"}, spec: oneSource,
			want: with(func(a *Application) { a.Name, a.Namespace = "team-a_web", "team-a" }),
		},
		{name: "a namespace that is not allowed", namespace: "kube-system", allowed: []string{"team-*", "/^team-[ab]$/"}, spec: oneSource},
		{name: "no other namespace is allowed", namespace: "team-a", spec: oneSource},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, _ := started(t, Options{Namespaces: tt.allowed}, application(t, stdcmp.Or(tt.namespace, "argocd"), "web", tt.spec))
			if diff := cmp.Diff(tt.want, c.Applications()); diff != "" {
				t.Errorf("Applications() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestApplicationsAreSorted(t *testing.T) {
	t.Parallel()
	c, _ := started(
		t, Options{Namespaces: []string{"*"}},
		application(t, "team", "b", oneSource), application(t, "argocd", "z", oneSource), application(t, "argocd", "a", oneSource), application(t, "team", "a", oneSource),
	)
	var got []string
	for _, a := range c.Applications() {
		got = append(got, a.Name)
	}
	if diff := cmp.Diff([]string{"a", "team_a", "team_b", "z"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// TestWatchedNamespaces: names need roles in these namespaces only, a pattern needs one for all.
func TestWatchedNamespaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ allowed, want []string }{
		{nil, []string{"argocd"}},
		{[]string{"team-b", "team-a", "argocd"}, []string{"argocd", "team-a", "team-b"}},
		{[]string{"team-a", "team-*"}, []string{""}},
		{[]string{"/team/"}, []string{""}},
	} {
		c := &Cluster{namespace: "argocd"}
		if diff := cmp.Diff(tt.want, c.watched(tt.allowed)); diff != "" {
			t.Errorf("watched(%q) (-want +got):\n%s", tt.allowed, diff)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		o          Options
	}{
		{"outside a cluster", "read Kubernetes configuration: unable to load in-cluster configuration", Options{}},
		{"no kubeconfig", "read Kubernetes configuration: stat nowhere", Options{Kubeconfig: "nowhere"}},
		{"glob", `read namespaces of Applications: glob "team-["`, Options{Kubeconfig: "testdata/kubeconfig.yaml", Namespaces: []string{"team-["}}},
		{"regular expression", `read namespaces of Applications: regular expression "/(/"`, Options{Kubeconfig: "testdata/kubeconfig.yaml", Namespaces: []string{"/(/"}}},
	} {
		_, err := Open(tt.o)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: Open() = %v, want %s…", tt.name, err, tt.want)
		}
	}
}

// TestSyncedSaysWhy: a role that is too small, or a cluster without Argo CD, is no riddle.
func TestSyncedSaysWhy(t *testing.T) {
	t.Parallel()
	c, err := Open(Options{Kubeconfig: "testdata/kubeconfig.yaml"}) // nobody listens there
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	cancel()
	<-done
	err = c.Synced(ctx)
	if want := "read Applications from Kubernetes: "; err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Synced() = %v, want %s… connection refused", err, want)
	}
}

// TestSlim: nothing is kept that may be large, or secret and of no use.
func TestSlim(t *testing.T) {
	t.Parallel()
	app := application(t, "argocd", "web", oneSource)
	app.Object["status"] = map[string]any{"resources": strings.Repeat("x", 1<<16)}
	secret := repositorySecret("web", "repository-write", "url", "https://git.example.com/web", "password", "hunter2")
	secret.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "hunter2"}
	c, _ := started(t, Options{}, app, secret, repositorySecret("web-read", "repository", "url", "https://git.example.com/web", "password", "hunter3"), settings("[]"))
	for _, obj := range c.applications[0].List() {
		if _, ok := obj.(*appRecord); !ok {
			t.Errorf("a %T is kept for an Application", obj)
		}
	}
	want := &corev1.Secret{Data: secret.Data}
	want.Namespace, want.Name, want.Labels = "argocd", "web", map[string]string{secretLabel: "repository-write"}
	read := &corev1.Secret{Data: map[string][]byte{"url": []byte("https://git.example.com/web"), "project": nil}}
	read.Namespace, read.Name, read.Labels = "argocd", "web-read", map[string]string{secretLabel: "repository"}
	kept := c.secrets.List()
	slices.SortFunc(kept, func(a, b any) int { return strings.Compare(a.(*corev1.Secret).Name, b.(*corev1.Secret).Name) })
	if diff := cmp.Diff([]any{want, read}, kept); diff != "" {
		t.Errorf("secrets that are kept, where only those for writing are used (-want +got):\n%s", diff)
	}
	for _, obj := range c.configMaps[settingsMap].List() {
		if diff := cmp.Diff(map[string]string{globalProjectsKey: "[]"}, obj.(*corev1.ConfigMap).Data); diff != "" {
			t.Errorf("settings that are kept (-want +got):\n%s", diff)
		}
	}
}
