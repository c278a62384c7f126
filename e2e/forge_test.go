package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// front is Gitea as it is in earnest: behind TLS. It remembers what was written through its API.
type front struct {
	url, caFile string

	mu     sync.Mutex
	writes []string // "POST /api/v1/repos/…"
}

// secure puts a proxy with TLS in front of Gitea.
func (g *giteaServer) secure(t *testing.T) *front {
	t.Helper()
	f := &front{caFile: filepath.Join(t.TempDir(), "ca.pem")}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: g.addr})
		r.SetXForwarded()
		r.Out.Host = r.In.Host
	}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && strings.HasPrefix(r.URL.Path, "/api/") {
			f.mu.Lock()
			f.writes = append(f.writes, r.Method+" "+r.URL.Path)
			f.mu.Unlock()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.url = server.URL
	writeFile(t, f.caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	return f
}

// wrote returns what was written since it was asked last.
func (f *front) wrote() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	writes := f.writes
	f.writes = nil
	return writes
}

// createRepo makes a repository of Gitea's user with a first commit on main, which nobody may push to, and returns a
// clone of it.
func (g *giteaServer) createRepo(t *testing.T, name string) (work string) {
	t.Helper()
	g.call(t, http.MethodPost, "/user/repos", map[string]any{"name": name, "default_branch": "main", "auto_init": true})
	g.call(t, http.MethodPost, "/repos/"+giteaUser+"/"+name+"/branch_protections", map[string]any{"rule_name": "main", "enable_push": false})
	work = filepath.Join(t.TempDir(), name)
	git(t, t.TempDir(), "clone", "-q", fmt.Sprintf("http://%s:%s@%s/%[1]s/%[4]s.git", giteaUser, giteaPassword, g.addr, name), work)
	return work
}

// tokenFile makes a token that may write to repositories, and nothing else.
func (g *giteaServer) tokenFile(t *testing.T) string {
	t.Helper()
	var token struct {
		SHA1 string `json:"sha1"`
	}
	g.ask(t, http.MethodPost, "/users/"+giteaUser+"/tokens", `{"name":"`+t.Name()+`","scopes":["write:repository"]}`, &token)
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, token.SHA1+"\n")
	return file
}

// giteaPull is a pull request as Gitea tells of it.
type giteaPull struct {
	Number      int    `json:"number"`
	State       string `json:"state"`
	Title, Body string
	Head, Base  struct {
		Ref string `json:"ref"`
	}
}

// pulls returns all pull requests of a repository, by number.
func (g *giteaServer) pulls(t *testing.T, name string) []giteaPull {
	t.Helper()
	var all []giteaPull
	g.ask(t, http.MethodGet, "/repos/"+giteaUser+"/"+name+"/pulls?state=all", "", &all)
	slices.SortFunc(all, func(a, b giteaPull) int { return a.Number - b.Number })
	return all
}

// ask asks Gitea's API as its user for an answer.
func (g *giteaServer) ask(t *testing.T, method, path, content string, answer any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+g.addr+"/api/v1"+path, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(giteaUser, giteaPassword)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 || json.Unmarshal(body, answer) != nil {
		t.Fatalf("gitea %s %s: %s %s (%v)", method, path, resp.Status, body, err)
	}
}

// TestGiteaPullRequest: a branch that nobody may push to gets its commits by one pull request, which is opened, kept as it
// is and brought up to date, on a real Gitea.
func TestGiteaPullRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Gitea")
	}
	gitea := startGitea(t)
	front := gitea.secure(t)
	work := gitea.createRepo(t, "k8s")
	tokenFile := gitea.tokenFile(t)

	writeFile(t, filepath.Join(work, "digest-lock.yaml"), "a\n")
	git(t, work, "checkout", "-q", "-b", "digestlock/main")
	git(t, work, "add", "-A")
	git(t, work, "commit", "-q", "-m", "lock")
	if out, err := exec.Command("git", "-C", work, "push", "-q", "origin", "HEAD:main").CombinedOutput(); err == nil {
		t.Fatalf("main is not protected: %s", out)
	}
	git(t, work, "push", "-q", "origin", "digestlock/main")

	program := filepath.Join(t.TempDir(), "ensure")
	build := exec.Command("go", "build", "-o", program, "./internal/forge/ensure")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build ensure: %v\n%s", err, out)
	}
	ensure := func(token, head, body string) (string, error) {
		cmd := exec.Command(program, "gitea", front.url+"/"+giteaUser+"/k8s.git", token, front.caFile, head, "main", "build: auto-update", body)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	page := func(n int) string { return fmt.Sprintf("%s/%s/k8s/pulls/%d", front.url, giteaUser, n) }
	pull := func(n int, state, body string) giteaPull {
		p := giteaPull{Number: n, State: state, Title: "build: auto-update", Body: body}
		p.Head.Ref, p.Base.Ref = "digestlock/main", "main"
		return p
	}
	const path = "/api/v1/repos/" + giteaUser + "/k8s/pulls"
	steps := []struct {
		name, body, want string
		writes           []string
		pulls            []giteaPull
	}{
		{"create", "one\n\ntwo", `{"created":true,"page":"` + page(1) + `"}`, []string{"POST " + path}, []giteaPull{pull(1, "open", "one\n\ntwo")}},
		{"unchanged", "one\n\ntwo", `{"created":false,"page":"` + page(1) + `"}`, nil, []giteaPull{pull(1, "open", "one\n\ntwo")}},
		{"update", "three", `{"created":false,"page":"` + page(1) + `"}`, []string{"PATCH " + path + "/1"}, []giteaPull{pull(1, "open", "three")}},
		{"closed", "four", `{"created":true,"page":"` + page(2) + `"}`, []string{"POST " + path}, []giteaPull{pull(1, "closed", "three"), pull(2, "open", "four")}},
	}
	for _, s := range steps {
		if s.name == "closed" {
			gitea.call(t, http.MethodPatch, "/repos/"+giteaUser+"/k8s/pulls/1", map[string]string{"state": "closed"})
		}
		got, err := ensure(tokenFile, "digestlock/main", s.body)
		if err != nil || got != s.want {
			t.Fatalf("%s: %s (%v), want %s", s.name, got, err, s.want)
		}
		if d := cmp.Diff(s.writes, front.wrote()); d != "" {
			t.Errorf("%s wrote (-want +got):\n%s", s.name, d)
		}
		if d := cmp.Diff(s.pulls, gitea.pulls(t, "k8s")); d != "" {
			t.Errorf("%s leaves (-want +got):\n%s", s.name, d)
		}
	}

	wrong := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(wrong, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, token, head, want string }{
		{"wrong token", wrong, "digestlock/main", "401 Unauthorized: "},
		{"no such branch", tokenFile, "digestlock/none", "hint: check that both branches are there"},
		{"no commits", tokenFile, "main", "422 Unprocessable Entity: "},
	} {
		out, err := ensure(tt.token, tt.head, "x")
		if err == nil || !strings.Contains(out, tt.want) || strings.Contains(out, "s3cret") {
			t.Errorf("%s: %s (%v), want %s", tt.name, out, err, tt.want)
		}
	}
}
