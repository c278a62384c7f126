package argocd

import (
	"slices"
	"strings"

	"github.com/gobwas/glob"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Argo CD's settings, and all that is read of them.
const (
	settingsMap       = "argocd-cm"
	globalProjectsKey = "globalProjects"
)

var projects = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "appprojects"}

// projectRecord is what is kept of an AppProject.
type projectRecord struct {
	metav1.ObjectMeta // with all labels: globalProjects select by them
	projectSpec
}

type projectSpec struct {
	SourceRepos      []string `json:"sourceRepos"`
	SourceNamespaces []string `json:"sourceNamespaces"`
}

// toProject makes a [projectRecord] of an AppProject. One that cannot be read, which Argo CD's schema does not let
// happen, permits nothing.
func (c *Cluster) toProject(obj any) (any, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj, nil
	}
	r := &projectRecord{ObjectMeta: slimMeta(u)}
	r.Labels = u.GetLabels()
	var project struct {
		Spec projectSpec `json:"spec"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"spec": u.Object["spec"]}, &project); err != nil {
		c.log.Warn("cannot read an AppProject, its Applications are left out", "name", u.GetName(), "err", err)
		return r, nil
	}
	r.projectSpec = project.Spec
	return r, nil
}

// rules are what Argo CD's projects permit, while one list of Applications is made.
type rules struct {
	cluster *Cluster
	known   map[string]*project // nil for one that does not exist
}

// project is an AppProject with all that adds to it.
type project struct {
	repositories []pattern
	namespaces   globs
}

// refusal is why Argo CD refuses an Application for its project, "" when it does not.
func (r *rules) refusal(app *appRecord) string {
	p := r.project(app.sources[0].Project)
	switch {
	case p == nil:
		return "the project does not exist"
	case app.Namespace != r.cluster.namespace && !p.namespaces.match(app.Namespace):
		return "the project does not permit the namespace (spec.sourceNamespaces)"
	case slices.ContainsFunc(app.repositories, func(repo string) bool { return !permits(p.repositories, repo) }):
		return "the project does not permit a repository (spec.sourceRepos)" // which one may hold a password
	}
	return ""
}

func (r *rules) project(name string) *project {
	p, ok := r.known[name]
	if !ok {
		p = r.cluster.project(name)
		r.known[name] = p
	}
	return p
}

// project returns what Argo CD calls the virtual project: repositories that are the project's own by their secrets,
// and those of its global projects, count too.
func (c *Cluster) project(name string) *project {
	own := c.projectNamed(name)
	if own == nil {
		return nil
	}
	repos := slices.Concat(own.SourceRepos, c.scoped(name))
	for _, global := range c.globals(own) {
		repos = append(repos, global.SourceRepos...)
	}
	p := &project{}
	for _, r := range repos {
		p.repositories = append(p.repositories, repositoryPattern(r))
	}
	for _, ns := range own.SourceNamespaces {
		// As in Argo CD, one that cannot be compiled matches nothing; here that is one with look-around, too.
		if m, err := compileOne(ns); err == nil {
			p.namespaces = append(p.namespaces, m)
		}
	}
	return p
}

func (c *Cluster) projectNamed(name string) *projectRecord {
	obj, ok, err := c.projects.GetByKey(c.namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	return obj.(*projectRecord)
}

// scoped returns the repositories whose secrets belong to a project, sorted.
func (c *Cluster) scoped(project string) []string {
	var repos []string
	for _, obj := range c.secrets.List() {
		if s := obj.(*corev1.Secret); s.Labels[secretLabel] == forReading.repository && string(s.Data["project"]) == project {
			repos = append(repos, string(s.Data["url"]))
		}
	}
	slices.Sort(repos)
	return repos
}

// globals returns the projects that Argo CD's settings add to another. Settings that cannot be read add none, and
// one that cannot be followed ends the list, as in Argo CD.
func (c *Cluster) globals(own *projectRecord) []*projectRecord {
	var settings []struct {
		ProjectName   string               `json:"projectName"`
		LabelSelector metav1.LabelSelector `json:"labelSelector"`
	}
	if err := yaml.Unmarshal(c.configMap(settingsMap, globalProjectsKey), &settings); err != nil {
		return nil
	}
	var all []*projectRecord
	for _, s := range settings {
		if s.ProjectName == own.Name {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(&s.LabelSelector)
		if err != nil {
			break
		}
		if !selector.Matches(labels.Set(own.Labels)) {
			continue
		}
		global := c.projectNamed(s.ProjectName)
		if global == nil {
			break
		}
		all = append(all, global)
	}
	return all
}

// pattern is one of spec.sourceRepos.
type pattern struct {
	denial bool
	match  func(string) bool // of a normalized address
}

// repositoryPattern reads a pattern as Argo CD does: what it normalizes is the pattern, and only * alone crosses slashes
// without being doubled. One that cannot be compiled matches nothing.
func repositoryPattern(s string) pattern {
	address, denied := strings.CutPrefix(s, "!")
	address = normalize(address)
	if !denied { // a space before it does not hide it
		address, denied = strings.CutPrefix(address, "!")
	}
	if address == "*" && !denied {
		return pattern{match: func(string) bool { return true }}
	}
	g, err := glob.Compile(address, '/')
	if err != nil {
		return pattern{denied, func(string) bool { return false }}
	}
	return pattern{denied, g.Match}
}

// permits reports whether a pattern fits the repository, and no denial is of it. As in Argo CD, a denial of another one
// fits.
func permits(patterns []pattern, repo string) bool {
	repo = normalize(repo)
	permitted := false
	for _, p := range patterns {
		matched := p.match(repo)
		if p.denial && matched {
			return false
		}
		permitted = permitted || matched || p.denial
	}
	return permitted
}

// tell logs the Applications that are refused, each once for a reason. The mutex is the caller's.
func (c *Cluster) tell(refused map[string]refusal) {
	for key, r := range refused {
		if c.refused[key] != r {
			c.log.Warn("left out, Argo CD refuses the Application", "application", key, "project", r.project, "reason", r.reason)
		}
	}
	c.refused = refused
}

type refusal struct{ project, reason string }
