package companion_test

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestRevertSticksInSHA256: the whole rule, by git and with long names.
func TestRevertSticksInSHA256(t *testing.T) {
	t.Parallel()
	f := adopted(t, gittest.SHA256())
	by := revert(t, f.repo, "main")
	f.restarted(t)
	commits := once(t, f.Companion, 1)
	if tip := f.repo.Git(t, "rev-parse", "main"); commits[0].Hash != tip || len(tip) != 64 {
		t.Errorf("commit %s, want %s", commits[0].Hash, tip)
	}
	wantHold(t, f.repo, server, 1, 2, "reverted in "+by[:7]+" by A Person")
	once(t, f.restarted(t).Companion, 0)
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 3, 0, "")

	// A reset by force, which the mark alone tells of.
	f.repo.Git(t, "update-ref", "refs/heads/main", "main~1")
	once(t, f.restarted(t).Companion, 1)
	f.repo.Git(t, "fsck", "--strict")

	f.repo.Hook(t, "pre-receive", "echo protected; exit 1")
	f.replica.sees(pin(server, 4))
	failing(t, f.Companion, 0, "branch main was rejected: pre-receive hook declined: protected")
}

// TestRaceInSHA256: several companions on one branch lose nothing.
func TestRaceInSHA256(t *testing.T) {
	t.Parallel()
	const writers, updates = 3, 2
	f := &fixture{server: gittest.HTTPS(t, gittest.SHA256()), log: &log{}}
	files := map[string]string{}
	for i := range writers {
		files[fmt.Sprintf("app%d/kustomization.yaml", i)] = overlay
	}
	f.repo = f.server.Create(t, "team/k8s.git", files)
	t.Cleanup(func() { wellBehaved(t, f.repo) })
	var wg sync.WaitGroup
	for i := range writers {
		r := &replica{name: strconv.Itoa(i)}
		c := newCompanion(f.log, replicas(r), companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL})
		r.rendered(f.repo.URL, "main", fmt.Sprintf("app%d", i), "backend", pin(server, 1))
		wg.Go(func() {
			for n := range updates {
				r.sees(pin(server, n+1))
				if commits, err := c.Once(t.Context()); err != nil || len(commits) != 1 {
					t.Errorf("%d: %d commits, %v", i, len(commits), err)
				}
			}
		})
	}
	wg.Wait()
	if got := f.repo.Git(t, "rev-list", "--count", "main", "--", "*/"+lock.FileName); got != strconv.Itoa(writers*updates) {
		t.Errorf("%s commits of locks, want %d", got, writers*updates)
	}
	if got := f.repo.Git(t, "rev-list", "--merges", "--count", "main"); got != "0" {
		t.Errorf("%s merges", got)
	}
	for i := range writers {
		wantPins(t, f.repo, "main", fmt.Sprintf("app%d", i), map[string]int{server: updates})
	}
	f.repo.Git(t, "fsck", "--strict")
}
