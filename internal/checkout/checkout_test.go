package checkout

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/digestlock/digestlock/internal/gittest"
)

// TestTip reads what real git writes, loose and packed, in a clone that stands at an older commit: a rollback.
func TestTip(t *testing.T) {
	t.Parallel()
	bare, clone := t.TempDir(), filepath.Join(t.TempDir(), "clone")
	git := func(dir string, args ...string) string { return gittest.Git(t, dir, "", args...) }
	git(bare, "init", "--bare", "--initial-branch=main", ".")
	git(filepath.Dir(clone), "clone", bare, clone)
	commit := func(branch string) string {
		git(clone, "-c", "user.name=P", "-c", "user.email=p@example.com", "commit", "--allow-empty", "-m", "x")
		git(clone, "push", "origin", "HEAD:refs/heads/"+branch)
		return git(clone, "rev-parse", "HEAD")
	}
	first := commit("main")
	second := commit("main")
	feature := commit("feature/x")
	git(clone, "tag", "v1", first)
	git(clone, "remote", "set-head", "origin", "main")
	git(clone, "checkout", "--detach", first)
	deep := filepath.Join(clone, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	check := func(kind string) {
		for branch, want := range map[string]string{
			"main": second, "refs/heads/main": second, "feature/x": feature, "HEAD": second, "": second,
			"v1": "", "feature": "", first: "", "../../HEAD": "", "a\\b": "", "/main": "", "none": "", "main/x": "",
		} {
			got, err := Tip(deep, branch)
			if err != nil || got != want {
				t.Errorf("%s: Tip(%q) = %q, %v, want %q", kind, branch, got, err, want)
			}
		}
	}
	check("loose")
	git(clone, "pack-refs", "--all")
	check("packed")
}

func TestTipWithoutRepository(t *testing.T) {
	t.Parallel()
	if got, err := Tip(t.TempDir(), "main"); got != "" || err != nil {
		t.Errorf("Tip = %q, %v, want nothing", got, err)
	}
}
