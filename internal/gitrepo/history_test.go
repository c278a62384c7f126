package gitrepo_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

const mark = "refs/digestlock/main"

// marking is a change of one file that moves the mark too.
func marking(content string) gitrepo.Change {
	c := change("build: update\n\nDigestlock-Companion: test", map[string]string{"apps/a/lock.yaml": content})
	c.Mark = true
	return c
}

func marked(t *testing.T, s *gitrepo.Snapshot) *gitrepo.Commit {
	t.Helper()
	c, err := s.Marked(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func filesAt(t *testing.T, c *gitrepo.Commit, paths ...string) map[string]string {
	t.Helper()
	files, err := c.Files(t.Context(), paths)
	if err != nil {
		t.Fatal(err)
	}
	return text(files)
}

var noAtomic = gittest.Config("receive.advertiseAtomic=false")

// kinds are the servers, one by git for each kind of names, and one that cannot move two refs or none.
func kinds() map[string]func(*testing.T) *gittest.Server {
	all := maps.Clone(servers)
	for _, name := range []string{"sha256, ssh", "git, https", "sha256, no anything"} { // by git is slow
		delete(all, name)
	}
	all["not atomic"] = func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, noAtomic) }
	return all
}

func TestMark(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		r := open(t, repo.URL, server.Auth)
		s := read(t, r, "")
		if c := marked(t, s); c != nil {
			t.Errorf("before the first push: a mark at %s", c.Hash)
		}
		first := push(t, s, marking("a: 2\n"))
		second := push(t, read(t, r, ""), marking("a: 3\n"))
		if got := repo.Git(t, "rev-parse", mark); got != second {
			t.Errorf("%s = %s, want %s", mark, got, second)
		}

		// A person takes the branch elsewhere, to a history that never met ours.
		w := repo.Clone(t, "main")
		w.Git(t, "checkout", "--quiet", "--orphan", "other")
		w.Write(t, "apps/a/lock.yaml", "a: 9\n")
		w.Git(t, "rm", "--quiet", "-f", "README.md")
		w.Push(t, "main")
		for name, r := range map[string]*gitrepo.Remote{"same remote": r, "restarted": open(t, repo.URL, server.Auth)} {
			s := read(t, r, "")
			c := marked(t, s)
			want := gitrepo.Commit{
				Hash: second, Parents: []string{first}, Message: "build: update\n\nDigestlock-Companion: test\n",
				Author: robot, Committer: robot, When: noon,
			}
			if diff := cmp.Diff(want, *c, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "found" || p.String() == "at" }, cmp.Ignore()), cmp.AllowUnexported(gitrepo.Commit{})); diff != "" {
				t.Errorf("%s: Marked (-want +got):\n%s", name, diff)
			}
			got := filesAt(t, c, "apps/a/lock.yaml", "README.md", "apps", "apps/none/lock.yaml", "../x", "apps/a/absent")
			if diff := cmp.Diff(map[string]string{"apps/a/lock.yaml": "a: 3\n", "README.md": "hello\n"}, got); diff != "" {
				t.Errorf("%s: Files at the mark (-want +got):\n%s", name, diff)
			}
			if got := readFiles(t, s, "apps/a/lock.yaml", "README.md"); got["apps/a/lock.yaml"] != "a: 9\n" || len(got) != 1 {
				t.Errorf("%s: Files at the tip = %q", name, got)
			}
		}
		if err := r.MarkRefused("main"); err != nil {
			t.Error(err)
		}
		push(t, read(t, r, ""), marking("a: 4\n"))
		if c := marked(t, read(t, r, "")); filesAt(t, c, "apps/a/lock.yaml")["apps/a/lock.yaml"] != "a: 4\n" {
			t.Error("the mark did not come along")
		}
		repo.Git(t, "fsck", "--strict")
	})
}

// TestMarkOfReset: the branch is where it was read, and the mark is not.
func TestMarkOfReset(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkOfReset)
}

func testMarkOfReset(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	before := read(t, r, "")
	pushed := push(t, before, marking("a: 2\n"))
	repo.Git(t, "update-ref", "refs/heads/main", before.Commit())
	after := read(t, r, "")
	if c := marked(t, after); c == nil || c.Hash != pushed || after.Commit() != before.Commit() {
		t.Errorf("the mark after a reset is %v, want %s", c, pushed)
	}
	if c := marked(t, before); c != nil {
		t.Errorf("the first snapshot has changed: %s", c.Hash)
	}
	if read(t, r, "") != after {
		t.Error("another snapshot of an unmoved branch and mark")
	}
}

// TestMarkUnreadable: not to know is not the same as to know that there is none.
func TestMarkUnreadable(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkUnreadable)
}

func testMarkUnreadable(t *testing.T, https starter) {
	server := https(t, gittest.NoWant())
	repo := server.Create(t, "repo.git", seed())
	unreadable := func(what string, s *gitrepo.Snapshot, want string) {
		t.Helper()
		c, err := s.Marked(t.Context())
		if err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Marked = %v, %v, want %q", what, c, err, want)
		}
	}
	away := repo.Commit(t, "other", map[string]string{"README.md": "other\n"})
	repo.Git(t, "update-ref", mark, away)
	s := read(t, open(t, repo.URL, server.Auth), "")
	repo.Git(t, "update-ref", "-d", mark)
	repo.Git(t, "branch", "-D", "other")
	repo.Git(t, "gc", "--quiet", "--prune=now") // today's protocol hands out what is there
	unreadable("gone meanwhile", s, "read the mark of "+repo.URL+": "+mark+" at ")
	unreadable("gone meanwhile", s, "not our ref")
	repo.Commit(t, "main", map[string]string{"README.md": "moved\n"})
	if _, err := s.Marked(t.Context()); !errors.Is(err, gitrepo.ErrMoved) {
		t.Errorf("gone with the branch: %v, want ErrMoved", err)
	}
}

const (
	refusesMark = `case "$1" in refs/digestlock/*) echo "no such refs (ask https://u:s3cret@example.com)" >&2; exit 1;; esac`
	refusesAll  = `while read old new ref; do case "$ref" in refs/heads/*) ;; *) echo "only branches" >&2; exit 1;; esac; done`
)

func TestMarkRefused(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkRefused)
}

func testMarkRefused(t *testing.T, https starter) {
	for name, tt := range map[string]struct {
		options    []gittest.Option
		hook, text string
		why        string
	}{
		"update hook":             {hook: "update", text: refusesMark, why: "hook declined: no such refs (ask https://example.com)"},
		"update hook, not atomic": {hook: "update", text: refusesMark, why: "hook declined: no such refs", options: []gittest.Option{noAtomic}},
		"pre-receive hook":        {hook: "pre-receive", text: refusesAll, why: "pre-receive hook declined: only branches"},
		"pre-receive, not atomic": {hook: "pre-receive", text: refusesAll, why: "pre-receive hook declined: only branches", options: []gittest.Option{noAtomic}},
		"hidden":                  {why: "deny updating a hidden ref", options: []gittest.Option{gittest.Config("transfer.hideRefs=refs/digestlock")}},
		"hidden, not atomic":      {why: "deny updating a hidden ref", options: []gittest.Option{gittest.Config("receive.hideRefs=refs/digestlock"), noAtomic}},
	} {
		for protocol, start := range map[string]func(testing.TB, ...gittest.Option) *gittest.Server{"https": https, "ssh": gittest.SSH} {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				server := start(t, tt.options...)
				repo := server.Create(t, "repo.git", seed())
				if tt.hook != "" {
					repo.Hook(t, tt.hook, tt.text)
				}
				r := open(t, repo.URL, server.Auth)
				commit := push(t, read(t, r, ""), marking("a: 2\n"))
				if got := repo.Git(t, "for-each-ref", "--format=%(refname) %(objectname)"); got != "refs/heads/main "+commit {
					t.Errorf("refs = %q, want main at %s alone", got, commit)
				}
				check(t, "MarkRefused", r.MarkRefused("main"), mark+" was rejected: "+tt.why, "allow the pusher to write refs/digestlock/*")

				s := read(t, r, "")
				before := server.Requests()
				push(t, s, marking("a: 3\n"))
				plain := map[string]int{"https": 2, "ssh": 1}[protocol]
				if byGit(server) {
					plain++
				}
				if got := server.Requests() - before; got != plain {
					t.Errorf("the next push took %d requests, want the %d of one without a mark", got, plain)
				}
				if got := repo.Git(t, "rev-list", "--count", "main"); got != "3" {
					t.Errorf("%s commits, want 3", got)
				}
			})
		}
	}
}

// TestMarkStaysWithBranch: it never stands at a commit that the branch did not get.
func TestMarkStaysWithBranch(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkStaysWithBranch)
}

func testMarkStaysWithBranch(t *testing.T, https starter) {
	for name, options := range map[string][]gittest.Option{"atomic": nil, "not atomic": {noAtomic}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := https(t, options...)
			repo := server.Create(t, "repo.git", seed())
			r := open(t, repo.URL, server.Auth)
			first := push(t, read(t, r, ""), marking("a: 2\n"))

			repo.Hook(t, "update", `case "$1" in refs/heads/*) echo protected >&2; exit 1;; esac`)
			_, err := read(t, r, "").Push(t.Context(), marking("a: 3\n"))
			check(t, "protected branch", err, "branch main was rejected: hook declined: protected", "allow the pusher to change this branch")
			repo.Hook(t, "update", "")

			s := read(t, r, "")
			repo.Commit(t, "main", map[string]string{"README.md": "theirs\n"})
			if _, err := s.Push(t.Context(), marking("a: 3\n")); !errors.Is(err, gitrepo.ErrMoved) {
				t.Errorf("Push: %v, want ErrMoved", err)
			}

			// The branch moves once the server has been asked to.
			s = read(t, r, "")
			other := repo.Commit(t, "other", map[string]string{"README.md": "other\n"})
			repo.Hook(t, "pre-receive", "unset GIT_QUARANTINE_PATH; git update-ref refs/heads/main "+other)
			if _, err := s.Push(t.Context(), marking("a: 3\n")); !errors.Is(err, gitrepo.ErrMoved) {
				t.Errorf("moved while pushing: %v, want ErrMoved", err)
			}
			if got := repo.Git(t, "rev-parse", mark); got != first {
				t.Errorf("the mark is at %s, want %s", got, first)
			}
			if err := r.MarkRefused("main"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSweep: the marks of branches that are gone go, and no other; where there are none, or the server wants to keep them, it
// is not asked.
func TestSweep(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		r := open(t, repo.URL, server.Auth)
		sweep := func(want ...string) {
			t.Helper()
			if got, err := r.Sweep(t.Context()); err != nil || !slices.Equal(got, want) {
				t.Errorf("Sweep() = %q, %v, want %q", got, err, want)
			}
		}
		for _, branch := range []string{"feature/a", "feature/b"} {
			repo.Git(t, "branch", branch, "main")
			push(t, read(t, r, branch), marking("a: 2\n"))
		}
		tip := push(t, read(t, r, "main"), marking("a: 3\n"))
		read(t, r, "main")
		sweep()

		repo.Git(t, "branch", "-D", "feature/a", "feature/b")
		if _, err := r.Read(t.Context(), "feature/a"); !errors.Is(err, gitrepo.ErrBranch) {
			t.Fatalf("Read of a branch that is gone: %v", err)
		}
		repo.Hook(t, "update", `case "$1" in refs/digestlock/*) echo "kept here" >&2; exit 1;; esac`)
		got, err := r.Sweep(t.Context())
		check(t, "what the server keeps", err, "hook declined: kept here", "allow the pusher to delete refs/digestlock/*")
		if len(got) > 0 {
			t.Errorf("Sweep() = %q of what the server keeps", got)
		}
		repo.Hook(t, "update", "")
		read(t, r, "main")
		sweep()
		r = open(t, repo.URL, server.Auth)
		read(t, r, "main")
		sweep("feature/a", "feature/b")
		if got := repo.Git(t, "for-each-ref", "--format=%(refname) %(objectname)", "refs/digestlock"); got != mark+" "+tip {
			t.Errorf("marks are %q, want that of main", got)
		}
		read(t, r, "main")
		sweep()
	})
}

// TestMarkMovedMeanwhile: that the mark is elsewhere costs this push its mark, and no other.
func TestMarkMovedMeanwhile(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkMovedMeanwhile)
}

func testMarkMovedMeanwhile(t *testing.T, https starter) {
	for name, options := range map[string][]gittest.Option{"atomic": nil, "not atomic": {noAtomic}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := https(t, options...)
			repo := server.Create(t, "repo.git", seed())
			other := repo.Commit(t, "other", map[string]string{"README.md": "other\n"})
			r := open(t, repo.URL, server.Auth)
			push(t, read(t, r, ""), marking("a: 2\n"))
			repo.Hook(t, "pre-receive", `unset GIT_QUARANTINE_PATH; while read old new ref; do test $ref != `+mark+` || git update-ref $ref `+other+`; done`)
			commit := push(t, read(t, r, ""), marking("a: 3\n"))
			if got := repo.Git(t, "rev-parse", "main", mark); got != commit+"\n"+other {
				t.Errorf("main and mark = %q", got)
			}
			if err := r.MarkRefused("main"); err != nil {
				t.Error(err)
			}
			repo.Hook(t, "pre-receive", "")
			commit = push(t, read(t, r, ""), marking("a: 4\n"))
			if got := repo.Git(t, "rev-parse", mark); got != commit {
				t.Errorf("the next push left the mark at %s, want %s", got, commit)
			}
		})
	}
}

// TestMarkAnswerLost: a server that breaks down while it answers has refused nothing.
func TestMarkAnswerLost(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMarkAnswerLost)
}

func testMarkAnswerLost(t *testing.T, https starter) {
	var deaf atomic.Bool // whether the server does not even do what it cannot answer
	server := https(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
				next.ServeHTTP(w, r)
				return
			}
			if !deaf.Load() {
				next.ServeHTTP(httptest.NewRecorder(), r)
			}
			w.WriteHeader(http.StatusBadGateway)
		})
	}))
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	commit := push(t, read(t, r, ""), marking("a: 2\n"))
	if got := repo.Git(t, "rev-parse", "main", mark); got != commit+"\n"+commit {
		t.Errorf("main and mark = %q, want %s", got, commit)
	}
	deaf.Store(true)
	s := read(t, r, "")
	before := server.Requests()
	_, err := s.Push(t.Context(), marking("a: 3\n"))
	check(t, "Push", err, "status code: 502", "")
	want := 3 // two to push, and one to see what came of it
	if byGit(server) {
		want++ // git looks for itself
	}
	if got := server.Requests() - before; got != want {
		t.Errorf("%d requests, want %d", got, want)
	}
	if err := r.MarkRefused("main"); err != nil {
		t.Error(err)
	}
}

// commitAt writes a commit of one file, by a clock of its own.
func commitAt(t *testing.T, repo *gittest.Repo, second int, lock string, parents ...string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(kind, content string) string {
		path := filepath.Join(dir, kind)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return repo.Git(t, "hash-object", "-t", kind, "-w", path)
	}
	index := filepath.Join(dir, "tree")
	blob := write("blob", lock)
	raw := "100644 lock\x00"
	for i := 0; i < len(blob); i += 2 {
		var b byte
		fmt.Sscanf(blob[i:i+2], "%02x", &b)
		raw += string([]byte{b})
	}
	if err := os.WriteFile(index, []byte(raw), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "tree " + repo.Git(t, "hash-object", "-t", "tree", "-w", index) + "\n"
	for _, p := range parents {
		text += "parent " + p + "\n"
	}
	who := fmt.Sprintf("A Person <person@example.com> %d +0000\n", 1_700_000_000+second)
	return write("commit", text+"author "+who+"committer "+who+"\nchange "+lock+"\n")
}

func TestLog(t *testing.T) {
	t.Parallel()
	kinds := maps.Clone(servers)
	kinds["no tree filter"] = func(t *testing.T) *gittest.Server {
		return gittest.HTTPS(t, gittest.Config("uploadpackfilter.tree.allow=false"))
	}
	eachServer(t, kinds, func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", nil)
		// Two lines with a merge between them, one of them by a clock that is a day late.
		tip := commitAt(t, repo, 0, "0")
		for i := 1; i < 30; i += 3 {
			side := commitAt(t, repo, i-86400, fmt.Sprint(i), tip)
			main := commitAt(t, repo, i+1, fmt.Sprint(i+1), tip)
			tip = commitAt(t, repo, i+2, fmt.Sprint(i+2), main, side)
		}
		repo.Git(t, "update-ref", "refs/heads/main", tip)
		repo.Git(t, "symbolic-ref", "HEAD", "refs/heads/main")
		r := open(t, repo.URL, server.Auth)
		s := read(t, r, "")
		for _, most := range []int{0, 1, 2, 7, 5, 100} {
			log, err := s.Log(t.Context(), most)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range log {
				got = append(got, strings.Join(append([]string{c.Hash}, c.Parents...), " ")+" "+strings.TrimSpace(c.Message))
			}
			want := strings.Split(repo.Git(t, "log", "--date-order", fmt.Sprint("-n", most), "--format=%H %P %s", "main"), "\n")
			for i := range want {
				want[i] = strings.Replace(want[i], "  ", " ", 1) // of a commit without parents
			}
			if most == 0 {
				want = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Log(%d) (-want +got):\n%s", most, diff)
			}
			for _, i := range slices.Compact([]int{0, len(log) / 2, len(log) - 1}) {
				if i < 0 || i >= len(log) {
					continue
				}
				c := log[i]
				if got := filesAt(t, c, "lock", "none"); len(got) != 1 || "change "+got["lock"] != strings.TrimSpace(c.Message) {
					t.Errorf("Files of %q = %q", c.Message, got)
				}
			}
		}
	})
}

// TestHistoryRequests: what a restart costs.
func TestHistoryRequests(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	for i := range 5 {
		push(t, read(t, r, ""), marking(fmt.Sprint("a: ", i+2, "\n")))
	}
	repo.Commit(t, "main", map[string]string{"README.md": "theirs\n"})
	var (
		s   *gitrepo.Snapshot
		at  *gitrepo.Commit
		log []*gitrepo.Commit
	)
	both := []string{"README.md", "apps/a/lock.yaml"}
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"read", func() { s = read(t, open(t, repo.URL, server.Auth), "") }, 2},
		{"mark", func() { at = marked(t, s) }, 1},
		{"mark again", func() { at = marked(t, s) }, 0},
		{"files at the mark", func() { filesAt(t, at, both...) }, 1},
		{"files at the tip, one of them known", func() { readFiles(t, s, both...) }, 1},
		{"files again", func() { filesAt(t, at, both...); readFiles(t, s, both...) }, 0},
		{"log", func() { log, _ = s.Log(t.Context(), 4) }, 1},
		{"log, less", func() { log, _ = s.Log(t.Context(), 3) }, 0},
		{"log, more", func() { log, _ = s.Log(t.Context(), 100) }, 1},
		{"log, even more", func() { log, _ = s.Log(t.Context(), 1000) }, 0},
		{"files of the past", func() { filesAt(t, log[len(log)-1], both...) }, 2},
		{"files around it, whose trees came along", func() { filesAt(t, log[len(log)-2], both...) }, 1},
		{"files of before", func() { filesAt(t, log[len(log)-1], both...) }, 0},
	} {
		before := server.Requests()
		step.do()
		if got := server.Requests() - before; got != step.want {
			t.Errorf("%s: %d requests, want %d", step.name, got, step.want)
		}
	}
	if len(log) != 7 {
		t.Errorf("%d commits, want 7", len(log))
	}
}
