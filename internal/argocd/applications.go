package argocd

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

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
// sorted by name and then in the Application's own order.
func (c *Cluster) Applications() []Application {
	var all []Application
	for _, store := range c.applications {
		for _, obj := range store.List() {
			all = append(all, obj.(*appRecord).sources...)
		}
	}
	slices.SortStableFunc(all, func(a, b Application) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
	})
	return all
}

// appRecord is all that is kept of an Application: its status may be a hundred times larger.
type appRecord struct {
	metav1.ObjectMeta
	sources []Application
}

// spec is what is read of an Application.
type spec struct {
	Project        string   `json:"project"`
	Source         *source  `json:"source"`
	Sources        []source `json:"sources"`
	SourceHydrator *struct {
		DrySource source `json:"drySource"`
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
			Project:        orDefault(s.Project, "default"),
			Repository:     src.RepoURL,
			TargetRevision: src.TargetRevision,
			Path:           src.Path,
			Mode:           src.mode(),
			AutoSync:       s.SyncPolicy.automated(),
		})
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

// compare signals when the plugin's sources are not what they were. Either may be nil.
func (c *Cluster) compare(old, now any) {
	if slices.Equal(sourcesOf(old), sourcesOf(now)) {
		return
	}
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// sourcesOf returns what an informer's object has to do with us: nothing, unless it is of an Application.
func sourcesOf(obj any) []Application {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if r, ok := obj.(*appRecord); ok {
		return r.sources
	}
	return nil
}
