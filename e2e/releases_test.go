package e2e

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/kube"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// A release of the kustomize CLI, and the module file that builds it.
type release struct{ version, modfile string }

var (
	linked  = release{"v5.8.2", "tools/go.mod"}                 // what digestlock renders like
	shipped = release{"v5.8.1", "tools/kustomize-5.8.1/go.mod"} // what Argo CD 3.5 has in its image
)

// buildKustomize returns the path of the CLI, in a directory that has nothing else.
func buildKustomize(t *testing.T, r release) string {
	t.Helper()
	out := filepath.Join(binDir, "kustomize-"+r.version, "kustomize")
	if _, err := os.Stat(out); err == nil {
		return out
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-modfile="+r.modfile,
		"-ldflags", kustomizeVersion+r.version, "-o", out, "sigs.k8s.io/kustomize/kustomize/v5")
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the kustomize CLI %s: %v\n%s", r.version, err, text)
	}
	return out
}

// A change is a field of rendered objects that the linked release writes differently than the shipped one.
type change struct {
	what    string // docs/kustomize.md has it in more words
	kind    string // regular expression of the kinds
	path    []string
	shipped string // regular expression of what the shipped release writes, if that tells it from others
}

// changes is every difference between the two releases that the generated overlays show.
var changes = []change{
	{what: "namespace of admission policies", kind: "ValidatingAdmissionPolicy(Binding)?", path: []string{"metadata", "namespace"}},
	{what: "template labels in volume claim templates", kind: "StatefulSet", path: []string{"spec", "volumeClaimTemplates", "*", "metadata", "labels"}},
	{what: "image volumes of CronJobs", kind: "CronJob", path: []string{"spec", "jobTemplate", "spec", "template", "spec", "volumes", "*", "image", "reference"}},
	{what: "images with a sha512 digest", kind: ".*", path: []string{"**", "image"}, shipped: "@sha512:"},
	{what: "images with a sha512 digest", kind: ".*", path: []string{"**", "reference"}, shipped: "@sha512:"},
	{what: "stringData under a generated Secret", kind: "Secret", path: []string{"data"}},
	{what: "replacements inside of structured data", kind: "ConfigMap", path: []string{"data", "file.json"}},
	{what: "managedByLabel", kind: ".*", path: []string{"metadata", "labels", "app.kubernetes.io/managed-by"}, shipped: "^kustomize-v5.8.1$"},
}

// TestReleases compares with the release that an Application leaves behind when it moves away from Argo CD's own
// kustomize: nothing but the known changes, and each of them is seen.
func TestReleases(t *testing.T) {
	older := buildKustomize(t, shipped)
	var mu sync.Mutex
	seen := map[string]int{}
	same := 0
	eachOverlay(t, func(t *testing.T, _ *generator, overlay string) {
		was, wasErr := output(t, older, "build", overlay)
		is, err := unpinned(t, overlay)
		if (err != nil) != (wasErr != nil) {
			t.Fatalf("digestlock: %v; kustomize %s: %v", err, shipped.version, wasErr)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
		case bytes.Equal(was, is):
			same++
		default:
			for what := range explain(t, was, is) {
				seen[what]++
			}
		}
	})
	t.Logf("%d overlays are the same; differences by number of overlays: %v", same, seen)
	for _, c := range changes {
		if seen[c.what] == 0 {
			t.Errorf("no overlay shows a difference: %s", c.what)
		}
	}
}

// explain returns the changes that make was into is. A difference that they do not explain is a failure.
func explain(t *testing.T, was, is []byte) map[string]bool {
	t.Helper()
	older, newer := split(t, was), split(t, is)
	if len(older) != len(newer) {
		t.Fatalf("%d objects became %d", len(older), len(newer))
	}
	found := map[string]bool{}
	for i, o := range older {
		for _, c := range changes {
			if regexp.MustCompile("^(?:"+c.kind+")$").MatchString(o.GetKind()) && c.copy(c.path, o.Object, newer[i].Object) {
				found[c.what] = true
			}
		}
	}
	if diff := cmp.Diff(older, newer); diff != "" {
		t.Fatalf("differences that nobody knows (-%s +%s):\n%s", shipped.version, linked.version, diff)
	}
	if len(found) == 0 {
		t.Fatalf("the objects are the same, their bytes are not\n--- %s\n%s\n--- %s\n%s", shipped.version, was, linked.version, is)
	}
	return found
}

func split(t *testing.T, data []byte) []*unstructured.Unstructured {
	t.Helper()
	objects, err := kube.SplitYAML(data)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// copy makes the fields of older at path what they are in newer, and reports whether that changes any. In a path, "*"
// is each item of a list and "**" is any depth.
func (c change) copy(path []string, older, newer any) (changed bool) {
	if path[0] == "**" {
		changed = c.copy(path[1:], older, newer)
	}
	if list, ok := older.([]any); ok {
		other, ok := newer.([]any)
		if path[0] == "*" {
			path = path[1:]
		}
		for i := 0; ok && i < min(len(list), len(other)); i++ {
			changed = c.copy(path, list[i], other[i]) || changed
		}
		return changed
	}
	o, ok := older.(map[string]any)
	n, also := newer.(map[string]any)
	if !ok || !also {
		return changed
	}
	if path[0] == "**" {
		for key := range maps.Keys(o) {
			changed = c.copy(path, o[key], n[key]) || changed
		}
		return changed
	}
	if len(path) > 1 {
		return c.copy(path[1:], o[path[0]], n[path[0]])
	}
	key := path[0]
	value, _ := o[key].(string)
	if cmp.Equal(o[key], n[key]) || !regexp.MustCompile(c.shipped).MatchString(value) {
		return false
	}
	delete(o, key)
	if v, ok := n[key]; ok {
		o[key] = v
	}
	return true
}
