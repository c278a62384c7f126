package gitrepo_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

func own(t *testing.T, r *gitrepo.Remote) *gitrepo.Snapshot {
	t.Helper()
	s, err := r.Own(t.Context(), side)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOwn: a branch that is not there is made, with a history of its own, and so are its directories.
func TestOwn(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		r := open(t, repo.URL, server.Auth)
		s := own(t, r)
		if s.Commit() != "" || s.Branch() != side {
			t.Fatalf("Own = %q on %s, want nothing on %s", s.Commit(), s.Branch(), side)
		}
		if got := readFiles(t, s, "a/b/lock.yaml", "lock.yaml"); len(got) != 0 {
			t.Errorf("a branch that is not there has %v", got)
		}
		first := push(t, s, change("first", map[string]string{"a/b/lock.yaml": "1\n", "lock.yaml": "root\n"}))
		s = own(t, r)
		if diff := cmp.Diff(map[string]string{"a/b/lock.yaml": "1\n", "lock.yaml": "root\n"}, readFiles(t, s, "a/b/lock.yaml", "a/c/lock.yaml", "lock.yaml")); diff != "" || s.Commit() != first {
			t.Errorf("at %s, want %s; files (-want +got):\n%s", s.Commit(), first, diff)
		}
		c := change("second", map[string]string{"a/c/lock.yaml": "2\n", "z/lock.yaml": "z\n"})
		c.Files["a/b/lock.yaml"] = nil
		c.Files["nowhere/lock.yaml"] = nil
		push(t, s, c)
		if got, want := repo.Git(t, "log", "--format=%s", side), "second\nfirst"; got != want {
			t.Errorf("history is %q, want %q", got, want)
		}
		if got, want := repo.Git(t, "ls-tree", "-r", "--name-only", side), "a/c/lock.yaml\nlock.yaml\nz/lock.yaml"; got != want {
			t.Errorf("files are %q, want %q", got, want)
		}
		repo.Git(t, "fsck", "--strict")
	})
}

// TestOwnMoved: of two who make the branch, one does, and nothing else than a missing directory is made up for.
func TestOwnMoved(t *testing.T) {
	t.Parallel()
	eachBackend(t, testOwnMoved)
}

func testOwnMoved(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	late := own(t, r)
	push(t, own(t, r), change("first", map[string]string{"a/lock.yaml": "1\n"}))
	if _, err := late.Push(t.Context(), change("late", map[string]string{"b/lock.yaml": "2\n"})); !errors.Is(err, gitrepo.ErrMoved) {
		t.Errorf("two made the branch: %v, want ErrMoved", err)
	}
	if _, err := own(t, r).Push(t.Context(), change("below a file", map[string]string{"a/lock.yaml/lock.yaml": "2\n"})); !errors.Is(err, gitrepo.ErrNotRegular) {
		t.Errorf("below a file: %v, want ErrNotRegular", err)
	}
	if _, err := read(t, r, side).Push(t.Context(), change("not own", map[string]string{"b/lock.yaml": "2\n"})); !errors.Is(err, gitrepo.ErrNotRegular) {
		t.Errorf("as any branch: %v, want ErrNotRegular", err)
	}
	if s, err := open(t, server.URL("nowhere.git"), server.Auth).Own(t.Context(), side); err == nil {
		t.Errorf("a repository that is not there has %s", s.Branch())
	}
}
