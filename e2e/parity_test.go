package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/cli"
	gitclient "github.com/argoproj/argo-cd/v3/util/git"
	"github.com/argoproj/argo-cd/v3/util/kustomize"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// buildEnv is what Argo CD tells native kustomize and a plugin alike (newEnv in its reposerver/repository).
var buildEnv = v1alpha1.Env{
	{Name: "ARGOCD_APP_NAME", Value: "shop"},
	{Name: "ARGOCD_APP_NAMESPACE", Value: "prod"},
	{Name: "ARGOCD_APP_PROJECT_NAME", Value: "default"},
	{Name: "ARGOCD_APP_REVISION", Value: "0123456789abcdef0123456789abcdef01234567"},
	{Name: "ARGOCD_APP_REVISION_SHORT", Value: "0123456"},
	{Name: "ARGOCD_APP_REVISION_SHORT_8", Value: "01234567"},
	{Name: "ARGOCD_APP_SOURCE_REPO_URL", Value: "https://git.example.com/acme/deploy.git"},
	{Name: "ARGOCD_APP_SOURCE_PATH", Value: "overlays/any"},
	{Name: "ARGOCD_APP_SOURCE_TARGET_REVISION", Value: "main"},
}

// What Argo CD knows of the cluster, which charts see unless the Application says otherwise.
const clusterVersion = "1.33.1"

var clusterAPIs = []string{"v1", "v1/Pod", "monitoring.coreos.com/v1"}

// environment has an annotation for each variable of Argo CD, and for some that a plugin sees and native kustomize not.
func environment() map[string]string {
	out := pairs("plugin", "${ARGOCD_ENV_SECRET}", "parameters", "${ARGOCD_APP_PARAMETERS}", "param", "$PARAM_NAMESPACE", "kube", "$KUBE_VERSION", "path", "$PATH")
	for _, e := range buildEnv {
		out[strings.ToLower(e.Name)] = "${" + e.Name + "}"
	}
	return out
}

// parameters says the same to the plugin as n says to Argo CD's own kustomize.
func parameters(t *testing.T, n native) v1alpha1.ApplicationSourcePluginParameters {
	t.Helper()
	var out v1alpha1.ApplicationSourcePluginParameters
	text := func(name, value string) {
		if value != "" {
			out = append(out, v1alpha1.ApplicationSourcePluginParameter{Name: name, String_: &value})
		}
	}
	truth := func(name string, value bool) {
		if value {
			text(name, strconv.FormatBool(value))
		}
	}
	list := func(name string, values []string) {
		if len(values) > 0 {
			out = append(out, v1alpha1.ApplicationSourcePluginParameter{Name: name, OptionalArray: &v1alpha1.OptionalArray{Array: values}})
		}
	}
	dict := func(name string, values map[string]string) {
		if len(values) > 0 {
			out = append(out, v1alpha1.ApplicationSourcePluginParameter{Name: name, OptionalMap: &v1alpha1.OptionalMap{Map: values}})
		}
	}
	text("name-prefix", n.NamePrefix)
	text("name-suffix", n.NameSuffix)
	text("namespace", n.Namespace)
	var refs []string
	for _, i := range n.Images {
		refs = append(refs, string(i))
	}
	list("images", refs)
	dict("common-labels", n.CommonLabels)
	truth("force-common-labels", n.ForceCommonLabels)
	truth("label-without-selector", n.LabelWithoutSelector)
	truth("label-include-templates", n.LabelIncludeTemplates)
	dict("common-annotations", n.CommonAnnotations)
	truth("force-common-annotations", n.ForceCommonAnnotations)
	truth("common-annotations-envsubst", n.CommonAnnotationsEnvsubst)
	counts := map[string]string{}
	for _, r := range n.Replicas {
		counts[r.Name] = r.Count.String()
	}
	dict("replicas", counts)
	list("components", n.Components)
	truth("ignore-missing-components", n.IgnoreMissingComponents)
	var texts []string
	for _, p := range n.Patches {
		b, err := yaml.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(b))
	}
	list("patches", texts)
	text("kube-version", n.KubeVersion)
	list("api-versions", n.APIVersions)
	return out
}

// parity renders Applications with Argo CD's own kustomize code and with the plugin.
type parity struct {
	kustomize string                     // the CLI of the release that the plugin links
	options   *v1alpha1.KustomizeOptions // what the operator tells Argo CD, nil for nothing
	flags     []string                   // what the operator tells the plugin
}

func newParity(t *testing.T) *parity {
	t.Helper()
	p := &parity{kustomize: buildKustomize(t, linked)}
	cli.SetLogLevel("fatal") // it logs every command that fails
	t.Cleanup(func() { cli.SetLogLevel("error") })
	// Argo CD asks whatever is called kustomize on PATH for its version, and remembers where helm was.
	t.Setenv("PATH", strings.Join([]string{filepath.Dir(p.kustomize), binDir, os.Getenv("PATH")}, string(filepath.ListSeparator)))
	return p
}

// TestParity is the promise to those who move an Application from source.kustomize to the plugin: same objects in the
// same order, and an error where there was one.
func TestParity(t *testing.T) {
	p := newParity(t)
	for _, c := range parityCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err, wantErr := p.compare(t, c.overlay, c.native)
			if (wantErr != nil) != c.fails {
				t.Errorf("Argo CD: %v; the case says fails: %v", wantErr, c.fails)
			}
			if reason := deliberate(c.overlay, c.native); reason != "" && (err != nil) == (wantErr != nil) {
				t.Errorf("there is no difference any more: %s", reason)
			}
		})
	}
}

// TestHelmParity is the same for charts, where the operator allows them.
func TestHelmParity(t *testing.T) {
	allowed := newParity(t)
	allowed.options = &v1alpha1.KustomizeOptions{BuildOptions: "--enable-helm"}
	allowed.flags = []string{"--enable-helm", "--helm-command", filepath.Join(binDir, asHelm)}
	refused := &parity{kustomize: allowed.kustomize}
	for _, c := range []struct {
		parityCase
		by *parity
	}{
		{parityCase{"not allowed", "chart", native{}, true}, refused},
		{parityCase{"nothing", "chart", native{}, false}, allowed},
		{parityCase{"no chart", "all", native{NamePrefix: "new-"}, false}, allowed},
		{parityCase{"edits", "chart", native{NamePrefix: "new-", Images: overrides("nginx:1.27"), CommonLabels: pairs("a", "b")}, false}, allowed},
		{parityCase{"kube version", "chart", native{KubeVersion: "1.30.0"}, false}, allowed},
		{parityCase{"kube version too old for the chart", "chart", native{KubeVersion: "1.19.0"}, true}, allowed},
		{parityCase{"API versions", "chart", native{APIVersions: []string{"v1", "acme.io/v1/Widget"}}, false}, allowed},
		{parityCase{"both and a patch", "chart", native{KubeVersion: "1.31.2", APIVersions: []string{"acme.io/v1/Widget"}, Patches: patches(v1alpha1.KustomizePatch{
			Target: target("", "", "Deployment", ""), Patch: `[{"op":"replace","path":"/spec/replicas","value":8}]`,
		})}, false}, allowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, wantErr := c.by.compare(t, c.overlay, c.native); (wantErr != nil) != c.fails {
				t.Errorf("Argo CD: %v; the case says fails: %v", wantErr, c.fails)
			}
		})
	}
}

// deliberate says why one of the two may refuse what the other renders, "" for nearly everything.
func deliberate(overlay string, n native) string {
	keys := slices.Concat(slices.Collect(maps.Keys(n.CommonLabels)), slices.Collect(maps.Keys(n.CommonAnnotations)))
	switch {
	case slices.ContainsFunc(keys, func(k string) bool { return strings.Contains(k, ":") }):
		return "the command line of kustomize edit cuts a key at its colon and renders another one; the plugin says so"
	case slices.ContainsFunc(n.Images, func(i v1alpha1.KustomizeImage) bool { return strings.Contains(string(i), "$$") }):
		return "a container with an image that no registry can have is an error of the plugin, wherever it comes from"
	case (overlay == "no-patches" || overlay == "cased") && len(n.Patches) > 0 && !edited(n):
		return "Argo CD can append neither to patches: without items nor to Patches:, unless kustomize edit has rewritten them before"
	}
	return ""
}

// edited reports whether Argo CD calls kustomize edit before it adds the patches.
func edited(n native) bool {
	n.Patches, n.Components, n.IgnoreMissingComponents = nil, nil, false
	return !n.IsZero()
}

// randomParity is how many combinations TestRandomParity tries.
const randomParity = 200

// TestRandomParity compares combinations that nobody thought of.
func TestRandomParity(t *testing.T) {
	p := newParity(t)
	cases := parityCases()
	overlays := map[string]bool{}
	for _, c := range cases {
		overlays[c.overlay] = true
	}
	names := slices.Sorted(maps.Keys(overlays))
	var failed atomic.Int32
	t.Run("combinations", func(t *testing.T) {
		for seed := range uint64(randomParity) {
			r := rand.New(rand.NewPCG(seed, 3))
			overlay := names[r.IntN(len(names))]
			var n native
			for range 2 + r.IntN(6) {
				mix(r, &n, cases[r.IntN(len(cases))].native)
			}
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				if _, wantErr := p.compare(t, overlay, n); wantErr != nil {
					failed.Add(1)
				}
				if t.Failed() {
					t.Logf("overlay %s:\n%s", overlay, mustYAML(t, n))
				}
			})
		}
	})
	t.Logf("%d of %d combinations fail alike", failed.Load(), randomParity)
	if failed.Load() > randomParity/2 {
		t.Error("too many fail: the cases do not mix well")
	}
}

// mix takes some of the fields of from, those that fail where they are alone seldom.
func mix(r *rand.Rand, n *native, from native) {
	some := func() bool { return r.IntN(2) == 0 }
	if some() {
		n.NamePrefix, n.Images = from.NamePrefix, from.Images
	}
	if some() {
		n.NameSuffix, n.Replicas = from.NameSuffix, from.Replicas
	}
	if some() {
		n.Namespace, n.Patches = from.Namespace, from.Patches
	}
	if some() {
		n.CommonLabels, n.LabelWithoutSelector, n.LabelIncludeTemplates = from.CommonLabels, from.LabelWithoutSelector, from.LabelIncludeTemplates
	}
	if some() {
		n.CommonAnnotations, n.CommonAnnotationsEnvsubst = from.CommonAnnotations, from.CommonAnnotationsEnvsubst
	}
	if some() {
		n.Components, n.IgnoreMissingComponents = from.Components, from.IgnoreMissingComponents
	}
	n.ForceCommonLabels, n.ForceCommonAnnotations = some(), some()
}

// compare returns the errors of both. Whatever else differs is a failure of the test.
func (p *parity) compare(t *testing.T, overlay string, n native) (err, wantErr error) {
	t.Helper()
	want, wantErr := p.argoCD(t, overlay, n)
	got, err := p.plugin(t, overlay, n)
	switch {
	case (err != nil) != (wantErr != nil):
		if deliberate(overlay, n) == "" {
			t.Errorf("digestlock: %v\nArgo CD: %v", err, wantErr)
		}
	case err == nil:
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("objects differ (-Argo CD +digestlock):\n%s", diff)
		}
	}
	return err, wantErr
}

func (p *parity) argoCD(t *testing.T, overlay string, n native) ([]*unstructured.Unstructured, error) {
	t.Helper()
	root := parityRepo(t)
	app := kustomize.NewKustomizeApp(root, filepath.Join(root, "overlays", overlay), gitclient.NopCreds{}, "", p.kustomize, "", "")
	source := v1alpha1.ApplicationSource{Kustomize: &n}
	objects, _, _, err := app.Build(&n, p.options, &buildEnv, &kustomize.BuildOpts{
		KubeVersion: source.GetKubeVersionOrDefault(clusterVersion), APIVersions: source.GetAPIVersionsOrDefault(clusterAPIs),
	})
	return objects, err
}

func (p *parity) plugin(t *testing.T, overlay string, n native) ([]*unstructured.Unstructured, error) {
	t.Helper()
	root := parityRepo(t)
	env, err := parameters(t, n).Environ()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock"), append([]string{"generate", "--server=", "--tags=none-of-them"}, p.flags...)...)
	cmd.Dir = filepath.Join(root, "overlays", overlay)
	cmd.Env = slices.Concat(os.Environ(), buildEnv.Environ(), env,
		[]string{"ARGOCD_ENV_SECRET=s3cret", "KUBE_VERSION=" + clusterVersion, "KUBE_API_VERSIONS=" + strings.Join(clusterAPIs, ",")})
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	objects, err := kube.SplitYAML(out)
	if err != nil {
		t.Fatalf("digestlock printed what Argo CD cannot read: %v", err)
	}
	return objects, nil
}

// parityRepo returns a copy of the overlays, in what looks like a checkout.
func parityRepo(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "repo")
	if err := os.CopyFS(root, os.DirFS(filepath.Join("testdata", "parity"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, ".git"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func mustYAML(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
