package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	manifests = "../manifests"
	examples  = "../examples"
)

// TestManifests: a real API server takes what a person applies, in namespaces that demand restricted pods, and the programs
// do what the manifests tell them.
func TestManifests(t *testing.T) {
	kubectl := kubernetes(t, "kubectl")
	c := startCluster(t)
	c.restrict(t, "argocd", "gitops", "backend-dev", "backend-prod")
	monitors := filepath.Join(prometheusOperator(t), "example/prometheus-operator-crd/monitoring.coreos.com_")
	for _, kind := range []string{"servicemonitors", "prometheusrules"} {
		c.define(t, monitors+kind+".yaml", "/apis/monitoring.coreos.com/v1/"+kind)
	}
	installed := buildInstall(t, kubectl, "install.yaml", nil)
	cronJob := buildInstall(t, kubectl, "core-install.yaml", map[string]string{"manifests/companion": "manifests/companion-cronjob"})

	for name, b := range map[string]built{"install": installed, "cronjob": cronJob} {
		t.Run(name, func(t *testing.T) {
			c.accepts(t, kubectl, b.text)
			c.accepts(t, kubectl, b.pods(t))
		})
	}
	t.Run("refused", func(t *testing.T) { c.refusesWorse(t, kubectl, installed) })
	t.Run("examples", func(t *testing.T) { c.acceptsExamples(t, kubectl) })
	t.Run("namespace", func(t *testing.T) {
		moved := buildInstall(t, kubectl, "core-install.yaml", map[string]string{"namespace: argocd": "namespace: gitops"})
		for _, o := range moved.objects {
			if ours(o) && strings.Contains(mustYAML(t, o), "namespace: argocd") {
				t.Errorf("it stays in namespace argocd:\n%s", mustYAML(t, o))
			}
		}
	})
	t.Run("volumes", func(t *testing.T) { checkVolumes(t, installed, cronJob) })
	t.Run("wiring", func(t *testing.T) { checkWiring(t, installed) })
	t.Run("copies", func(t *testing.T) { checkCopies(t) })
	t.Run("programs", func(t *testing.T) { runAsTold(t, c, installed, cronJob) })
}

// restrict makes namespaces in which Pod Security lets restricted pods in alone, and warns of templates of others.
func (c *kubeCluster) restrict(t *testing.T, namespaces ...string) {
	t.Helper()
	const posture = `"labels": {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}`
	for _, name := range namespaces {
		if name == "argocd" { // it is there
			c.ask(t, http.MethodPatch, "/api/v1/namespaces/argocd", `{"metadata": {`+posture+`}}`, &corev1.Namespace{})
			continue
		}
		c.create(t, "/api/v1/namespaces", fmt.Sprintf(`{apiVersion: v1, kind: Namespace, metadata: {"name": %q, %s}}`, name, posture))
	}
}

// define makes a kind and waits until it is served at path.
func (c *kubeCluster) define(t *testing.T, file, path string) {
	t.Helper()
	c.create(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", readFile(t, file))
	await(t, func() error { return c.do(t.Context(), http.MethodGet, path, "") })
}

// dryRun is what docs/install.md has people type, without the outcome.
func (c *kubeCluster) dryRun(t *testing.T, kubectl string, objects []byte) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kubectl, "--kubeconfig="+c.kubeconfig,
		"apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-")
	cmd.Env = []string{"HOME=" + t.TempDir()}
	cmd.Stdin = bytes.NewReader(objects)
	return cmd.CombinedOutput()
}

func (c *kubeCluster) accepts(t *testing.T, kubectl string, objects []byte) {
	t.Helper()
	out, err := c.dryRun(t, kubectl, objects)
	if err != nil || bytes.Contains(out, []byte("Warning:")) {
		t.Errorf("kubectl apply: %v\n%s", err, out)
	}
	if n := bytes.Count(out, []byte("(server dry run)")); n != len(split(t, objects)) {
		t.Errorf("%d objects taken, want %d:\n%s", n, len(split(t, objects)), out)
	}
}

// refusesWorse shows that accepts can fail.
func (c *kubeCluster) refusesWorse(t *testing.T, kubectl string, b built) {
	pods := string(b.pods(t))
	for _, change := range []struct{ name, old, new string }{
		{"a field that is none", "readOnlyRootFilesystem", "readOnlyRootFileSystem"},
		{"root", "runAsNonRoot: true", "runAsNonRoot: false"},
		{"capabilities", "drop:", "add:"},
		{"a volume that is not there", "name: digestlock-socket\n", "name: digestlock-soket\n"},
	} {
		changed := strings.Replace(pods, change.old, change.new, 1)
		if changed == pods {
			t.Fatalf("%s: nothing to change", change.name)
		}
		if out, err := c.dryRun(t, kubectl, []byte(changed)); err == nil {
			t.Errorf("%s is accepted:\n%s", change.name, out)
		}
	}
}

func (c *kubeCluster) acceptsExamples(t *testing.T, kubectl string) {
	for _, overlay := range []string{"dev", "prod"} {
		objects, err := output(t, kubectl, "kustomize", filepath.Join(examples, "k8s/namespaces/backend/overlays", overlay))
		if err != nil {
			t.Fatal(err)
		}
		c.accepts(t, kubectl, objects)
	}
	files, err := filepath.Glob(filepath.Join(examples, "argocd/*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("examples: %q, %v", files, err)
	}
	for _, file := range files {
		c.accepts(t, kubectl, []byte(readFile(t, file)))
	}
}

// built is what kubectl kustomize makes of an installation.
type built struct {
	text    []byte
	objects []*unstructured.Unstructured
}

var (
	argoCDManifests = regexp.MustCompile(`https://raw\.githubusercontent\.com/argoproj/argo-cd/(v[^/]+)/manifests/install\.yaml`)
	ourManifests    = regexp.MustCompile(`(# )?- https://github\.com/digestlock/digestlock//manifests/([a-z-]+)\?ref=main`)
)

// buildInstall builds manifests/install with change done to it, and what it names by URL taken from here: Argo CD's manifest
// from its module, and our own from the working tree.
func buildInstall(t *testing.T, kubectl, argoCD string, change map[string]string) built {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "manifests"), os.DirFS(manifests)); err != nil {
		t.Fatal(err)
	}
	text := readFile(t, filepath.Join(manifests, "install/kustomization.yaml"))
	source := argoCDSource(t)
	if found := argoCDManifests.FindStringSubmatch(text); found == nil || !strings.HasSuffix(source, "@"+found[1]) {
		t.Fatalf("manifests/install names Argo CD by %q, and the tests are run on %s", found, source)
	}
	text = argoCDManifests.ReplaceAllString(text, argoCD)
	text = ourManifests.ReplaceAllString(text, "- ../manifests/$2")
	for old, replacement := range change {
		text = strings.ReplaceAll(text, old+"\n", replacement+"\n")
	}
	if strings.Contains(text, "- https://") {
		t.Fatalf("something is still to be fetched:\n%s", text)
	}
	writeFile(t, filepath.Join(dir, "install", argoCD), readFile(t, filepath.Join(source, "manifests", argoCD)))
	writeFile(t, filepath.Join(dir, "install/kustomization.yaml"), text)
	out, err := output(t, kubectl, "kustomize", filepath.Join(dir, "install"))
	if err != nil {
		t.Fatal(err)
	}
	return built{out, split(t, out)}
}

// ours tells what the components add from what is Argo CD's.
func ours(o *unstructured.Unstructured) bool { return strings.HasPrefix(o.GetName(), "digestlock") }

// find decodes the one object of a kind and name.
func (b built) find(t *testing.T, kind, name string, into any) {
	t.Helper()
	for _, o := range b.objects {
		if o.GetKind() == kind && o.GetName() == name {
			decode(t, o.Object, into)
			return
		}
	}
	t.Fatalf("no %s %s", kind, name)
}

func decode(t *testing.T, object map[string]any, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object, into, true); err != nil {
		t.Fatal(err)
	}
}

// templates are the pods of all workloads, by the workload's name.
func (b built) templates(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	templates := map[string]corev1.PodTemplateSpec{}
	for _, o := range b.objects {
		path := []string{"spec", "template"}
		if o.GetKind() == "CronJob" {
			path = []string{"spec", "jobTemplate", "spec", "template"}
		}
		object, found, err := unstructured.NestedMap(o.Object, path...)
		if err != nil || !found {
			continue
		}
		var template corev1.PodTemplateSpec
		decode(t, object, &template)
		templates[o.GetName()] = template
	}
	if len(templates) < 5 {
		t.Fatalf("%d workloads, want Argo CD's and ours", len(templates))
	}
	return templates
}

// pods are those of the templates: Pod Security lets a Deployment pass whose pods it would refuse.
func (b built) pods(t *testing.T) []byte {
	t.Helper()
	var all bytes.Buffer
	for name, template := range b.templates(t) {
		pod := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name, pod.Namespace = name, "argocd"
		fmt.Fprintf(&all, "---\n%s", mustYAML(t, pod))
	}
	return all.Bytes()
}

// container finds one of a workload's.
func (b built) container(t *testing.T, workload, name string) corev1.Container {
	t.Helper()
	for _, c := range b.templates(t)[workload].Spec.Containers {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no container %s in %s", name, workload)
	return corev1.Container{}
}

// checkVolumes: who holds what, as docs/security.md says.
func checkVolumes(t *testing.T, installed, cronJob built) {
	const plugin, resolver, companion = "argocd-repo-server/digestlock", "argocd-repo-server/digestlock-resolver", "digestlock-companion/companion"
	for name, test := range map[string]struct {
		built built
		want  map[string][]string
	}{
		"install": {installed, map[string][]string{
			"digestlock-resolver-token": {resolver, companion}, "digestlock-registry": {resolver}, "digestlock-flush-token": {companion},
		}},
		"cronjob": {cronJob, map[string][]string{
			"digestlock-resolver-token": {resolver, companion}, "digestlock-registry": {resolver},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			holders := map[string][]string{}
			for workload, template := range test.built.templates(t) {
				for _, c := range append(template.Spec.InitContainers, template.Spec.Containers...) {
					for _, secret := range secretsOf(t, template.Spec, c) {
						if workload+"/"+c.Name == plugin {
							t.Errorf("the plugin's container holds the secret %s", secret)
						}
						if strings.HasPrefix(secret, "digestlock") {
							holders[secret] = append(holders[secret], workload+"/"+c.Name)
						}
					}
				}
			}
			for _, who := range holders {
				slices.Sort(who)
			}
			if diff := cmp.Diff(test.want, holders); diff != "" {
				t.Errorf("who holds which secret (-want +got):\n%s", diff)
			}
		})
	}

	pod := installed.templates(t)["argocd-repo-server"].Spec
	if token := pod.AutomountServiceAccountToken; token == nil || *token {
		t.Error("the repo-server's pod has its service account's token")
	}
	mounts := map[string][]string{}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if strings.HasPrefix(c.Name, "digestlock") || strings.HasPrefix(m.Name, "digestlock") {
				mounts[m.Name] = append(mounts[m.Name], c.Name)
			}
		}
	}
	want := map[string][]string{
		"digestlock-socket": {"digestlock", "digestlock-resolver"}, // and nobody else
		"digestlock-tmp":    {"digestlock"}, "digestlock-resolver-tmp": {"digestlock-resolver"}, "digestlock-state": {"digestlock-resolver"},
		"digestlock-resolver-token": {"digestlock-resolver"}, "digestlock-registry": {"digestlock-resolver"},
		"var-files": {"digestlock"}, "plugins": {"digestlock"}, // Argo CD's
	}
	if diff := cmp.Diff(want, mounts); diff != "" {
		t.Errorf("who mounts which volume (-want +got):\n%s", diff)
	}
}

// secretsOf are the names of the secrets that a container sees, tokens of the service account included.
func secretsOf(t *testing.T, pod corev1.PodSpec, c corev1.Container) (secrets []string) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("%s mounts %s, which is not there", c.Name, m.Name)
		}
		switch v := pod.Volumes[i]; {
		case v.Secret != nil:
			secrets = append(secrets, v.Secret.SecretName)
		case v.Projected != nil:
			secrets = append(secrets, "in the projected volume "+v.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			secrets = append(secrets, e.ValueFrom.SecretKeyRef.Name)
		}
	}
	for _, e := range c.EnvFrom {
		if e.SecretRef != nil {
			secrets = append(secrets, e.SecretRef.Name)
		}
	}
	return secrets
}

// checkWiring: what selects something by label or port finds it.
func checkWiring(t *testing.T, b built) {
	templates := b.templates(t)
	// portsOf are those of the pods that a selector finds.
	portsOf := func(what string, selector map[string]string) (ports []int32) {
		for _, template := range templates {
			if labels.SelectorFromSet(selector).Matches(labels.Set(template.Labels)) {
				for _, c := range template.Spec.Containers {
					for _, p := range c.Ports {
						ports = append(ports, p.ContainerPort)
					}
				}
			}
		}
		if len(selector) == 0 || len(ports) == 0 {
			t.Errorf("%s: the selector %v finds no ports", what, selector)
		}
		return ports
	}
	policyPorts := func(what string, selector map[string]string, ports []networkingv1.NetworkPolicyPort) {
		for _, p := range ports {
			if got := portsOf(what, selector); !slices.Contains(got, p.Port.IntVal) {
				t.Errorf("%s: port %d, and the pods have %v", what, p.Port.IntVal, got)
			}
		}
	}
	services := map[string]corev1.Service{}
	seen := map[string]int{}
	for _, o := range b.objects {
		what := o.GetKind() + " " + o.GetName()
		if !ours(o) {
			continue
		}
		seen[o.GetKind()]++
		switch o.GetKind() {
		case "Service":
			var s corev1.Service
			decode(t, o.Object, &s)
			services[s.Name] = s
			for _, p := range s.Spec.Ports {
				if got := portsOf(what, s.Spec.Selector); p.TargetPort != (intstr.IntOrString{}) || !slices.Contains(got, p.Port) {
					t.Errorf("%s: port %d, and the pods have %v", what, p.Port, got)
				}
			}
		case "PodDisruptionBudget":
			var p policyv1.PodDisruptionBudget
			decode(t, o.Object, &p)
			portsOf(what, p.Spec.Selector.MatchLabels)
		case "NetworkPolicy":
			var p networkingv1.NetworkPolicy
			decode(t, o.Object, &p)
			for _, rule := range p.Spec.Ingress {
				policyPorts(what, p.Spec.PodSelector.MatchLabels, rule.Ports)
			}
			for _, rule := range p.Spec.Egress {
				for _, to := range rule.To {
					policyPorts(what, to.PodSelector.MatchLabels, rule.Ports)
				}
			}
		}
	}
	for _, o := range b.objects {
		if o.GetKind() != "ServiceMonitor" {
			continue
		}
		selector, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
		service := services[o.GetName()]
		if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(service.Labels)) {
			t.Errorf("ServiceMonitor %s does not select the Service of its name, with labels %v", o.GetName(), service.Labels)
		}
		endpoints, _, _ := unstructured.NestedSlice(o.Object, "spec", "endpoints")
		for _, e := range endpoints {
			port := e.(map[string]any)["port"]
			if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == port }) {
				t.Errorf("ServiceMonitor %s: the Service has no port %q", o.GetName(), port)
			}
		}
	}
	for kind, n := range map[string]int{"Service": 2, "PodDisruptionBudget": 1, "NetworkPolicy": 2, "ServiceMonitor": 2, "PrometheusRule": 1, "Deployment": 1} {
		if seen[kind] != n {
			t.Errorf("%d times %s, want %d", seen[kind], kind, n)
		}
	}
	if got := services["digestlock-resolver"].Spec.ClusterIP; got != corev1.ClusterIPNone {
		t.Errorf("the resolvers' Service has clusterIP %q: it would reach one replica", got)
	}

	command := b.container(t, "argocd-repo-server", "digestlock").Command
	for _, c := range templates["argocd-repo-server"].Spec.InitContainers {
		if c.Name == "copyutil" && len(command) == 1 && strings.Contains(strings.Join(c.Args, " "), " "+command[0]) {
			return
		}
	}
	t.Errorf("copyutil does not make %q", command)
}

// checkCopies: what Helm and the operator are given is what the component has.
func checkCopies(t *testing.T) {
	type pod struct {
		Containers []corev1.Container
		Volumes    []corev1.Volume
	}
	var component struct {
		Spec struct{ Template struct{ Spec pod } }
	}
	var helm struct {
		RepoServer struct {
			AutomountServiceAccountToken *bool
			ExtraContainers              []corev1.Container
			Volumes                      []corev1.Volume
		}
		ExtraObjects []map[string]any
	}
	var operator struct {
		Spec struct {
			Repo struct {
				SidecarContainers []corev1.Container
				Volumes           []corev1.Volume
			}
		}
	}
	var service map[string]any
	readYAML(t, manifests+"/sidecar/repo-server.yaml", &component)
	readYAML(t, manifests+"/sidecar/service.yaml", &service)
	readYAML(t, manifests+"/helm-values.yaml", &helm)
	readYAML(t, manifests+"/argocd-operator.yaml", &operator)
	want := component.Spec.Template.Spec
	if len(want.Containers) != 2 {
		t.Fatalf("%d containers, want 2", len(want.Containers))
	}
	if diff := cmp.Diff(want, pod{helm.RepoServer.ExtraContainers, helm.RepoServer.Volumes}); diff != "" {
		t.Errorf("helm-values.yaml (-component +values):\n%s", diff)
	}
	if diff := cmp.Diff([]map[string]any{service}, helm.ExtraObjects); diff != "" {
		t.Errorf("helm-values.yaml's Service (-component +values):\n%s", diff)
	}
	if token := helm.RepoServer.AutomountServiceAccountToken; token == nil || *token {
		t.Error("helm-values.yaml leaves the service account's token to the plugin")
	}
	if diff := cmp.Diff(want, pod{operator.Spec.Repo.SidecarContainers, operator.Spec.Repo.Volumes}); diff != "" {
		t.Errorf("argocd-operator.yaml (-component +resource):\n%s", diff)
	}
}

// runAsTold starts the programs with the arguments and variables of their containers, the paths of their volumes below a
// directory of the test's.
func runAsTold(t *testing.T, c *kubeCluster, installed, cronJob built) {
	dir := shortDir(t)
	for _, secret := range []string{"digestlock-resolver-token", "resolver-token", "flush-token"} {
		writeFile(t, filepath.Join(dir, secret, "token"), "s3cret\n")
	}
	repoServer := "argocd-repo-server"
	resolver, plugin := installed.container(t, repoServer, "digestlock-resolver"), installed.container(t, repoServer, "digestlock")
	checkDefaults(t, resolver, plugin)

	resolverAddr := freeAddr()
	serve := asTold(dir, "digestlock", resolver)
	serve.Args = append(serve.Args, "--listen="+resolverAddr, "--socket="+dir+"/s", "--state-dir="+dir+"/digestlock-state")
	p := start(t, serve, showLog(t, filepath.Join(dir, "resolver.log")))
	p.waitReady(t, func(ctx context.Context) error {
		return checkOK(ctx, probed(t, resolver.LivenessProbe, resolver, resolverAddr))
	})

	companion, companionAddr := installed.container(t, "digestlock-companion", "companion"), freeAddr()
	loop := asTold(dir, "digestlock-companion", companion)
	loop.Args = append(loop.Args, "--kubeconfig="+c.kubeconfig, "--listen="+companionAddr, "--resolver=http://"+resolverAddr)
	p = start(t, loop, showLog(t, filepath.Join(dir, "companion.log")))
	p.waitReady(t, func(ctx context.Context) error {
		return checkOK(ctx, probed(t, companion.ReadinessProbe, companion, companionAddr))
	})
	p.waitReady(t, func(ctx context.Context) error {
		if err := checkOK(ctx, probed(t, companion.LivenessProbe, companion, companionAddr)); err != nil {
			return err
		}
		return c.do(ctx, http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/gitops/leases/digestlock-companion", "")
	})
	p.terminate(t)

	once := asTold(dir, "digestlock-companion", cronJob.container(t, "digestlock-companion", "companion"))
	once.Args = append(once.Args, "--kubeconfig="+c.kubeconfig, "--resolver=http://"+resolverAddr)
	if out, err := once.CombinedOutput(); err != nil { // asks the resolver, with the token
		t.Errorf("the CronJob's companion: %v\n%s", err, out)
	}
}

// asTold is the command of a container.
func asTold(dir, program string, c corev1.Container) *exec.Cmd {
	local := func(s string) string {
		flag, path, found := strings.Cut(s, "=")
		if !found {
			flag, path = "", s
		} else {
			flag += "="
		}
		for _, m := range c.VolumeMounts {
			if path == m.MountPath || strings.HasPrefix(path, m.MountPath+"/") {
				return flag + filepath.Join(dir, m.Name) + path[len(m.MountPath):]
			}
		}
		return s
	}
	cmd := exec.Command(filepath.Join(binDir, program))
	for _, arg := range c.Args {
		cmd.Args = append(cmd.Args, local(arg))
	}
	cmd.Env = []string{}
	for _, e := range c.Env {
		value := local(e.Value)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value = map[string]string{"metadata.namespace": "gitops", "status.podIP": "127.0.0.1"}[e.ValueFrom.FieldRef.FieldPath]
		}
		cmd.Env = append(cmd.Env, e.Name+"="+value)
	}
	return cmd
}

// probed is what the kubelet would ask, of a process that listens at addr.
func probed(t *testing.T, probe *corev1.Probe, c corev1.Container, addr string) string {
	t.Helper()
	if probe == nil || !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == probe.HTTPGet.Port.StrVal }) {
		t.Fatalf("%s: no probe of a port that it has", c.Name)
	}
	return "http://" + addr + probe.HTTPGet.Path
}

// checkDefaults: what the manifests leave to the programs' defaults is where the volumes and ports are.
func checkDefaults(t *testing.T, resolver, plugin corev1.Container) {
	t.Helper()
	defaultOf := func(command, flag string) string {
		out, err := output(t, filepath.Join(binDir, "digestlock"), command, "--help")
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`--` + flag + ` string .*\(default "(.*)"\)`).FindSubmatch(out)
		if found == nil {
			t.Fatalf("digestlock %s --help does not say a default of --%s", command, flag)
		}
		return string(found[1])
	}
	mounts := func(c corev1.Container, path string) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path && !m.ReadOnly })
	}
	socket := defaultOf("serve", "socket")
	if got := defaultOf("generate", "server"); got != "unix://"+socket {
		t.Errorf("generate asks at %s, serve listens at %s", got, socket)
	}
	if dir := filepath.Dir(socket); !mounts(resolver, dir) || !mounts(plugin, dir) {
		t.Errorf("%s is not mounted in both containers", dir)
	}
	if dir := defaultOf("serve", "state-dir"); !mounts(resolver, dir) {
		t.Errorf("%s is not mounted in the resolver", dir)
	}
	if port := defaultOf("serve", "listen"); port != fmt.Sprintf(":%d", resolver.Ports[0].ContainerPort) {
		t.Errorf("serve listens at %s, the container has %v", port, resolver.Ports)
	}
}

// prometheusOperator is the directory of its source, of which nothing is built.
func prometheusOperator(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "github.com/prometheus-operator/prometheus-operator")
	cmd.Dir = "prometheus-operator"
	out, err := stdoutOf(cmd)
	var module struct{ Dir string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &module)
	}
	if err != nil {
		t.Fatalf("find the Prometheus operator's source: %v", err)
	}
	return module.Dir
}
