package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// podsVar says to this test that it is to be run, and in its namespaces where.
const podsVar = "DIGESTLOCK_TEST_PODS"

const (
	pauseImage = "registry.k8s.io/pause:3.6"
	cniPlugins = "/usr/lib/cni"
	devPath    = "k8s/namespaces/backend/overlays/dev"
)

// TestPods installs Argo CD and Digestlock as docs/install.md says into a Kubernetes with a node, and deploys the dev overlay
// of examples/ by its Application. The images are those of the Dockerfile on stand-in bases; Argo CD's and Redis's are made
// of their programs. Nothing enforces network policies, and CoreDNS is no pod.
func TestPods(t *testing.T) {
	switch dir := os.Getenv(podsVar); dir {
	case "":
		t.Skip("make e2e-pods runs it")
	case "1":
		dir := shortDir(t)
		buildForPods(t, dir)
		isolate(t, dir)
	default:
		n := enter(t, dir)
		n.startRegistry(t)
		n.pushImages(t)
		n.startGit(t, examplesTree(t))
		n.startKubernetes(t)
		n.install(t)
		n.checkInstalled(t)
		n.deploys(t)
		n.checkPlugin(t)
		n.followsPush(t)
		n.checkRestarts(t)
	}
}

// checkRestarts: nothing of ours has ended. A plugin that does leaves its pod ready for moments, and rollouts complete.
func (n *node) checkRestarts(t *testing.T) {
	t.Helper()
	var pods corev1.PodList
	n.read(t, "/api/v1/namespaces/argocd/pods", &pods)
	seen := 0
	for _, pod := range pods.Items {
		for _, c := range pod.Status.ContainerStatuses {
			if strings.Contains(c.Image, "/digestlock/") {
				seen++
				if c.RestartCount > 0 || !c.Ready {
					t.Errorf("container %s of %s: %+v", c.Name, pod.Name, c)
				}
			}
		}
	}
	if seen != 4 {
		t.Errorf("%d containers of ours, want the plugin, the resolver and two companions", seen)
	}
}

// examplesTree is what examples/k8s has, in a repository of its own.
func examplesTree(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(examples), "k8s", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[path] = readFile(t, filepath.Join(examples, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// buildForPods builds all images and programs, here where modules can be fetched.
func buildForPods(t *testing.T, dir string) {
	t.Helper()
	b := newBuilder(t, dir)
	for _, program := range []string{"containerd", "etcd", "redis-server", "ip", "iptables", filepath.Join(cniPlugins, "bridge")} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("apt-get install containerd containernetworking-plugins etcd-server redis-server iproute2 iptables: %v", err)
		}
	}
	b.standFor(t, runtime.GOARCH)
	b.build(t, "digestlock", runtime.GOARCH)
	b.build(t, "digestlock-companion", runtime.GOARCH)
	b.pack(t, "argocd", argoCDFiles(t), "ENV USER=argocd PATH=/usr/local/bin:/usr/bin:/bin\nUSER 999\n")
	b.pack(t, "redis", closure(t, t.TempDir(), "redis-server"), "ENTRYPOINT [\"redis-server\"]\nENV PATH=/usr/bin\n")
	b.pack(t, "pause", closure(t, t.TempDir(), "/bin/busybox"), "USER 65535\nENTRYPOINT [\"/bin/busybox\", \"sleep\", \"infinity\"]\n")
	for _, program := range []string{"kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		kubernetes(t, program)
	}
	must(t, exec.Command("go", "build", "-C", "coredns", "-o", filepath.Join(dir, "coredns"), "."))
}

// pack makes an image of the files below root.
func (b *builder) pack(t *testing.T, name, root, config string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Dockerfile")
	writeFile(t, file, "FROM scratch\nCOPY . /\n"+config)
	must(t, b.buildah("build", "--pull=never", "--isolation=chroot", "--file="+file, "--tag=localhost/"+name, root))
}

// closure copies programs, and the libraries that they need, to where they are here.
func closure(t *testing.T, root string, programs ...string) string {
	t.Helper()
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		files := []string{path}
		if out, err := exec.Command("ldd", path).Output(); err == nil { // else it is static
			for _, word := range strings.Fields(string(out)) {
				if filepath.IsAbs(word) {
					files = append(files, word)
				}
			}
		}
		for _, file := range files {
			must(t, exec.Command("install", "-D", file, filepath.Join(root, file)))
		}
	}
	return root
}

// argoCDFiles is a directory with what Argo CD's image has that the installation of core-install.yaml uses.
func argoCDFiles(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	closure(t, root, "git", "/usr/lib/git-core/git-remote-http", "gpg", "gpg-agent", "ssh", "/bin/busybox")
	must(t, exec.Command("cp", "-a", "/usr/lib/git-core", filepath.Join(root, "usr/lib")))
	bin := filepath.Join(root, "usr/local/bin")
	// Static, as Argo CD's own is: it runs in the plugin's image, which has no libraries.
	build := exec.Command("go", "build", "-C", "argocd", "-ldflags=-s -w", "-o", filepath.Join(bin, "argocd"), "github.com/argoproj/argo-cd/v3/cmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	must(t, build)
	for _, dir := range []string{bin, filepath.Join(root, "bin"), filepath.Join(root, "app/config/tls"), filepath.Join(root, "home/argocd")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range []string{"sh", "cp", "ln", "cat", "mkdir", "rm"} {
		must(t, exec.Command("ln", "-s", "busybox", filepath.Join(root, "bin", applet)))
	}
	for _, component := range []string{"argocd-server", "argocd-repo-server", "argocd-cmp-server", "argocd-application-controller", "argocd-applicationset-controller", "argocd-k8s-auth"} {
		must(t, exec.Command("ln", "-s", "argocd", filepath.Join(bin, component)))
	}
	for _, script := range []string{"gpg-wrapper.sh", "git-verify-wrapper.sh"} {
		must(t, exec.Command("install", filepath.Join(argoCDSource(t), "hack", script), bin))
	}
	must(t, exec.Command("install", "-D", "/etc/ssl/certs/ca-certificates.crt", filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")))
	writeFile(t, filepath.Join(root, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nargocd:x:999:999::/home/argocd:/bin/sh\n")
	writeFile(t, filepath.Join(root, "etc/group"), "root:x:0:\nargocd:x:999:\n")
	must(t, exec.Command("chmod", "-R", "go+rX", root)) // writeFile's are the owner's
	return root
}

// pushImages brings all images to where the node looks for those of any registry.
func (n *node) pushImages(t *testing.T) {
	t.Helper()
	b := builderIn(n.dir)
	certs := filepath.Join(n.dir, "certs")
	writeFile(t, filepath.Join(certs, "ca.crt"), readFile(t, n.certFile))
	for image, to := range map[string]string{
		"digestlock":           "digestlock/digestlock:v0.1.0",
		"digestlock-companion": "digestlock/digestlock-companion:v0.1.0",
		"argocd":               "argoproj/argocd:" + filepath.Base(argoCDSource(t))[len("v3@"):],
		"redis":                "docker/library/redis:8.2.3-alpine",
		"pause":                strings.TrimPrefix(pauseImage, "registry.k8s.io/"),
	} {
		must(t, b.buildah("push", "--quiet", "--cert-dir="+certs, "--creds="+registryUser+":"+registryPassword,
			"--format=oci", "--compression-format=zstd", "--compression-level=1", "localhost/"+image, "docker://"+registryHost+"/"+to))
	}
	for repository, args := range map[string][]string{
		"mirror/envoy:v1.36.2":        {"sleep", "infinity"},
		"acme/backend/migrate:latest": {"true"},
	} {
		n.pushBusybox(t, repository, "", args...)
	}
}

// pushServer moves the tag that the dev overlay has to an image that serves a text.
func (n *node) pushServer(t *testing.T, text string) (digest string) {
	t.Helper()
	return n.pushBusybox(t, "acme/backend/server:latest", text, "httpd", "-f", "-p", "8080", "-h", "/www")
}

// pushBusybox pushes an image with busybox and a page.
func (n *node) pushBusybox(t *testing.T, reference, page string, args ...string) (digest string) {
	t.Helper()
	program := readFile(t, "/bin/busybox")
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, file := range []struct{ name, content string }{{"bin/busybox", program}, {"www/index.html", page}} {
		err := w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o755, Size: int64(len(file.content))})
		if err == nil {
			_, err = io.WriteString(w, file.content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		image, err = mutate.Config(image, v1.Config{Entrypoint: append([]string{"/bin/busybox"}, args...)})
	}
	if err == nil {
		config, _ := image.ConfigFile()
		config = config.DeepCopy()
		config.OS, config.Architecture = "linux", runtime.GOARCH
		image, err = mutate.ConfigFile(image, config)
	}
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(registryHost + "/" + reference)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: registryUser, Password: registryPassword})
	if err := remote.Write(tag, image, auth, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// registryPatch is what an installation adds whose registry has a certificate of its own and a private address.
const registryPatch = `
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: argocd-repo-server}
      spec:
        template:
          spec:
            containers:
              - name: digestlock-resolver
                env:
                  - {name: DIGESTLOCK_ALLOW_REGISTRY, value: registry.example.com}
                  - {name: SSL_CERT_FILE, value: /etc/digestlock/ca/registry.example.com}
                volumeMounts:
                  - {name: tls-certs, mountPath: /etc/digestlock/ca, readOnly: true}
`

const (
	resolverToken = "correct-battery-resolver"
	flushToken    = "correct-battery-flush"
)

// install does what docs/install.md says.
func (n *node) install(t *testing.T) {
	t.Helper()
	for _, namespace := range []string{"argocd", "backend-dev", "ci"} {
		n.kubectl(t, "create", "namespace", namespace)
		n.kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
	}
	n.kubectl(t, "label", "namespace", "ci", "digestlock.dev/flush=allowed")
	dir := t.TempDir()
	secret := func(namespace, name, key, content string) {
		writeFile(t, filepath.Join(dir, name), content)
		n.kubectl(t, "-n", namespace, "create", "secret", "generic", name, "--from-file="+key+"="+filepath.Join(dir, name))
	}
	secret("argocd", "digestlock-resolver-token", "token", resolverToken+"\n")
	secret("argocd", "digestlock-flush-token", "token", flushToken+"\n")
	secret("ci", "digestlock-flush-token", "token", flushToken+"\n")
	secret("argocd", "digestlock-registry", "config.json", fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, registryHost, registryUser, registryPassword))

	installed := buildInstall(t, n.kubectlPath, "core-install.yaml", map[string]string{
		"namespace: argocd":         "namespace: argocd" + registryPatch,
		"- ../manifests/monitoring": "", // wants the Prometheus operator
	})
	n.apply(t, string(installed.text))
	// Argo CD's own settings, as of anybody with a private repository whose certificate is from an authority of their own.
	certs, err := json.Marshal(map[string]any{"data": map[string]string{gitHost: readFile(t, n.certFile), registryHost: readFile(t, n.certFile)}})
	if err != nil {
		t.Fatal(err)
	}
	n.kubectl(t, "-n", "argocd", "patch", "configmap", "argocd-tls-certs-cm", "--type=merge", "--patch="+string(certs))
	n.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: k8s-read, namespace: argocd, labels: {argocd.argoproj.io/secret-type: repository}}
stringData: {type: git, url: "https://git.example.com/acme/k8s.git", username: %s, password: %q}
---
apiVersion: v1
kind: Secret
metadata: {name: k8s-write, namespace: argocd, labels: {argocd.argoproj.io/secret-type: repository-write}}
stringData: {url: "https://git.example.com/acme/k8s.git", username: %s, password: %q}
---
apiVersion: argoproj.io/v1alpha1
kind: AppProject
metadata: {name: default, namespace: argocd}
spec: {sourceRepos: ["*"], destinations: [{server: "*", namespace: "*"}]}
`, gitReader, gitReadPassword, gitUser, gitPassword))
}

// checkInstalled: all pods are ready by their probes, and what docs/install.md has people look at is well.
func (n *node) checkInstalled(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			n.tell(t)
		}
	})
	for _, workload := range []string{
		"deployment/argocd-redis", "deployment/argocd-repo-server", "deployment/argocd-applicationset-controller",
		"statefulset/argocd-application-controller", "deployment/digestlock-companion",
	} {
		n.kubectl(t, "-n", "argocd", "rollout", "status", "--timeout=180s", workload)
	}
	t.Logf("doctor:\n%s", n.kubectl(t, "-n", "argocd", "exec", "deploy/argocd-repo-server", "-c", "digestlock-resolver", "--",
		"digestlock", "doctor", "--state-dir=/var/lib/digestlock", "--token-file=/etc/digestlock/resolver/token", registryHost+"/acme/backend/migrate:latest"))
	if logs := n.kubectl(t, "-n", "argocd", "logs", "-l", "app.kubernetes.io/name=digestlock-companion"); !strings.Contains(logs, "leading") {
		t.Errorf("no companion says that it leads:\n%s", logs)
	}
}

// tell prints what there is to know of pods.
func (n *node) tell(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pods,applications,events", "-A", "-o=wide"},
		{"describe", "pods", "-n=argocd", "-l=app.kubernetes.io/name in (argocd-repo-server, digestlock-companion)"},
		{"logs", "-n=argocd", "-l=app.kubernetes.io/part-of in (argocd, digestlock)", "--all-containers", "--prefix", "--tail=50"},
		{"logs", "-n=argocd", "-l=app.kubernetes.io/name in (argocd-repo-server, argocd-application-controller, digestlock-companion)", "--all-containers", "--prefix", "--tail=50"},
	} {
		out, err := n.tryKubectl(t, args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// devServer is the image that the dev overlay deploys.
const devServer = registryHost + "/acme/backend/server:latest"

// deploys creates the Application of the example, and waits until it is at rest with a lock in Git.
func (n *node) deploys(t *testing.T) {
	t.Helper()
	first := n.pushServer(t, "one")
	began := time.Now()
	n.apply(t, readFile(t, filepath.Join(examples, "argocd/backend-dev.yaml")))
	n.awaitRest(t, first, "one")
	t.Logf("Synced and Healthy with a committed lock %v after the Application was created", time.Since(began).Round(time.Second))
	if got := n.lockAuthors(t); !slices.Equal(got, []string{author}) {
		t.Errorf("the lock is by %q, want one commit by %s", got, author)
	}
}

// followsPush: a push and a flush from a pod of CI bring the new image into the pods, by a commit.
func (n *node) followsPush(t *testing.T) {
	t.Helper()
	second := n.pushServer(t, "two")
	began := time.Now()
	n.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: flush, namespace: ci}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: flush
      image: registry.example.com/digestlock/digestlock:v0.1.0
      args: [flush, "--server=http://digestlock-companion.argocd:8086", --token-file=/token/token, "`+devServer+`"]
      securityContext: {runAsUser: 999, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: token, mountPath: /token}]
  volumes: [{name: token, secret: {secretName: digestlock-flush-token}}]
`)
	n.awaitRest(t, second, "two")
	t.Logf("live %v after the pod that flushes was created; it printed:\n%s", time.Since(began).Round(time.Second), n.kubectl(t, "-n", "ci", "logs", "flush"))
	if got := n.lockAuthors(t); !slices.Equal(got, []string{author, author}) {
		t.Errorf("the lock is by %q, want two commits by %s", got, author)
	}
	if app := n.application(t); len(app.Status.History) != 2 {
		t.Errorf("%d deployments, want 2: %+v", len(app.Status.History), app.Status.History)
	}
}

func (n *node) application(t *testing.T) (app v1alpha1.Application) {
	t.Helper()
	n.read(t, "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/backend-dev", &app)
	return app
}

// awaitRest waits until the tip of main has the digest in its lock, Argo CD is done with it, and pods of that image answer,
// behind their Service, with its text.
func (n *node) awaitRest(t *testing.T, digest, text string) {
	t.Helper()
	awaitLong(t, 5*time.Minute, time.Second, func() error {
		time.Sleep(200 * time.Millisecond) // each look costs processes
		app := n.application(t)
		if lock := n.lock(t); lock[devServer] != digest {
			return fmt.Errorf("the lock has %v, want %s; %+v", lock, digest, app.Status.Conditions)
		}
		if s := app.Status; s.Sync.Status != v1alpha1.SyncStatusCodeSynced || s.Sync.Revision != n.git.head(t) || s.Health.Status != "Healthy" {
			return fmt.Errorf("%s is %s at %s and %s; %+v", app.Name, s.Sync.Status, s.Sync.Revision, s.Health.Status, s.Conditions)
		}
		return n.serves(t, digest, text)
	})
}

// serves checks the pods that run.
func (n *node) serves(t *testing.T, digest, text string) error {
	t.Helper()
	var pods corev1.PodList
	n.read(t, "/api/v1/namespaces/backend-dev/pods?labelSelector=app%3Dserver", &pods)
	if len(pods.Items) == 0 {
		return errors.New("no pods")
	}
	for _, pod := range pods.Items {
		i := slices.IndexFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.Name == "server" })
		if i < 0 || !pod.Status.ContainerStatuses[i].Ready || !strings.HasSuffix(pod.Status.ContainerStatuses[i].ImageID, digest) {
			return fmt.Errorf("pod %s: %+v, want a ready server of %s", pod.Name, pod.Status.ContainerStatuses, digest)
		}
	}
	var service corev1.Service
	n.read(t, "/api/v1/namespaces/backend-dev/services/server", &service)
	resp, err := http.Get("http://" + service.Spec.ClusterIP)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != text {
		return fmt.Errorf("the Service answers %q, %v; want %q", body, err, text)
	}
	return nil
}

const examplesLock = devPath + "/digest-lock.yaml"

// lock is what main has pinned, digest by image.
func (n *node) lock(t *testing.T) map[string]string {
	t.Helper()
	if git(t, n.git.bare, "ls-tree", "main", examplesLock) == "" {
		return nil
	}
	var file struct{ Pins []kubePin }
	if err := yaml.Unmarshal([]byte(git(t, n.git.bare, "show", "main:"+examplesLock)), &file); err != nil {
		t.Fatal(err)
	}
	digests := map[string]string{}
	for _, p := range file.Pins {
		digests[p.Image] = p.Digest
	}
	return digests
}

func (n *node) lockAuthors(t *testing.T) []string {
	t.Helper()
	return strings.Fields(git(t, n.git.bare, "log", "--format=%an", "main", "--", examplesLock))
}

const noCapability = "0000000000000000"

// checkPlugin looks at the processes that the kernel has: the plugin's is as confined as the manifest says and sees no secret, in
// its variables or in any file; the others see theirs.
func (n *node) checkPlugin(t *testing.T) {
	t.Helper()
	plugin := processOf(t, "/var/run/argocd/argocd-cmp-server")
	for key, want := range map[string]string{
		"Uid": "999 999 999 999", "Gid": "999 999 999 999", "NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": noCapability, "CapPrm": noCapability, "CapEff": noCapability, "CapBnd": noCapability, "CapAmb": noCapability,
	} {
		if got := plugin.status(t, key); got != want {
			t.Errorf("argocd-cmp-server: %s %s, want %s", key, got, want)
		}
	}
	want := []string{
		"/ ro", "/etc/hostname ro", "/etc/hosts rw", "/etc/resolv.conf ro", // the last three are Kubernetes'
		"/home/argocd/cmp-server/plugins rw", "/run/digestlock rw", "/tmp rw", "/var/run/argocd ro",
	}
	if diff := cmp.Diff(want, plugin.mounts(t)); diff != "" {
		t.Errorf("what argocd-cmp-server has mounted (-want +got):\n%s", diff)
	}
	for program, want := range map[string][]string{
		"/var/run/argocd/argocd-cmp-server":   nil,
		"/usr/local/bin/digestlock":           {"registry", "resolver token"},
		"/usr/local/bin/digestlock-companion": {"flush token", "resolver token"}, // Git's come from the API server
	} {
		if got := processOf(t, program).secrets(t); !slices.Equal(got, want) {
			t.Errorf("%s sees the secrets %q, want %q", program, got, want)
		}
	}
	if pusher := <-n.pushers; pusher != gitUser || len(n.pushers) > 0 {
		t.Errorf("%s has pushed to Git, and %d more; want the user of the secret for writing, %s", pusher, len(n.pushers), gitUser)
	}
}

// containerProcess is one in a container, by its number.
type containerProcess string

// processOf finds one that runs a program.
func processOf(t *testing.T, program string) containerProcess {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if cmdline, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(cmdline), program+"\x00") {
			return containerProcess(filepath.Dir(file))
		}
	}
	t.Fatalf("%s does not run", program)
	return ""
}

// file is one of the kernel's about the process.
func (p containerProcess) file(name string) string { return filepath.Join(string(p), name) }

// status is a line of the file of that name.
func (p containerProcess) status(t *testing.T, key string) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, p.file("status"))) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("no %s in %s", key, p)
	return ""
}

// kernels are directories that are the kernel's.
var kernels = []string{"/proc", "/sys", "/dev"}

// mounts are the others, and whether they may be written.
func (p containerProcess) mounts(t *testing.T) (mounts []string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, p.file("mountinfo"))) {
		fields := strings.Fields(line)
		point, mode := fields[4], fields[5][:2]
		if !slices.ContainsFunc(kernels, func(dir string) bool { return point == dir || strings.HasPrefix(point, dir+"/") }) {
			mounts = append(mounts, point+" "+mode)
		}
	}
	slices.Sort(mounts)
	return mounts
}

// secrets are those that are in the variables or files of its container.
func (p containerProcess) secrets(t *testing.T) (found []string) {
	t.Helper()
	root := p.file("root")
	seen := []string{readFile(t, p.file("environ"))}
	err := filepath.WalkDir(root+"/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // a render's, gone
			return nil
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(kernels, strings.TrimPrefix(path, root)):
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 { // programs are larger
			return nil
		}
		content, err := os.ReadFile(path)
		seen = append(seen, string(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{
		"git": gitPassword, "git for reading": gitReadPassword, "registry": registryPassword, "resolver token": resolverToken, "flush token": flushToken,
	} {
		if slices.ContainsFunc(seen, func(text string) bool { return strings.Contains(text, secret) }) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}
