package companion

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestForget: a branch that nobody follows any more is forgotten after a day, and one that is followed is not.
func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked sizes
		c := New(Options{
			Replicas: func(context.Context) ([]Replica, error) { return []Replica{prompt{&asked}}, nil }, Log: slog.New(slog.DiscardHandler),
		})
		main := &target{repository: Repository{URL: "https://git.example.com/k8s"}, branch: "main"}
		kept := c.branch(main)
		c.branch(&target{repository: main.repository, branch: "preview"})
		time.Sleep(forgotten)
		c.branch(main)
		c.cycle(t.Context(), Quiet{}, nil)
		if len(c.branches) != 2 {
			t.Errorf("%d branches within a day, want 2", len(c.branches))
		}
		time.Sleep(time.Second)
		c.cycle(t.Context(), Quiet{}, nil)
		if len(c.branches) != 1 || c.branches[main.key()] != kept {
			t.Errorf("%d branches, want the one that is followed", len(c.branches))
		}
	})
}

// previews has rendered one image at each path, and its tag moves with each cycle.
type previews struct {
	prompt
	url   string
	paths []string
	n     int
}

func (p *previews) Pins(context.Context) (docs []lock.Document, err error) {
	p.n++
	for _, path := range p.paths {
		docs = append(docs, lock.Document{
			Source: &lock.Source{Application: path, Repository: p.url, TargetRevision: "main", Path: path},
			Pins:   []lock.Pin{{Image: "ghcr.io/a/b:latest", Digest: p.digest(), ResolvedAt: time.Unix(int64(p.n), 0)}},
		})
	}
	return docs, nil
}

func (p *previews) digest() string { return fmt.Sprintf("sha256:%064x", p.n) }

func (p *previews) Resolve(_ context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	return []image.Resolution{{Ref: refs[0], Digest: p.digest(), At: time.Unix(int64(p.n), 0)}}, nil
}

// TestForgetPaths: a path that is gone at the tip is forgotten, and one that nobody renders now is not.
func TestForgetPaths(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "k8s.git", map[string]string{
		"main/kustomization.yaml": "resources: []\n", "kept/kustomization.yaml": "resources: []\n", "pr/1/kustomization.yaml": "resources: []\n", "pr/2/kustomization.yaml": "resources: []\n",
	})
	remote, err := gitrepo.Open(repo.URL, server.Auth)
	if err != nil {
		t.Fatal(err)
	}
	p := &previews{url: repo.URL, paths: []string{"main", "kept", "pr/1", "pr/2"}}
	c := New(Options{
		Replicas: func(context.Context) ([]Replica, error) { return []Replica{p}, nil }, Repositories: []Repository{{Remote: remote, URL: repo.URL}},
		Author: gitrepo.Signature{Name: "digestlock", Email: "digestlock@localhost"}, Log: slog.New(slog.DiscardHandler),
	})
	want := func(paths string) {
		t.Helper()
		if commits, err := c.Once(t.Context()); err != nil || len(commits) != 1 {
			t.Fatalf("%d commits, %v", len(commits), err)
		}
		for _, b := range c.branches {
			if got := strings.Join(slices.Sorted(maps.Keys(b.left)), " "); got != paths {
				t.Errorf("remembered %s, want %s", got, paths)
			}
		}
	}
	want("kept main pr/1 pr/2")
	p.paths = []string{"main", "pr/2"}
	clone := repo.Clone(t, "main")
	clone.Git(t, "rm", "-r", "--quiet", "pr/1")
	clone.Git(t, "commit", "--quiet", "--message", "merged")
	clone.Git(t, "push", "--quiet", "origin", "HEAD:main")
	want("kept main pr/2")
}
