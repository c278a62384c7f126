package e2e

import (
	"bytes"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	gitUser     = "digestlock"
	gitPassword = "correct horse battery staple"
)

// gitServer is git http-backend behind HTTPS and basic authentication, with one repository.
type gitServer struct {
	url                  string
	caFile, passwordFile string
	bare                 string // the repository
	work                 string // a developer's clone of it

	backend http.Handler
	server  *httptest.Server
}

// startGit serves a repository whose branch main holds one commit with tree, a map from path to content.
func startGit(t *testing.T, tree map[string]string) *gitServer {
	t.Helper()
	g := newGit(t, "deploy.git", tree)
	g.backend = httpBackend(t, filepath.Dir(g.bare))
	g.start(t, freeAddr())
	g.url = g.server.URL + "/deploy.git"
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.server.Certificate().Raw})
	writeFile(t, g.caFile, string(ca))
	return g
}

// newGit is one that nobody serves yet.
func newGit(t *testing.T, name string, tree map[string]string) *gitServer {
	t.Helper()
	dir := t.TempDir()
	g := &gitServer{
		caFile:       filepath.Join(dir, "ca.pem"),
		passwordFile: filepath.Join(dir, "password"),
		bare:         filepath.Join(dir, "git", name),
		work:         filepath.Join(dir, "work"),
	}
	writeFile(t, g.passwordFile, gitPassword+"\n")
	g.init(t, tree)
	return g
}

// init makes the repository and its clone.
func (g *gitServer) init(t *testing.T, tree map[string]string) {
	t.Helper()
	git(t, filepath.Dir(g.work), "init", "-q", "--bare", "-b", "main", g.bare)
	for _, setting := range []string{"http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"} {
		git(t, g.bare, "config", setting, "true")
	}
	git(t, filepath.Dir(g.work), "clone", "-q", g.bare, g.work)
	git(t, g.work, "checkout", "-q", "-B", "main")
	g.commit(t, "add the overlays", tree)
}

// another is a second repository of the server.
func (g *gitServer) another(t *testing.T, name string, tree map[string]string) *gitServer {
	t.Helper()
	other := *g
	other.url = g.server.URL + "/" + name + ".git"
	other.bare = filepath.Join(filepath.Dir(g.bare), name+".git")
	other.work = filepath.Join(t.TempDir(), name)
	other.init(t, tree)
	return &other
}

// start listens at an address, also at the one where it was stopped.
func (g *gitServer) start(t *testing.T, addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: g.backend}}
	server.StartTLS()
	t.Cleanup(server.Close)
	g.server = server
}

// stop is as if its machine was gone, and returns where it was.
func (g *gitServer) stop() (addr string) {
	g.server.Close()
	return g.server.Listener.Addr().String()
}

// httpBackend serves the repositories below root to who knows the password.
func httpBackend(t *testing.T, root string) http.Handler {
	t.Helper()
	path, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path:   path,
		Args:   []string{"http-backend"},
		Env:    []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull},
		Stderr: t.Output(),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != gitUser || password != gitPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		// CGI needs the length of the body, which Git leaves out for a large pack.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backend.ServeHTTP(w, r)
	})
}

// commit writes files on the newest main, as a developer does, and returns the new commit.
func (g *gitServer) commit(t *testing.T, subject string, files map[string]string) string {
	t.Helper()
	if g.branches(t) != "" {
		git(t, g.work, "pull", "-q", "--ff-only", "origin", "main")
	}
	for path, content := range files {
		writeFile(t, filepath.Join(g.work, path), content)
	}
	git(t, g.work, "add", "-A")
	git(t, g.work, "commit", "-q", "-m", subject)
	git(t, g.work, "push", "-q", "origin", "main")
	return g.head(t)
}

func (g *gitServer) branches(t *testing.T) string { return git(t, g.bare, "branch", "--list") }

// head is the commit at the tip of main.
func (g *gitServer) head(t *testing.T) string { return git(t, g.bare, "rev-parse", "main") }

// git runs git in dir and returns what it prints.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}
