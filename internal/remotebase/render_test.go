package remotebase_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/remotebase"
	"github.com/digestlock/digestlock/internal/render"
)

// The tests of this file are not parallel: a build changes the process while it runs.

const pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers: [{name: c, image: x}]\n"

// base is a repository of bases that use each other, a generator, a component, a transformer and a link.
func base() map[string]string {
	return map[string]string{
		"app/kustomization.yaml":       "resources: [../common, pod.yaml, linked.yaml]\nconfigMapGenerator:\n- name: c\n  files: [data.txt]\n  envs: [vars]\n",
		"app/pod.yaml":                 pod,
		"app/data.txt":                 "a: &b\n",
		"app/vars":                     "A=1\n",
		"app/other.yaml":               strings.Replace(pod, "name: p", "name: other", 1),
		"common/kustomization.yaml":    "resources: [pod.yaml]\nnamePrefix: common-\n",
		"common/pod.yaml":              pod,
		"component/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nnamespace: from-component\n",
		"labels/kustomization.yaml":    "resources: [labels.yaml]\n",
		"labels/labels.yaml":           "apiVersion: builtin\nkind: LabelTransformer\nmetadata:\n  name: labels\nlabels: {remote: 'yes'}\nfieldSpecs: [{path: metadata/labels, create: true}]\n",
	}
}

func overlay(at, query string) string {
	return strings.NewReplacer("AT", at, "QUERY", query).Replace(`# A comment, and what a kustomization may hold besides.
Resources:
- own.yaml
- "AT//app?QUERY"
components: ['AT//component?QUERY']
transformers:
- AT//labels?QUERY
- |-
  apiVersion: builtin
  kind: PrefixTransformer
  metadata: {name: inline}
  prefix: "AT//app?QUERY"
  fieldSpecs: [{path: metadata/annotations/prefixed, create: true}]
commonAnnotations: {source: "AT//app?QUERY", number: "1e3", "on": "no"}
buildMetadata: [originAnnotations, transformerAnnotations]
patches:
- target: {kind: Pod, name: p}
  patch: |-
    - op: add
      path: /metadata/labels
      value: {"patched": "08"}
images: [{name: x, newTag: "1.10"}]
replicas: []
sortOptions: {order: fifo}
`)
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// linked creates the repository with its link and tag v1.
func linked(t *testing.T, f forge) *gittest.Repo {
	t.Helper()
	repo := f.Create(t, "acme/base.git", base())
	c := repo.Clone(t, "main")
	if err := os.Symlink("other.yaml", filepath.Join(c.Dir, "app", "linked.yaml")); err != nil {
		t.Fatal(err)
	}
	c.Push(t, "main")
	repo.Git(t, "tag", "v1", "main")
	return repo
}

func yaml(t *testing.T, dir string, c *remotebase.Client) string {
	t.Helper()
	out, err := render.Build(t.Context(), dir, render.Options{Remote: c})
	if err != nil {
		t.Fatal(err)
	}
	data, err := out.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestSameAsKustomize: an overlay of remote bases gives the bytes that kustomize gives, which clones with git; with the
// base copied into the repository they are the same but for the annotations that say where things come from.
func TestSameAsKustomize(t *testing.T) {
	f := newForge(t)
	repo := linked(t, f)
	const query = "ref=v1"
	dir := filepath.Join(t.TempDir(), "apps", "overlay")
	write(t, dir, map[string]string{"own.yaml": strings.Replace(pod, "name: p", "name: own", 1)})

	write(t, dir, map[string]string{"kustomization.yaml": overlay("file://"+repo.Dir, query)})
	o := krusty.MakeDefaultOptions()
	o.Reorder = krusty.ReorderOptionUnspecified
	m, err := krusty.MakeKustomizer(o).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	data, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(string(data), "file://"+repo.Dir, repo.URL)

	before := f.Requests()
	write(t, dir, map[string]string{"kustomization.yaml": overlay(repo.URL, query)})
	if diff := cmp.Diff(want, yaml(t, dir, f.client(t))); diff != "" {
		t.Errorf("not what kustomize prints (-want +got):\n%s", diff)
	}
	if n := f.Requests() - before; n != 2 { // the listing and the pack, for four entries
		t.Errorf("%d requests, want 2", n)
	}

	without := strings.NewReplacer("buildMetadata: [originAnnotations, transformerAnnotations]\n", "").Replace
	write(t, dir, map[string]string{"kustomization.yaml": without(overlay(repo.URL, query))})
	got := yaml(t, dir, f.client(t))
	gittest.Git(t, "", "", "clone", "--quiet", repo.Dir, filepath.Join(dir, "..", "..", "vendored"))
	k := without(overlay(repo.URL, query))
	for _, name := range []string{"app", "component", "labels"} {
		for _, format := range []string{"- %q", "['%s']", "- %s\n"} {
			k = strings.Replace(k, fmt.Sprintf(format, repo.URL+"//"+name+"?"+query), fmt.Sprintf(format, "../../vendored/"+name), 1)
		}
	}
	write(t, dir, map[string]string{"kustomization.yaml": k})
	if diff := cmp.Diff(yaml(t, dir, nil), got); diff != "" || !strings.Contains(got, "from-component") {
		t.Errorf("not what the copied base gives (-want +got):\n%s", diff)
	}
}

// TestNested: a fetched base names another one, of a second repository, by a commit.
func TestNested(t *testing.T) {
	f := newForge(t)
	inner := linked(t, f)
	outer := f.Create(t, "acme/outer.git", map[string]string{
		"x/kustomization.yaml": "bases: ['" + inner.URL + "//app?ref=" + inner.Git(t, "rev-parse", "v1") + "']\nnameSuffix: -x\n",
	})
	outer.Git(t, "tag", "v1", "main")
	dir := t.TempDir()
	write(t, dir, map[string]string{"kustomization.yaml": "resources:\n- " + outer.URL + "//x?ref=v1\n"})
	if got := yaml(t, dir, f.client(t)); !strings.Contains(got, "name: common-p-x\n") || !strings.Contains(got, "name: other-x\n") {
		t.Errorf("rendered\n%s", got)
	}
}

// TestFiles: what kustomize loads by http comes through the client.
func TestFiles(t *testing.T) {
	var requests atomic.Int32
	host, ca := web(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		switch r.URL.Path {
		case "/pod.yaml":
			_, _ = io.WriteString(w, pod)
		case "/patch":
			_, _ = io.WriteString(w, "- {op: add, path: /metadata/labels, value: {a: b}}\n")
		case "/data":
			_, _ = io.WriteString(w, "data\n")
		case "/bomb.yaml":
			_, _ = io.WriteString(w, "kind: Pod\nmetadata: &a {name: p, labels: *a}\n")
		case "/15":
			_, _ = io.WriteString(w, strings.Repeat("#", 15<<20))
		case "/large.yaml":
			_, _ = io.WriteString(w, strings.Repeat("#", 17<<20))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	url := "https://" + host
	reach := func() *remotebase.Client {
		c := client(t, host)
		c.Reach(ca)
		return c
	}
	k := "resources: [%s/pod.yaml]\npatches: [{path: '%s/patch', target: {kind: Pod}}]\nconfigMapGenerator: [{name: c, files: ['k=%s/data']}]\n"
	dir, vendored := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"kustomization.yaml": fmt.Sprintf(k, url, url, url)})
	write(t, vendored, map[string]string{
		"kustomization.yaml": fmt.Sprintf(k, "x", "x", "x"), "x/pod.yaml": pod, "x/data": "data\n",
		"x/patch": "- {op: add, path: /metadata/labels, value: {a: b}}\n",
	})
	if diff := cmp.Diff(yaml(t, vendored, nil), yaml(t, dir, reach())); diff != "" {
		t.Errorf("not what the copied files give (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		kustomization string
		code          fault.Code
		want          string
	}{
		{"\nresources: ['URL/nowhere.yaml?token=hunter2']", fault.RemoteFetch, "in kustomization.yaml:2: URL/nowhere.yaml: the server answers 404 Not Found"},
		{"\nresources: ['https://u:hunter2@" + host + "/pod.yaml']", fault.RemoteBase, "in kustomization.yaml:2: URL/pod.yaml: a user in the address"},
		{"\nresources: ['http://" + host + "/pod.yaml']", fault.RemoteBase, "in kustomization.yaml:2: http://" + host + "/pod.yaml: http is refused"},
		{"resources: [URL/bomb.yaml]", fault.YAMLAlias, "URL/bomb.yaml: yaml: an alias inside of its own anchor"},
		{"configMapGenerator: [{name: c, files: [1=URL/15, 2=URL/15, 3=URL/15, 4=URL/15, 5=URL/15]}]", fault.TooLarge, "URL/15: the overlay reads too many bytes"},
		{"resources: [URL/large.yaml]", fault.TooLarge, "in kustomization.yaml:1: URL/large.yaml: larger than 16777216 bytes"},
		{"resources: ['https://other.example.com/pod.yaml']", fault.RemoteBase, "names a remote base or file: in kustomization.yaml:1: https://other.example.com/pod.yaml"},
	} {
		write(t, dir, map[string]string{"kustomization.yaml": strings.ReplaceAll(tt.kustomization, "URL", url)})
		_, err := render.Build(t.Context(), dir, render.Options{Remote: reach()})
		refused(t, tt.kustomization, err, tt.code, "kustomize build: "+strings.ReplaceAll(tt.want, "URL", url))
	}
	before := requests.Load()
	write(t, dir, map[string]string{"kustomization.yaml": "resources: ['" + url + "/pod.yaml']\n"})
	if _, err := render.Build(t.Context(), dir, render.Options{}); err == nil || requests.Load() != before {
		t.Errorf("without the operator's word: %v, %d requests", err, requests.Load()-before)
	}
}

// TestBaseRefused: what a kustomization names, and what the repository behind it holds, that a render does not follow.
func TestBaseRefused(t *testing.T) {
	f := newForge(t)
	secret := filepath.Join(t.TempDir(), "secret.yaml")
	write(t, filepath.Dir(secret), map[string]string{"secret.yaml": strings.Replace(pod, "name: p", "name: hunter2", 1)})
	repo := f.Create(t, "acme/base.git", map[string]string{
		"up/kustomization.yaml":           "resources: [../../../../..CHECKOUT/secret]\n",
		"up-files/kustomization.yaml":     "resources: [../other.yaml]\n",
		"up-component/kustomization.yaml": "components: [../../secret]\n",
		"link/kustomization.yaml":         "resources: [link.yaml]\n",
		"link-base/kustomization.yaml":    "resources: [link]\n",
		"broken/kustomization.yaml":       "resources: [nope.yaml]\n",
		"module/kustomization.yaml":       "resources: [sub]\n",
		"nested/kustomization.yaml":       "\nresources: ['https://" + f.host + "/acme/base.git//up?ref=main']\n",
		"other/kustomization.yaml":        "resources: ['https://other.example.com/acme/base.git//up?ref=v1']\n",
		"other.yaml":                      pod,
	})
	checkout := t.TempDir()
	dir := filepath.Join(checkout, "app")
	write(t, checkout, map[string]string{"secret/kustomization.yaml": "resources: [a.yaml]\n", "secret/a.yaml": pod, ".git/HEAD": ""})
	c := repo.Clone(t, "main")
	c.Write(t, "up/kustomization.yaml", "resources: ["+strings.Repeat("../", 20)+checkout[1:]+"/secret]\n")
	for name, to := range map[string]string{"link/link.yaml": secret, "link-base/link": filepath.Join(checkout, "secret")} {
		if err := os.Symlink(to, filepath.Join(c.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	c.Git(t, "update-index", "--add", "--cacheinfo", "160000,"+repo.Git(t, "rev-parse", "main")+",module/sub")
	c.Git(t, "add", "link", "link-base", "up")
	c.Git(t, "commit", "--quiet", "-m", "links")
	c.Git(t, "push", "--quiet", "origin", "HEAD:main")
	repo.Git(t, "tag", "v1", "main")
	at := repo.URL
	for _, tt := range []struct {
		entry string
		code  fault.Code
		want  string
	}{
		{at + "//up?ref=v1", fault.OutsideRepository, "in " + at + "/up/kustomization.yaml:1: " + strings.Repeat("../", 20) + checkout[1:] + "/secret: is outside of the repository"},
		{at + "//up-files?ref=v1", fault.Kustomize, "in " + at + "/up-files: ../other.yaml: security; file '" + at + "/other.yaml' is not in or below '" + at + "/up-files'"},
		{at + "//up-component?ref=v1", fault.OutsideRepository, "in " + at + "/up-component/kustomization.yaml:1: ../../secret: is outside of the repository"},
		{at + "//link?ref=v1", fault.OutsideRepository, "in " + at + "/link: link.yaml: is outside of the repository"},
		{at + "//link-base?ref=v1", fault.OutsideRepository, "in " + at + "/link-base: link: is outside of the repository"},
		{at + "//broken?ref=v1", fault.Kustomize, "in " + at + "/broken: nope.yaml: no such file or directory"},
		{at + "//module?ref=v1", fault.Kustomize, "in " + at + "/module: sub: no such file or directory"},
		{at + "//nowhere?ref=v1", fault.Kustomize, at + "/nowhere: no such file or directory"},
		{at + "//nested?ref=v1&token=hunter2", fault.RemoteFetch, "in " + at + "/nested/kustomization.yaml:2: " + at + "//up: read it: \"main\" is a branch, which moves"},
		{at + "//other?ref=v1", fault.RemoteBase, "names a remote base or file: in " + at + "/other/kustomization.yaml:1: https://other.example.com/acme/base.git//up"},
		{at + "//up?ref=-v1&token=hunter2", fault.RemoteBase, "in kustomization.yaml:2: " + at + "//up: ref \"-v1\" is no name for a tag"},
		{at + "//up?token=hunter2", fault.RemoteBase, "in kustomization.yaml:2: " + at + "//up: no ref"},
		{"ssh://git@" + f.host + "/acme/base.git//up?ref=v1", fault.RemoteBase, "names a remote base or file: in kustomization.yaml:2: ssh://" + f.host + "/acme/base.git//up"},
		{"git@" + f.host + ":acme/base.git?ref=v1", fault.RemoteBase, "names a remote base or file: in kustomization.yaml:2: git@" + f.host + ":acme/base.git"},
		{"file://" + repo.Dir + "//up?ref=v1", fault.RemoteBase, "names a remote base or file: in kustomization.yaml:2: file://"},
		{"https://other.example.com/acme/base.git//up?ref=v1", fault.RemoteBase, "names a remote base or file: in kustomization.yaml:2: https://other.example.com/acme/base.git//up"},
	} {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		for _, field := range []string{"resources", "components"} {
			write(t, dir, map[string]string{"kustomization.yaml": "# here\n" + field + ": ['" + tt.entry + "']\n"})
			out, err := render.Build(t.Context(), dir, render.Options{Remote: f.client(t)})
			if err == nil {
				data, _ := out.YAML()
				t.Errorf("%s: rendered\n%s", tt.entry, data)
				continue
			}
			if field == "components" {
				if strings.Contains(err.Error(), "digestlock-render") || fault.CodeOf(err) == fault.Unexpected {
					t.Errorf("%s: %v [%s]", tt.entry, err, fault.CodeOf(err))
				}
				continue
			}
			refused(t, tt.entry, err, tt.code, "kustomize build: "+tt.want)
			if strings.Contains(err.Error(), "digestlock-render") {
				t.Errorf("%s: %v", tt.entry, err)
			}
		}
		if n := count(t, tmp); n != 1 {
			t.Errorf("%s: %d files are left", tt.entry, n-1)
		}
	}
}

// TestHostileTree: git would make none of these, and a server may send them.
func TestHostileTree(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	repo := f.Create(t, "acme/base.git", map[string]string{"a": "1"})
	c := repo.Clone(t, "main")
	blob := c.Git(t, "rev-parse", "HEAD:a")
	target := filepath.Join(t.TempDir(), "target")
	if err := os.Mkdir(target, 0o750); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	write(t, filepath.Dir(link), map[string]string{"link": target})
	to := c.Git(t, "hash-object", "-w", link)
	inner := mktree(t, c, "100644 file "+blob)
	for i, entries := range [][]string{
		{"100644 ../out " + blob},
		{"40000 .. " + inner},
		{"100644 .git/config " + blob},
		{"40000 .git " + inner},
		{"100644 a/b " + blob},
		{"100644 /abs " + blob},
		{"120000 a " + to, "40000 a " + inner},
		{"120000 a " + to, "100644 a " + blob},
		{"100644 . " + blob},
		{"100644 a\x01b " + blob},
		{"120000 a " + to, "100644 a/x " + blob},
		{"100644 a " + blob, "100644 a " + blob},
	} {
		tag := fmt.Sprintf("t%d", i)
		c.Git(t, "tag", tag, c.Git(t, "commit-tree", "-m", "x", mktree(t, c, entries...)))
		c.Git(t, "push", "--quiet", "origin", tag)
		dir := t.TempDir()
		_, err := f.client(t).Base(t.Context(), repo.URL+"?ref="+tag, dir)
		refused(t, fmt.Sprintf("%q", entries), err, fault.RemoteFetch, "unpack it")
		if n := count(t, target); n != 1 || count(t, dir) > 3 {
			t.Errorf("%q: %d files outside, %d inside", entries, n-1, count(t, dir))
		}
	}
}

// TestBuildEnds: a build that ends while it fetches leaves nothing behind.
func TestBuildEnds(t *testing.T) {
	asked := make(chan struct{}, 1)
	host, ca := web(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		gittest.Silent().ServeHTTP(w, r)
	})
	tmp, dir := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	write(t, dir, map[string]string{"kustomization.yaml": "resources: ['https://" + host + "/o/r?ref=v1', 'https://" + host + "/o/r?ref=v2']\n"})
	c := client(t, host)
	c.Reach(ca)
	cause := errors.New("no result within --timeout")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-asked; cancel(cause) }()
	if _, err := render.Build(ctx, dir, render.Options{Remote: c}); !errors.Is(err, cause) {
		t.Errorf("Build: %v, want %v", err, cause)
	}
	if n := count(t, tmp); n != 1 {
		t.Errorf("%d files are left", n-1)
	}
	write(t, dir, map[string]string{"kustomization.yaml": "resources: [pod.yaml]\n", "pod.yaml": pod})
	yaml(t, dir, nil) // begins when the build that nobody waits for has left the process as it was
	t.Setenv("TMPDIR", filepath.Join(tmp, "nowhere"))
	c.Shrink(1, 1, 1, time.Minute)
	_, err := render.Build(t.Context(), dir, render.Options{Remote: c})
	refused(t, "no place", err, fault.FileUnreadable, "no such file or directory")
}

// TestParameters: a component that a parameter names is fetched like one of the kustomization. Helm, where the operator
// allows it, inflates nothing that was fetched.
func TestParameters(t *testing.T) {
	f := newForge(t)
	repo := f.Create(t, "acme/base.git", map[string]string{
		"component/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nnamespace: from-component\n",
		"chart/kustomization.yaml":     "helmCharts: [{name: x}]\n",
		"charts/kustomization.yaml":    "helmChartInflationGenerator: [{chartName: x}]\n",
		"generator/kustomization.yaml": "generators: [g.yaml]\n",
		"generator/g.yaml":             "apiVersion: builtin\nkind: HelmChartInflationGenerator\nmetadata: {name: x}\nname: x\n",
	})
	repo.Git(t, "tag", "v1", "main")
	dir := t.TempDir()
	write(t, dir, map[string]string{"kustomization.yaml": "resources: [pod.yaml]\n", "pod.yaml": pod})
	o := render.Options{Remote: f.client(t), Edits: render.Edits{Components: []string{repo.URL + "//component?ref=v1"}}}
	out, err := render.Build(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := out.YAML(); err != nil || !strings.Contains(string(got), "namespace: from-component\n") {
		t.Errorf("rendered\n%s%v", got, err)
	}
	o.Edits.Components = []string{repo.URL + "//component?token=hunter2"}
	_, err = render.Build(t.Context(), dir, o)
	refused(t, "component", err, fault.RemoteBase, "kustomize build: "+repo.URL+"//component: no ref")

	helm := render.Helm{Command: filepath.Join(t.TempDir(), "helm")}
	for name, want := range map[string]string{
		"chart":     repo.URL + "/chart/kustomization.yaml: helm inflates no chart",
		"charts":    repo.URL + "/charts/kustomization.yaml: helm inflates no chart",
		"generator": repo.URL + "/generator/g.yaml: is a generator of kind",
	} {
		write(t, dir, map[string]string{"kustomization.yaml": "resources: ['" + repo.URL + "//" + name + "?ref=v1']\n"})
		_, err = render.Build(t.Context(), dir, render.Options{Remote: f.client(t), Helm: helm})
		refused(t, name, err, fault.RemoteBase, want)
	}
	host, ca := web(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "apiVersion: builtin\nkind: HelmChartInflationGenerator\nmetadata: {name: x}\nname: x\nrepo: https://charts.example.com\n")
	})
	c := client(t, host)
	c.Reach(ca)
	write(t, dir, map[string]string{"kustomization.yaml": "generators: ['https://" + host + "/g.yaml']\n"})
	_, err = render.Build(t.Context(), dir, render.Options{Remote: c, Helm: helm})
	refused(t, "generator by http", err, fault.RemoteBase, "https://"+host+"/g.yaml: is a generator of kind")
}
