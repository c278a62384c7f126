package companion_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/lock"
)

// TestManyPaths: what a commit asks of the Git server is the same for many paths as for a few, right after a restart, too,
// and when a person has reverted all of them.
func TestManyPaths(t *testing.T) {
	t.Parallel()
	paths, each := 200, 10
	dir := func(i int) string { return fmt.Sprintf("apps/app-%04d", i) }
	pins := func(i, n int) []lock.Pin {
		all := []lock.Pin{pin(server, n)}
		for j := 1; j < each; j++ {
			all = append(all, pin(fmt.Sprintf("ghcr.io/acme/app-%04d/image-%d:latest", i, j), 1))
		}
		return all
	}
	files := map[string]string{}
	for i := range paths {
		files[dir(i)+"/kustomization.yaml"] = overlay
	}
	f := start(t, files)
	for i := range paths {
		f.replica.rendered(f.repo.URL, "main", dir(i), fmt.Sprintf("app-%d", i), pins(i, 1)...)
		f.replica.sees(pins(i, 1)...)
	}
	cycle := func(what string, commits, most int) {
		t.Helper()
		before, began := f.server.Requests(), time.Now()
		once(t, f.Companion, commits)
		n := f.server.Requests() - before
		t.Logf("%s: %d requests in %v", what, n, time.Since(began))
		if n > most {
			t.Errorf("%s: %d requests to the Git server, at most %d", what, n, most)
		}
	}
	cycle("first", 1, 4)
	cycle("nothing to do", 0, 1)
	f.replica.sees(pin(server, 2))
	cycle("a push", 1, 3)
	f.use(t, "", f.replica)
	f.replica.sees(pin(server, 3))
	cycle("a push after a restart", 1, 10)

	person := f.repo.Clone(t, "main")
	person.Git(t, "revert", "--no-edit", "HEAD")
	person.Git(t, "push", "--quiet", "origin", "main")
	cycle("a revert", 1, 10)
	f.replica.sees(pin(server, 4))
	cycle("a push after the revert", 1, 3)
	f.use(t, "", f.replica)
	cycle("nothing to do after a restart", 0, 3)
}

// TestHugeLock: what somebody puts in the place of one lock keeps no other from its commits, whatever is read of the past.
func TestHugeLock(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	for _, dir := range []string{"a", "b"} {
		f.replica.rendered(f.repo.URL, "main", dir, dir, pin(server, 1))
	}
	f.replica.sees(pin(server, 1))
	once(t, f.Companion, 1)
	f.repo.Commit(t, "main", map[string]string{"b/digest-lock.yaml": strings.Repeat("#", 1<<20+1)})
	f.replica.sees(pin(server, 2))
	failing(t, f.Companion, 1, "b/digest-lock.yaml", "larger than 1 MiB")
	for n := 3; n < 5; n++ {
		f.use(t, "", f.replica)
		f.repo.Commit(t, "main", map[string]string{"README.md": digest(n)})
		f.replica.sees(pin(server, n))
		failing(t, f.Companion, 1, "b/digest-lock.yaml", "larger than 1 MiB")
		wantPins(t, f.repo, "main", "a", map[string]int{server: n})
	}
	f.repo.Commit(t, "main", map[string]string{"b/digest-lock.yaml": lockText(pin(server, 1))})
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "b", map[string]int{server: 4})
}
