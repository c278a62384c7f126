package e2e

import (
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// stack is everything an installation has, each part real: registry, Git server, resolver, Argo CD.
type stack struct {
	*argoCD
	registry  *registryServer
	resolver  *process
	api       string // URL of the resolver's TCP listener
	tokenFile string
}

func newStack(t *testing.T) *stack {
	t.Helper()
	dir := shortDir(t)
	registry := startRegistry(t, "")
	git := startGit(t, tree(t, registry.addr))
	s := &stack{registry: registry, tokenFile: filepath.Join(dir, "token")}
	writeFile(t, s.tokenFile, "s3cret\n")
	socket := s.startResolver(t, dir, freeAddr())
	s.argoCD = startArgoCD(t, dir, git, "unix://"+socket)
	return s
}

// shortDir is a temporary directory whose name leaves room for a socket's; that of t.TempDir does not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tree is testdata/repo with the registry's address filled in.
func tree(t *testing.T, registry string) map[string]string {
	t.Helper()
	files := map[string]string{}
	repo := os.DirFS(filepath.Join("testdata", "repo"))
	err := fs.WalkDir(repo, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(repo, path)
		files[path] = strings.ReplaceAll(string(content), "REGISTRY", registry)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// startResolver starts digestlock serve at a TCP address and returns its unix socket.
func (s *stack) startResolver(t *testing.T, dir, addr string, flags ...string) string {
	t.Helper()
	socket := filepath.Join(dir, "resolver.sock")
	s.api = "http://" + addr
	cmd := exec.Command(filepath.Join(binDir, "digestlock"), append([]string{
		"serve",
		"--socket", socket,
		"--listen", addr,
		"--token-file", s.tokenFile,
		"--state-dir", filepath.Join(dir, "state"),
		"--insecure-registry", s.registry.addr,
	}, flags...)...)
	cmd.Env = []string{"HOME=" + t.TempDir()}
	s.resolver = start(t, cmd, showLog(t, filepath.Join(dir, "digestlock-serve.log")))
	s.resolver.waitReady(t, func(ctx context.Context) error {
		if err := checkOK(ctx, s.api+"/healthz"); err != nil {
			return err
		}
		return dial(ctx, "unix", socket)
	})
	return socket
}

// mustRender renders app at commit.
func (s *stack) mustRender(t *testing.T, app application, commit string) []string {
	t.Helper()
	manifests, err := s.render(t.Context(), app, s.checkout(t, commit), commit)
	if err != nil {
		t.Fatalf("render %s at %s: %v", app.path, commit, err)
	}
	return manifests
}

// companion runs digestlock-companion --once.
func (s *stack) companion(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock-companion"), "--once",
		"--resolver", s.api,
		"--resolver-token-file", s.tokenFile,
		"--repo", s.git.url,
		"--git-username", gitUser,
		"--git-password-file", s.git.passwordFile,
		"--git-ca-file", s.git.caFile,
	)
	cmd.Env = []string{"HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	t.Logf("digestlock-companion printed:\n%s", out)
	if err != nil {
		t.Fatalf("digestlock-companion: %v", err)
	}
}

// flushed is one line of the answer to a flush.
type flushed struct{ Image, Old, New string }

// flush tells the resolver that image has changed.
func (s *stack) flush(t *testing.T, image string) []flushed {
	t.Helper()
	status, body := s.call(t, http.MethodPost, "/flush?image="+url.QueryEscape(image), "", "s3cret")
	if status != http.StatusOK {
		t.Fatalf("flush %s: status %d: %s", image, status, body)
	}
	var answer struct{ Flushed []flushed }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("flush answered %q: %v", body, err)
	}
	return answer.Flushed
}

// call sends a request with a bearer token to the resolver's TCP listener.
func (s *stack) call(t *testing.T, method, path, content, token string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.api+path, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// pins reads the lock file at path in a commit: digest by image.
func (s *stack) pins(t *testing.T, commit, path string) map[string]string {
	t.Helper()
	var file struct {
		APIVersion, Kind string
		Pins             []struct{ Image, Digest, ResolvedAt string }
	}
	content := git(t, s.git.bare, "show", commit+":"+path)
	if err := yaml.UnmarshalStrict([]byte(content), &file); err != nil {
		t.Fatalf("%s at %s: %v\n%s", path, commit, err, content)
	}
	if file.APIVersion != "digestlock.dev/v1" || file.Kind != "DigestLock" {
		t.Errorf("%s is a %s %s, want digestlock.dev/v1 DigestLock", path, file.APIVersion, file.Kind)
	}
	digests := map[string]string{}
	for _, p := range file.Pins {
		digests[p.Image] = p.Digest
	}
	return digests
}
