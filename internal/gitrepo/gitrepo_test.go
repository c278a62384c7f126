package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

var (
	robot = gitrepo.Signature{Name: "Robot", Email: "robot@example.com"}
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
)

// seed is a small repository with the neighbours whose order Git is particular about.
func seed() map[string]string {
	return map[string]string{
		"README.md":              "hello\n",
		"apps/a/lock.yaml":       "a: 1\n",
		"apps/a-b/lock.yaml":     "ab: 1\n",
		"apps/a.yaml":            "x\n",
		"apps/deep/er/lock.yaml": "deep: 1\n",
	}
}

func change(message string, files map[string]string) gitrepo.Change {
	c := gitrepo.Change{Files: map[string][]byte{}, Message: message, Author: robot, When: noon}
	for name, content := range files {
		c.Files[name] = []byte(content)
	}
	return c
}

func open(t *testing.T, url string, a gitrepo.Auth) *gitrepo.Remote {
	t.Helper()
	r, err := gitrepo.Open(url, a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, r *gitrepo.Remote, branch string) *gitrepo.Snapshot {
	t.Helper()
	s, err := r.Read(t.Context(), branch)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func push(t *testing.T, s *gitrepo.Snapshot, c gitrepo.Change) string {
	t.Helper()
	commit, err := s.Push(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return commit
}

func text(files map[string][]byte) map[string]string {
	out := map[string]string{}
	for name, content := range files {
		out[name] = string(content)
	}
	return out
}

// servers are the kinds of server that the whole cycle must work on.
var servers = map[string]func(*testing.T) *gittest.Server{
	"https":            func(t *testing.T) *gittest.Server { return gittest.HTTPS(t) },
	"bearer":           func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.Bearer("s3cret")) },
	"no filter":        func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.NoFilter()) },
	"no blob wants":    func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.NoWant()) },
	"no shallow":       func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.NoShallow()) },
	"only tip wants":   func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.NoWant(), tipWants) },
	"reachable wants":  func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.NoWant(), reachableWants) },
	"ssh":              func(t *testing.T) *gittest.Server { return gittest.SSH(t) },
	"ssh, no anything": func(t *testing.T) *gittest.Server { return gittest.SSH(t, gittest.NoFilter(), gittest.NoWant()) },
	"ssh, tip wants":   func(t *testing.T) *gittest.Server { return gittest.SSH(t, gittest.NoWant(), tipWants) },

	"sha256":      func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.SHA256()) },
	"sha256, ssh": func(t *testing.T) *gittest.Server { return gittest.SSH(t, gittest.SHA256()) },
	"git, https":  func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.ByGit()) },
	"sha256, no anything": func(t *testing.T) *gittest.Server {
		return gittest.HTTPS(t, gittest.Bearer("s3cret"), gittest.SHA256(), gittest.NoFilter(), gittest.NoWant())
	},
	"git, ssh, no anything": func(t *testing.T) *gittest.Server {
		return gittest.SSH(t, gittest.ByGit(), gittest.NoFilter(), gittest.NoWant())
	},
}

// eachServer runs a test on a server of each kind.
func eachServer(t *testing.T, kinds map[string]func(*testing.T) *gittest.Server, test func(*testing.T, *gittest.Server)) {
	t.Helper()
	for name, start := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t))
		})
	}
}

// starter starts a server, as gittest.HTTPS does.
type starter = func(testing.TB, ...gittest.Option) *gittest.Server

// eachBackend runs a test with packs that go-git moves, and with those that git does, under long names.
func eachBackend(t *testing.T, test func(*testing.T, starter)) {
	for name, option := range map[string]gittest.Option{"go-git": nil, "sha256": gittest.SHA256()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(t testing.TB, options ...gittest.Option) *gittest.Server {
				if option != nil {
					options = append(options, option)
				}
				return gittest.HTTPS(t, options...)
			})
		})
	}
}

// byGit reports whether a server of eachBackend is one whose packs git moves.
func byGit(s *gittest.Server) bool { return s.Auth.Binary == gitrepo.BinaryAlways || s.SHA256() }

var (
	tipWants       = gittest.Config("uploadpack.allowTipSHA1InWant=true")
	reachableWants = gittest.Config("uploadpack.allowReachableSHA1InWant=true")
)

func TestReadAndPush(t *testing.T) {
	t.Parallel()
	eachServer(t, servers, func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "team/repo.git", seed())
		repo.Commit(t, "main", map[string]string{"apps/a/kustomization.yaml": "resources: []\n"})
		tip := repo.Git(t, "rev-parse", "main")

		s := read(t, open(t, repo.URL, server.Auth), "")
		if s.Commit() != tip || s.Branch() != "main" {
			t.Fatalf("Read = %s on %s, want %s on main", s.Commit(), s.Branch(), tip)
		}
		files, err := s.Files(t.Context(), []string{"apps/a/lock.yaml", "README.md", "apps/a/absent", "apps/a/lock.yaml"})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"apps/a/lock.yaml": "a: 1\n", "README.md": "hello\n"}, text(files)); diff != "" {
			t.Errorf("Files (-want +got):\n%s", diff)
		}

		c := change("build: update", map[string]string{
			"apps/a/lock.yaml":       "a: 2\n",
			"apps/a/new.yaml":        "new\n",
			"apps/deep/er/lock.yaml": "deep: 2\n",
			"apps/a-b/empty":         "",
		})
		c.Files["apps/a.yaml"] = nil
		commit := push(t, s, c)

		got := repo.Git(t, "log", "-1", "--format=%H %P|%an <%ae> %aI|%cn <%ce> %cI|%B", "main")
		want := commit + " " + tip + "|Robot <robot@example.com> 2026-03-01T12:00:00+01:00|Robot <robot@example.com> 2026-03-01T12:00:00+01:00|build: update"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("git log (-want +got):\n%s", diff)
		}
		got = repo.Git(t, "show", "--format=", "--name-status", "main")
		want = "A\tapps/a-b/empty\nD\tapps/a.yaml\nM\tapps/a/lock.yaml\nA\tapps/a/new.yaml\nM\tapps/deep/er/lock.yaml"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("git show (-want +got):\n%s", diff)
		}
		if got := repo.Git(t, "show", "main:apps/deep/er/lock.yaml"); got != "deep: 2" {
			t.Errorf("pushed content = %q", got)
		}
		repo.Git(t, "fsck", "--strict")
	})
}

// TestRequests counts what matters on a large fleet: an unmoved branch costs one request.
func TestRequests(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	var first *gitrepo.Snapshot
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"first read", func() { first = read(t, r, "main") }, 2},
		{"unmoved", func() {
			for _, name := range []string{"main", "", "refs/heads/main"} {
				if read(t, r, name) != first {
					t.Error("another snapshot of an unmoved branch")
				}
			}
		}, 3},
		{"files", func() { readFiles(t, first, "apps/a/lock.yaml", "apps/a-b/lock.yaml", "README.md") }, 1},
		{"files again", func() { readFiles(t, first, "apps/a/lock.yaml") }, 0},
		{"push", func() { push(t, first, change("m", map[string]string{"README.md": "x"})) }, 2},
	} {
		before := server.Requests()
		step.do()
		if got := server.Requests() - before; got != step.want {
			t.Errorf("%s: %d requests, want %d", step.name, got, step.want)
		}
	}
}

func readFiles(t *testing.T, s *gitrepo.Snapshot, paths ...string) map[string]string {
	t.Helper()
	files, err := s.Files(t.Context(), paths)
	if err != nil {
		t.Fatal(err)
	}
	return text(files)
}

func TestModesAndOrder(t *testing.T) {
	t.Parallel()
	eachBackend(t, testModesAndOrder)
}

func testModesAndOrder(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	w := repo.Clone(t, "main")
	w.Write(t, "apps/a/run.sh", "echo 1\n")
	w.Git(t, "add", "apps/a/run.sh")
	w.Git(t, "update-index", "--chmod=+x", "apps/a/run.sh")
	w.Git(t, "commit", "--quiet", "-m", "x")
	w.Git(t, "push", "--quiet", "origin", "HEAD:main")

	s := read(t, open(t, repo.URL, server.Auth), "main")
	names, err := s.Names("apps")
	if diff := cmp.Diff([]string{"a", "a-b", "a.yaml", "deep"}, names); diff != "" || err != nil {
		t.Errorf("Names: %v\n%s", err, diff)
	}
	push(t, s, change("m", map[string]string{"apps/a/run.sh": "echo 2\n", "apps/a/lock.yaml": "a: 2\n", "apps/a0": "x"}))
	want := "100644 apps/a-b/lock.yaml\n100644 apps/a.yaml\n100644 apps/a/lock.yaml\n100755 apps/a/run.sh\n100644 apps/a0\n100644 apps/deep/er/lock.yaml"
	got := repo.Git(t, "ls-tree", "-r", "--format=%(objectmode) %(path)", "main", "apps")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	repo.Git(t, "fsck", "--strict")
}

func TestNames(t *testing.T) {
	t.Parallel()
	eachBackend(t, testNames)
}

func testNames(t *testing.T, https starter) {
	server := https(t)
	s := read(t, open(t, server.Create(t, "repo.git", seed()).URL, server.Auth), "")
	for dir, want := range map[string][]string{"": {"README.md", "apps"}, ".": {"README.md", "apps"}, "apps/deep": {"er"}} {
		got, err := s.Names(dir)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Names(%q): %v\n%s", dir, err, diff)
		}
	}
	for _, dir := range []string{"README.md", "none", "README.md/x", "..", "apps//deep"} {
		if _, err := s.Names(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Names(%q): %v, want fs.ErrNotExist", dir, err)
		}
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	eachBackend(t, testDelete)
}

func testDelete(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	s := read(t, r, "")
	push(t, s, gitrepo.Change{Files: map[string][]byte{"apps/deep/er/lock.yaml": nil}, Message: "m", Author: robot, When: noon})
	if got := repo.Git(t, "ls-tree", "-r", "-d", "--name-only", "main"); got != "apps\napps/a-b\napps/a" {
		t.Errorf("directories = %q, want the emptied ones gone", got)
	}
	all := gitrepo.Change{Files: map[string][]byte{}, Message: "m", Author: robot, When: noon}
	for name := range seed() {
		if name != "apps/deep/er/lock.yaml" {
			all.Files[name] = nil
		}
	}
	push(t, read(t, r, ""), all)
	if got := repo.Git(t, "ls-tree", "-r", "main"); got != "" {
		t.Errorf("tree = %q, want it empty", got)
	}
	repo.Git(t, "fsck", "--strict")
}

// TestRefused: what a person with access to the repository could lay out to make us read or write elsewhere.
func TestRefused(t *testing.T) {
	t.Parallel()
	eachBackend(t, testRefused)
}

func testRefused(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	w := repo.Clone(t, "main")
	for link, target := range map[string]string{"apps/a/link.yaml": "lock.yaml", "apps/link": "a"} {
		oid := gittestBlob(t, w, target)
		w.Git(t, "update-index", "--add", "--cacheinfo", "120000,"+oid+","+link)
	}
	w.Git(t, "update-index", "--add", "--cacheinfo", "160000,"+w.Git(t, "rev-parse", "HEAD")+",apps/sub")
	w.Git(t, "commit", "--quiet", "-m", "links")
	w.Git(t, "push", "--quiet", "origin", "HEAD:main")

	s := read(t, open(t, repo.URL, server.Auth), "main")
	for name, why := range map[string]string{
		"apps/a/link.yaml":      "it is a symbolic link",
		"apps/link/lock.yaml":   "apps/link is a symbolic link",
		"apps/sub":              "it is a submodule",
		"apps/sub/lock.yaml":    "apps/sub is a submodule",
		"apps/a":                "it is a directory",
		"apps/none/lock.yaml":   "apps/none is missing",
		"README.md/lock.yaml":   "README.md is a file",
		"../lock.yaml":          "the path has a component that Git forbids",
		"apps/../README.md":     "the path is not relative and clean",
		"/README.md":            "the path is not relative and clean",
		"./README.md":           "the path is not relative and clean",
		"apps//a/lock.yaml":     "the path is not relative and clean",
		"apps/a/":               "the path is not relative and clean",
		"":                      "the path is not relative and clean",
		".git/config":           "the path has a component that Git forbids",
		"apps/a/.GIT":           "the path has a component that Git forbids",
		"apps/a/.git. /hooks":   "the path has a component that Git forbids",
		"apps/a/git~1":          "the path has a component that Git forbids",
		"apps/a/new\x00.yaml":   "the path holds control characters",
		"apps/a/new\n100644 x ": "the path holds control characters",
	} {
		_, readErr := s.Files(t.Context(), []string{"README.md", name})
		_, pushErr := s.Push(t.Context(), change("m", map[string]string{name: "x"}))
		for _, err := range []error{readErr, pushErr} {
			e, ok := errors.AsType[*fs.PathError](err)
			if !errors.Is(err, gitrepo.ErrNotRegular) || !ok || e.Path != name || !strings.Contains(err.Error(), why) {
				t.Errorf("%q: %v, want ErrNotRegular because %s", name, err, why)
			}
		}
	}
	if got := repo.Git(t, "rev-parse", "main"); got != s.Commit() {
		t.Error("something was pushed")
	}
}

func gittestBlob(t *testing.T, w *gittest.Clone, content string) string {
	t.Helper()
	w.Write(t, "blob", content)
	defer w.Write(t, "blob", "")
	return w.Git(t, "hash-object", "-w", "blob")
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	eachServer(t, map[string]func(*testing.T) *gittest.Server{"https": servers["https"], "no filter": servers["no filter"], "no blob wants": servers["no blob wants"], "sha256": servers["sha256"], "git, ssh, no anything": servers["git, ssh, no anything"]}, func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		repo.Commit(t, "main", map[string]string{"apps/a/bomb": strings.Repeat("\x00", 20<<20), "apps/a/full": strings.Repeat("y", 1<<20)})
		s := read(t, open(t, repo.URL, server.Auth), "main")
		_, err := s.Files(t.Context(), []string{"README.md", "apps/a/bomb", "apps/a/full"})
		if e, ok := errors.AsType[*fs.PathError](err); !ok || e.Path != "apps/a/bomb" || errors.Is(err, gitrepo.ErrNotRegular) {
			t.Errorf("Files: %v, want a path error about apps/a/bomb", err)
		}
		if got := readFiles(t, s, "README.md", "apps/a/full"); len(got["apps/a/full"]) != 1<<20 {
			t.Errorf("a full MiB: got %d bytes", len(got["apps/a/full"]))
		}
		_, err = s.Push(t.Context(), change("m", map[string]string{"README.md": strings.Repeat("y", 1<<20+1)}))
		if e, ok := errors.AsType[*fs.PathError](err); !ok || e.Path != "README.md" {
			t.Errorf("Push: %v, want a path error about README.md", err)
		}
	})
}

func TestMoved(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *gittest.Server{
		"https": servers["https"], "ssh": servers["ssh"], "sha256": servers["sha256"], "sha256, ssh": servers["sha256, ssh"], "git, https": servers["git, https"],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			repo := server.Create(t, "repo.git", seed())
			r := open(t, repo.URL, server.Auth)
			for how, move := range map[string]func(){
				"fast-forward": func() { repo.Commit(t, "main", map[string]string{"README.md": "theirs\n"}) },
				"force-push": func() {
					w := repo.Clone(t, "main")
					w.Git(t, "commit", "--quiet", "--amend", "-m", "rewritten")
					w.Git(t, "push", "--quiet", "--force", "origin", "HEAD:main")
				},
			} {
				s := read(t, r, "main")
				move()
				if _, err := s.Push(t.Context(), change("m", map[string]string{"apps/a/lock.yaml": how})); !errors.Is(err, gitrepo.ErrMoved) {
					t.Errorf("%s: Push: %v, want ErrMoved", how, err)
				}
				push(t, read(t, r, "main"), change("m", map[string]string{"apps/a/lock.yaml": how}))
				if got := repo.Git(t, "show", "main:apps/a/lock.yaml"); got != how {
					t.Errorf("%s: after reading again: %q", how, got)
				}
			}
			s := read(t, r, "main")
			repo.Git(t, "branch", "-m", "main", "gone")
			if _, err := s.Push(t.Context(), change("m", map[string]string{"README.md": "x"})); !errors.Is(err, gitrepo.ErrMoved) {
				t.Errorf("branch deleted: Push: %v, want ErrMoved", err)
			}
			if _, err := r.Read(t.Context(), "main"); !errors.Is(err, gitrepo.ErrBranch) {
				t.Errorf("branch deleted: Read: %v, want ErrBranch", err)
			}
		})
	}
}

// TestTakenBack: a branch that another writer moved, and a person moved back, is not where it was for those who read it
// before.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, https starter) {
		server := https(t)
		repo := server.Create(t, "repo.git", seed())
		tip := repo.Git(t, "rev-parse", "main")
		c := change("m", map[string]string{"apps/a/lock.yaml": "a: 2\n"})
		c.Mark = true
		one, other := read(t, open(t, repo.URL, server.Auth), "main"), open(t, repo.URL, server.Auth)
		push(t, read(t, other, "main"), c)
		repo.Git(t, "update-ref", "refs/heads/main", tip)
		if _, err := one.Push(t.Context(), c); !errors.Is(err, gitrepo.ErrMoved) {
			t.Errorf("Push: %v, want ErrMoved", err)
		}
		if now := repo.Git(t, "rev-parse", "main"); now != tip {
			t.Errorf("the branch is at %s, want %s, where the person left it", now, tip)
		}
		push(t, read(t, other, "main"), c)
	})
}

// TestMovedAndCollected: the commit that was read is gone from the server before its files were.
func TestMovedAndCollected(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMovedAndCollected)
}

func testMovedAndCollected(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "main")
	w := repo.Clone(t, "main")
	w.Git(t, "checkout", "--quiet", "--orphan", "fresh")
	w.Write(t, "apps/a/lock.yaml", "a: 9\n")
	w.Push(t, "main")
	repo.Git(t, "gc", "--quiet", "--prune=now")
	if _, err := s.Files(t.Context(), []string{"apps/a/lock.yaml"}); !errors.Is(err, gitrepo.ErrMoved) {
		t.Errorf("Files: %v, want ErrMoved", err)
	}
}

func TestNoChange(t *testing.T) {
	t.Parallel()
	eachBackend(t, testNoChange)
}

func testNoChange(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "main")
	before := server.Requests()
	same := change("m", map[string]string{"apps/a/lock.yaml": "a: 1\n", "README.md": "hello\n"})
	same.Files["apps/a/absent"] = nil
	for _, c := range []gitrepo.Change{same, {Message: "m", Author: robot, When: noon}} {
		if _, err := s.Push(t.Context(), c); !errors.Is(err, gitrepo.ErrNoChange) {
			t.Errorf("Push: %v, want ErrNoChange", err)
		}
	}
	if server.Requests() != before {
		t.Error("the server was asked")
	}
}

func TestSignature(t *testing.T) {
	t.Parallel()
	eachBackend(t, testSignature)
}

func testSignature(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "main")
	c := change("subject\n\nbody\nends \n\n", map[string]string{"README.md": "x"})
	if _, err := s.Push(t.Context(), gitrepo.Change{Files: c.Files, Message: "m", When: noon}); err == nil {
		t.Error("no author: no error")
	}
	if _, err := s.Push(t.Context(), gitrepo.Change{Files: c.Files, Message: " \n", Author: robot, When: noon}); err == nil {
		t.Error("no message: no error")
	}
	c.Author = gitrepo.Signature{Name: "Evil> <x@y>\nparent 0", Email: "e@example.com>"}
	c.Committer = robot
	push(t, s, c)
	got := repo.Git(t, "log", "-1", "--format=%an|%ae|%cn|%ce|%B", "main")
	if want := "Evil x@yparent 0|e@example.com|Robot|robot@example.com|subject\n\nbody\nends"; got != want {
		t.Errorf("git log = %q, want %q", got, want)
	}
	repo.Git(t, "fsck", "--strict")
}

// TestConcurrentWriters: eight writers of their own lock file and of one shared file lose nothing.
func TestConcurrentWriters(t *testing.T) {
	t.Parallel()
	eachBackend(t, testConcurrentWriters)
}

func testConcurrentWriters(t *testing.T, https starter) {
	writers, commits := 8, 5
	server := https(t)
	if testing.Short() || byGit(server) { // which is slow
		writers, commits = 3, 2
	}
	files := map[string]string{"shared": "0"}
	for i := range writers {
		files[fmt.Sprintf("app%d/lock", i)] = "0"
	}
	repo := server.Create(t, "repo.git", files)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			r := open(t, repo.URL, server.Auth)
			for n := range commits {
				count(t, r, fmt.Sprintf("app%d/lock", i), strconv.Itoa(n+1))
			}
		})
	}
	wg.Wait()
	if got := repo.Git(t, "rev-list", "--count", "main"); got != strconv.Itoa(1+writers*commits) {
		t.Errorf("%s commits, want %d", got, 1+writers*commits)
	}
	if got := repo.Git(t, "rev-list", "--merges", "--count", "main"); got != "0" {
		t.Errorf("%s merges", got)
	}
	if got := repo.Git(t, "show", "main:shared"); got != strconv.Itoa(writers*commits) {
		t.Errorf("shared counter = %s, want %d", got, writers*commits)
	}
	for i := range writers {
		if got := repo.Git(t, "show", fmt.Sprintf("main:app%d/lock", i)); got != strconv.Itoa(commits) {
			t.Errorf("app%d/lock = %s, want %d", i, got, commits)
		}
	}
	repo.Git(t, "fsck", "--strict")
}

// count writes value to its own file and adds one to the shared one, reading again for as long as others are faster.
func count(t *testing.T, r *gitrepo.Remote, name, value string) {
	for range 200 {
		s, err := r.Read(t.Context(), "")
		if err != nil {
			t.Error(err)
			return
		}
		files, err := s.Files(t.Context(), []string{"shared"})
		if errors.Is(err, gitrepo.ErrMoved) {
			continue
		}
		if err != nil {
			t.Error(err)
			return
		}
		n, _ := strconv.Atoi(string(files["shared"]))
		_, err = s.Push(t.Context(), change(name, map[string]string{name: value, "shared": strconv.Itoa(n + 1)}))
		if err == nil {
			return
		}
		if !errors.Is(err, gitrepo.ErrMoved) {
			t.Error(err)
			return
		}
	}
	t.Errorf("%s: never landed", name)
}

func TestConcurrentUseOfOneRemote(t *testing.T) {
	t.Parallel()
	eachBackend(t, testConcurrentUseOfOneRemote)
}

func testConcurrentUseOfOneRemote(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	var wg sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(seed())) {
		wg.Go(func() {
			s, err := r.Read(t.Context(), "")
			if err != nil {
				t.Error(err)
				return
			}
			got, err := s.Files(t.Context(), []string{name})
			if err != nil || string(got[name]) != seed()[name] {
				t.Errorf("%s = %q, %v", name, got[name], err)
			}
			_, err = s.Push(t.Context(), change("m", map[string]string{name: "new"}))
			if err != nil && !errors.Is(err, gitrepo.ErrMoved) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	eachBackend(t, testCancelled)
}

func testCancelled(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	s := read(t, r, "")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("shutting down"))
	_, readErr := r.Read(ctx, "")
	_, filesErr := s.Files(ctx, []string{"README.md"})
	_, pushErr := s.Push(ctx, change("m", map[string]string{"README.md": "x"}))
	for _, err := range []error{readErr, filesErr, pushErr} {
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "shutting down") {
			t.Errorf("%v, want context.Canceled and its cause", err)
		}
	}
}
