package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

var kills = flag.Int("kills", 20, "how many companions TestKilled kills")

// nth is the digest that the tag stands at after the nth push.
func nth(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// TestKilled has two companions work on one branch of a real Git server, kills one of them at a random instant, starts
// another in its place, and so on, while the tag moves. No pin is lost, and no commit is doubled, wrong or older than the
// one before it.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	git := gittest.HTTPS(t)
	repo := git.Create(t, "k8s.git", map[string]string{"app/kustomization.yaml": "resources: []\n"})
	tag := &registry{digest: nth(1)}
	c := cache.New(tag, cache.Options{})
	t.Cleanup(c.Close)
	writeSecrets(t, dir, git)
	address, err := serve(dir, t.Cleanup, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := render(address, repo.URL); err != nil {
		t.Fatal(err)
	}
	ref, err := image.Parse("ghcr.io/acme/server")
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "digestlock-companion", "--interval=30ms", "--quiet-window=0",
			"--resolver", address, "--resolver-token-file", filepath.Join(dir, "token"), "--repo", repo.URL,
			"--git-username", git.Auth.Username, "--git-password-file", filepath.Join(dir, "password"), "--git-ca-file", filepath.Join(dir, "ca.pem"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	began := time.Now()
	running := []*exec.Cmd{start(), start()}
	wait := func(digest string) {
		for deadline := time.Now().Add(time.Minute); at(t, repo, "main") != digest; {
			if time.Now().After(deadline) {
				t.Fatalf("the lock is at %q, want %s", at(t, repo, "main"), digest)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	wait(nth(1))
	span := time.Since(began) // from start to commit, on a machine as busy as this one
	last := 1
	for range *kills {
		last++
		tag.set(nth(last))
		c.Flush(t.Context(), []image.Target{{Ref: ref}})
		time.Sleep(rand.N(2 * span))
		i := rand.IntN(len(running))
		_ = running[i].Process.Kill()
		_ = running[i].Wait() // killed
		running[i] = start()
	}
	wait(nth(last))
	for _, cmd := range running {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	commits := strings.Fields(repo.Git(t, "rev-list", "--reverse", "--first-parent", "main"))[1:]
	before := nth(0)
	for _, commit := range commits {
		if files := repo.Git(t, "show", "--format=", "--name-only", commit); files != "app/"+lock.FileName {
			t.Errorf("commit %s changes %q", commit, files)
		}
		if parents := strings.Fields(repo.Git(t, "log", "-1", "--format=%P", commit)); len(parents) != 1 {
			t.Errorf("commit %s has parents %v", commit, parents)
		}
		now := at(t, repo, commit)
		if now <= before {
			t.Errorf("commit %s moves the pin from %s to %s, want it forward", commit, before, now)
		}
		before = now
	}
	if problems := repo.Git(t, "fsck", "--strict"); strings.Contains(problems, "error") {
		t.Errorf("git fsck: %s", problems)
	}
	if mark := repo.Git(t, "rev-parse", "refs/digestlock/main"); mark != commits[len(commits)-1] {
		t.Errorf("the mark is at %s, want the last commit, %s", mark, commits[len(commits)-1])
	}
	if len(commits) < *kills/4 {
		t.Errorf("%d commits for %d pushes: they were killed before they did anything, and the test shows little", len(commits), *kills)
	}
	t.Logf("%d kills, %d commits", *kills, len(commits))
}

// at returns the digest of the only pin at a revision, "" while there is no lock.
func at(t *testing.T, repo *gittest.Repo, revision string) string {
	t.Helper()
	if repo.Git(t, "ls-tree", revision, "app/"+lock.FileName) == "" {
		return ""
	}
	doc, err := lock.Parse(lock.FileName, []byte(repo.Git(t, "show", revision+":app/"+lock.FileName)+"\n"))
	if err != nil || len(doc.Pins) != 1 || doc.Pins[0].Hold != nil {
		t.Fatalf("lock at %s: %+v, %v, want one pin without a hold", revision, doc, err)
	}
	return doc.Pins[0].Digest
}

func writeSecrets(t *testing.T, dir string, git *gittest.Server) {
	t.Helper()
	for name, content := range map[string]string{"token": "t0ken\n", "password": git.Auth.Password, "ca.pem": string(git.Auth.CA)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
