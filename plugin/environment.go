package plugin

import (
	"os"
	"strings"

	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/render"
)

// environment are the variables that Argo CD replaces in images, labels and annotations of source.kustomize, and no
// others (newEnv of reposerver/repository, v3.5.7). Argo CD gives a plugin all of them.
var environment = []string{
	"ARGOCD_APP_NAME", "ARGOCD_APP_NAMESPACE", "ARGOCD_APP_PROJECT_NAME", "ARGOCD_APP_REVISION", "ARGOCD_APP_REVISION_SHORT",
	"ARGOCD_APP_REVISION_SHORT_8", "ARGOCD_APP_SOURCE_REPO_URL", "ARGOCD_APP_SOURCE_PATH", "ARGOCD_APP_SOURCE_TARGET_REVISION",
}

// plainVersion finds what helm takes in a Kubernetes version such as v1.36.1-eks-4.
var plainVersion = lazy.Regexp(`^v?(\d+\.\d+(?:\.\d+)?)`)

// Surround returns the settings as they are in an environment: with its variables replaced where source.kustomize does
// that, with its cluster's version where none is given, and with the operator's helm, "" for none.
func (s Settings) Surround(getenv func(string) string, helm string) Settings {
	values := map[string]string{"$": "$"} // "$$" stands for one
	for _, name := range environment {
		values[name] = getenv(name)
	}
	expand := func(text string) string { return os.Expand(text, func(name string) string { return values[name] }) }
	e := &s.Build.Edits
	e.Images = each(e.Images, expand)
	e.Labels = eachValue(e.Labels, expand)
	if s.SubstituteAnnotations {
		e.Annotations = eachValue(e.Annotations, expand)
	}
	if helm == "" {
		s.Build.Helm = render.Helm{}
		return s
	}
	h := &s.Build.Helm
	h.Command = helm
	if h.KubeVersion == "" {
		h.KubeVersion = getenv("KUBE_VERSION")
	}
	if m := plainVersion().FindStringSubmatch(h.KubeVersion); m != nil {
		h.KubeVersion = m[1]
	}
	if len(h.APIVersions) == 0 {
		h.APIVersions = strings.FieldsFunc(getenv("KUBE_API_VERSIONS"), func(r rune) bool { return r == ',' })
	}
	return s
}

func each(in []string, f func(string) string) []string {
	var out []string
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func eachValue(in map[string]string, f func(string) string) map[string]string {
	if in == nil {
		return nil
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[k] = f(v)
	}
	return out
}
