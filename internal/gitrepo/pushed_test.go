package gitrepo_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gittest"
)

// TestReadAfterPush: what was pushed is not fetched again, and reads, and is built upon, as if it had been.
func TestReadAfterPush(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]gittest.Option{"filter": nil, "no filter": {gittest.NoFilter()}, "no want": {gittest.NoWant()}, "no shallow": {gittest.NoShallow()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := gittest.HTTPS(t, options...)
			repo := server.Create(t, "k8s.git", seed())
			remote := open(t, repo.URL, server.Auth)
			first := read(t, remote, "main")
			readFiles(t, first, "apps/a/lock.yaml")
			c := change("first", map[string]string{"apps/a/lock.yaml": "a: 2\n", "apps/deep/er/new.yaml": "new: 1\n"})
			c.Files["README.md"] = nil
			c.Mark = true
			hash := push(t, first, c)

			before := server.Requests()
			mine := read(t, remote, "main")
			paths := []string{"apps/a/lock.yaml", "apps/deep/er/new.yaml", "README.md"}
			got := readFiles(t, mine, paths...)
			if n := server.Requests() - before; n != 1 && name != "no shallow" {
				t.Errorf("%d requests to read what was just pushed, want 1", n)
			}
			fresh := read(t, open(t, repo.URL, server.Auth), "main")
			if mine.Commit() != hash || !mine.MarkIsHere() || fresh.Commit() != hash {
				t.Errorf("read %s, mark there %v, fresh %s, want %s", mine.Commit(), mine.MarkIsHere(), fresh.Commit(), hash)
			}
			if diff := cmp.Diff(readFiles(t, fresh, paths...), got); diff != "" {
				t.Errorf("fetched (-), remembered (+):\n%s", diff)
			}
			if diff := cmp.Diff(readFiles(t, fresh, "apps/a-b/lock.yaml", "apps/deep/er/lock.yaml"), readFiles(t, mine, "apps/a-b/lock.yaml", "apps/deep/er/lock.yaml")); diff != "" {
				t.Errorf("what did not change: fetched (-), remembered (+):\n%s", diff)
			}
			if log, err := mine.Log(t.Context(), 10); err != nil || len(log) != 2 {
				t.Errorf("Log = %d commits, %v, want 2", len(log), err)
			}
			push(t, mine, change("second", map[string]string{"apps/a-b/lock.yaml": "ab: 2\n"}))
			if got := repo.Git(t, "log", "--format=%s", "main"); got != "second\nfirst\na person's change" {
				t.Errorf("history:\n%s", got)
			}
			repo.Git(t, "fsck", "--strict")
			repo.Commit(t, "main", map[string]string{"apps/a/lock.yaml": "a: 3\n"})
			if got := readFiles(t, read(t, remote, "main"), "apps/a/lock.yaml"); got["apps/a/lock.yaml"] != "a: 3\n" {
				t.Errorf("after somebody else's push: %v", got)
			}
		})
	}
}
