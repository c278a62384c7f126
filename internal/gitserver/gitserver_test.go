package gitserver_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gitserver"
	"github.com/digestlock/digestlock/internal/gittest"
)

type fixture struct {
	*gitserver.Repo
	dir, url, ca string
}

func start(t *testing.T) fixture {
	t.Helper()
	f := fixture{dir: filepath.Join(t.TempDir(), "repo.git")}
	var err error
	if f.Repo, err = gitserver.New(f.dir); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(http.StripPrefix("/repo.git", f.Handler()))
	t.Cleanup(s.Close)
	f.url = s.URL + "/repo.git"
	f.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return f
}

func (f fixture) commit(t *testing.T, message string, files map[string]string) string {
	t.Helper()
	content := map[string][]byte{}
	for name, text := range files {
		content[name] = []byte(text)
	}
	hash, err := f.Commit("main", message, content)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// git runs the real client against the server.
func (f fixture) git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return gittest.Git(t, dir, f.ca, args...)
}

func seed() map[string]string {
	return map[string]string{"README.md": "hello\n", "apps/a/lock.yaml": "a: 1\n", "apps/a-b/x": "x\n", "apps/a.yaml": "y\n"}
}

func TestCommitLogExport(t *testing.T) {
	t.Parallel()
	f := start(t)
	first := f.commit(t, "seed", seed())
	second := f.commit(t, "change\n\nbody\n", map[string]string{"apps/a/lock.yaml": "a: 2\n"})
	log, err := f.Log("main")
	if err != nil {
		t.Fatal(err)
	}
	if len(log) != 2 || log[0].Hash != second || log[1].Hash != first {
		t.Fatalf("Log = %v", log)
	}
	if log[0].Author != "A Person <person@example.com>" || log[0].Message != "change\n\nbody\n" || time.Since(log[0].When) > time.Hour {
		t.Errorf("Log[0] = %+v", log[0])
	}
	for _, want := range []string{"--- a/apps/a/lock.yaml\n", "+++ b/apps/a/lock.yaml\n", "\n-a: 1\n", "\n+a: 2\n"} {
		if !strings.Contains(log[0].Diff, want) {
			t.Errorf("diff lacks %q:\n%s", want, log[0].Diff)
		}
	}
	if !strings.Contains(log[1].Diff, "\n+hello\n") {
		t.Errorf("first diff:\n%s", log[1].Diff)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if err := f.Export(first, dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range seed() {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("exported %s = %q, %v", name, got, err)
		}
	}
	f.git(t, f.dir, "fsck", "--strict")
	if got := f.git(t, f.dir, "rev-parse", "--is-bare-repository", "HEAD"); got != "true\n"+second {
		t.Errorf("git rev-parse = %q", got)
	}
}

func TestCommitRefuses(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.commit(t, "seed", seed())
	for _, name := range []string{"../x", "/x", "a//b", ".", "README.md/x", ""} {
		if _, err := f.Commit("main", "m", map[string][]byte{name: nil}); err == nil {
			t.Errorf("Commit(%q): no error", name)
		}
	}
	if _, err := gitserver.New(f.dir); err == nil {
		t.Error("New in a directory that is in use: no error")
	}
	if _, err := f.Log("none"); err == nil {
		t.Error("Log of no branch: no error")
	}
	if err := f.Export("none", t.TempDir()); err == nil {
		t.Error("Export of no commit: no error")
	}
}

// TestGitCLI: clone, fetch what is new, push, and a push from an old tip, all with the real client.
func TestGitCLI(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.commit(t, "seed", seed())
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	f.git(t, "", "clone", "--quiet", f.url, a)
	f.git(t, "", "clone", "--quiet", f.url, b)
	if got, err := os.ReadFile(filepath.Join(a, "apps/a/lock.yaml")); err != nil || string(got) != "a: 1\n" {
		t.Fatalf("cloned %q, %v", got, err)
	}

	// Enough commits that the client has to negotiate, with a compressed request.
	for i := range 40 {
		f.git(t, a, "commit", "--quiet", "--allow-empty", "-m", fmt.Sprint("local ", i))
	}
	third := f.commit(t, "server side", map[string]string{"README.md": "changed\n"})
	f.git(t, a, "fetch", "--quiet")
	f.git(t, a, "fetch", "--quiet", "--refetch")
	if got := f.git(t, a, "rev-parse", "origin/main"); got != third {
		t.Errorf("fetched %s, want %s", got, third)
	}
	f.git(t, a, "reset", "--quiet", "--hard", "origin/main")

	if err := os.WriteFile(filepath.Join(a, "README.md"), []byte("pushed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.git(t, a, "commit", "--quiet", "-am", "from the client")
	f.git(t, a, "push", "--quiet", "origin", "main")
	f.git(t, a, "push", "--quiet", "origin", "main:copy") // a branch without new objects
	f.git(t, a, "tag", "v1")
	f.git(t, a, "push", "--quiet", "origin", "v1")
	log, err := f.Log("main")
	if err != nil || log[0].Message != "from the client\n" || len(log) != 3 {
		t.Errorf("Log after push = %v, %v", log, err)
	}

	// The other clone does not know of any of this; with --force it knows, but not where the branch is now.
	f.git(t, b, "commit", "--quiet", "--allow-empty", "-m", "stale")
	out := f.git(t, b, "-c", "alias.try=!git push --force-with-lease origin main 2>&1 || true", "try")
	if !strings.Contains(out, "rejected") {
		t.Errorf("push from an old tip: %s", out)
	}
	f.git(t, f.dir, "fsck", "--strict")
}

func TestEmptyRepository(t *testing.T) {
	t.Parallel()
	f := start(t)
	r, err := gitrepo.Open(f.url, gitrepo.Auth{CA: []byte(f.ca)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(t.Context(), ""); !errors.Is(err, gitrepo.ErrBranch) {
		t.Errorf("Read: %v, want ErrBranch", err)
	}
	dir := filepath.Join(t.TempDir(), "a")
	f.git(t, "", "clone", "--quiet", f.url, dir)
	f.git(t, dir, "commit", "--quiet", "--allow-empty", "-m", "first")
	f.git(t, dir, "push", "--quiet", "origin", "HEAD:main")
	if log, err := f.Log("main"); err != nil || len(log) != 1 {
		t.Errorf("Log = %v, %v", log, err)
	}
}

// TestGitrepo: our own client, against a server without filters and shallow fetches, with many at once.
func TestGitrepo(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.commit(t, "seed", seed())
	open := func() *gitrepo.Remote {
		r, err := gitrepo.Open(f.url, gitrepo.Auth{CA: []byte(f.ca)})
		if err != nil {
			t.Error(err)
		}
		return r
	}
	s, err := open().Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.Files(t.Context(), []string{"apps/a/lock.yaml"})
	if diff := cmp.Diff(map[string][]byte{"apps/a/lock.yaml": []byte("a: 1\n")}, files); diff != "" || err != nil {
		t.Fatalf("Files: %v\n%s", err, diff)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { land(t, open(), fmt.Sprintf("apps/a/%d", i)) })
	}
	wg.Wait()
	if _, err := s.Push(t.Context(), change("late")); !errors.Is(err, gitrepo.ErrMoved) {
		t.Errorf("Push from an old tip: %v, want ErrMoved", err)
	}
	log, err := f.Log("main")
	if err != nil || len(log) != 7 {
		t.Errorf("%d commits, %v, want 7", len(log), err)
	}
	f.git(t, f.dir, "fsck", "--strict")
}

// TestMark: the companion keeps its own ref beside the branch.
func TestMark(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.commit(t, "seed", seed())
	r, err := gitrepo.Open(f.url, gitrepo.Auth{CA: []byte(f.ca)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := change("new")
	c.Mark = true
	commit, err := s.Push(t.Context(), c)
	if err != nil || r.MarkRefused("main") != nil {
		t.Fatal(err, r.MarkRefused("main"))
	}
	if got := f.git(t, f.dir, "rev-parse", "main", "refs/digestlock/main"); got != commit+"\n"+commit {
		t.Errorf("main and mark = %q, want %s", got, commit)
	}
}

func change(name string) gitrepo.Change {
	return gitrepo.Change{
		Files: map[string][]byte{name: []byte(name)}, Message: "add " + name,
		Author: gitrepo.Signature{Name: "Robot", Email: "robot@example.com"}, When: time.Now(),
	}
}

func land(t *testing.T, r *gitrepo.Remote, name string) {
	for range 50 {
		s, err := r.Read(t.Context(), "main")
		if err != nil {
			t.Error(err)
			return
		}
		switch _, err := s.Push(t.Context(), change(name)); {
		case err == nil:
			return
		case !errors.Is(err, gitrepo.ErrMoved):
			t.Error(err)
			return
		}
	}
	t.Errorf("%s never landed", name)
}

// TestCompareAndSwap sends the request that a client whose view is old would send, past any check of the client's.
func TestCompareAndSwap(t *testing.T) {
	t.Parallel()
	f := start(t)
	first := f.commit(t, "one", seed())
	second := f.commit(t, "two", map[string]string{"README.md": "2"})
	third := f.commit(t, "three", map[string]string{"README.md": "3"})
	zero := strings.Repeat("0", 40)
	for _, tt := range []struct{ name, old, to, ref, want string }{
		{"stale", first, second, "refs/heads/main", "ng refs/heads/main fetch first"},
		{"create what exists", zero, first, "refs/heads/main", "ng refs/heads/main fetch first"},
		{"update what does not", first, second, "refs/heads/new", "ng refs/heads/new fetch first"},
		{"delete", third, zero, "refs/heads/main", "ng refs/heads/main deletion prohibited"},
		{"outside", zero, first, "refs/heads/../../config", "ng refs/heads/../../config funny refname"},
		{"elsewhere", zero, first, "HEAD", "ng HEAD funny refname"},
		{"absent object", third, strings.Repeat("1", 40), "refs/heads/main", "ng refs/heads/main missing necessary objects"},
		{"create", zero, first, "refs/heads/old", "ok refs/heads/old"},
		{"move", third, second, "refs/heads/main", "ok refs/heads/main"},
	} {
		line := tt.old + " " + tt.to + " " + tt.ref + "\x00report-status"
		body := fmt.Sprintf("%04x%s0000", len(line)+4, line)
		rec := httptest.NewRecorder()
		f.Handler().ServeHTTP(rec, httptest.NewRequest("POST", "/git-receive-pack", strings.NewReader(body)))
		if !strings.Contains(rec.Body.String(), tt.want) {
			t.Errorf("%s: %d %q, want %q", tt.name, rec.Code, rec.Body, tt.want)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.commit(t, "seed", seed())
	for _, tt := range []struct {
		name, method, target, body, encoding string
		want                                 int
	}{
		{"dumb protocol", "GET", "/info/refs", "", "", 403},
		{"another service", "GET", "/info/refs?service=git-upload-archive", "", "", 403},
		{"file", "GET", "/config", "", "", 404},
		{"no request", "POST", "/git-upload-pack", "", "", 400},
		{"nonsense", "POST", "/git-receive-pack", "nonsense", "", 400},
		{"not gzip", "POST", "/git-upload-pack", "0000", "gzip", 400},
		{"too large", "POST", "/git-receive-pack", strings.Repeat("x", 33<<20), "", 400},
		{"unknown want", "POST", "/git-upload-pack", "0032want 1111111111111111111111111111111111111111\n00000009done\n", "", 400},
	} {
		req := httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body))
		if tt.encoding != "" {
			req.Header.Set("Content-Encoding", tt.encoding)
		}
		rec := httptest.NewRecorder()
		f.Handler().ServeHTTP(rec, req)
		if rec.Code != tt.want {
			t.Errorf("%s: %d %q, want %d", tt.name, rec.Code, rec.Body, tt.want)
		}
	}
}
