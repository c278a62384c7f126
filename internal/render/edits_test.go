package render

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
)

// e2e compares with what Argo CD's own code makes of the same parameters; these tests are for what it does not have.

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 1
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: nginx:1
`

// TestEdits: everything at once, and the file on disk stays as it is.
func TestEdits(t *testing.T) {
	dir := t.TempDir()
	const kustomization = "resources: [a.yaml]\nnamePrefix: old-\ncommonAnnotations: {a: old}\nimages:\n- {name: nginx, newName: mirror/nginx, newTag: old}\n"
	write(t, dir, "KUST", kustomization, "a.yaml", deployment, "c/one/kustomization.yaml",
		"kind: Component\napiVersion: kustomize.config.k8s.io/v1alpha1\nlabels: [{pairs: {c: one}}]")
	edits := Edits{
		NamePrefix: "new-", NameSuffix: "-x", Namespace: "ns", Images: []string{"nginx=*:2"}, Replicas: map[string]string{"web": "3"},
		Labels: map[string]string{"l": `"1"`}, WithoutSelector: true, IncludeTemplates: true,
		Annotations: map[string]string{"a": "b"}, ForceAnnotations: true,
		Patches:    []string{"target: {kind: Deployment}\npatch: '[{\"op\": \"add\", \"path\": \"/spec/paused\", \"value\": true}]'"},
		Components: []string{"c/one", "nowhere"}, IgnoreMissing: true,
	}
	out, err := Build(t.Context(), dir, Options{Edits: edits})
	if err != nil {
		t.Fatal(err)
	}
	got, err := out.YAML()
	if err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: apps/v1
kind: Deployment
metadata:
  annotations:
    a: b
  labels:
    c: one
    l: "1"
  name: new-web-x
  namespace: ns
spec:
  paused: true
  replicas: 3
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      annotations:
        a: b
      labels:
        app: web
        l: "1"
    spec:
      containers:
      - image: mirror/nginx:2
        name: web
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if onDisk, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml")); err != nil || string(onDisk) != kustomization {
		t.Errorf("the overlay was changed: %v\n%s", err, onDisk)
	}
}

// TestMissingComponent: it is an error unless the Application says otherwise.
func TestMissingComponent(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", deployment)
	edits := Edits{Components: []string{"nowhere"}}
	if _, err := Build(t.Context(), dir, Options{Edits: edits}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("error = %v", err)
	}
	edits.IgnoreMissing = true
	if _, err := Build(t.Context(), dir, Options{Edits: edits}); err != nil {
		t.Error(err)
	}
}

// TestEditsRefused: parameters come from people who can write Applications, so that no value of them is trusted.
func TestEditsRefused(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "repo", "app")
	write(t, top, "repo/.git/HEAD", "", "outside/secret/kustomization.yaml", "kind: Component")
	write(t, dir, "KUST", "resources: [a.yaml]\ncommonLabels: {a: b}\nlabels: [{pairs: {c: d}}]", "a.yaml", deployment)
	for _, tt := range []struct {
		edits Edits
		code  fault.Code
		want  string
	}{
		{Edits{Images: []string{"nginx"}}, fault.Parameter, `parameter "images": "nginx" overrides no image`},
		{Edits{Images: []string{"-f=x"}}, fault.Parameter, `parameter "images": "-f=x" overrides no image`},
		{Edits{Replicas: map[string]string{"web": "many"}}, fault.Parameter, `parameter "replicas": "web": "many" is no number of replicas`},
		{Edits{Labels: map[string]string{"a": "c"}}, fault.Parameter, `parameter "common-labels": the overlay has "a" already`},
		{Edits{Labels: map[string]string{"c": "e"}, WithoutSelector: true}, fault.Parameter, `parameter "common-labels": the overlay has "c" already`},
		{Edits{Labels: map[string]string{"x": "c"}, IncludeTemplates: true}, fault.Parameter, `parameter "label-include-templates": selectors are not left out`},
		{Edits{Labels: map[string]string{"": "c"}}, fault.Parameter, `parameter "common-labels": "" is no key`},
		{Edits{Annotations: map[string]string{"-x": "c"}}, fault.Parameter, `parameter "common-annotations": "-x" is no key`},
		{Edits{Patches: []string{"{patch: x, command: y}"}}, fault.Parameter, `parameter "patches": item 1: json: unknown field "command"`},
		{Edits{Patches: []string{"{patch: 'a: &a {b: *a}'}"}}, fault.YAMLAlias, "kustomize build: kustomization.yaml: yaml: an alias inside of its own anchor"},
		{Edits{Patches: []string{"patch: |\n  a: &a {b: *a}"}}, fault.YAMLAlias, "kustomize build: kustomization.yaml: yaml: an alias inside of its own anchor"},
		{Edits{Components: []string{"../../outside/secret"}}, fault.OutsideRepository, ""},
		{Edits{Components: []string{"../../outside/*"}}, fault.Parameter, `parameter "components": "../../outside/*": is outside of the repository`},
		{Edits{Components: []string{"https://git.example.com/org/repo//x?ref=main"}}, fault.RemoteBase, ""},
		{Edits{Patches: []string{"{path: ../../outside/secret/kustomization.yaml}"}}, fault.OutsideRepository, ""},
	} {
		_, err := Build(t.Context(), dir, Options{Edits: tt.edits})
		if err == nil || fault.CodeOf(err) != tt.code || tt.want != "" && err.Error() != tt.want {
			t.Errorf("%+v: %v [%s], want %s [%s]", tt.edits, err, fault.CodeOf(err), tt.want, tt.code)
		}
	}
}

// TestHelmRefused: what helm would fetch, or read elsewhere, is refused before helm starts; there is no such binary.
func TestHelmRefused(t *testing.T) {
	helm := Options{Helm: Helm{Command: filepath.Join(t.TempDir(), "helm")}}
	for name, files := range map[string][]string{
		"comes from a repository":             {"KUST", "helmCharts: [{name: redis, repo: 'https://charts.example.com'}]"},
		"helm chart \"redis\" comes from":     {"KUST", "helmChartInflationGenerator: [{chartName: redis, chartRepoUrl: 'https://charts.example.com'}]"},
		`chartHome "../../etc" leads out`:     {"KUST", "helmGlobals: {chartHome: ../../etc}\nhelmCharts: [{name: redis}]"},
		`chartHome "/etc" leads out`:          {"KUST", "helmGlobals: {chartHome: /etc}\nhelmCharts: [{name: redis}]"},
		`chart or chartHome "../x" leads out`: {"KUST", "helmCharts: [{name: ../x}]"},
		"is a generator of kind HelmChart":    {"KUST", "generators: [g.yaml]", "g.yaml", "apiVersion: builtin\nkind: HelmChartInflationGenerator\nmetadata: {name: x}\nname: redis\nrepo: https://charts.example.com"},
	} {
		dir := t.TempDir()
		write(t, dir, files...)
		if _, err := Build(t.Context(), dir, helm); err == nil || !strings.Contains(err.Error(), name) || fault.Hint(err) == "" {
			t.Errorf("%v: %v, want %q", files, err, name)
		}
		if _, err := Build(t.Context(), dir, Options{}); err == nil {
			t.Errorf("%v: charts are inflated without permission", files)
		}
	}
}
