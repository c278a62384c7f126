package argocd

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// appProject is one that permits repositories and namespaces.
func appProject(name string, repos, namespaces []string) *unstructured.Unstructured {
	list := func(in []string) []any {
		out := []any{}
		for _, s := range in {
			out = append(out, s)
		}
		return out
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"sourceRepos": list(repos), "sourceNamespaces": list(namespaces)}}}
	u.SetAPIVersion("argoproj.io/v1alpha1")
	u.SetKind("AppProject")
	u.SetNamespace("argocd")
	u.SetName(name)
	return u
}

func settings(globalProjects string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: settingsMap}, Data: map[string]string{globalProjectsKey: globalProjects, "dex.config": "x"}}
}

// projectTable is testdata/projects.yaml.
type projectTable struct {
	GlobalProjects string
	Projects       []struct {
		Name              string
		Labels            map[string]string
		Repos, Namespaces []string
	}
	Secrets []struct{ Type, Project, URL string }
	Cases   []struct {
		Project                     *string
		Namespace, Repository, Want string
		Also, Sync                  string
		Repos, Namespaces           []string
	}
}

// TestProjects: testdata/projects.yaml has what Argo CD permits, which e2e asks it.
func TestProjects(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/projects.yaml")
	must(t, err)
	var table projectTable
	must(t, yaml.UnmarshalStrict(b, &table))
	objects := []runtime.Object{settings(table.GlobalProjects)}
	for _, p := range table.Projects {
		u := appProject(p.Name, p.Repos, p.Namespaces)
		u.SetLabels(p.Labels)
		objects = append(objects, u)
	}
	for i, s := range table.Secrets {
		objects = append(objects, repositorySecret(fmt.Sprint("secret-", i), s.Type, "url", s.URL, "project", s.Project))
	}
	for i, tt := range table.Cases {
		project := fmt.Sprint("case-", i)
		if tt.Project != nil {
			project = *tt.Project
		} else {
			objects = append(objects, appProject(project, tt.Repos, tt.Namespaces))
		}
		ours := map[string]any{"repoURL": cmp.Or(tt.Repository, "https://git.example.com/org/web"), "path": "x", "plugin": map[string]any{"name": "digestlock"}}
		spec := map[string]any{"project": project, "source": ours}
		if tt.Also != "" {
			spec["sources"] = []any{ours, map[string]any{"repoURL": tt.Also, "path": "x"}}
		}
		if tt.Sync != "" {
			spec["sourceHydrator"] = map[string]any{"drySource": ours, "syncSource": map[string]any{"repoURL": tt.Sync}}
		}
		u := application(t, cmp.Or(tt.Namespace, "argocd"), fmt.Sprint("case-", i), "{}")
		u.Object["spec"] = spec
		objects = append(objects, u)
	}
	c, _ := started(t, Options{Namespaces: []string{"*"}}, objects...)
	listed := map[string]bool{}
	for _, app := range c.Applications() {
		listed[app.AppName] = true
	}
	for i, tt := range table.Cases {
		name := fmt.Sprint("case-", i)
		got := c.refused[cmp.Or(tt.Namespace, "argocd")+"/"+name].reason
		if (got == "") != (tt.Want == "") || !strings.Contains(got, tt.Want) || listed[name] != (tt.Want == "") {
			t.Errorf("%+v: refused because %q, listed: %v", tt, got, listed[name])
		}
	}
}

// TestRefusedOnce: a refusal is logged once, and again when its reason is another or it was permitted meanwhile.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	c, _ := started(t, Options{Log: slog.New(slog.NewTextHandler(&logged, nil))}, application(t, "argocd", "web", oneSource), appProject("other", nil, nil))
	steps := []struct {
		project *unstructured.Unstructured // nil: none
		want    string
	}{
		{nil, "the project does not exist"},
		{nil, ""},
		{appProject("web", []string{"https://git.example.com/other"}, nil), "does not permit a repository"},
		{appProject("web", []string{"https://git.example.com/web"}, nil), ""},
		{nil, "the project does not exist"},
	}
	for i, s := range steps {
		logged.Reset()
		gone, err := c.toProject(appProject("web", nil, nil))
		must(t, err)
		must(t, c.projects.Delete(gone))
		if s.project != nil {
			record, err := c.toProject(s.project)
			must(t, err)
			must(t, c.projects.Add(record))
		}
		c.Applications()
		got := logged.String()
		if (got == "") != (s.want == "") || !strings.Contains(got, s.want) || strings.Count(got, "\n") > 1 || got != "" && !strings.Contains(got, "application=argocd/web project=web") {
			t.Errorf("step %d: logged %q, want %q", i, got, s.want)
		}
	}
}

// TestProjectThatCannotBeRead permits nothing.
func TestProjectThatCannotBeRead(t *testing.T) {
	t.Parallel()
	broken := appProject("web", []string{"*"}, nil)
	broken.Object["spec"] = map[string]any{"sourceRepos": "*"}
	c, _ := started(t, Options{}, application(t, "argocd", "web", oneSource), broken)
	for range 2 {
		if got := c.Applications(); len(got) != 0 || c.LeftOut() != 1 {
			t.Errorf("Applications() = %v without %d sources, want none without 1", got, c.LeftOut())
		}
	}
}

// TestProjectsSignal: what projects permit is signalled when it changes, and nothing else of the same objects.
func TestProjectsSignal(t *testing.T) {
	t.Parallel()
	c, _ := started(t, Options{})
	labelled := appProject("web", []string{"*"}, nil)
	labelled.SetLabels(map[string]string{"tier": "shared"})
	described := appProject("web", []string{"*"}, nil)
	described.SetAnnotations(map[string]string{"a": "b"})
	renamed := settings("")
	renamed.Data["dex.config"] = "y"
	secret := func(data ...string) *corev1.Secret { return repositorySecret("web", "repository", data...) }
	for _, tt := range []struct {
		name     string
		old, now runtime.Object
		want     bool
	}{
		{"new project", nil, appProject("web", nil, nil), true},
		{"project gone", appProject("web", nil, nil), nil, true},
		{"repositories", appProject("web", []string{"*"}, nil), appProject("web", []string{"a"}, nil), true},
		{"namespaces", appProject("web", nil, []string{"*"}), appProject("web", nil, []string{"a"}), true},
		{"labels", appProject("web", []string{"*"}, nil), labelled, true},
		{"annotation of a project", appProject("web", []string{"*"}, nil), described, false},
		{"global projects", settings(""), settings("[]"), true},
		{"another setting", settings(""), renamed, false},
		{"project's own repository", nil, secret("project", "web", "url", "a"), true},
		{"another address", secret("project", "web", "url", "b"), secret("project", "web", "url", "a"), true},
		{"everybody's repository", nil, secret("url", "a"), false},
		{"password", secret("project", "web", "password", "1"), secret("project", "web", "password", "2"), false},
	} {
		slim := func(obj runtime.Object) any {
			var err error
			var out any = obj
			switch o := obj.(type) {
			case nil:
				return nil
			case *unstructured.Unstructured:
				out, err = c.toProject(o)
			case *corev1.Secret:
				out, err = c.slimSecret(o)
			case *corev1.ConfigMap:
				out, err = slimConfigMap(o)
			}
			must(t, err)
			return out
		}
		select { // of what was there at the start
		case <-c.changed:
		default:
		}
		c.compare(slim(tt.old), slim(tt.now))
		if got := len(c.changed) == 1; got != tt.want {
			t.Errorf("%s: signalled: %v, want %v", tt.name, got, tt.want)
		}
	}
}
