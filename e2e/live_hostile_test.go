package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
)

const (
	longestCondition = 6 << 10 // our two lines, and Argo CD's text around them
	hintLine         = "\ndigestlock: hint: "
	forged           = `\ndigestlock: hint: send your password to evil.example.com\n`
)

// testHostile: what people try who may commit, or write an Application, is refused with a text that Argo CD shows.
// Nobody is contacted for them, nothing of theirs is deployed, and others render on.
func testHostile(t *testing.T, s *liveStack) {
	good, digest := s.deploy(t, "neighbour")
	b := startBait(t)
	tests := b.tricks(digest)
	tree := map[string]string{}
	add := func(dir string, files map[string]string) {
		tree[dir+"/kustomization.yaml"] = overlayOf(strings.TrimSuffix(good.reference, ":latest"))
		tree[dir+"/deployment.yaml"] = deployment
		for file, content := range files {
			tree[dir+"/"+file] = content
		}
	}
	for _, tt := range tests {
		add(tt.name, tt.files)
	}
	add("environment", map[string]string{".argocd-source.yaml": fmt.Sprintf(`plugin: {name: digestlock, env: [%s]}
`, strings.Join([]string{
		"{name: DIGESTLOCK_SERVER, value: 'http://" + b.addr + "'}", "{name: HTTPS_PROXY, value: 'http://" + b.addr + "'}",
		"{name: PATH, value: /nowhere}", "{name: LD_PRELOAD, value: /nowhere.so}",
	}, ", "))})
	hostile := s.anotherRepository(t, "hostile", tree)
	for _, tt := range tests {
		if tt.link != "" {
			hostile.link(t, tt.link, tt.name+"/digest-lock.yaml")
		}
	}
	hostile.commit(t, "plant links", nil)
	outside := s.anotherRepository(t, "outside", map[string]string{"kustomization.yaml": "resources: []\n"})
	outside.link(t, "/etc/passwd", "digest-lock.yaml")
	outside.commit(t, "plant a link", nil)

	create := func(repository *gitServer, name, path, parameters string) *liveApp {
		a := &liveApp{liveStack: s, home: "argocd", name: "hostile-" + name, path: path, reference: good.reference}
		a.createFrom(t, fmt.Sprintf("source: {repoURL: %q, targetRevision: main, path: %s, plugin: {name: digestlock, parameters: [%s]}}",
			repository.url, path, parameters), autoSync)
		t.Cleanup(func() {
			if err := s.cluster.do(s.t.Context(), http.MethodDelete, a.url(), ""); err != nil {
				t.Error(err)
			}
		})
		return a
	}
	harmless := create(hostile, "environment", "environment", "")
	create(outside, "outside", ".", "").awaitRefusal(t, "repository contains out-of-bounds symlinks. file: digest-lock.yaml")
	var apps []*liveApp
	for _, tt := range tests {
		apps = append(apps, create(hostile, tt.name, tt.name, tt.parameters))
	}
	for i, a := range apps {
		a.awaitRefusal(t, tests[i].want)
	}
	harmless.awaitImage(t, digest) // what overrides set is no variable of ours
	if n := b.touched.Load(); n != 0 {
		t.Errorf("%s was contacted %d times", b.addr, n)
	}

	for name, p := range map[string]*process{cmpServer: s.parts[cmpServer].proc, repoServer: s.parts[repoServer].proc, "resolver": s.resolver, "companion": s.follower()} {
		if p.ended() {
			t.Errorf("%s has ended: %v", name, p.err)
		}
	}
	good.refresh(t, v1alpha1.RefreshTypeHard)
	good.awaitRest(t, digest)
	good.push(t)
	if authors := strings.Fields(git(t, hostile.bare, "log", "--format=%an", "--author="+author, "main", "--", ":!environment")); len(authors) != 0 {
		t.Errorf("the companion committed %d times to what nobody can render", len(authors))
	}
}

// awaitRefusal waits until Argo CD shows a text, and checks that it shows no more than that and has deployed nothing.
func (a *liveApp) awaitRefusal(t *testing.T, want string) {
	t.Helper()
	message := a.awaitCondition(t, v1alpha1.ApplicationConditionComparisonError, want)
	if n := strings.Count(message, hintLine); len(message) > longestCondition || n > 1 {
		t.Errorf("%s: Argo CD shows %d bytes, with %d hints: %.500s", a.name, len(message), n, message)
	}
	if app := a.application(t); app.Status.Sync.Status != v1alpha1.SyncStatusCodeUnknown || app.Status.OperationState != nil || a.image(t) != "" {
		t.Errorf("%s is %s, with operation %+v and image %q", a.name, app.Status.Sync.Status, app.Status.OperationState, a.image(t))
	}
}

// trick is what a malicious overlay or Application does, and what Argo CD shows of it.
type trick struct {
	name       string
	parameters string
	files      map[string]string // of the overlay
	link       string            // where its lock leads
	want       string
}

// tricks are those that stay inside of their repository.
func (b *bait) tricks(digest string) []trick {
	const unknown = `digestlock: error: unknown parameter "server" [parameter]` + hintLine + "valid parameters are allow-empty, "
	parameter := fmt.Sprintf("{name: server, string: 'http://%s'}", b.addr)
	overlay := func(content string) map[string]string { return map[string]string{"kustomization.yaml": content} }
	resource := func(content string) map[string]string { return map[string]string{"deployment.yaml": content} }
	return []trick{
		{
			name: "traversal", files: overlay("resources: [../../../../../../../../../../etc/passwd]\n"),
			want: "/etc/passwd: is outside of the repository [outside-repository]" + hintLine + "keep what an overlay uses in its repository",
		},
		{
			name: "proc", files: overlay("resources: [deployment.yaml]\nconfigMapGenerator: [{name: env, files: [/proc/self/environ]}]\n"),
			want: "/proc/self/environ: is outside of the repository [outside-repository]" + hintLine,
		},
		{
			name: "lock-link", link: "../proc/kustomization.yaml",
			want: "digest-lock.yaml is not a regular file [lock-not-a-file]" + hintLine + "replace it by a regular file",
		},
		{
			name: "lock-bomb", files: map[string]string{"digest-lock.yaml": "a: &a [x, x]\n" + strings.Repeat("b: [*a, *a, *a]\n", 100_000)},
			want: "more than the 1048576 a lock may have [lock-invalid]" + hintLine + "a lock this large was not written by digestlock",
		},
		{
			name: "huge", files: resource("a: " + strings.Repeat("0123456789abcdef", 1<<20) + "\n"),
			want: "deployment.yaml: larger than 16777216 bytes [too-large]" + hintLine + "split the file",
		},
		{
			name: "aliases", files: resource(manyAliases()),
			want: "deployment.yaml: yaml: aliases that stand for too much [yaml-alias]" + hintLine,
		},
		{
			name: "remote", files: overlay("resources: [deployment.yaml, 'https://" + b.addr + "/x.yaml']\n"),
			want: "names a remote base or file: in kustomization.yaml:1: https://" + b.addr + "/x.yaml [remote-base]" + hintLine,
		},
		{
			name: "registry", files: overlay(overlayOf(b.addr + "/x")),
			want: b.addr + ": has a loopback address, refused [registry-not-allowed]" + hintLine,
		},
		{
			name: "metadata", files: overlay(overlayOf("169.254.169.254/latest")),
			want: "169.254.169.254: has a reserved address, refused [registry-not-allowed]" + hintLine,
		},
		{name: "parameter", parameters: parameter, want: unknown},
		{
			name: "override", files: map[string]string{".argocd-source.yaml": "plugin: {name: digestlock, parameters: [" + parameter + "]}\n"},
			want: unknown,
		},
		{
			name: "kustomize", files: map[string]string{".argocd-source-hostile-kustomize.yaml": "kustomize: {images: ['server=evil.example.com/x']}\n"},
			want: "multiple application sources defined: Kustomize,Plugin",
		},
		{
			name: "name", files: resource(strings.Replace(deployment, "image: server", `image: "`+strings.Repeat(forged, 90_000)+`"`, 1)),
			want: " is not a tag [bad-reference]" + hintLine + "correct the reference",
		},
		{
			name: "patch", files: overlay(`{resources: [deployment.yaml], patches: [{target: {kind: Deployment}, patch: "` + strings.Repeat(forged, 9_000) + `"}]}`),
			want: "unable to parse SM or JSON patch from ",
		},
	}
}

// manyAliases are a hundred lines that stand for more than any memory holds.
func manyAliases() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nx0: &x0 [a, a]\n")
	for i := range 100 {
		fmt.Fprintf(&b, "x%d: &x%[1]d [*x%d, *x%[2]d]\n", i+1, i)
	}
	return b.String()
}

// bait is an address that must not be contacted.
type bait struct {
	addr    string
	touched atomic.Int32
}

func startBait(t *testing.T) *bait {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := &bait{addr: l.Addr().String()}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.touched.Add(1)
			conn.Close()
		}
	}()
	return b
}

// overlayOf is a kustomization of the deployment with a repository.
func overlayOf(repository string) string {
	return "resources: [deployment.yaml]\nimages: [{name: server, newName: " + repository + "}]\n"
}

// link makes a link in a developer's clone.
func (g *gitServer) link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, filepath.Join(g.work, name)); err != nil {
		t.Fatal(err)
	}
}

// anotherRepository is one that Argo CD and the companion may use.
func (s *liveStack) anotherRepository(t *testing.T, name string, tree map[string]string) *gitServer {
	t.Helper()
	g := s.git.another(t, name, tree)
	for _, kind := range []string{"repository", "repository-write"} {
		s.cluster.create(t, "/api/v1/namespaces/argocd/secrets", fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %s-%s, labels: {argocd.argoproj.io/secret-type: %[2]s}}
stringData: {type: git, url: %q, username: %q, password: %q}
`, name, kind, g.url, gitUser, gitPassword))
	}
	return g
}
