package companion_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestBrokenLocks: what a person broke is reported and left alone, and the others advance.
func TestBrokenLocks(t *testing.T) {
	t.Parallel()
	broken := map[string]string{
		"conflict": "<<<<<<< HEAD\n" + lockText(pin(server, 1)),
		"future":   strings.Replace(lockText(pin(server, 1)), "/v1\n", "/v2\n", 1),
		"huge":     strings.Repeat("#", 1<<20+1),
		"lfs":      "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n",
	}
	files := map[string]string{"fine/kustomization.yaml": overlay, "elsewhere": "here\n"}
	f := start(t, nil)
	for dir, text := range broken {
		files[dir+"/kustomization.yaml"], files[dir+"/digest-lock.yaml"] = overlay, text
	}
	for _, dir := range []string{"conflict", "fine", "future", "huge", "lfs", "link"} {
		f.replica.rendered(f.repo.URL, "main", dir, "app", pin(server, 1))
	}
	files["link/kustomization.yaml"] = overlay
	f.repo.Commit(t, "main", files)
	clone := f.repo.Clone(t, "main")
	clone.Git(t, "update-index", "--add", "--cacheinfo", "120000,"+hashOf(t, clone, "../elsewhere")+",link/digest-lock.yaml")
	clone.Git(t, "commit", "--quiet", "--message", "a link")
	clone.Git(t, "push", "--quiet", "origin", "HEAD:main")
	before := f.repo.Git(t, "ls-tree", "-r", "main")

	url := f.repo.URL + "@main: "
	err := failing(t, f.Companion, 1, "5 problems: (1) ",
		url+"conflict/digest-lock.yaml:1: merge conflict marker",
		url+`future/digest-lock.yaml:2: apiVersion "digestlock.dev/v2"`,
		url+"huge/digest-lock.yaml: larger than 1 MiB",
		url+"lfs/digest-lock.yaml: a pointer of Git LFS",
		url+"link/digest-lock.yaml: not a regular file in an existing directory: it is a symbolic link")
	for _, hint := range []string{"resolve the merge", "upgrade digestlock", "put a regular file there"} {
		if !strings.Contains(fault.Hint(err), hint) {
			t.Errorf("hint %q, want %q in it", fault.Hint(err), hint)
		}
	}
	after := f.repo.Git(t, "ls-tree", "-r", "main")
	for line := range strings.Lines(before) {
		if !strings.Contains(after+"\n", line) {
			t.Errorf("changed: %s", line)
		}
	}
	wantPins(t, f.repo, "main", "fine", map[string]int{server: 1})
	failing(t, f.Companion, 0, "5 problems: (1) ")
}

// hashOf adds a blob to a clone.
func hashOf(t *testing.T, c *gittest.Clone, content string) string {
	t.Helper()
	c.Write(t, ".git/blob", content)
	return c.Git(t, "hash-object", "-w", ".git/blob")
}

func TestRefusedPaths(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"fine/kustomization.yaml": overlay, "plain/README": "text\n"})
	clone := f.repo.Clone(t, "main")
	clone.Git(t, "update-index", "--add", "--cacheinfo", "120000,"+hashOf(t, clone, "fine")+",link")
	clone.Git(t, "commit", "--quiet", "--message", "a link")
	clone.Git(t, "push", "--quiet", "origin", "HEAD:main")
	for _, path := range []string{"fine", "..", "../fine", "/fine", "/", "fine/../../fine", ".git", ".git/x", "link", "link/x", "plain", "gone", "fine/gone"} {
		f.replica.rendered(f.repo.URL, "main", path, "app", pin(server, 1))
	}
	f.replica.sees(pin(server, 1))
	before := f.repo.Git(t, "ls-tree", "-r", "--name-only", "main")
	err := failing(t, f.Companion, 1, "7 problems: ",
		`path ".." leads out of the repository`, `path "../fine" leads out`, `path "/fine" leads out`, `path "/" leads out`,
		`path "link" is not a directory`, `path "link/x" is not a directory`, `no kustomization in "plain"`)
	if want := "a lock is written only beside a kustomization, in a directory of the repository"; fault.Hint(err) != want {
		t.Errorf("hint %q, want %q", fault.Hint(err), want)
	}
	for _, path := range []string{".git", ".git/x", "gone", "fine/gone"} {
		if strings.Contains(err.Error(), `"`+path+`"`) || !strings.Contains(f.log.String(), "path="+path+"\n") {
			t.Errorf("%s: want it in the log only, got %v\n%s", path, err, f.log)
		}
	}
	added := strings.ReplaceAll(f.repo.Git(t, "ls-tree", "-r", "--name-only", "main"), "fine/"+lock.FileName+"\n", "")
	wantText(t, "files", before, added)
}

// TestGitDirectory: Git itself would not add such a directory, but a tree can have one.
func TestGitDirectory(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"x/kustomization.yaml": overlay})
	clone := f.repo.Clone(t, "main")
	tree, err := hex.DecodeString(f.repo.Git(t, "rev-parse", "main:x"))
	if err != nil {
		t.Fatal(err)
	}
	clone.Write(t, "tree", "40000 .git\x00"+string(tree)+"40000 x\x00"+string(tree))
	root := f.repo.Git(t, "hash-object", "-t", "tree", "-w", "--literally", clone.Dir+"/tree")
	f.repo.Git(t, "update-ref", "refs/heads/main", f.repo.Git(t, "commit-tree", "-m", "m", root))
	f.replica.rendered(f.repo.URL, "main", ".git", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "x", "app", pin(server, 1))
	failing(t, f.Companion, 1, ".git/digest-lock.yaml: not a regular file in an existing directory: the path has a component that Git forbids")
}

func TestRefusedRepositories(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	foreign := gittest.HTTPS(t)
	repo := foreign.Create(t, "evil.git", map[string]string{"app/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
	f.replica.rendered(strings.Replace(repo.URL, "https://", "https://me:s3cret@", 1), "main", "app", "evil", pin(server, 1))
	f.replica.rendered(f.repo.URL+"/../other.git", "main", "app", "evil", pin(server, 1))
	f.replica.rendered(f.repo.URL+"-evil", "main", "app", "evil", pin(server, 1))
	f.replica.rendered("", "main", "app", "evil", pin(server, 1))
	before := f.server.Requests()
	once(t, f.Companion, 1)
	if n := foreign.Requests(); n > 0 {
		t.Errorf("%d requests to a server that is not ours", n)
	}
	if n := f.server.Requests() - before; n > 5 { // list, fetch, history, list, push
		t.Errorf("%d requests, want 5", n)
	}
	if text := f.log.String(); strings.Count(text, "render refused") != 4 || strings.Contains(text, "s3cret") {
		t.Errorf("want 4 refusals without the password in the log:\n%s", text)
	}
}

func TestSameRepository(t *testing.T) {
	t.Parallel()
	for _, same := range [][2]string{
		{"https://git.example.com/Team/k8s.git", "https://git.example.com/Team/k8s"},
		{"https://git.example.com/Team/k8s", "https://GIT.example.com/Team/k8s/"},
		{"https://git.example.com/Team/k8s.git", "HTTPS://git.example.com:443/Team/k8s.git/"},
		{"https://git.example.com/Team/k8s.git", "https://me@git.example.com/Team/k8s.git"},
		{"git@git.example.com:team/k8s.git", "git@Git.example.com:team/k8s"},
		{"git@git.example.com:team/k8s.git", "ssh://git@git.example.com/team/k8s.git"},
		{"ssh://git@git.example.com:22/team/k8s.git", "git@git.example.com:/team/k8s"},
	} {
		if !companion.SameRepository(same[0], same[1]) {
			t.Errorf("%s and %s: want the same repository", same[0], same[1])
		}
	}
	for _, other := range [][2]string{
		{"https://git.example.com/team/k8s", "https://git.example.com/team/K8s"},
		{"https://git.example.com/team/k8s", "http://git.example.com/team/k8s"},
		{"https://git.example.com/team/k8s", "https://git.example.com:8443/team/k8s"},
		{"https://git.example.com/team/k8s", "https://git.example.com/team/k8s-evil"},
		{"https://git.example.com/team/k8s", "https://git.example.com.evil.com/team/k8s"},
		{"https://git.example.com/team/k8s", "https://git.example.com@evil.com/team/k8s"},
		{"https://git.example.com/team/k8s", "https://git.example.com/team/k8s?x"},
		{"ssh://git@git.example.com/team/k8s", "ssh://me@git.example.com/team/k8s"},
		{"https://git.example.com/team/k8s", ""},
	} {
		if companion.SameRepository(other[0], other[1]) {
			t.Errorf("%s and %s: want different repositories", other[0], other[1])
		}
	}
}

func TestSpellings(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	f.replica.rendered(strings.TrimSuffix(f.repo.URL, ".git")+"/", "main", "a", "app", pin(server, 1))
	f.replica.rendered(strings.Replace(f.repo.URL, "https", "HTTPS", 1), "main", "b", "app", pin(server, 1))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
	wantPins(t, f.repo, "main", "b", map[string]int{server: 1})
}

func TestOneBranchOnly(t *testing.T) {
	t.Parallel()
	files := map[string]string{"a/kustomization.yaml": overlay, "b/kustomization.yaml": overlay}
	f := start(t, files)
	dev := f.repo.Commit(t, "dev", files)
	f.use(t, "main", f.replica)
	f.replica.rendered(f.repo.URL, "dev", "a", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "a", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "HEAD", "b", "app", pin(server, 1))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
	wantPins(t, f.repo, "main", "b", map[string]int{server: 1}) // HEAD is main

	if want := `msg="render refused: not a repository and branch this companion writes to"`; !strings.Contains(f.log.String(), want) {
		t.Errorf("dev was asked for, want %s in the log:\n%s", want, f.log)
	}

	f.use(t, "dev", f.replica)
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	if want := `msg="render refused: not a branch this companion writes to"`; !strings.Contains(f.log.String(), want) {
		t.Errorf("no word on HEAD, want %s in the log:\n%s", want, f.log)
	}
	if f.repo.Git(t, "rev-parse", "dev~") != dev || f.repo.Git(t, "rev-list", "--count", "main") != "2" {
		t.Error("want one more commit on dev, and none on main")
	}
}

// TestNotABranch: tags, commits and branches that are gone get no commit, and are nobody's problem.
func TestNotABranch(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay})
	f.repo.Git(t, "tag", "v1", "main")
	refs := f.repo.Git(t, "show-ref")
	for _, revision := range []string{"v1", "refs/tags/v1", f.repo.Git(t, "rev-parse", "main"), "missing"} {
		f.replica.rendered(f.repo.URL, revision, "a", "app", pin(server, 1))
	}
	once(t, f.Companion, 0)
	wantText(t, "refs", refs, f.repo.Git(t, "show-ref"))
	if text := f.log.String(); strings.Count(text, "the target revision is not a branch") != 4 || !strings.Contains(text, `\"v1\" is a tag`) {
		t.Errorf("want 4 reasons in the log:\n%s", text)
	}
	f.replica.rendered(f.repo.URL, "main", "a", "app", pin(server, 1))
	once(t, f.Companion, 1)
}

// TestForgedMessage: an Application's name and path cannot add lines to a commit message.
func TestForgedMessage(t *testing.T) {
	t.Parallel()
	path := "a\u202e\u0085b"
	f := start(t, map[string]string{path + "/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", path, "app\n\nSigned-off-by: root\r\x1b[2J\u009b2J\u2028x", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "b\n\nx", "app", pin(server, 1))
	once(t, f.Companion, 1)
	wantText(t, "message", `build: auto-update backend/server to sha256:000000000000…

ghcr.io/acme/backend/server:latest
  (new) → sha256:0000000000000000000000000000000000000000000000000000000000000001
  in a  b/digest-lock.yaml for app  Signed-off-by: root  [2J 2J x

Digestlock-Companion: devel
`, f.repo.Git(t, "log", "-1", "--format=%B", "main")+"\n")
}
