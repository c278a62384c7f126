package gitrepo

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// TestForget: branches that come and go leave nothing behind.
func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := Open("https://git.example.com/team/k8s.git", Auth{})
		if err != nil {
			t.Fatal(err)
		}
		read := func(branch string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.remember(&Snapshot{branch: plumbing.NewBranchReferenceName(branch)})
		}
		cached := func(branch string) bool {
			return r.cached(plumbing.NewBranchReferenceName(branch), plumbing.ZeroHash, plumbing.ZeroHash, &names{}) != nil
		}
		read("preview")
		r.refused = map[plumbing.ReferenceName]error{plumbing.NewBranchReferenceName("preview"): errors.New("no marks")}
		read("main")
		for range 3 { // it is read without news, too
			time.Sleep(forgotten)
			if !cached("main") {
				t.Error("main is forgotten")
			}
		}
		if len(r.last) != 1 || r.MarkRefused("preview") != nil || cached("preview") {
			t.Errorf("%d branches are remembered, and that marks are refused: %v", len(r.last), r.MarkRefused("preview"))
		}
	})
}
