package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/kustomize/api/provenance"
	"sigs.k8s.io/kustomize/api/types"

	"github.com/digestlock/digestlock/internal/fault"
)

// The tests of this package are not parallel: Build changes the process while it runs.

// TestCLI compares with what the kustomize CLI v5.8.2 printed: each file of testdata is an overlay, and want.yaml in
// it is the CLI's output. The overlay's YAML with Windows line endings gives the same, and so do its kustomizations in
// the form in which those with a remote base are served.
func TestCLI(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{"", "_crlf", "_served"} {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar")+form, func(t *testing.T) {
				dir, want := t.TempDir(), ""
				for _, f := range archive.Files {
					switch {
					case f.Name == "want.yaml":
						want = strings.ReplaceAll(string(f.Data), "kustomize-VERSION", "kustomize-"+provenance.GetProvenance().Semver())
						continue
					case form == "_crlf" && filepath.Ext(f.Name) == ".yaml":
						f.Data = bytes.ReplaceAll(f.Data, []byte("\n"), []byte("\r\n"))
					case form == "_served" && filepath.Base(f.Name) == "kustomization.yaml":
						f.Data = served(t, f.Data)
					}
					write(t, dir, f.Name, string(f.Data))
				}
				if diff := cmp.Diff(want, build(t, dir)); diff != "" {
					t.Errorf("not what the CLI prints (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func served(t *testing.T, kustomization []byte) []byte {
	t.Helper()
	var k types.Kustomization
	if err := k.Unmarshal(kustomization); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func build(t *testing.T, dir string) string {
	t.Helper()
	out, err := Build(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := out.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestSchemaIsForgotten: the schema of one overlay merges its lists by name, and changes nothing in the next build.
func TestSchemaIsForgotten(t *testing.T) {
	files := []string{
		"patch.yaml", "apiVersion: acme.io/v1\nkind: Fleet\nmetadata: {name: f}\nspec:\n  parts: [{name: a, image: new}]\n",
		"fleet.yaml", "apiVersion: acme.io/v1\nkind: Fleet\nmetadata: {name: f}\nspec:\n  parts: [{name: a, image: old}, {name: b, image: b}]\n",
		"schema.json", `{"definitions": {"Fleet": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "acme.io", "kind": "Fleet", "version": "v1"}],
			"properties": {"spec": {"type": "object", "properties": {"parts": {"type": "array", "x-kubernetes-patch-merge-key": "name",
			"x-kubernetes-patch-strategy": "merge", "items": {"type": "object"}}}}}}}}`,
	}
	const kustomization = "resources: [fleet.yaml]\npatches: [{path: patch.yaml}]\n"
	with, without := t.TempDir(), t.TempDir()
	write(t, with, append(files, "KUST", kustomization+"openapi: {path: schema.json}\n")...)
	write(t, without, append(files, "KUST", kustomization)...)
	if got := build(t, with); !strings.Contains(got, "image: b\n") {
		t.Fatalf("the schema does not merge:\n%s", got)
	}
	if got := build(t, without); strings.Contains(got, "image: b\n") {
		t.Errorf("the schema of the build before was used:\n%s", got)
	}
}

// TestObjects: what is changed in a node is what changes in the output.
func TestObjects(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", pod)
	out, err := Build(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := out.YAML()
	if err != nil {
		t.Fatal(err)
	}
	objects := out.Objects()
	if len(objects) != 1 {
		t.Fatalf("%d objects, want 1", len(objects))
	}
	for _, n := range objects[0].Content {
		if n.Value == "Pod" {
			n.Value = "Changed"
		}
	}
	after, err := out.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(string(before), "Pod", "Changed", 1); string(after) != want {
		t.Errorf("YAML after a change:\n%s\nwant:\n%s", after, want)
	}
}

// TestRefused: nothing of this is read, fetched or started. The texts are in TestExplain.
func TestRefused(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_, _ = w.Write([]byte(pod))
	}))
	defer server.Close()
	function := func(annotation string) []string {
		return []string{
			"KUST", "resources: [a.yaml]\ntransformers: [f.yaml]", "a.yaml", pod,
			"f.yaml", "apiVersion: v1\nkind: F\nmetadata:\n  name: f\n  annotations:\n    config.kubernetes.io/function: |\n      " + annotation,
			"run", "#!/bin/sh\ntouch \"$MARK\"\n",
		}
	}
	tests := []struct {
		name  string
		files []string
	}{
		{"http resource", []string{"KUST", "resources: ['" + server.URL + "/a.yaml']"}},
		{"http base", []string{"KUST", "resources: ['" + server.URL + "/repo//base?ref=main']"}},
		{"http component", []string{"KUST", "components: ['" + server.URL + "/repo//base?ref=main']"}},
		{"http patch", []string{"KUST", "resources: [a.yaml]\npatches: [{path: '" + server.URL + "/p.yaml'}]", "a.yaml", pod}},
		{"http generator", []string{"KUST", "configMapGenerator: [{name: c, files: ['x=" + server.URL + "/x']}]"}},
		{"http schema", []string{"KUST", "resources: [a.yaml]\nopenapi: {path: '" + server.URL + "/x'}", "a.yaml", pod}},
		{"http resource of a base", []string{"KUST", "resources: [b]", "b/kustomization.yaml", "resources: ['" + server.URL + "/a.yaml']"}},
		{"helm chart", []string{"KUST", "helmCharts: [{name: x, version: '1', repo: '" + server.URL + "'}]"}},
		{"helm generator", []string{"KUST", "helmChartInflationGenerator: [{chartName: x, chartRepoUrl: '" + server.URL + "'}]"}},
		{"git base", []string{"KUST", "resources: ['git@git.example.com:acme/base.git']"}},
		{"git base by https", []string{"KUST", "resources: ['https://git.example.com/acme/base.git//x?ref=main']"}},
		{"git base by file", []string{"KUST", "resources: ['file:///repo//x?ref=main']"}},
		{"git base with options", []string{"KUST", "resources: ['ssh://git.example.com/x//y?ref=--upload-pack=touch%20mark']"}},
		{"exec function", function("exec: {path: ./run}")},
		{"container function", function("container: {image: example.com/f, network: true}")},
		{"starlark function", function("starlark: {path: run, name: run}")},
		{"legacy plugin", []string{"KUST", "generators: [g.yaml]", "g.yaml", "apiVersion: someteam.example.com/v1\nkind: G\nmetadata: {name: g}"}},
		{"file outside", []string{"KUST", "resources: [../secret.yaml]"}},
		{"patch outside", []string{"KUST", "resources: [a.yaml]\npatches: [{path: ../secret.yaml}]", "a.yaml", pod}},
		{"generator outside", []string{"KUST", "configMapGenerator: [{name: c, files: [../secret.yaml]}]"}},
		{"env file outside", []string{"KUST", "secretGenerator: [{name: c, envs: [../secret.yaml]}]"}},
		{"linked file outside", []string{"KUST", "resources: [link.yaml]"}},
		{"linked generator outside", []string{"KUST", "configMapGenerator: [{name: c, files: [link.yaml]}]"}},
		{"absolute file", []string{"KUST", "resources: [/etc/hostname]"}},
		{"absolute generator", []string{"KUST", "configMapGenerator: [{name: c, files: [/etc/hostname]}]"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			mark := filepath.Join(root, "mark")
			fakes(t, filepath.Join(root, "bin"), mark)
			t.Setenv("XDG_CONFIG_HOME", filepath.Join(root, "config"))
			dir := filepath.Join(root, "app")
			write(t, dir, tt.files...)
			write(t, root, "secret.yaml", strings.Replace(pod, "name: p", "name: secret", 1))
			if err := os.Symlink(filepath.Join(root, "secret.yaml"), filepath.Join(dir, "link.yaml")); err != nil {
				t.Fatal(err)
			}
			before := processState()
			out, err := Build(t.Context(), dir, Options{})
			if err == nil {
				data, _ := out.YAML()
				t.Errorf("rendered:\n%s", data)
			} else if fault.Hint(err) == "" {
				t.Errorf("%v: no hint", err)
			}
			if err != nil && strings.Contains(fault.Text("x", err), root) {
				t.Errorf("the error names the checkout's directory: %v", err)
			}
			if n := requests.Swap(0); n != 0 {
				t.Errorf("%d requests", n)
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("a program was started")
			}
			if after := processState(); after != before {
				t.Errorf("process left as %v, was %v", after, before)
			}
		})
	}
}

// fakes puts programs first on PATH that leave a mark.
func fakes(t *testing.T, dir, mark string) {
	t.Helper()
	t.Setenv("MARK", mark)
	for _, name := range []string{"git", "helm", "docker", "run"} {
		write(t, dir, name, "#!/bin/sh\ntouch \"$MARK\"\n")
		if err := os.Chmod(filepath.Join(dir, name), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

type state struct {
	path      string
	stderr    *os.File
	transport http.RoundTripper
}

func processState() state { return state{os.Getenv("PATH"), os.Stderr, http.DefaultTransport} }

// TestProcessState: a render that works leaves the process as it was, a PATH that is not set included. After an error
// it is TestRefused that looks.
func TestProcessState(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", pod)
	before := processState()
	build(t, dir)
	if after := processState(); after != before {
		t.Errorf("process left as %v, was %v", after, before)
	}
	t.Setenv("PATH", "") // restored by the test
	if err := os.Unsetenv("PATH"); err != nil {
		t.Fatal(err)
	}
	build(t, dir)
	if v, ok := os.LookupEnv("PATH"); ok {
		t.Errorf("PATH=%q, was not set", v)
	}
}

// TestQuiet: kustomize's deprecation notices do not reach stderr, where they would hide the one line that matters.
func TestQuiet(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "bases: [b]\ncommonLabels: {a: b}", "b/kustomization.yaml", "resources: [a.yaml]", "b/a.yaml", pod)
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	real := os.Stderr
	os.Stderr = file
	build(t, dir)
	os.Stderr = real
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file.Name()); err != nil || len(got) > 0 {
		t.Errorf("stderr %q, %v", got, err)
	}
}

// TestPanics: inputs that panic krusty v0.21.2 are errors like others, and the next render works. The last ones would
// overflow its stack, which nothing recovers from.
func TestPanics(t *testing.T) {
	const panicked = "kustomize build: kustomize panicked: "
	tests := []struct{ kustomization, pod, want string }{
		{"patchesJson6902: [{}]", pod, panicked},
		{"replacements: [{source: {kind: Pod}, targets: [null]}]", pod, panicked},
		{"namespace: x\npatches: [{target: {kind: Pod}, patch: '[{\"op\": \"remove\", \"path\": \"/metadata\"}]'}]", pod, panicked},
		{"", "kind: Pod\nmetadata: &a {name: p, labels: *a}", "kustomize build: a.yaml: yaml: an alias inside of its own anchor"},
		{"", "kind: Pod\nmetadata: {name: p}\nspec: &a\n- &b [{c: &c {d: *b}}]", "kustomize build: a.yaml: yaml: an alias inside of its own anchor"},
	}
	dir := t.TempDir()
	for _, tt := range tests {
		write(t, dir, "KUST", "resources: [a.yaml]\n"+tt.kustomization, "a.yaml", tt.pod)
		before := processState()
		if _, err := Build(t.Context(), dir, Options{}); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("Build: %v, want %s", err, tt.want)
		}
		if after := processState(); after != before {
			t.Errorf("process left as %v, was %v", after, before)
		}
	}
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: &l {a: b}, annotations: *l}")
	build(t, dir)
}

func TestContextEnds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", pod)
	before := processState()
	cause := errors.New("no result within --timeout=1ms")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, cause)
	defer cancel()
	building.Lock() // as a build does that takes longer
	_, err := Build(ctx, dir, Options{})
	building.Unlock()
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), cause.Error()) {
		t.Errorf("Build: %v, want %v", err, cause)
	}
	build(t, dir)
	building.Lock() // the build that nobody waits for
	defer building.Unlock()
	if after := processState(); after != before {
		t.Errorf("process left as %v, was %v", after, before)
	}
}

func TestNotAnOverlay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", "", "empty/x", "")
	tests := []struct{ dir, want string }{
		{"nowhere", "stat nowhere: no such file or directory"},
		{"file", "file is not a directory"},
		{"empty", "no kustomization.yaml, kustomization.yml, Kustomization in empty"},
	}
	t.Chdir(dir)
	for _, tt := range tests {
		_, err := Build(t.Context(), tt.dir, Options{})
		if err == nil || err.Error() != tt.want || fault.Hint(err) == "" {
			t.Errorf("Build(%s): %v, want %s and a hint", tt.dir, err, tt.want)
		}
	}
}

// TestQuietLogger: what krusty says to the standard logger would stand in front of an error in Argo CD.
func TestQuietLogger(t *testing.T) {
	var said bytes.Buffer
	defer log.SetOutput(log.Writer())
	log.SetOutput(&said)
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]\nvars: [{name: UNUSED, objref: {kind: Pod, name: p, apiVersion: v1}}]", "a.yaml", pod)
	build(t, dir)
	if said.Len() > 0 {
		t.Errorf("the standard logger has %q", &said)
	}
	if log.Writer() != &said {
		t.Error("the standard logger writes elsewhere now")
	}
}
