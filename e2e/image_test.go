package e2e

import (
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"go/version"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/argoproj/argo-cd/v3/common"
)

// maxImage is what the plugin's image may add to its base: nodes pull it beside Argo CD.
const maxImage = 40 << 20

// arches are the platforms that images are for.
var arches = []string{"amd64", "arm64"}

// TestImage builds the Dockerfile as it is, on stand-ins for its bases, and runs the plugin's image as Kubernetes does, under
// the real argocd-cmp-server. What stand-ins cannot show: that the real bases exist, and what is in them.
func TestImage(t *testing.T) {
	if os.Getenv("DIGESTLOCK_TEST_IMAGE") == "" {
		t.Skip("make e2e-image runs it: this binary has to be static to be argocd-cmp-server in the image")
	}
	lint(t)
	b := newBuilder(t, shortDir(t))
	for _, arch := range arches {
		b.standFor(t, arch)
		for image, programs := range map[string][]string{
			"digestlock":           {"digestlock", "docker-credential-digestlock"},
			"digestlock-companion": {"digestlock-companion"},
		} {
			ok := t.Run(image+"/"+arch, func(t *testing.T) {
				b.build(t, image, arch)
				b.inspect(t, image, arch, programs)
			})
			if !ok {
				return
			}
		}
	}
	t.Run("companion", func(t *testing.T) {
		out, err := b.podman(append(b.confined("digestlock-companion"), "--version")...).CombinedOutput()
		if want := "digestlock-companion v0.0.1\n"; err != nil || string(out) != want {
			t.Errorf("digestlock-companion --version: %v, %q, want %q", err, out, want)
		}
	})
	t.Run("render", func(t *testing.T) { b.render(t) })
}

// lint runs BuildKit's linter.
func lint(t *testing.T) {
	t.Helper()
	file, err := os.Open("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), "go", "run", ".")
	cmd.Dir, cmd.Stdin = "dockerfile-lint", file
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("lint the Dockerfile: %v\n%s", err, out)
	}
}

// builder is buildah and podman on a storage of the test's own.
type builder struct {
	storage []string
	env     []string
}

// newBuilder skips the test where containers cannot be run, and makes the stand-ins.
func newBuilder(t *testing.T, dir string) *builder {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers are built and run as root here")
	}
	for _, program := range []string{"buildah", "podman", "runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("apt-get install buildah podman runc busybox-static: %v", err)
		}
	}
	writeFile(t, filepath.Join(dir, "containers.conf"), "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n")
	b := builderIn(dir)
	b.image(t, "localhost/probe:1", nil, map[string]string{"/bin/busybox": "/bin/busybox"})
	if out, err := b.podman(append(b.confined("probe:1"), "/bin/busybox", "true")...).CombinedOutput(); err != nil {
		t.Skipf("this kernel, or this container, does not let podman run one: %v\n%s", err, out)
	}
	t.Cleanup(func() { b.buildah("rmi", "--all", "--force").Run() })
	b.standIns(t)
	return b
}

// builderIn is the one that newBuilder made in dir.
func builderIn(dir string) *builder {
	return &builder{
		storage: []string{"--root=" + dir + "/root", "--runroot=" + dir + "/run", "--storage-driver=overlay"},
		env:     append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(dir, "containers.conf")),
	}
}

func (b *builder) buildah(args ...string) *exec.Cmd {
	cmd := exec.Command("buildah", append(slices.Clone(b.storage), args...)...)
	cmd.Env = b.env
	return cmd
}

func (b *builder) podman(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append(append(slices.Clone(b.storage), "--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none"), args...)...)
	cmd.Env = b.env
	return cmd
}

// confined are the arguments that run an image as the manifests have Kubernetes run it, and without a network.
func (b *builder) confined(image string, more ...string) []string {
	return slices.Concat([]string{
		"run", "--rm", "--interactive", "--network=none", "--read-only", "--cap-drop=ALL", "--user=999:999", "--security-opt=no-new-privileges",
	}, more, []string{"localhost/" + image})
}

func must(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := stdoutOf(cmd)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return out
}

// from matches the bases of the Dockerfile.
var from = regexp.MustCompile(`(?m)^FROM (?:--platform=\S+ )?(\S+/(\S+):(\S+)) AS `)

// standIns makes an image under the name of each base: for golang this machine's Go with busybox and make, for distroless
// what is known to be in it.
func (b *builder) standIns(t *testing.T) {
	t.Helper()
	certs := "/etc/ssl/certs/ca-certificates.crt"
	made := map[string]bool{}
	for _, base := range from.FindAllStringSubmatch(readFile(t, "../Dockerfile"), -1) {
		if made[base[1]] {
			continue
		}
		made[base[1]] = true
		switch name := base[2]; {
		case name == "golang":
			if wants, here := "go"+base[3], runtime.Version(); version.Lang(wants) != version.Lang(here) {
				t.Errorf("the Dockerfile builds with %s, the tests with %s", wants, here)
			}
			files := map[string]string{"/bin/busybox": "/bin/busybox", "/usr/bin/make": "/usr/bin/make", "/usr/local/go": runtimeRoot(t), certs: certs}
			for _, library := range regexp.MustCompile(`/\S+`).FindAllString(must(t, exec.Command("ldd", "/usr/bin/make")), -1) {
				files[library] = library
			}
			b.image(t, base[1], []string{"--env=PATH=/usr/local/go/bin:/usr/bin:/bin", "--env=GOPATH=/go", "--env=GOTOOLCHAIN=local", "--env=HOME=/root"}, files)
		case strings.HasPrefix(name, "static-"):
			b.image(t, base[1], []string{"--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--user=65532"}, map[string]string{certs: certs})
		default:
			t.Fatalf("no stand-in for %s", base[1])
		}
	}
	if len(made) != 2 {
		t.Fatalf("bases %v, want two", made)
	}
}

// standFor gives the bases' names to the stand-ins for a platform. This buildah looks for golang on that platform too, whatever
// $BUILDPLATFORM is; BuildKit does not.
func (b *builder) standFor(t *testing.T, arch string) {
	t.Helper()
	for _, base := range from.FindAllStringSubmatch(readFile(t, "../Dockerfile"), -1) {
		must(t, b.buildah("tag", base[1]+"-"+arch, base[1]))
	}
}

func runtimeRoot(t *testing.T) string {
	t.Helper()
	return must(t, exec.Command("go", "env", "GOROOT"))
}

// image commits files of this machine, by their names in the image, under a name, and for each platform under one of its own
// with the same files: nothing in a base is run but what runs here.
func (b *builder) image(t *testing.T, name string, config []string, files map[string]string) {
	t.Helper()
	c := must(t, b.buildah("from", "scratch"))
	root := must(t, b.buildah("mount", c))
	for _, dir := range []string{"bin", "root", "go", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for to, source := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(to)), 0o755); err != nil {
			t.Fatal(err)
		}
		must(t, exec.Command("cp", "-rL", source, filepath.Join(root, to)))
	}
	if _, ok := files["/bin/busybox"]; ok {
		if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
			t.Fatal(err)
		}
		must(t, exec.Command("ln", "-s", "busybox", filepath.Join(root, "bin/mkdir")))
	}
	must(t, b.buildah("unmount", c))
	for _, arch := range arches {
		must(t, b.buildah(slices.Concat([]string{"config", "--arch=" + arch}, config, []string{c})...))
		must(t, b.buildah("commit", "--quiet", c, name+"-"+arch))
	}
	must(t, b.buildah("rm", c))
	must(t, b.buildah("tag", name+"-"+runtime.GOARCH, name))
}

// build builds a target for linux on arch, the modules and compiled packages shared with this machine.
func (b *builder) build(t *testing.T, target, arch string) {
	t.Helper()
	cmd := b.buildah("build", "--pull=never", "--isolation=chroot", "--layers", "--platform=linux/"+arch,
		"--volume="+must(t, exec.Command("go", "env", "GOMODCACHE"))+":/go/pkg/mod",
		"--volume="+must(t, exec.Command("go", "env", "GOCACHE"))+":/root/.cache/go-build",
		"--build-arg=VERSION=v0.0.1", "--build-arg=REVISION=0123456789abcdef",
		"--target="+target, "--tag=localhost/"+target+":"+arch, "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if arch == runtime.GOARCH {
		must(t, b.buildah("tag", "localhost/"+target+":"+arch, "localhost/"+target+":latest"))
	}
}

// inspect looks at what the image says of itself, and at the files that it has above its base.
func (b *builder) inspect(t *testing.T, image, arch string, programs []string) {
	t.Helper()
	var config struct {
		OCIv1 struct {
			Architecture string
			Config       struct {
				User       string
				Entrypoint []string
				Labels     map[string]string
			}
		}
	}
	name := "localhost/" + image + ":" + arch
	if err := json.Unmarshal([]byte(must(t, b.buildah("inspect", "--type=image", name))), &config); err != nil {
		t.Fatal(err)
	}
	got := config.OCIv1
	if got.Architecture != arch || got.Config.User != "999:999" || !slices.Equal(got.Config.Entrypoint, []string{"/usr/local/bin/" + image}) {
		t.Errorf("platform, user or entrypoint: %+v", got)
	}
	for label, want := range map[string]string{"title": image, "version": "v0.0.1", "revision": "0123456789abcdef", "licenses": "Apache-2.0", "source": "https://github.com/digestlock/digestlock"} {
		if is := got.Config.Labels["org.opencontainers.image."+label]; is != want {
			t.Errorf("label %s = %q, want %q", label, is, want)
		}
	}

	c := must(t, b.buildah("from", "--pull=never", name))
	defer b.buildah("rm", c).Run()
	root := must(t, b.buildah("mount", c))
	var size int64
	found := map[string]bool{}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == "etc/ssl/certs/ca-certificates.crt" { // of the base
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
			found[path] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, program := range programs {
		want["usr/local/bin/"+program] = true
		checkStatic(t, filepath.Join(root, "usr/local/bin", program), arch)
	}
	if image == "digestlock" {
		want["home/argocd/cmp-server/config/plugin.yaml"] = true
		if size > maxImage {
			t.Errorf("the image adds %d bytes to its base, want at most %d", size, maxImage)
		}
	}
	if fmt.Sprint(found) != fmt.Sprint(want) { // maps are printed in order
		t.Errorf("files %v, want %v", found, want)
	}
	t.Logf("%s: %.1f MB above the base", name, float64(size)/1e6)
}

// checkStatic: a program needs nothing but a kernel, of the right kind.
func checkStatic(t *testing.T, program, arch string) {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	interpreted := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if f.Machine != machine || interpreted {
		t.Errorf("%s is for %v and dynamically linked: %t; want static, for %v", filepath.Base(program), f.Machine, interpreted, machine)
	}
}

// render has argocd-cmp-server in the image render a locked overlay, for the repo-server's code out here.
func (b *builder) render(t *testing.T) {
	const path = "k8s/namespaces/backend/overlays/dev"
	const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	const server, migrate = "registry.example.com/acme/backend/server:latest", "registry.example.com/acme/backend/migrate:latest"
	files := map[string]string{path + "/digest-lock.yaml": fmt.Sprintf(`apiVersion: digestlock.dev/v1
kind: DigestLock
pins:
  - image: %s
    digest: %s
    resolvedAt: "2026-11-22T20:57:00Z"
  - image: %s
    digest: %s
    resolvedAt: "2026-11-22T20:57:00Z"
`, migrate, digest, server, digest)}
	for _, name := range []string{"base/kustomization.yaml", "base/deployment.yaml", "base/service.yaml", "overlays/dev/kustomization.yaml"} {
		name = "k8s/namespaces/backend/" + name
		files[name] = readFile(t, filepath.Join(examples, name))
	}
	git := startGit(t, files)
	dir := shortDir(t)
	sockets, temp, self := filepath.Join(dir, "plugins"), filepath.Join(dir, "tmp"), filepath.Join(dir, asCMPServer)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command("cp", exe, self)) // the component is chosen by the name
	for _, d := range []string{dir, sockets, temp} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o777); err != nil { // as an emptyDir is
			t.Fatal(err)
		}
	}
	t.Setenv(common.EnvPluginSockFilePath, sockets)
	a := &argoCD{git: git}
	a.trust(t, filepath.Join(dir, "tls"))
	a.cmp = start(t, b.podman(b.confined("digestlock", "--volume="+temp+":/tmp", "--entrypoint=/var/run/argocd/"+asCMPServer,
		"--volume="+self+":/var/run/argocd/"+asCMPServer+":ro", "--volume="+sockets+":/home/argocd/cmp-server/plugins",
	)...), showLog(t, filepath.Join(dir, "argocd-cmp-server.log")))
	a.cmp.waitReady(t, func(ctx context.Context) error { return dial(ctx, "unix", filepath.Join(sockets, "digestlock.sock")) })

	commit := git.head(t)
	manifests, err := a.render(t.Context(), application{path: path}, a.checkout(t, commit), commit)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{server + "@" + digest, "registry.example.com/mirror/envoy:v1.36.2"}
	got := images(t, manifests) // of containers that are no init containers
	if !slices.Equal(got, want) {
		t.Errorf("images = %q, want %q", got, want)
	}
}
