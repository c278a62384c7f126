package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/argoproj/argo-cd/v3/cmpserver/plugin"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"
)

// The Applications of testdata/repo: one base, an overlay per tag, and one that cannot be rendered.
var (
	dev     = application{path: "server/overlays/dev"}     // backend/server:latest
	prod    = application{path: "server/overlays/prod"}    // backend/server:v1.2.3
	preview = application{path: "server/overlays/preview"} // backend/server:main
	broken  = application{path: "broken"}                  // backend/absent:latest
)

const (
	serverLatest = "backend/server:latest"
	serverMain   = "backend/server:main"
	devLock      = "server/overlays/dev/digest-lock.yaml"
)

func TestPluginYAML(t *testing.T) {
	content := []byte(readFile(t, filepath.Join("..", "plugin", "plugin.yaml")))
	var config plugin.PluginConfig
	if err := yaml.UnmarshalStrict(content, &config); err != nil {
		t.Fatalf("plugin.yaml has a field Argo CD does not know: %v", err)
	}
	if err := plugin.ValidatePluginConfig(config); err != nil {
		t.Error(err)
	}
	if got, want := config.Metadata.Name, "digestlock"; got != want {
		t.Errorf("name = %q, want %q", got, want)
	}
	command := slices.Concat(config.Spec.Generate.Command, config.Spec.Generate.Args)
	if want := []string{"digestlock", "generate"}; !slices.Equal(command, want) {
		t.Errorf("generate command = %q, want %q", command, want)
	}

	// An empty field and an absent one look the same in the struct, so look at the document.
	var document struct{ Spec map[string]any }
	if err := yaml.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	for field, why := range map[string]string{
		"version":  "it becomes part of the plugin's name, and an error in Argo CD v4",
		"discover": "it takes over every plain kustomize Application and sends the repository twice",
	} {
		if _, ok := document.Spec[field]; ok {
			t.Errorf("spec.%s is set: %s", field, why)
		}
	}
}

func TestPinnedRender(t *testing.T) {
	s := newStack(t)
	digest := s.registry.push(t, serverLatest)
	commit := s.git.head(t)

	for _, test := range []struct {
		app  application
		want string
	}{
		{dev, s.registry.image(serverLatest) + "@" + digest},
		{prod, s.registry.image("backend/server:v1.2.3")},
		{preview, s.registry.image(serverMain)}, // not mutable unless the Application says so
	} {
		t.Run(test.app.path, func(t *testing.T) {
			manifests := s.mustRender(t, test.app, commit)
			if got := images(t, manifests); !slices.Equal(got, []string{test.want}) {
				t.Errorf("images = %q, want %q", got, test.want)
			}
			if got, want := len(manifests), 2; got != want {
				t.Errorf("%d manifests, want %d: a Deployment and a Service", got, want)
			}
		})
	}

	for _, request := range s.registry.requests(t) {
		if strings.Contains(request, "v1.2.3") {
			t.Errorf("the registry was asked about a fixed tag: %s", request)
		}
	}
}

// TestPushToRollback is the life of an image: first render, first commit, registry outage, next push, rollback.
func TestPushToRollback(t *testing.T) {
	s := newStack(t)
	image := s.registry.image(serverLatest)
	digest1 := s.registry.push(t, serverLatest)
	source := s.git.head(t)
	manifests1 := s.mustRender(t, dev, source)

	if status, body := s.call(t, http.MethodGet, "/v1/pins", "", "s3cret"); status != http.StatusOK || !strings.Contains(body, digest1) {
		t.Fatalf("pins = %d %s, want 200 and %s", status, body, digest1)
	}
	if status, _ := s.call(t, http.MethodGet, "/v1/pins", "", "wrong"); status != http.StatusUnauthorized {
		t.Errorf("pins with a wrong token: status %d, want 401", status)
	}

	s.companion(t)
	commit1 := s.checkCommit(t, source, map[string]string{image: digest1})

	s.companion(t)
	if head := s.git.head(t); head != commit1 {
		t.Fatalf("the second run of the companion committed %s with nothing to say", git(t, s.git.bare, "show", head))
	}

	// The lock decides while the registry is away.
	s.registry.stop()
	if got := s.mustRender(t, dev, commit1); !slices.Equal(got, manifests1) {
		t.Errorf("with the registry stopped: manifests = %q, want %q", got, manifests1)
	}
	s.registry.start(t)

	digest2 := s.registry.push(t, serverLatest)
	if got, want := s.flush(t, image), []flushed{{image, digest1, digest2}}; !slices.Equal(got, want) {
		t.Errorf("flush = %v, want %v", got, want)
	}
	s.companion(t)
	commit2 := s.checkCommit(t, commit1, map[string]string{image: digest2})
	if got, want := images(t, s.mustRender(t, dev, commit2)), []string{image + "@" + digest2}; !slices.Equal(got, want) {
		t.Errorf("images of the new commit = %q, want %q", got, want)
	}
	if got := s.mustRender(t, dev, commit1); !slices.Equal(got, manifests1) {
		t.Errorf("rollback: manifests of the old commit = %q, want %q", got, manifests1)
	}

	s.registry.stop()
	s.resolver.terminate(t)
	if got := s.mustRender(t, dev, commit1); !slices.Equal(got, manifests1) {
		t.Errorf("with registry and resolver stopped: manifests = %q, want %q", got, manifests1)
	}
	message := s.renderFails(t, dev, source) // no lock yet, so this one needs the resolver
	if !strings.Contains(message, image) {
		t.Errorf("the error does not name %s:\n%s", image, message)
	}
}

// TestRememberedRender: Argo CD unpacks each render into another directory, and a commit that changes something else has it
// render again. Neither costs a build, and neither changes a byte.
func TestRememberedRender(t *testing.T) {
	s := newStack(t)
	s.registry.push(t, serverLatest)
	s.mustRender(t, dev, s.git.head(t))
	s.companion(t)
	locked := s.git.head(t)
	if n := s.remembered(t); n != (remembered{absent: 1}) {
		t.Fatalf("%+v before the lock decided, want none remembered", n)
	}
	want := s.mustRender(t, dev, locked)
	if n := s.remembered(t); n != (remembered{absent: 2, built: 1}) {
		t.Errorf("%+v after the first render", n)
	}
	if got := s.mustRender(t, dev, locked); !slices.Equal(got, want) {
		t.Errorf("second render: manifests = %q, want %q", got, want)
	}
	commit := s.git.commit(t, "docs: say more", map[string]string{"README.md": "something else\n"})
	if got := s.mustRender(t, dev, commit); !slices.Equal(got, want) {
		t.Errorf("another commit: manifests = %q, want %q", got, want)
	}
	if n := s.remembered(t); n != (remembered{absent: 2, found: 2, built: 1}) {
		t.Errorf("%+v after three renders: the second and the third were built", n)
	}
	if _, body := s.call(t, http.MethodGet, "/v1/pins", "", "s3cret"); !strings.Contains(body, commit) {
		t.Errorf("pins = %s, want the commit that was not built, %s", body, commit)
	}
}

// remembered is what the resolver's metrics say of renders: how many asked and found something, or nothing, and how many
// were built and are remembered since.
type remembered struct{ found, absent, built int }

func (s *stack) remembered(t *testing.T) (n remembered) {
	t.Helper()
	_, metrics := s.call(t, http.MethodGet, "/metrics", "", "")
	for series, into := range map[string]*int{
		`digestlock_renders_recalled_total{outcome="found"}`: &n.found, `digestlock_renders_recalled_total{outcome="absent"}`: &n.absent,
		`digestlock_renders_remembered_total`: &n.built,
	} {
		_, after, ok := strings.Cut(metrics, "\n"+series+" ")
		if _, err := fmt.Sscan(after, into); err != nil || !ok {
			t.Fatalf("no %s in the metrics: %v", series, err)
		}
	}
	return n
}

// checkCommit checks that main is one commit ahead of parent, that this commit does what the companion promises for
// the dev overlay, and returns it.
func (s *stack) checkCommit(t *testing.T, parent string, want map[string]string) string {
	t.Helper()
	head := s.git.head(t)
	if got := git(t, s.git.bare, "rev-list", "--parents", "-n1", head); got != head+" "+parent {
		t.Fatalf("main is at %s, want one commit on top of %s", got, parent)
	}
	got := s.pins(t, head, devLock)
	for image, digest := range want {
		if got[image] != digest || len(got) != len(want) {
			t.Errorf("pins = %v, want %v", got, want)
		}
		subject := "build: auto-update backend/server to " + digest[:len("sha256:")+12] + "…"
		if got := git(t, s.git.bare, "show", "-s", "--format=%s", head); got != subject {
			t.Errorf("subject = %q, want %q", got, subject)
		}
	}
	if got := git(t, s.git.bare, "diff", "--name-only", parent, head); got != devLock {
		t.Errorf("the commit changes %q, want only %q", got, devLock)
	}
	return head
}

func TestConcurrentRenders(t *testing.T) {
	s := newStack(t)
	digest := s.registry.push(t, serverLatest)
	commit := s.git.head(t)
	root := s.checkout(t, commit)
	before := len(s.registry.requests(t))

	var manifests [4][]string
	var errs [4]error
	var wg sync.WaitGroup
	for i := range manifests {
		wg.Go(func() { manifests[i], errs[i] = s.render(t.Context(), dev, root, commit) })
	}
	wg.Wait()

	for i := range manifests {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !slices.Equal(manifests[i], manifests[0]) {
			t.Errorf("render %d = %q, render 0 = %q", i, manifests[i], manifests[0])
		}
	}
	if got, want := images(t, manifests[0]), []string{s.registry.image(serverLatest) + "@" + digest}; !slices.Equal(got, want) {
		t.Errorf("images = %q, want %q", got, want)
	}
	// Asking whether it is a registry (GET /v2/) is fine, asking twice about the image is not.
	asked := slices.DeleteFunc(s.registry.requests(t)[before:], func(r string) bool { return r == "GET /v2/" })
	if want := []string{"HEAD /v2/backend/server/manifests/latest"}; !slices.Equal(asked, want) {
		t.Errorf("the registry was asked %q, want %q", asked, want)
	}
}

// pluginError is what a person sees of a failed render. Argo CD puts more around it: here
//
//	CMP processing failed for application "broken": error generating manifests in cmp: rpc error: code = Unknown desc =
//
// and, in the Application's condition, "Failed to load target state: failed to generate manifest for source 1 of 1:
// rpc error: code = Unknown desc = " before that.
var pluginError = regexp.MustCompile("^error generating manifests: `digestlock generate` failed exit status 1: " +
	"digestlock: error: [^\n]+ \\[[a-z-]+\\]\ndigestlock: hint: [^\n]+$")

// renderFails renders app at commit, which must fail in our way, and returns the message argocd-cmp-server sent.
func (s *stack) renderFails(t *testing.T, app application, commit string) string {
	t.Helper()
	manifests, err := s.render(t.Context(), app, s.checkout(t, commit), commit)
	if err == nil {
		t.Fatalf("render %s = %q, want an error", app.path, manifests)
	}
	t.Logf("Argo CD says:\n%v", err)
	failure, _ := status.FromError(err)
	if failure.Code() != codes.Unknown {
		t.Errorf("code = %v, want %v", failure.Code(), codes.Unknown)
	}
	_, message, _ := strings.Cut(err.Error(), "code = Unknown desc = ")
	if !pluginError.MatchString(message) {
		t.Errorf("argocd-cmp-server answered\n%s\nwant it to match\n%s", message, pluginError)
	}
	return message
}

func TestFailingRender(t *testing.T) {
	s := newStack(t)
	s.registry.push(t, serverLatest) // the other image of the overlay is fine, and still nothing is rendered

	message := s.renderFails(t, broken, s.git.head(t))
	if want := s.registry.image("backend/absent:latest"); !strings.Contains(message, want) {
		t.Errorf("the error does not name %s:\n%s", want, message)
	}
}

func TestNothingIsLeftAfterRender(t *testing.T) {
	s := newStack(t)
	s.registry.push(t, serverLatest)

	s.mustRender(t, dev, s.git.head(t))
	if got := s.leftovers(t); len(got) != 0 {
		t.Errorf("after a render: %q", got)
	}
	s.renderFails(t, broken, s.git.head(t))
	if got := s.leftovers(t); len(got) != 0 {
		t.Errorf("after a failed render: %q", got)
	}
}

func TestParameters(t *testing.T) {
	s := newStack(t)
	latest, main := s.registry.push(t, serverLatest), s.registry.push(t, serverMain)
	commit := s.git.head(t)

	tags := v1alpha1.ApplicationSourcePluginParameters{{
		Name:          "tags",
		OptionalArray: &v1alpha1.OptionalArray{Array: []string{"latest", "main"}},
	}}
	for _, test := range []struct {
		name string
		app  application
		want string
	}{
		{"none", application{path: dev.path}, serverLatest + "@" + latest},
		{"tags/latest", application{dev.path, tags}, serverLatest + "@" + latest},
		{"tags/main", application{preview.path, tags}, serverMain + "@" + main},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := []string{s.registry.image(test.want)}
			if got := images(t, s.mustRender(t, test.app, commit)); !slices.Equal(got, want) {
				t.Errorf("images = %q, want %q", got, want)
			}
		})
	}

	t.Run("unknown", func(t *testing.T) {
		latest := "latest"
		message := s.renderFails(t, application{dev.path, v1alpha1.ApplicationSourcePluginParameters{{Name: "tagz", String_: &latest}}}, commit)
		config, err := plugin.ReadPluginConfig(filepath.Join("..", "plugin"))
		if err != nil {
			t.Fatal(err)
		}
		valid := []string{"tags", "mode"}
		for _, p := range config.Spec.Parameters.Static {
			valid = append(valid, p.Name)
		}
		for _, name := range append(valid, "tagz") {
			if !regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `\b`).MatchString(message) {
				t.Errorf("the error does not mention %q:\n%s", name, message)
			}
		}
	})
}

// TestLive: in mode live the registry decides at the tip of the branch, and the lock at every other commit. Whether a
// commit is the tip is read from the .git that Argo CD's own client made and its repo-server shipped.
func TestLive(t *testing.T) {
	s := newStack(t)
	image := s.registry.image(serverLatest)
	mode := "live"
	live := application{dev.path, v1alpha1.ApplicationSourcePluginParameters{{Name: "mode", String_: &mode}}}
	digest1 := s.registry.push(t, serverLatest)
	s.mustRender(t, live, s.git.head(t))
	s.companion(t)
	commit1 := s.git.head(t)

	digest2 := s.registry.push(t, serverLatest)
	s.flush(t, image)
	if got, want := images(t, s.mustRender(t, live, commit1)), []string{image + "@" + digest2}; !slices.Equal(got, want) {
		t.Errorf("at the tip: images = %q, want %q", got, want)
	}
	s.companion(t)
	if head := s.git.head(t); head == commit1 {
		t.Fatal("the companion did not commit what moved")
	}
	if got, want := images(t, s.mustRender(t, live, commit1)), []string{image + "@" + digest1}; !slices.Equal(got, want) {
		t.Errorf("behind the tip: images = %q, want those of the lock, %q", got, want)
	}
	s.registry.stop()
	s.resolver.terminate(t)
	if got, want := images(t, s.mustRender(t, live, s.git.head(t))), []string{image + "@" + digest2}; !slices.Equal(got, want) {
		t.Errorf("with registry and resolver stopped: images = %q, want those of the lock, %q", got, want)
	}
}
