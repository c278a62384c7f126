package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/argoproj/argo-cd/v3/common"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	listers "github.com/argoproj/argo-cd/v3/pkg/client/listers/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/argo"
	"github.com/argoproj/argo-cd/v3/util/db"
	"github.com/argoproj/argo-cd/v3/util/settings"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"
)

// projectTable is internal/argocd/testdata/projects.yaml, which says what is what.
type projectTable struct {
	GlobalProjects string
	Projects       []struct {
		Name              string
		Labels            map[string]string
		Repos, Namespaces []string
	}
	Secrets []struct{ Type, Project, URL string }
	Cases   []projectCase
}

type projectCase struct {
	Project                     *string
	Namespace, Repository, Want string
	Also, Sync                  string
	Repos, Namespaces           []string
}

// TestProjects: Argo CD permits and refuses what internal/argocd's own test says.
func TestProjects(t *testing.T) {
	var table projectTable
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "../internal/argocd/testdata/projects.yaml")), &table); err != nil {
		t.Fatal(err)
	}
	part := map[string]string{"app.kubernetes.io/part-of": "argocd"}
	objects := []runtime.Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: common.ArgoCDConfigMapName, Labels: part}, Data: map[string]string{"globalProjects": table.GlobalProjects}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: common.ArgoCDSecretName, Labels: part}, Data: map[string][]byte{"server.secretkey": []byte("x")}},
	}
	for i, s := range table.Secrets {
		objects = append(objects, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: fmt.Sprint("secret-", i), Labels: map[string]string{common.LabelKeySecretType: s.Type}},
			Data:       map[string][]byte{"url": []byte(s.URL), "project": []byte(s.Project)},
		})
	}
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	add := func(name string, labels map[string]string, repos, namespaces []string) {
		if err := indexer.Add(&v1alpha1.AppProject{
			ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: name, Labels: labels},
			Spec:       v1alpha1.AppProjectSpec{SourceRepos: repos, SourceNamespaces: namespaces, Destinations: []v1alpha1.ApplicationDestination{{Server: "*", Namespace: "*"}}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range table.Projects {
		add(p.Name, p.Labels, p.Repos, p.Namespaces)
	}
	kube := fake.NewClientset(objects...)
	manager := settings.NewSettingsManager(t.Context(), kube, "argocd")
	store := db.NewDB("argocd", manager, kube)
	for i, tt := range table.Cases {
		app := tt.application(fmt.Sprint("case-", i))
		if tt.Project == nil {
			add(app.Name, nil, tt.Repos, tt.Namespaces)
		}
		project, err := argo.GetAppProject(t.Context(), app, listers.NewAppProjectLister(indexer), "argocd", manager, store)
		if slices.Contains([]string{"exist", "namespace"}, tt.Want) {
			text := map[string]string{"exist": "not found", "namespace": "is not allowed to use project"}[tt.Want]
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%+v: Argo CD says %v, want that it is refused for its %s", tt, err, tt.Want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: Argo CD says %v", tt, err)
			continue
		}
		conditions, err := argo.ValidatePermissions(t.Context(), &app.Spec, project, store)
		refused := func(c v1alpha1.ApplicationCondition) bool {
			return strings.Contains(c.Message, "is not permitted in project")
		}
		if err != nil || slices.ContainsFunc(conditions, refused) != (tt.Want == "repository") || len(conditions) > 0 && tt.Want == "" {
			t.Errorf("%+v: Argo CD says %v, %v", tt, conditions, err)
		}
	}
}

func (c projectCase) application(name string) *v1alpha1.Application {
	ours := v1alpha1.ApplicationSource{RepoURL: cmp.Or(c.Repository, "https://git.example.com/org/web"), Path: "x"}
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: cmp.Or(c.Namespace, "argocd"), Name: name}}
	app.Spec = v1alpha1.ApplicationSpec{Project: name, Source: &ours, Destination: v1alpha1.ApplicationDestination{Server: v1alpha1.KubernetesInternalAPIServerAddr}}
	if c.Project != nil {
		app.Spec.Project = *c.Project
	}
	if c.Also != "" {
		app.Spec.Sources = v1alpha1.ApplicationSources{ours, {RepoURL: c.Also, Path: "x"}}
	}
	if c.Sync != "" {
		app.Spec.SourceHydrator = &v1alpha1.SourceHydrator{
			DrySource:  v1alpha1.DrySource{RepoURL: ours.RepoURL, Path: "x", TargetRevision: "main"},
			SyncSource: v1alpha1.SyncSource{RepoURL: c.Sync, TargetBranch: "env", Path: "x"},
		}
	}
	return app
}
