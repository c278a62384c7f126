package e2e

import (
	"slices"
	"strings"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// native is what an Application says in source.kustomize.
type native = v1alpha1.ApplicationSourceKustomize

// A parityCase is one Application, fails whether Argo CD's own kustomize refuses it.
type parityCase struct {
	name    string
	overlay string
	native  native
	fails   bool
}

// parityCases goes through the parameters one by one, in pairs where one changes what the other does, and all together.
func parityCases() []parityCase {
	digest := "sha256:" + strings.Repeat("5", 64)
	debug, limits := "../../components/debug", "../../components/limits"
	memory := v1alpha1.KustomizePatch{
		Target: target("apps", "v1", "Deployment", "web"),
		Patch:  "- op: add\n  path: /spec/template/spec/containers/0/env\n  value: [{name: N, value: \"1\"}]\n",
	}
	level := v1alpha1.KustomizePatch{Path: "patch.yaml"}
	merge := v1alpha1.KustomizePatch{Patch: "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: None}\n"}
	return []parityCase{
		{"nothing", "plain", native{}, false},
		{"nothing, everything there", "all", native{}, false},
		{"nothing, no kustomization", "none", native{}, true},
		{"nothing, two kustomizations", "two", native{}, true},
		{"nothing, doubled field", "doubled", native{}, false},
		{"nothing, unknown field", "unknown", native{}, true},

		{"prefix", "plain", native{NamePrefix: "new-"}, false},
		{"prefix over a prefix", "named", native{NamePrefix: "new-"}, false},
		{"prefix like a flag", "plain", native{NamePrefix: "--x"}, false},
		{"prefix, kustomization.yml", "yml", native{NamePrefix: "new-"}, false},
		{"prefix, Kustomization as JSON", "capital", native{NamePrefix: "new-"}, false},
		{"prefix, line ends of Windows", "windows", native{NamePrefix: "new-"}, false},
		{"prefix, no kustomization", "none", native{NamePrefix: "new-"}, true},
		{"prefix, two kustomizations", "two", native{NamePrefix: "new-"}, true},
		{"prefix, unknown field", "unknown", native{NamePrefix: "new-"}, true},
		{"prefix, a component as root", "component", native{NamePrefix: "new-"}, false},
		{"suffix", "plain", native{NameSuffix: "-new"}, false},
		{"suffix over a suffix", "named", native{NameSuffix: "-new"}, false},
		{"prefix and suffix", "generated", native{NamePrefix: "n-", NameSuffix: "-n"}, false},
		{"prefix, number", "plain", native{NamePrefix: "1"}, false},

		{"namespace", "plain", native{Namespace: "team-b"}, false},
		{"namespace over a namespace", "namespace", native{Namespace: "team-b"}, false},
		{"namespace, number", "plain", native{Namespace: "007"}, false},
		{"namespace that is none", "plain", native{Namespace: "Not A Namespace"}, false},
		{"namespace and prefix", "generated", native{Namespace: "team-b", NamePrefix: "new-"}, false},

		{"image, tag", "plain", native{Images: overrides("nginx:1.27")}, false},
		{"image, digest", "plain", native{Images: overrides("nginx@" + digest)}, false},
		{"image, tag and digest", "plain", native{Images: overrides("nginx:1.27@" + digest)}, false},
		{"image, name", "plain", native{Images: overrides("nginx=mirror.example.com/nginx")}, false},
		{"image, name and tag", "plain", native{Images: overrides("nginx=mirror.example.com:5000/nginx:1.27")}, false},
		{"image, name and digest", "plain", native{Images: overrides("nginx=mirror.example.com/nginx@" + digest)}, false},
		{"image, port in the name", "plain", native{Images: overrides("registry.example.com:5000/acme/backup=registry.example.com:5000/acme/backup:2")}, false},
		{"images, several", "plain", native{Images: overrides("nginx:1.27", "postgres:16.3", "registry.example.com/acme/web=x:1")}, false},
		{"images, one twice", "plain", native{Images: overrides("nginx:1.27", "nginx:1.28")}, false},
		{"images, two for one", "plain", native{Images: overrides("nginx:1.28", "ngin.:1.27")}, false},
		{"images over images", "images", native{Images: overrides("postgres:16.3", "nginx=other:3")}, false},
		{"image, keep the name", "images", native{Images: overrides("registry.example.com/acme/web=*:3")}, false},
		{"image, keep the tag", "images", native{Images: overrides("registry.example.com/acme/web=*:*@" + digest)}, false},
		{"image, keep what there is not", "plain", native{Images: overrides("nginx=*:*")}, false},
		{"image, keep the digest", "images", native{Images: overrides("nginx=other:*@*")}, false},
		{"image of a custom resource", "replaced", native{Images: overrides("nginx:1.27")}, false},
		{"image of a replacement", "replaced", native{Images: overrides("registry.example.com/acme/web:3")}, false},
		{"image that nothing has", "plain", native{Images: overrides("absent:1")}, false},
		{"image, a regular expression", "plain", native{Images: overrides("ngin.:1.27")}, false},
		{"image, a broken regular expression", "plain", native{Images: overrides("[:1.27")}, false},
		{"image without a tag", "plain", native{Images: overrides("nginx")}, true},
		{"image, empty", "plain", native{Images: overrides("")}, true},
		{"image, only the new name", "plain", native{Images: overrides("=other:1")}, false},
		{"image like a flag", "plain", native{Images: overrides("-nginx:1")}, true},
		{"images, the second is bad", "plain", native{Images: overrides("nginx:1.27", "postgres")}, true},
		{"image from the environment", "plain", native{Images: overrides("nginx:$ARGOCD_APP_REVISION")}, false},
		{"image from the environment, short", "plain", native{Images: overrides("nginx:${ARGOCD_APP_REVISION_SHORT}-${ARGOCD_APP_REVISION_SHORT_8}")}, false},
		{"image from an unknown variable", "plain", native{Images: overrides("nginx=mirror${HOME}.example.com/nginx:1.27")}, false},
		{"image of a variable that is not there", "plain", native{Images: overrides("nginx:$UNSET")}, false},
		{"image with a dollar", "plain", native{Images: overrides("nginx=$$x:1")}, false},

		{"replicas", "plain", native{Replicas: replicas("web", 3)}, false},
		{"replicas, several", "plain", native{Replicas: replicas("web", 3, "db", 0)}, false},
		{"replicas over replicas", "replicas", native{Replicas: replicas("web", 3)}, false},
		{"replicas of a custom resource", "plain", native{Replicas: replicas("gadget", 3)}, true},
		{"replicas of nothing", "plain", native{Replicas: replicas("absent", 3)}, true},
		{"replicas and prefix", "named", native{Replicas: replicas("web", 3), NamePrefix: "new-"}, false},
		{"replicas, text", "plain", native{Replicas: v1alpha1.KustomizeReplicas{{Name: "web", Count: intstr.FromString("3")}}}, false},
		{"replicas, no number", "plain", native{Replicas: v1alpha1.KustomizeReplicas{{Name: "web", Count: intstr.FromString("many")}}}, true},
		{"replicas, empty", "plain", native{Replicas: v1alpha1.KustomizeReplicas{{Name: "web", Count: intstr.FromString("")}}}, true},
		{"replicas, signed and padded", "plain", native{Replicas: v1alpha1.KustomizeReplicas{{Name: "web", Count: intstr.FromString("+007")}}}, false},
		{"replicas, negative", "plain", native{Replicas: replicas("web", -1)}, false},
		{"replicas, a name with =", "plain", native{Replicas: replicas("a=b", 1)}, true},

		{"labels", "plain", native{CommonLabels: pairs("a", "b", "example.com/n", "1")}, false},
		{"labels without selector", "plain", native{CommonLabels: pairs("a", "b", "n", "true"), LabelWithoutSelector: true}, false},
		{"labels in templates", "plain", native{CommonLabels: pairs("a", "b"), LabelWithoutSelector: true, LabelIncludeTemplates: true}, false},
		{"labels in templates and selectors", "plain", native{CommonLabels: pairs("a", "b"), LabelIncludeTemplates: true}, true},
		{"labels, flags alone", "plain", native{LabelIncludeTemplates: true, ForceCommonLabels: true}, false},
		{"labels beside labels", "labels", native{CommonLabels: pairs("a", "b")}, false},
		{"labels into labels", "labels", native{CommonLabels: pairs("a", "b", "c", "d"), LabelWithoutSelector: true}, false},
		{"labels into template labels", "labels", native{CommonLabels: pairs("a", "b"), LabelWithoutSelector: true, LabelIncludeTemplates: true}, false},
		{"label that labels have", "labels", native{CommonLabels: pairs("team", "b")}, false},
		{"label that labels without selector have", "labels", native{CommonLabels: pairs("team", "b"), LabelWithoutSelector: true}, true},
		{"label that labels have, forced", "labels", native{CommonLabels: pairs("team", "b"), LabelWithoutSelector: true, ForceCommonLabels: true}, false},
		{"label that other labels have", "labels", native{CommonLabels: pairs("selected", "no"), LabelWithoutSelector: true}, false},
		{"label that commonLabels have", "common-labels", native{CommonLabels: pairs("team", "b")}, true},
		{"label that commonLabels have, the same", "common-labels", native{CommonLabels: pairs("team", "a")}, true},
		{"label that commonLabels have, forced", "common-labels", native{CommonLabels: pairs("team", "b"), ForceCommonLabels: true}, false},
		{"label that commonLabels have, without selector", "common-labels", native{CommonLabels: pairs("team", "b"), LabelWithoutSelector: true}, false},
		{"labels from the environment", "plain", native{CommonLabels: pairs("app", "${ARGOCD_APP_NAME}", "project", "$ARGOCD_APP_PROJECT_NAME", "none", "x$HOME$UNSET", "dollar", "$$x")}, false},
		{"label, all of the environment", "plain", native{CommonAnnotationsEnvsubst: true, CommonAnnotations: environment()}, false},
		{"label, empty value", "plain", native{CommonLabels: pairs("a", "")}, false},
		{"label, empty name", "plain", native{CommonLabels: pairs("", "b")}, true},
		{"label, quoted", "plain", native{CommonLabels: pairs("a", `"true"`, "b", `"`, "c", "'x'")}, false},
		{"label, colons", "plain", native{CommonLabels: pairs("a:b", "c:d")}, false},
		{"label like a flag", "plain", native{CommonLabels: pairs("-a", "b")}, true},
		{"label, variable in the name", "plain", native{CommonLabels: pairs("$ARGOCD_APP_NAME", "b")}, false},
		{"label that COMMONLABELS have", "cased", native{CommonLabels: pairs("team", "b")}, true},
		{"labels beside anchors", "anchors", native{CommonLabels: pairs("team", "b"), LabelWithoutSelector: true, LabelIncludeTemplates: true, ForceCommonLabels: true}, false},
		{"labels of a doubled field", "doubled", native{CommonLabels: pairs("a", "b")}, false},
		{"labels of generated objects", "generated", native{CommonLabels: pairs("generated", "no")}, false},
		{"labels where configurations say", "replaced", native{CommonLabels: pairs("a", "b")}, false},

		{"annotations", "plain", native{CommonAnnotations: pairs("a", "b", "n", "1")}, false},
		{"annotations beside annotations", "annotations", native{CommonAnnotations: pairs("a", "b")}, false},
		{"annotation that is there", "annotations", native{CommonAnnotations: pairs("owner", "b")}, true},
		{"annotation that is there, forced", "annotations", native{CommonAnnotations: pairs("owner", "b", "since", "1"), ForceCommonAnnotations: true}, false},
		{"annotation that an object has", "plain", native{CommonAnnotations: pairs("port", "9090")}, false},
		{"annotation with a dollar", "plain", native{CommonAnnotations: pairs("a", "${ARGOCD_APP_NAME} $$ $x")}, false},
		{"annotation from the environment", "plain", native{CommonAnnotations: pairs("a", "${ARGOCD_APP_NAME} $$ $x"), CommonAnnotationsEnvsubst: true}, false},
		{"annotation of many lines", "plain", native{CommonAnnotations: pairs("a", "one\n two: \n\t# three\n")}, false},
		{"annotation with commas and colons", "plain", native{CommonAnnotations: pairs("a", "b,c:d=e", "https://example.com/x", "y")}, false},
		{"annotation, empty name", "plain", native{CommonAnnotations: pairs("", "b")}, true},

		{"patch", "plain", native{Patches: patches(memory)}, false},
		{"patch, file", "plain", native{Patches: patches(level)}, false},
		{"patches", "plain", native{Patches: patches(level, merge, memory)}, false},
		{"patches after patches", "patches", native{Patches: patches(memory, merge)}, false},
		{"patches, line ends of Windows", "windows", native{Patches: patches(memory)}, false},
		{"patches, Kustomization as JSON", "capital", native{Patches: patches(memory)}, false},
		{"patches, kustomization.yml", "yml", native{Patches: patches(memory)}, false},
		{"patches after an empty list", "no-patches", native{Patches: patches(memory)}, true},
		{"patches after an empty list and an edit", "no-patches", native{NamePrefix: "x", Patches: patches(memory)}, false},
		{"patches after deprecated ones", "old", native{Patches: patches(memory)}, false},
		{"patches after deprecated ones and an edit", "old", native{NamePrefix: "new-", Patches: patches(memory)}, false},
		{"patches after patches in other letters", "cased", native{Patches: patches(memory)}, true},
		{"patches after patches in other letters and an edit", "cased", native{NameSuffix: "-new", Patches: patches(memory)}, false},
		{"patch and replicas", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Target: target("", "", "Deployment", ""), Patch: `[{"op":"replace","path":"/spec/replicas","value":8}]`}), Replicas: replicas("web", 3)}, false},
		{"patch of a prefixed name", "named", native{Patches: patches(memory), NamePrefix: "new-"}, false},
		{"patch by selector", "plain", native{CommonLabels: pairs("a", "b"), Patches: patches(v1alpha1.KustomizePatch{
			Target: &v1alpha1.KustomizeSelector{LabelSelector: "a=b", AnnotationSelector: "port=8080"},
			Patch:  `[{"op":"add","path":"/metadata/labels","value":{"x":"y"}}]`,
		})}, false},
		{"patch by annotation", "plain", native{Patches: patches(v1alpha1.KustomizePatch{
			Target: &v1alpha1.KustomizeSelector{AnnotationSelector: "port=8080"},
			Patch:  `[{"op":"add","path":"/metadata/labels","value":{"x":"y"}}]`,
		})}, false},
		{"patch, allowed to change the name", "plain", native{Patches: patches(v1alpha1.KustomizePatch{
			Target:  target("", "v1", "Service", "web"),
			Patch:   "- {op: replace, path: /metadata/name, value: site}\n",
			Options: map[string]bool{"allowNameChange": true},
		})}, false},
		{"patch, unknown option", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Path: "patch.yaml", Options: map[string]bool{"unheard": true}})}, true},
		{"patch, no such file", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Path: "absent.yaml"})}, true},
		{"patch of nothing", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Patch: "apiVersion: v1\nkind: Service\nmetadata: {name: absent}\n"})}, true},
		{"patch, target that matches nothing", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Target: target("", "", "Absent", ""), Patch: memory.Patch})}, false},
		{"patch, neither", "plain", native{Patches: patches(v1alpha1.KustomizePatch{})}, true},
		{"patch, both", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Path: "patch.yaml", Patch: merge.Patch})}, true},
		{"patch, no YAML", "plain", native{Patches: patches(v1alpha1.KustomizePatch{Patch: "a: [b"})}, true},
		{"patch, no kustomization", "none", native{Patches: patches(memory)}, true},
		{"patch, two kustomizations", "two", native{Patches: patches(memory)}, true},

		{"component", "plain", native{Components: []string{debug}}, false},
		{"components", "plain", native{Components: []string{limits, debug}}, false},
		{"components, the other way", "plain", native{Components: []string{debug, limits}}, false},
		{"component after components", "components", native{Components: []string{debug}}, false},
		{"component that is there", "components", native{Components: []string{limits}}, false},
		{"component twice", "plain", native{Components: []string{debug, debug}}, false},
		{"component that is missing", "plain", native{Components: []string{"../../components/absent"}}, true},
		{"component that is missing, ignored", "plain", native{Components: []string{"../../components/absent", debug}, IgnoreMissingComponents: true}, false},
		{"components that are all missing, ignored", "plain", native{Components: []string{"../../components/absent"}, IgnoreMissingComponents: true}, false},
		{"component outside of the repository, ignored", "plain", native{Components: []string{"../../../outside"}, IgnoreMissingComponents: true}, false},
		{"component that is a file", "plain", native{Components: []string{"patch.yaml"}}, true},
		{"component that is a file, ignored", "plain", native{Components: []string{"patch.yaml"}, IgnoreMissingComponents: true}, true},
		{"component that is no component", "plain", native{Components: []string{"../../base"}}, true},
		{"components by glob", "plain", native{Components: []string{"../../components/*"}}, false},
		{"component like a flag", "plain", native{Components: []string{"-x"}}, true},
		{"components by glob, none", "plain", native{Components: []string{"../../components/x*"}}, true},
		{"component by a way around", "components", native{Components: []string{"../../components/./limits/"}}, false},
		{"component, empty", "plain", native{Components: []string{""}}, true},
		{"component and patch of it", "plain", native{Components: []string{debug}, Patches: patches(v1alpha1.KustomizePatch{Target: target("", "", "Pod", ""), Patch: `[{"op":"add","path":"/spec/priority","value":1}]`})}, false},
		{"component and prefix", "plain", native{Components: []string{debug}, NamePrefix: "new-", CommonLabels: pairs("a", "b")}, false},

		{"everything", "plain", everything(memory, level), false},
		{"everything over everything", "all", everything(memory, level), false},
		{"everything over labels", "labels", everything(memory), false},
		{"everything over commonLabels", "common-labels", everything(memory), false},
		{"everything over annotations", "annotations", everything(memory), false},
		{"everything over images", "images", everything(memory), false},
		{"everything over replicas", "replicas", everything(memory), false},
		{"everything over patches", "patches", everything(memory, level), false},
		{"everything over components", "components", everything(memory), false},
		{"everything over deprecated fields", "old", everything(memory, level), false},
		{"everything, sorted and described", "sorted", everything(memory), false},
		{"everything, generated", "generated", everything(memory, level), false},
		{"everything, line ends of Windows", "windows", everything(memory), false},
		{"everything, anchors", "anchors", everything(memory), false},
		{"everything, other letters", "cased", everything(memory), false},
		{"everything, kustomization.yml", "yml", everything(memory), false},
		{"everything, Kustomization as JSON", "capital", everything(memory), false},
		{"everything, configurations and replacements", "replaced", everything(memory), false},
	}
}

func everything(p ...v1alpha1.KustomizePatch) native {
	return native{
		NamePrefix: "new-", NameSuffix: "-new", Namespace: "team-b",
		Images: overrides("nginx:1.27", "postgres=mirror.example.com/postgres"), Replicas: replicas("db", 3),
		CommonLabels: pairs("team", "b", "rev", "$ARGOCD_APP_REVISION_SHORT"), ForceCommonLabels: true,
		LabelWithoutSelector: true, LabelIncludeTemplates: true,
		CommonAnnotations: pairs("owner", "${ARGOCD_APP_NAME}"), ForceCommonAnnotations: true, CommonAnnotationsEnvsubst: true,
		Patches: p, Components: []string{"../../components/limits", "../../components/absent"}, IgnoreMissingComponents: true,
	}
}

func overrides(refs ...string) (out v1alpha1.KustomizeImages) {
	for _, r := range refs {
		out = append(out, v1alpha1.KustomizeImage(r))
	}
	return out
}

// replicas takes names and counts in turns, pairs names and values.
func replicas(v ...any) (out v1alpha1.KustomizeReplicas) {
	for p := range slices.Chunk(v, 2) {
		out = append(out, v1alpha1.KustomizeReplica{Name: p[0].(string), Count: intstr.FromInt(p[1].(int))})
	}
	return out
}

func pairs(v ...string) map[string]string {
	out := map[string]string{}
	for p := range slices.Chunk(v, 2) {
		out[p[0]] = p[1]
	}
	return out
}

func patches(p ...v1alpha1.KustomizePatch) v1alpha1.KustomizePatches { return p }

func target(group, version, kind, name string) *v1alpha1.KustomizeSelector {
	t := &v1alpha1.KustomizeSelector{}
	t.Group, t.Version, t.Kind, t.Name = group, version, kind, name
	return t
}
