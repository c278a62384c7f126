package gitrepo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

const side = "digestlock/main"

// onto is a change of one file for the branch side, which stands at a commit or, with "", is not there.
func onto(at, content string) gitrepo.Change {
	c := marking(content)
	c.Onto, c.OntoAt = side, at
	return c
}

func TestOnto(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		r := open(t, repo.URL, server.Auth)
		first := push(t, read(t, r, "main"), onto("", "a: 2\n"))
		moved := repo.Commit(t, "main", map[string]string{"README.md": "theirs\n"})
		second := push(t, read(t, r, "main"), onto(first, "a: 3\n"))
		if got := repo.Git(t, "rev-parse", side, side+"~1", "main"); got != strings.Join([]string{second, moved, moved}, "\n") {
			t.Errorf("side, its parent and main are\n%s\nwant %s on %s", got, second, moved)
		}
		if got := repo.Git(t, "diff", "--name-only", "main", side); got != "apps/a/lock.yaml" {
			t.Errorf("the side differs in %q", got)
		}
		if got := repo.Git(t, "for-each-ref", "--format=%(refname)"); got != "refs/heads/"+side+"\nrefs/heads/main" {
			t.Errorf("refs are %q, want no mark", got)
		}
		if s := read(t, r, side); s.Commit() != second || readFiles(t, s, "apps/a/lock.yaml")["apps/a/lock.yaml"] != "a: 3\n" {
			t.Errorf("the side reads as %s", s.Commit())
		}
		repo.Git(t, "fsck", "--strict")
	})
}

// TestOntoMoved: a branch that is not where it was read is not touched.
func TestOntoMoved(t *testing.T) {
	t.Parallel()
	eachBackend(t, testOntoMoved)
}

func testOntoMoved(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "main")
	refused := func(what, at, want string) {
		t.Helper()
		if _, err := s.Push(t.Context(), onto(at, what)); !errors.Is(err, gitrepo.ErrMoved) {
			t.Errorf("%s: %v, want ErrMoved", what, err)
		}
		if got := repo.Git(t, "for-each-ref", "--format=%(objectname)", "refs/heads/"+side); got != want {
			t.Errorf("%s: the side is at %q, want %q", what, got, want)
		}
	}
	refused("deleted", s.Commit(), "")
	theirs := repo.Commit(t, side, map[string]string{"README.md": "theirs\n"})
	refused("created", "", theirs)
	refused("moved", s.Commit(), theirs)

	// It moves once the server has been asked to.
	other := repo.Commit(t, "other", map[string]string{"README.md": "other\n"})
	repo.Hook(t, "pre-receive", "unset GIT_QUARANTINE_PATH; git update-ref refs/heads/"+side+" "+other)
	refused("moved meanwhile", theirs, other)

	repo.Hook(t, "pre-receive", "echo protected >&2; exit 1")
	_, err := s.Push(t.Context(), onto(other, "x"))
	check(t, "protected", err, "branch "+side+" was rejected: pre-receive hook declined: protected", "allow the pusher to change this branch")
}

func TestValidBranch(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"main": true, "digestlock/main": true, "release-1.2": true, "ü": true,
		"": false, "HEAD": false, "refs/heads/main": false, "/main": false, "main/": false, "a//b": false, "a..b": false, "-x": false,
		"a b": false, "a\nb": false, "a.lock": false, ".a": false, "a@{b": false, "a~1": false, "a:b": false, "a.": false,
	} {
		if got := gitrepo.ValidBranch(name); got != want {
			t.Errorf("ValidBranch(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestMarkAlone(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		r := open(t, repo.URL, server.Auth)
		for i := range 2 {
			s := read(t, r, "main")
			if s.MarkIsHere() {
				t.Errorf("%d: the mark is here before it was moved", i)
			}
			if err := s.Mark(t.Context()); err != nil {
				t.Error(err)
			}
			if s := read(t, r, "main"); !s.MarkIsHere() {
				t.Errorf("%d: the mark is not here", i)
			}
			repo.Commit(t, "main", map[string]string{"README.md": t.Name()})
		}
		repo.Hook(t, "update", refusesMark)
		if err := read(t, r, "main").Mark(t.Context()); err != nil || r.MarkRefused("main") == nil {
			t.Errorf("refused: %v, and remembered as %v", err, r.MarkRefused("main"))
		}
	})
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "main")
	repo.Git(t, "config", "http.receivepack", "false")
	check(t, "no pushes", s.Mark(t.Context()), "mark a branch of "+repo.URL, "allow these credentials")
}
