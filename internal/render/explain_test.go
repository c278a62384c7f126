package render

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/fault"
)

const pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers: [{name: c, image: x}]\n"

// TestExplain holds the usual mistakes with what people read about them: the exact line, without the "kustomize
// build: " in front, and a part of the hint.
func TestExplain(t *testing.T) {
	tests := []struct {
		name  string
		files []string // name, content, …; the overlay is "apps/overlay", "KUST" its kustomization
		want  string
		hint  string
	}{
		{"missing file", []string{"KUST", "resources: [a.yaml, nope.yaml]", "a.yaml", pod}, "nope.yaml: no such file or directory", "commit the file"},
		{"missing base", []string{"KUST", "resources: [a.yaml, ../base]", "a.yaml", pod}, "../base: no such file or directory", "commit the file"},
		{"missing file two bases down", []string{"KUST", "resources: [../b]", "../b/kustomization.yaml", "resources: [c]", "../b/c/kustomization.yaml", "resources: [nope.yaml]"}, "in ../b/c: nope.yaml: no such file or directory", "commit the file"},
		{"base without kustomization", []string{"KUST", "resources: [../b]", "../b/x.yaml", pod}, "in ../b: unable to find one of 'kustomization.yaml', 'kustomization.yml' or 'Kustomization' in directory '../b'", "same error with its context"},
		{"missing component", []string{"KUST", "components: [../c]"}, "a component: ../c: no such file or directory", "commit the file"},
		{"remote component", []string{"KUST", "components: ['https://github.com/a/b?ref=v1']"}, "names a remote base or file: in kustomization.yaml:1: https://github.com/a/b", "copy the base into"},
		{"missing patch", []string{"KUST", "resources: [a.yaml]\npatches:\n- path: p.yaml", "a.yaml", pod}, "PatchTransformer: failed to get the patch file from path(p.yaml): p.yaml: no such file or directory", "commit the file"},
		{"missing file of a generator", []string{"KUST", "configMapGenerator:\n- name: c\n  files: [nope.txt]"}, "loading KV pairs: file sources: [nope.txt]: nope.txt: no such file or directory", "commit the file"},
		{"broken YAML", []string{"KUST", "resources: [a.yaml]", "a.yaml", "kind: Pod\nmetadata:\n\tname: p\n"}, "a.yaml: yaml: line 3: found character that cannot start any token", "correct the YAML"},
		{"broken YAML in a base", []string{"KUST", "resources: [../b]", "../b/kustomization.yaml", "resources: [a.yaml]", "../b/a.yaml", "kind: Pod\nmetadata:\n\tname: p\n"}, "in ../b: a.yaml: yaml: line 3: found character that cannot start any token", "correct the YAML"},
		{"broken kustomization", []string{"KUST", "resources:\n<<<<<<< HEAD\n- a.yaml\n=======\n"}, "invalid Kustomization: yaml: line 3: could not find expected ':'", "correct the YAML"},
		{"broken kustomization in base", []string{"KUST", "resources: [../b]", "../b/kustomization.yaml", "resources: {}"}, "in ../b: invalid Kustomization: json: cannot unmarshal object into Go struct field Kustomization.resources of type []string", "same error with its context"},
		{"no metadata", []string{"KUST", "resources: [a.yaml]", "a.yaml", "foo: bar\n"}, "a.yaml: missing Resource metadata", "same error with its context"},
		{"no name", []string{"KUST", "resources: [a.yaml]", "a.yaml", "apiVersion: v1\nkind: Pod\n"}, "a.yaml: missing metadata.name in object {{v1 Pod} {{ } map[] map[]}}", "same error with its context"},
		{"patch target", []string{"KUST", "resources: [a.yaml]\npatches:\n- path: p.yaml", "a.yaml", pod, "p.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: other\n"}, `no resource matches strategic merge patch "Pod.v1/other"`, "same error with its context"},
		{"JSON patch", []string{"KUST", "resources: [a.yaml]\npatches:\n- target: {kind: Pod}\n  patch: |-\n    - op: replace\n      path: /spec/nope/x\n      value: 1\n", "a.yaml", pod}, "replace operation does not apply: doc is missing path: /spec/nope/x: missing value", "same error with its context"},
		{"broken inline patch", []string{"KUST", "resources: [a.yaml]\npatches:\n- target: {kind: Pod}\n  patch: |-\n    - op: replace\n     path: /spec/nope/x\n      value: " + strings.Repeat("x", 3000), "a.yaml", pod}, `PatchTransformer: unable to parse SM or JSON patch from "- op: replace\n path: /spec/nope/x\n value: xxxxxxxxxxxxxxxx…"`, "same error with its context"},
		{"broken strategic patch", []string{"KUST", "resources: [a.yaml]\npatches:\n- patch: |-\n    kind: Pod\n    spec: " + strings.Repeat("x", 3000), "a.yaml", pod}, `PatchTransformer: unable to parse SM or JSON patch from "kind: Pod\nspec: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"`, "same error with its context"},
		{"duplicate", []string{"KUST", "resources: [a.yaml, b.yaml]", "a.yaml", pod, "b.yaml", pod}, "b.yaml: may not add resource with an already registered id: Pod.v1/p", "keep one"},
		{"duplicate of a base", []string{"KUST", "resources: [b, c]", "b/kustomization.yaml", "resources: [a.yaml]", "b/a.yaml", pod, "c/kustomization.yaml", "resources: [a.yaml]", "c/a.yaml", pod}, "in c: may not add resource with an already registered id: Pod.v1/p", "keep one"},
		{"unknown field", []string{"KUST", "resource: [a.yaml]"}, `invalid Kustomization: json: unknown field "resource"`, "same error with its context"},
		{"wrong type", []string{"KUST", "resources: a.yaml"}, "invalid Kustomization: json: cannot unmarshal string into Go struct field Kustomization.resources of type []string", "same error with its context"},
		{"wrong kind", []string{"KUST", "kind: Foo\napiVersion: x/v1\nresources: [a.yaml]"}, "Failed to read kustomization file under .: kind should be Kustomization or Component apiVersion for Foo should be kustomize.config.k8s.io/v1beta1", "same error with its context"},
		{"empty", []string{"KUST", ""}, "kustomization.yaml is empty", "same error with its context"},
		{"two kustomizations", []string{"KUST", "", "Kustomization", ""}, "Found multiple kustomization files under: .", "same error with its context"},
		{"cycle", []string{"KUST", "resources: [b]", "b/kustomization.yaml", "resources: [../]"}, "in b: ../: cycle detected: candidate root '.' contains visited root 'b'", "same error with its context"},
		{"replacement", []string{"KUST", "resources: [a.yaml]\nreplacements:\n- source: {kind: Deployment, name: x}\n  targets: [{select: {kind: Pod}, fieldPaths: [spec.x]}]", "a.yaml", pod}, "nothing selected by Deployment/x", "same error with its context"},
		{"file outside", []string{"KUST", "resources: [../a.yaml]", "../a.yaml", pod}, "../a.yaml: security; file '../a.yaml' is not in or below '.'", "below their own kustomization"},
		{"absolute file", []string{"KUST", "resources: [/etc/hostname]"}, "/etc/hostname: security; file '/etc/hostname' is not in or below '.'", "below their own kustomization"},
		{"absolute base", []string{"KUST", "resources: [/etc]"}, "/etc: new root '/etc' cannot be absolute", "name the base"},
		{"http", []string{"KUST", "resources: ['http://user:hunter2@127.0.0.1:1/x.yaml']"}, "names a remote base or file: in kustomization.yaml:1: http://127.0.0.1:1/x.yaml", "copy the base into"},
		{"git", []string{"KUST", "resources: ['https://user:hunter2@github.com/a/b//c?ref=v1']"}, "names a remote base or file: in kustomization.yaml:1: https://github.com/a/b//c", "copy the base into"},
		{"git over ssh", []string{"KUST", "resources: ['git@github.com:a/b.git']"}, "names a remote base or file: in kustomization.yaml:1: git@github.com:a/b.git", "copy the base into"},
		{"git in a base", []string{"KUST", "resources: [../b]", "../b/kustomization.yaml", "resources: ['github.com/a/b?ref=v1']"}, "names a remote base or file: in ../b/kustomization.yaml:1: github.com/a/b", "copy the base into"},
		{"schema over http", []string{"KUST", "openapi: {path: 'http://127.0.0.1:1/x'}"}, "names a remote base or file: in kustomization.yaml:1: http://127.0.0.1:1/x", "copy the base into"},
		{"helm", []string{"KUST", "helmCharts:\n- name: x\n  repo: http://127.0.0.1:1/\n"}, "HelmChartInflationGenerator: must specify --enable-helm", "--enable-helm"},
		{"exec function", []string{"KUST", "generators: [g.yaml]", "g.yaml", "apiVersion: x/v1\nkind: G\nmetadata:\n  name: g\n  annotations:\n    config.kubernetes.io/function: |\n      exec:\n        path: ./run\n"}, "loading generator plugins: failed to load generator: external plugins disabled; unable to load external plugin 'G'", "never run here"},
		{"legacy plugin", []string{"KUST", "resources: [a.yaml]\ntransformers: [g.yaml]", "a.yaml", pod, "g.yaml", "apiVersion: x/v1\nkind: G\nmetadata:\n  name: g\n"}, "external plugins disabled; unable to load external plugin 'G'", "never run here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "apps", "my overlay")
			write(t, dir, tt.files...)
			_, err := Build(t.Context(), dir, Options{})
			if err == nil {
				t.Fatal("no error")
			}
			if got, want := err.Error(), "kustomize build: "+tt.want; got != want {
				t.Errorf("Build: %s\nwant   %s", got, want)
			}
			if got := fault.Hint(err); !strings.Contains(got, tt.hint) {
				t.Errorf("hint %q, want one with %q", got, tt.hint)
			}
		})
	}
}

// write makes files below dir; "KUST" is dir's own kustomization.
func write(t *testing.T, dir string, files ...string) {
	t.Helper()
	for i := 0; i < len(files); i += 2 {
		name := filepath.Join(dir, strings.ReplaceAll(files[i], "KUST", "kustomization.yaml"))
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
