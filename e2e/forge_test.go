package e2e

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// createRepo makes a repository of Gitea's user with files on main, which nobody may push to, and returns a clone of it.
func (g *giteaServer) createRepo(t *testing.T, name string, files map[string]string) (work string) {
	t.Helper()
	g.call(t, http.MethodPost, "/user/repos", map[string]any{"name": name, "default_branch": "main", "auto_init": true})
	work = filepath.Join(t.TempDir(), name)
	git(t, t.TempDir(), "clone", "-q", fmt.Sprintf("http://%s:%s@%s/%[1]s/%[4]s.git", giteaUser, giteaPassword, g.addr, name), work)
	for path, content := range files {
		writeFile(t, filepath.Join(work, path), content)
	}
	git(t, work, "add", "-A")
	git(t, work, "commit", "-q", "-m", "add the overlay")
	git(t, work, "push", "-q", "origin", "main")
	g.call(t, http.MethodPost, "/repos/"+giteaUser+"/"+name+"/branch_protections", map[string]any{"rule_name": "main", "enable_push": false})
	git(t, work, "commit", "-q", "--allow-empty", "-m", "by nobody")
	if out, err := exec.Command("git", "-C", work, "push", "-q", "origin", "HEAD:main").CombinedOutput(); err == nil {
		t.Fatalf("main is not protected: %s", out)
	}
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

// proposer is a companion that may not push to main, with what it needs.
type proposer struct {
	*resolverFor
	gitea           *giteaServer
	front           *front
	work, tokenFile string
}

// render has the ledger remember that Argo CD rendered main.
func (p *proposer) render(t *testing.T) {
	t.Helper()
	git(t, p.work, "fetch", "-q")
	git(t, p.work, "checkout", "-q", "--detach", "origin/main")
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock"), "generate", "--server", "unix://"+p.socket, p.work)
	cmd.Env = []string{
		"HOME=" + t.TempDir(), "ARGOCD_APP_NAME=backend", "ARGOCD_APP_PROJECT_NAME=default", "ARGOCD_APP_SOURCE_REPO_URL=" + p.url(),
		"ARGOCD_APP_SOURCE_TARGET_REVISION=main", "ARGOCD_APP_SOURCE_PATH=.", "ARGOCD_APP_REVISION=" + git(t, p.work, "rev-parse", "HEAD"),
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, out)
	}
}

func (p *proposer) url() string { return p.front.url + "/" + giteaUser + "/k8s.git" }

// propose runs digestlock-companion --once in a process of its own, and returns what it printed.
func (p *proposer) propose(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	p.render(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock-companion"), append([]string{
		"--once", "--resolver", p.api, "--resolver-token-file", p.stack.tokenFile, "--repo", p.url(),
		"--git-username", giteaUser, "--git-password-file", p.tokenFile, "--git-ca-file", p.front.caFile,
		"--push-branch", "digestlock/{{.Branch}}", "--forge", "gitea",
	}, flags...)...)
	cmd.Env = []string{"HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// lock returns the lock's text at a branch.
func (p *proposer) lock(t *testing.T, branch string) string {
	t.Helper()
	git(t, p.work, "fetch", "-q")
	return git(t, p.work, "show", "origin/"+branch+":digest-lock.yaml")
}

func (p *proposer) head(t *testing.T, branch string) string {
	t.Helper()
	git(t, p.work, "fetch", "-q")
	return git(t, p.work, "rev-parse", "origin/"+branch)
}

func (p *proposer) merge(t *testing.T, number int, how string) {
	t.Helper()
	// Gitea looks in the background whether a request can be merged.
	path := fmt.Sprintf("/repos/%s/k8s/pulls/%d", giteaUser, number)
	var state struct {
		Mergeable bool
		Body      string
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(50 * time.Millisecond) {
		state.Mergeable = false
		if p.gitea.ask(t, http.MethodGet, path, "", &state); state.Mergeable {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("request %d cannot be merged", number)
		}
	}
	p.gitea.call(t, http.MethodPost, path+"/merge", map[string]any{"Do": how, "MergeMessageField": state.Body}) // its API takes the title alone by itself
}

// TestGiteaPullRequest: a branch that nobody may push to gets its lock by one pull request, which is opened, brought up to
// date, merged and respected, on a real Gitea.
func TestGiteaPullRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Gitea")
	}
	gitea := startGitea(t)
	registry := startRegistry(t, "")
	p := &proposer{resolverFor: startResolverFor(t, registry), gitea: gitea, front: gitea.secure(t)}
	p.tokenFile = gitea.tokenFile(t)
	p.work = gitea.createRepo(t, "k8s", map[string]string{
		"kustomization.yaml": "resources: [pod.yaml]\n",
		"pod.yaml":           "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: " + registry.image("acme/server") + "}]}\n",
	})
	const path = "/api/v1/repos/" + giteaUser + "/k8s/pulls"
	// step runs the companion twice, the second time with nothing to do, and checks what it wrote and which requests there are.
	step := func(name string, writes, pulls []string) {
		t.Helper()
		for i, want := range [][]string{writes, nil} {
			before := p.head(t, "main")
			if out, err := p.propose(t); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, out)
			}
			if got := p.head(t, "main"); got != before {
				t.Errorf("%s, run %d: main is at %s, was at %s", name, i+1, got, before)
			}
			if d := cmp.Diff(want, p.front.wrote()); d != "" {
				t.Errorf("%s, run %d wrote (-want +got):\n%s", name, i+1, d)
			}
		}
		var got []string
		for _, r := range gitea.pulls(t, "k8s") {
			got = append(got, fmt.Sprintf("%d %s %s→%s %s", r.Number, r.State, r.Head.Ref, r.Base.Ref, strings.Fields(r.Title)[1]))
		}
		if d := cmp.Diff(pulls, got); d != "" {
			t.Errorf("%s leaves requests (-want +got):\n%s", name, d)
		}
	}
	has := func(branch, want string) {
		t.Helper()
		if text := p.lock(t, branch); !strings.Contains(text, want) {
			t.Errorf("the lock of %s is without %s:\n%s", branch, want, text)
		}
	}

	first := registry.push(t, "acme/server:latest")
	step("opened", []string{"POST " + path}, []string{"1 open digestlock/main→main auto-update"})
	has("digestlock/main", first)

	second := registry.push(t, "acme/server:latest")
	p.flush(t, registry.image("acme/server"))
	step("updated", []string{"PATCH " + path + "/1"}, []string{"1 open digestlock/main→main auto-update"})
	has("digestlock/main", second)
	if body := gitea.pulls(t, "k8s")[0].Body; !strings.Contains(body, second) || strings.Contains(body, first) {
		t.Errorf("the request says\n%s", body)
	}

	p.merge(t, 1, "squash")
	step("merged", nil, []string{"1 closed digestlock/main→main auto-update"})
	has("main", second)
	if message := git(t, p.work, "log", "-1", "--format=%B", "origin/main"); !strings.Contains(message, "\nDigestlock-Companion: ") {
		t.Errorf("the squashed commit has no trailer:\n%s", message)
	}

	third := registry.push(t, "acme/server:latest")
	p.flush(t, registry.image("acme/server"))
	step("next", []string{"POST " + path}, []string{"1 closed digestlock/main→main auto-update", "2 open digestlock/main→main auto-update"})
	p.merge(t, 2, "merge")
	has("main", third)

	git(t, p.work, "fetch", "-q")
	git(t, p.work, "checkout", "-q", "-B", "undo", "origin/main")
	git(t, p.work, "revert", "--no-edit", "--mainline", "1", "HEAD")
	git(t, p.work, "push", "-q", "origin", "undo")
	gitea.call(t, http.MethodPost, "/repos/"+giteaUser+"/k8s/pulls", map[string]any{"head": "undo", "base": "main", "title": "Revert it"})
	p.merge(t, 3, "squash")
	has("main", second)
	all := []string{"1 closed digestlock/main→main auto-update", "2 closed digestlock/main→main auto-update", "3 closed undo→main it"}
	step("reverted", []string{"POST " + path}, append(all, "4 open digestlock/main→main hold"))
	has("main", second)
	has("digestlock/main", "rejected: "+third)

	gitea.call(t, http.MethodPatch, "/repos/"+giteaUser+"/k8s/pulls/4", map[string]string{"state": "closed"})
	step("closed", nil, append(all, "4 closed digestlock/main→main hold"))
	fourth := registry.push(t, "acme/server:latest")
	p.flush(t, registry.image("acme/server"))
	step("something new", []string{"POST " + path}, append(all, "4 closed digestlock/main→main hold", "5 open digestlock/main→main auto-update"))
	has("digestlock/main", fourth)

	wrong := filepath.Join(t.TempDir(), "token")
	writeFile(t, wrong, "s3cret\n")
	registry.push(t, "acme/server:latest")
	p.flush(t, registry.image("acme/server"))
	out, err := p.propose(t, "--forge-token-file", wrong)
	if err == nil || !strings.Contains(out, "401 Unauthorized: ") || strings.Contains(out, "s3cret") {
		t.Errorf("wrong token: %v\n%s", err, out)
	}
	p.front.wrote()
	step("and the right one", []string{"PATCH " + path + "/5"}, append(all, "4 closed digestlock/main→main hold", "5 open digestlock/main→main auto-update"))
}
