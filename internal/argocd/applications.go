package argocd

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

var applications = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "applications"}

// Application is a source, of an Application, that our plugin renders.
type Application struct {
	Name           string // as ARGOCD_APP_NAME has it: AppName, or Namespace_AppName outside Argo CD's own namespace
	Namespace      string // of the Application, not of what it deploys
	AppName        string
	Project        string
	Repository     string // URL, as the Application has it
	TargetRevision string // may be ""
	Path           string
	Mode           string // the parameter of that name; "" when it is not set
	AutoSync       bool   // automated sync is on
}

// Applications returns each source that uses the plugin, of all Applications in the namespaces that are allowed,
// sorted by name and then in the Application's own order. Applications that Argo CD refuses for their project are left
// out, with a warning: it must exist, and permit the namespace and each repository.
func (c *Cluster) Applications() []Application {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Application
	projects := rules{c, map[string]*project{}}
	refused := map[string]refusal{}
	c.leftOut = 0
	for _, store := range c.applications {
		for _, obj := range store.List() {
			app := obj.(*appRecord)
			if len(app.sources) == 0 {
				continue
			}
			if reason := projects.refusal(app); reason != "" {
				refused[app.Namespace+"/"+app.Name] = refusal{app.sources[0].Project, reason}
				c.leftOut += len(app.sources)
				continue
			}
			all = append(all, app.sources...)
		}
	}
	c.tell(refused)
	slices.SortStableFunc(all, func(a, b Application) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
	})
	return all
}

// LeftOut returns how many sources Applications last left out.
func (c *Cluster) LeftOut() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leftOut
}

// appRecord is all that is kept of an Application: its status may be a hundred times larger.
type appRecord struct {
	metav1.ObjectMeta
	sources      []Application
	repositories []string // of all sources that Argo CD would read or write
}

// spec is what is read of an Application.
type spec struct {
	Project        string   `json:"project"`
	Source         *source  `json:"source"`
	Sources        []source `json:"sources"`
	SourceHydrator *struct {
		DrySource  source `json:"drySource"`
		SyncSource struct {
			RepoURL string `json:"repoURL"` // "" is drySource's
		} `json:"syncSource"`
	} `json:"sourceHydrator"`
	SyncPolicy *syncPolicy `json:"syncPolicy"`
}

type source struct {
	RepoURL        string `json:"repoURL"`
	TargetRevision string `json:"targetRevision"`
	Path           string `json:"path"`
	Plugin         *struct {
		Name       string `json:"name"`
		Parameters []struct {
			Name   string `json:"name"`
			String string `json:"string"`
		} `json:"parameters"`
	} `json:"plugin"`
}

type syncPolicy struct {
	Automated *struct {
		Enabled *bool `json:"enabled"`
		Prune   bool  `json:"prune"`
	} `json:"automated"`
	SyncOptions []string       `json:"syncOptions"`
	Retry       map[string]any `json:"retry"`
}

// automated reports whether Argo CD syncs on its own.
func (p *syncPolicy) automated() bool {
	return p != nil && p.Automated != nil && (p.Automated.Enabled == nil || *p.Automated.Enabled)
}

// all returns the sources that Argo CD renders: what it hydrates from comes first, and source is nothing beside sources.
func (s *spec) all() []source {
	switch {
	case s.SourceHydrator != nil:
		return []source{s.SourceHydrator.DrySource}
	case len(s.Sources) > 0:
		return s.Sources
	case s.Source != nil:
		return []source{*s.Source}
	}
	return nil
}

// repositories returns those that the project has to permit.
func (s *spec) repositories() []string {
	var repos []string
	for _, src := range s.all() {
		repos = append(repos, src.RepoURL)
	}
	if s.SourceHydrator != nil && s.SourceHydrator.SyncSource.RepoURL != "" {
		repos = append(repos, s.SourceHydrator.SyncSource.RepoURL)
	}
	slices.Sort(repos)
	return slices.Compact(repos)
}

// toRecord makes an [appRecord] of an Application. One that cannot be read, which Argo CD's schema does not let
// happen, uses no plugin.
func (c *Cluster) toRecord(obj any) (any, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj, nil
	}
	r := &appRecord{ObjectMeta: slimMeta(u)}
	if u.GetNamespace() != c.namespace && !c.allowed.match(u.GetNamespace()) {
		return r, nil
	}
	s, err := specOf(u)
	if err != nil {
		c.log.Warn("cannot read an Application", "namespace", u.GetNamespace(), "name", u.GetName(), "err", err)
		return r, nil
	}
	for _, src := range s.all() {
		if src.Plugin == nil || !isPlugin(src.Plugin.Name, c.plugin) {
			continue
		}
		r.sources = append(r.sources, Application{
			Name:           c.instanceName(u),
			Namespace:      strings.Clone(u.GetNamespace()),
			AppName:        strings.Clone(u.GetName()),
			Project:        cmp.Or(s.Project, "default"),
			Repository:     src.RepoURL,
			TargetRevision: src.TargetRevision,
			Path:           src.Path,
			Mode:           src.mode(),
			AutoSync:       s.SyncPolicy.automated(),
		})
	}
	if len(r.sources) > 0 {
		r.repositories = s.repositories()
	}
	return r, nil
}

func specOf(u *unstructured.Unstructured) (*spec, error) {
	var app struct {
		Spec spec `json:"spec"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"spec": u.Object["spec"]}, &app); err != nil {
		return nil, fmt.Errorf("read Application %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return &app.Spec, nil
}

// instanceName is Argo CD's own name for an Application wherever one string has to do.
func (c *Cluster) instanceName(u *unstructured.Unstructured) string {
	if u.GetNamespace() == c.namespace {
		return u.GetName()
	}
	return u.GetNamespace() + "_" + u.GetName()
}

func (s *source) mode() string {
	for _, p := range s.Plugin.Parameters {
		if p.Name == "mode" {
			return p.String
		}
	}
	return ""
}

var pluginVersion = regexp.MustCompile(`^-v?[0-9]`)

// isPlugin reports whether name is plugin, alone or with a version: Argo CD announces a plugin that has one as
// NAME-VERSION.
func isPlugin(name, plugin string) bool {
	rest, ok := strings.CutPrefix(name, plugin)
	return ok && (rest == "" || pluginVersion.MatchString(rest))
}

// compare signals when what decides about the plugin's sources is not what it was. Either may be nil.
func (c *Cluster) compare(old, now any) {
	if reflect.DeepEqual(decisive(old), decisive(now)) {
		return
	}
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// decisive returns what of an informer's object decides which sources there are, nil when nothing does.
func decisive(obj any) any {
	switch o := obj.(type) {
	case cache.DeletedFinalStateUnknown:
		return decisive(o.Obj)
	case *appRecord:
		if len(o.sources) > 0 {
			return []any{o.sources, o.repositories}
		}
	case *projectRecord:
		return []any{o.projectSpec, o.Labels}
	case *corev1.ConfigMap:
		if o.Name == settingsMap {
			return o.Data[globalProjectsKey]
		}
	case *corev1.Secret:
		if o.Labels[secretLabel] == forReading.repository && len(o.Data["project"]) > 0 {
			return []any{o.Data["project"], o.Data["url"]}
		}
	}
	return nil
}
