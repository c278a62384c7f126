package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/remotebase"
	"github.com/digestlock/digestlock/internal/render"
)

// renders is a memory, and what was asked of it.
type renders struct {
	known map[string][]byte
	puts  int
	away  bool
}

func (r *renders) Recall(_ context.Context, key string) ([]byte, bool) { return r.known[key], !r.away }

func (r *renders) Remember(_ context.Context, key string, data []byte) {
	r.known[key] = data
	r.puts++
}

// report is what a render told the resolver.
type report struct {
	Source *lock.Source
	Locked []lock.Pin
	Asked  []image.Ref
}

// rendering is a Render in the copy of a repository, as Argo CD makes one for each render, and what it reports.
func rendering(dir string, memory Renders, revision string) (Render, *[]report) {
	reports := new([]report)
	r := Render{
		Dir: filepath.Join(dir, "app/overlays/dev"), Settings: Defaults(), Renders: memory, Program: "v1",
		Source: &lock.Source{Project: "default", Application: "app", Repository: "https://git.example.com/r", TargetRevision: "main", Revision: revision},
		Resolver: resolverFunc(func(_ context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
			*reports = append(*reports, report{source, locked, refs})
			out := make([]image.Resolution, len(refs))
			for i, ref := range refs {
				out[i] = image.Resolution{Ref: ref, Digest: digest}
			}
			return out, nil
		}),
	}
	return r, reports
}

// repository is an overlay of every kind of file that kustomize reads.
func repository() map[string]string {
	deployment := `apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  template:
    spec:
      containers:
      - {name: c, image: "ghcr.io/acme/%[1]s:latest"}
`
	return map[string]string{
		"app/overlays/dev/kustomization.yaml": `resources: [../../base, job.yaml, own]
components: [../../component]
patches: [{path: patch.yaml}, {path: json.yaml, target: {kind: Deployment, name: b}}]
configMapGenerator: [{name: settings, files: [settings.txt, linked.txt], envs: [a.env]}]
generators: [generator.yaml]
transformers: [labels]
replacements: [{path: replacement.yaml}]
configurations: [configuration.yaml]
openapi: {path: schema.json}
crds: [crd.json]
`,
		"app/overlays/dev/job.yaml":                  `{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {containers: [{name: c, image: "ghcr.io/acme/a"}]}}}}`,
		"app/overlays/dev/own/kustomization.yml":     "resources: [b.yaml]\n",
		"app/overlays/dev/own/b.yaml":                fmt.Sprintf(deployment, "b"),
		"app/overlays/dev/patch.yaml":                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 3}\n",
		"app/overlays/dev/json.yaml":                 "- op: add\n  path: /metadata/annotations\n  value: {a: b}\n",
		"app/overlays/dev/settings.txt":              "some text\n",
		"app/overlays/dev/texts/one.txt":             "one\n",
		"app/overlays/dev/texts/two.txt":             "two\n",
		"app/overlays/dev/a.env":                     "A=1\nPATH\n",
		"app/overlays/dev/generator.yaml":            "apiVersion: builtin\nkind: ConfigMapGenerator\nmetadata: {name: generated}\nfiles: [texts/one.txt]\n",
		"app/overlays/dev/labels/kustomization.yaml": "resources: [label.yaml]\n",
		"app/overlays/dev/labels/label.yaml":         "apiVersion: builtin\nkind: LabelTransformer\nmetadata: {name: l}\nlabels: {l: l}\nfieldSpecs: [{path: metadata/labels, create: true}]\n",
		"app/overlays/dev/replacement.yaml": `source: {kind: Deployment, name: b, fieldPath: metadata.name}
targets: [{select: {kind: Job}, fieldPaths: [metadata.annotations.b], options: {create: true}}]
`,
		"app/overlays/dev/configuration.yaml": "images: [{path: spec/runner/image, kind: Runner}]\n",
		"app/overlays/dev/schema.json":        `{"definitions": {"io.acme.v1.Runner": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "acme.io", "kind": "Runner", "version": "v1"}]}}}`,
		"app/overlays/dev/crd.json":           `{"github.com/acme/v1.Runner": {"Schema": {"properties": {}}}}`,
		"app/base/kustomization.yaml":         "resources: [a.yaml, runner.yaml]\n",
		"app/base/a.yaml":                     fmt.Sprintf(deployment, "a"),
		"app/base/runner.yaml":                "apiVersion: acme.io/v1\nkind: Runner\nmetadata: {name: r}\nspec: {runner: {image: \"ghcr.io/acme/b\"}}\n",
		"app/component/kustomization.yaml":    "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nnameSuffix: -c\n",
		"app/README.md":                       "nobody reads this\n",
		"app/overlays/dev/" + lock.FileName: string((&lock.Document{Pins: []lock.Pin{
			{Image: "ghcr.io/acme/a:latest", Digest: digest}, {Image: "ghcr.io/acme/b:latest", Digest: digest},
		}}).Format()),
	}
}

// unpack puts a tree on disk, in a directory of a random name as Argo CD's.
func unpack(t *testing.T, files map[string]string) string {
	t.Helper()
	parent := filepath.Join(t.TempDir(), "_cmp_server")
	if err := os.Mkdir(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("settings.txt", filepath.Join(dir, "app/overlays/dev/linked.txt")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRememberedRender: the second render of what is the same, elsewhere, at another commit, is that of the first and reports
// the same, without a build.
func TestRememberedRender(t *testing.T) {
	memory := &renders{known: map[string][]byte{}}
	first, reports := rendering(unpack(t, repository()), memory, "r1")
	want, err := first.Generate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if memory.puts != 1 {
		t.Fatalf("remembered %d times, want once", memory.puts)
	}
	second, again := rendering(unpack(t, repository()), memory, "r2")
	got, err := second.Generate(t.Context())
	if err != nil || memory.puts != 1 {
		t.Fatalf("the second render: %v, remembered %d times, want once", err, memory.puts)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("result of the second render (-first +second):\n%s", diff)
	}
	(*reports)[0].Source.Revision = "r2"
	if diff := gocmp.Diff(*reports, *again); diff != "" || len(*again) != 1 {
		t.Errorf("reports of the second render (-first +second):\n%s", diff)
	}
	memory.away = true
	if _, err := second.Generate(t.Context()); err != nil || memory.puts != 1 {
		t.Errorf("without the memory: %v, remembered %d times, want once", err, memory.puts)
	}
}

// TestKeyOfRender: what is not in the key must not change what is rendered.
func TestKeyOfRender(t *testing.T) {
	keys := map[string]string{}
	add := func(name string, change func(*Render)) {
		t.Helper()
		r, _ := rendering("", &renders{}, "r1")
		change(&r)
		key := r.key()
		if was, ok := keys[key]; key == "" || ok {
			t.Errorf("%s: key %q, as with %q", name, key, was)
		}
		keys[key] = name
	}
	add("nothing", func(*Render) {})
	add("program", func(r *Render) { r.Program = "v2" })
	add("application", func(r *Render) { r.Source.Application = "other" })
	add("project", func(r *Render) { r.Source.Project = "other" })
	add("repository", func(r *Render) { r.Source.Repository = "other" })
	other := map[string]string{"pin-format": "digest", "tags": "main", "image-fields": "spec/x", "images": "a=b:c", "exclude-kinds": "Job"}
	for _, p := range Parameters() {
		if p.Name == "mode" {
			continue
		}
		value := cmp.Or(other[p.Name], map[bool]string{true: "true"}[p.Bool], "a=b")
		add(p.Name, func(r *Render) {
			if err := p.Set(&r.Settings, value); err != nil {
				t.Fatalf("%s: %v", p.Name, err)
			}
		})
	}
	for name, change := range map[string]func(*Render){
		"mode live":   func(r *Render) { r.Settings.Mode = Live },
		"mode locked": func(r *Render) { r.Settings.Mode = Locked },
		"dry run":     func(r *Render) { r.DryRun = true },
		"stdin":       func(r *Render) { r.Manifests = strings.NewReader("") },
		"laptop":      func(r *Render) { r.Source = nil },
	} {
		r, _ := rendering("", &renders{}, "r1")
		if change(&r); r.key() != "" {
			t.Errorf("%s: has a key", name)
		}
	}
}

// TestNotRemembered: what more than the repository decides is rendered each time.
func TestNotRemembered(t *testing.T) {
	client, err := remotebase.New([]string{"git.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	dev := "app/overlays/dev/"
	for name, tt := range map[string]struct {
		change func(r *Render, files map[string]string)
		want   int
	}{
		"remote bases allowed, and none": {func(r *Render, _ map[string]string) { r.Settings.Build.Remote = client }, 1},
		"no lock":                        {func(_ *Render, files map[string]string) { delete(files, dev+lock.FileName) }, 0},
		"not all in the lock": {func(_ *Render, files map[string]string) {
			files[dev+lock.FileName] = string((&lock.Document{}).Format())
		}, 0},
		"helm":                    {func(r *Render, _ map[string]string) { r.Settings.Build.Helm = render.Helm{Command: "/bin/false"} }, 0},
		"components by parameter": {func(r *Render, _ map[string]string) { r.Settings.Build.Edits.Components = []string{"../../component*"} }, 0},
		"parameters":              {func(r *Render, _ map[string]string) { r.Settings.Build.Edits.NamePrefix = "x-" }, 1},
	} {
		files, memory := repository(), &renders{known: map[string][]byte{}}
		r, _ := rendering("", memory, "r1")
		tt.change(&r, files)
		r.Dir = filepath.Join(unpack(t, files), dev)
		if _, err := r.Generate(t.Context()); err != nil || memory.puts != tt.want {
			t.Errorf("%s: %v, remembered %d times, want %d", name, err, memory.puts, tt.want)
		}
	}
}

// TestMovedOverlay: outside of Argo CD an overlay may name the directory that it is in, so that the same bytes elsewhere are not the same.
func TestMovedOverlay(t *testing.T) {
	memory := &renders{known: map[string][]byte{}}
	place := func(name string) string {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.CopyFS(dir, os.DirFS(unpack(t, repository()))); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, ".git"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir := place("a")
	for i, tt := range []struct {
		dir  string
		puts int
	}{{dir, 1}, {dir, 1}, {place("b"), 2}} {
		r, _ := rendering(tt.dir, memory, "r1")
		if _, err := r.Generate(t.Context()); err != nil || memory.puts != tt.puts {
			t.Fatalf("render %d: %v, remembered %d times, want %d", i, err, memory.puts, tt.puts)
		}
	}
}

// TestEmptyLock: a lock of no bytes is broken, and none at all is not.
func TestEmptyLock(t *testing.T) {
	memory := &renders{known: map[string][]byte{}}
	name := "app/overlays/dev/" + lock.FileName
	files := map[string]string{"app/overlays/dev/kustomization.yaml": "configMapGenerator: [{name: m}]\n"}
	r, _ := rendering(unpack(t, files), memory, "r1")
	if _, err := r.Generate(t.Context()); err != nil || memory.puts != 1 {
		t.Fatalf("without a lock: %v, remembered %d times, want once", err, memory.puts)
	}
	files[name] = ""
	r, _ = rendering(unpack(t, files), memory, "r1")
	if _, err := r.Generate(t.Context()); err == nil {
		t.Error("an empty lock: no error")
	}
}

// TestRememberedIsNeverWrong changes a repository at random, and renders it with what is remembered of all its states so far,
// and without. Nobody can tell the difference.
func TestRememberedIsNeverWrong(t *testing.T) {
	const rounds = 100
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { // not in parallel: a build changes TMPDIR meanwhile
			memory := &renders{known: map[string][]byte{}}
			hits, failures := 0, 0
			var m mutator
			for i := range rounds {
				if i%3 == 0 { // a state from which everything is rendered
					m = mutator{t, unpack(t, repository()), rand.New(rand.NewPCG(seed, uint64(i))), nil}
				} else {
					m.step()
				}
				revision := fmt.Sprint(i)
				fresh, told := rendering(m.dir, nil, revision)
				want, wantErr := fresh.Generate(t.Context())
				puts := memory.puts
				r, toldAgain := rendering(m.dir, memory, revision)
				got, err := r.Generate(t.Context())
				if diff := gocmp.Diff(want, got) + gocmp.Diff(says(wantErr), says(err)) + gocmp.Diff(*told, *toldAgain); diff != "" {
					t.Fatalf("after %s (-fresh +remembered):\n%s", strings.Join(m.steps, ", "), diff)
				}
				switch {
				case err != nil:
					failures++
				case memory.puts == puts:
					hits++
				}
			}
			t.Logf("%d renders: %d of them failed, %d were remembered", rounds, failures, hits)
			if min(hits, failures, rounds-hits-failures) < rounds/10 {
				t.Error("hits, failures and new renders are not all among them: the test shows nothing")
			}
		})
	}
}

func says(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// mutator changes a tree.
type mutator struct {
	t     *testing.T
	dir   string
	rand  *rand.Rand
	steps []string
}

// step makes one change.
func (m *mutator) step() {
	m.t.Helper()
	name := m.pick()
	other := m.pick()
	beside := filepath.Join(filepath.Dir(name), []string{"kustomization.yaml", "kustomization.yml", "Kustomization", "new.yaml", lock.FileName}[m.rand.IntN(5)])
	var err error
	switch m.rand.IntN(12) {
	default:
		m.say("edit %s", name)
		err = m.edit(name, func(data []byte) []byte { return append(data, "\n# more\n"...) })
	case 1:
		m.say("change %s", name)
		err = m.edit(name, func(data []byte) []byte {
			if len(data) > 0 {
				data[m.rand.IntN(len(data))] = "a1-: \n"[m.rand.IntN(6)]
			}
			return data
		})
	case 2:
		m.say("delete %s", name)
		err = os.Remove(m.at(name))
	case 3:
		m.say("rename %s to %s", name, beside)
		err = os.Rename(m.at(name), m.at(beside))
	case 4:
		m.say("add %s", beside)
		err = os.WriteFile(m.at(beside), nil, 0o644)
	case 5:
		m.say("link %s to %s", name, other)
		err = m.link(name, other)
	case 6: // the same bytes, but a link
		m.say("move %s behind a link", name)
		if err = os.Rename(m.at(name), m.at("moved")); err == nil {
			err = m.link(name, "moved")
		}
	case 7:
		m.say("mode of %s", name)
		err = os.Chmod(m.at(name), []fs.FileMode{0, 0o444, 0o755}[m.rand.IntN(3)])
	case 8:
		m.say("move all of it")
		if err = os.Rename(m.dir, m.dir+"1"); err == nil {
			m.dir += "1"
		}
	case 9: // a directory behind a link, to what was there before or to another one
		name, other = filepath.Dir(name), []string{"moved", filepath.Dir(other)}[m.rand.IntN(2)]
		m.say("link directory %s to %s", name, other)
		if err = os.Rename(m.at(name), m.at("moved")); err == nil {
			err = m.link(name, other)
		}
	}
	if err != nil { // a change that cannot be made is none
		m.say("(%v)", err)
	}
}

func (m *mutator) say(format string, args ...any) {
	m.steps = append(m.steps, fmt.Sprintf(format, args...))
}

func (m *mutator) at(name string) string { return filepath.Join(m.dir, name) }

// pick returns a file.
func (m *mutator) pick() string {
	var names []string
	err := filepath.WalkDir(m.dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, err = filepath.Rel(m.dir, name)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return names[m.rand.IntN(len(names))]
}

func (m *mutator) edit(name string, change func([]byte) []byte) error {
	data, err := os.ReadFile(m.at(name))
	if err != nil {
		return err
	}
	return os.WriteFile(m.at(name), change(data), 0o644)
}

// link makes name a link, by a relative path or an absolute one.
func (m *mutator) link(name, target string) error {
	to := m.at(target)
	if m.rand.IntN(4) > 0 {
		rel, err := filepath.Rel(filepath.Dir(m.at(name)), to)
		if err != nil {
			return err
		}
		to = rel
	}
	return errors.Join(os.RemoveAll(m.at(name)), os.Symlink(to, m.at(name)))
}
