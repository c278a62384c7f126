package companion_test

import (
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/lock"
)

const app = "app/" + lock.FileName

// adopted starts a repository in which the companion has moved server from its first digest to its second, in a commit
// of its own.
func adopted(t *testing.T, options ...gittest.Option) *fixture {
	t.Helper()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay}, options...)
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1), pin(worker, 1))
	f.replica.sees(pin(server, 1), pin(worker, 1))
	once(t, f.Companion, 1)
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2, worker: 1})
	return f
}

// restarted puts a companion in the place of the one before that knows what Git knows.
func (f *fixture) restarted(t *testing.T) *fixture {
	t.Helper()
	f.use(t, "", f.replica)
	return f
}

// revert reverts commits as a person does, newest first, and returns the last commit's hash.
func revert(t *testing.T, repo *gittest.Repo, commits ...string) string {
	t.Helper()
	c := repo.Clone(t, "main")
	for _, commit := range commits {
		c.Git(t, "revert", "--no-edit", commit)
	}
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	return c.Git(t, "rev-parse", "HEAD")
}

// wantHold checks that the image is at its nth digest, and which digest a hold rejects with what reason: none for 0.
func wantHold(t *testing.T, repo *gittest.Repo, image string, n, rejected int, reason string) {
	t.Helper()
	doc, err := lock.Parse(app, []byte(show(t, repo, "main", app)))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := doc.Find(image)
	if p.Digest != digest(n) {
		t.Errorf("%s is at %s, want %s", image, p.Digest, digest(n))
	}
	switch {
	case rejected == 0 && p.Hold != nil:
		t.Errorf("%s has hold %+v, want none", image, p.Hold)
	case rejected != 0 && (p.Hold == nil || p.Hold.Rejected != digest(rejected) || p.Hold.Reason != reason):
		t.Errorf("%s has hold %+v, want %s rejected: %s", image, p.Hold, digest(rejected), reason)
	}
}

// TestRevertSticks: a digest that a person reverted is not adopted again, by no process; the next push is.
func TestRevertSticks(t *testing.T) {
	t.Parallel()
	refuseMark := `case "$1" in refs/digestlock/*) echo "no such refs here" >&2; exit 1;; esac`
	for name, prepare := range map[string]func(*testing.T, *fixture){
		"by the same process": func(*testing.T, *fixture) {},
		"after a restart":     func(t *testing.T, f *fixture) { f.restarted(t) },
		"without a mark": func(t *testing.T, f *fixture) {
			f.repo.Git(t, "update-ref", "-d", "refs/digestlock/main")
			f.repo.Hook(t, "update", refuseMark)
			f.restarted(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := adopted(t)
			by := revert(t, f.repo, "main")
			prepare(t, f)
			commits := once(t, f.Companion, 1)
			reason := "reverted in " + by[:7] + " by A Person"
			wantText(t, "message", `build: hold backend/server at sha256:000000000000…

ghcr.io/acme/backend/server:latest
  stays at `+digest(1)+`
  rejected `+digest(2)+`: `+reason+`
  in app/digest-lock.yaml for backend

Digestlock-Companion: devel
`, commits[0].Message)
			wantHold(t, f.repo, server, 1, 2, reason)
			once(t, f.Companion, 0)
			once(t, f.restarted(t).Companion, 0)

			f.repo.Commit(t, "main", map[string]string{"elsewhere": "anything\n"})
			once(t, f.Companion, 0)
			f.replica.sees(pin(server, 3))
			once(t, f.Companion, 1)
			wantHold(t, f.repo, server, 3, 0, "")
		})
	}
}

// TestRevertOfRevert: who takes the revert back has the digest again, and no hold.
func TestRevertOfRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	by := revert(t, f.repo, "main")
	held := once(t, f.Companion, 1)[0].Hash
	revert(t, f.repo, held, by)
	once(t, f.Companion, 0)
	once(t, f.restarted(t).Companion, 0)
	wantHold(t, f.repo, server, 2, 0, "")

	// At once, before the companion saw the first.
	f = adopted(t)
	revert(t, f.repo, revert(t, f.repo, "main"))
	once(t, f.Companion, 0)
	wantHold(t, f.repo, server, 2, 0, "")
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1)
}

// TestReset: a branch that is set back by force does not show what was there, the mark does.
func TestReset(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	ours := f.repo.Git(t, "rev-parse", "main")
	f.repo.Git(t, "update-ref", "refs/heads/main", "main~1")
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "branch reset past "+ours[:7])
	once(t, f.restarted(t).Companion, 0)
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 3, 0, "")
}

// manyCommits is a git alias that adds commits to main which change nothing.
const manyCommits = `!at=$(git rev-parse main); for i in $(seq 500); do at=$(git commit-tree -p $at -m $i "main^{tree}"); done; git update-ref refs/heads/main $at`

// TestResetOfLongBranch: so it is on a branch with more commits than the companion reads, also past several of its own, and
// without a mark for as long as the process lives.
func TestResetOfLongBranch(t *testing.T) {
	t.Parallel()
	restart := func(t *testing.T, f *fixture) { f.restarted(t) }
	for name, c := range map[string]struct {
		to   string
		want int
		then func(*testing.T, *fixture)
	}{
		"the last commit":         {"main~1", 3, restart},
		"two commits":             {"main~2", 2, restart},
		"while the process lives": {"main~1", 3, func(*testing.T, *fixture) {}},
		"without a mark": {"main~1", 3, func(t *testing.T, f *fixture) {
			t.Helper()
			f.repo.Git(t, "update-ref", "-d", "refs/digestlock/main")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, map[string]string{"app/kustomization.yaml": overlay})
			f.repo.Git(t, "-c", "alias.many="+manyCommits, "many")
			f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
			for n := range 4 {
				f.replica.sees(pin(server, n+1))
				once(t, f.Companion, 1)
			}
			ours := f.repo.Git(t, "rev-parse", "main")
			f.repo.Git(t, "update-ref", "refs/heads/main", c.to)
			c.then(t, f)
			once(t, f.Companion, 1)
			wantHold(t, f.repo, server, c.want, 4, "branch reset past "+ours[:7])
			once(t, f.restarted(t).Companion, 0)
		})
	}
}

// TestLongAgo: what the companion last committed may lie further back than it reads.
func TestLongAgo(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	f.repo.Git(t, "-c", "alias.many="+manyCommits, "many")
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "changed by hand")
}

// TestMergedLongAfter: nor does a revert by a pull request excuse itself then, which does not show that it knew of it.
func TestMergedLongAfter(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	ours := f.repo.Git(t, "rev-parse", "main")
	f.repo.Git(t, "-c", "alias.many="+strings.Replace(manyCommits, "500", "501", 1), "many")
	c := f.repo.Clone(t, "main")
	c.Git(t, "checkout", "--quiet", "-b", "undo")
	c.Git(t, "revert", "--no-edit", ours)
	c.Git(t, "checkout", "--quiet", "main")
	c.Git(t, "merge", "--quiet", "--no-ff", "--message", "Merge pull request #8 from team/undo", "undo")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	by := c.Git(t, "rev-parse", "HEAD")
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "changed by hand in "+by[:7]+" by A Person")
}

// TestLaggingResolver: a resolver that lags behind, alone after a restart, brings back neither what was rejected last nor
// what was rejected before that.
func TestLaggingResolver(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	once(t, f.Companion, 1)
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1)
	by := revert(t, f.repo, "main")
	once(t, f.Companion, 1)
	f.replica.sees(pin(server, 2))
	once(t, f.restarted(t).Companion, 0)
	wantHold(t, f.repo, server, 1, 3, "reverted in "+by[:7]+" by A Person")
	f.replica.sees(pin(server, 4))
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 4, 0, "")
}

// TestTwoMemories: what one companion left in a lock is not what people took away when another has moved the pin since.
func TestTwoMemories(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	stale := f.Companion
	f.replica.sees(pin(server, 3))
	once(t, f.restarted(t).Companion, 1)
	f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 1), pin(worker, 1))})
	by := f.repo.Commit(t, "main", map[string]string{app: lockText(lock.Pin{Image: server, Digest: digest(7), ResolvedAt: at(1)}, pin(worker, 1))})
	f.replica.sees(pin(server, 2))
	once(t, stale, 1)
	wantHold(t, f.repo, server, 7, 3, "changed by hand in "+by[:7]+" by A Person")
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 0)
}

// TestResetBesideMove: a reset takes back one image. Another one, which a companion has moved since, is not held back from
// what one that lags behind remembers of the commit that is gone.
func TestResetBesideMove(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	lagging := f.Companion
	f.replica.sees(pin(worker, 2))
	once(t, lagging, 1)
	f.repo.Git(t, "update-ref", "refs/heads/main", "refs/heads/main~1")
	f.replica.sees(pin(server, 3))
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 3, 0, "")
	f.replica.sees(pin(server, 2), pin(worker, 3))
	once(t, lagging, 1)
	wantHold(t, f.repo, server, 3, 0, "")
	wantHold(t, f.repo, worker, 3, 0, "")
}

// TestHandEdit: a digest that a person writes stays, until the tag moves on.
func TestHandEdit(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	third := pin(server, 2)
	third.Digest = digest(7)
	by := f.repo.Commit(t, "main", map[string]string{app: lockText(lock.Pin{Image: server, Digest: digest(7), ResolvedAt: at(1)}, pin(worker, 1))})
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 7, 2, "changed by hand in "+by[:7]+" by A Person")
	once(t, f.Companion, 0)
	f.replica.sees(pin(server, 8))
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 8, 0, "")
}

// TestReleased: who takes a hold away has the digest adopted.
func TestReleased(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	once(t, f.Companion, 1)
	f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 1), pin(worker, 1))})
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 2, 0, "")
}

// TestReleasedByHand: a hold that a person set and took away again keeps nothing.
func TestReleasedByHand(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	held := pin(server, 1)
	held.Hold = &lock.Hold{Reason: "the night before the launch"}
	f.repo.Commit(t, "main", map[string]string{app: lockText(held, pin(worker, 1))})
	once(t, f.Companion, 0)
	f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 1), pin(worker, 1))})
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 2, 0, "")
}

// TestHalfReverted: of two images that one commit moved, only one is taken back.
func TestHalfReverted(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	f.replica.sees(pin(server, 3), pin(worker, 3))
	once(t, f.Companion, 1)
	by := f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 2), pin(worker, 3))})
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 2, 3, "changed by hand in "+by[:7]+" by A Person")
	wantHold(t, f.repo, worker, 3, 0, "")
}

// TestRevertedWhileRegistryDown: the companion commits something else before it knows where the reverted tag stands.
func TestRevertedWhileRegistryDown(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	by := revert(t, f.repo, "main")
	f.replica.looks = map[string]lock.Pin{worker: pin(worker, 5)}
	once(t, f.restarted(t).Companion, 1)
	reason := "reverted in " + by[:7] + " by A Person"
	wantHold(t, f.repo, server, 1, 2, reason)
	f.replica.sees(pin(server, 2))
	once(t, f.restarted(t).Companion, 0)
	wantHold(t, f.repo, server, 1, 2, reason)
}

// TestNextPushWhileDown: a person reverts, CI pushes, and only then does a companion come.
func TestNextPushWhileDown(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	f.replica.sees(pin(server, 3))
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 3, 0, "")
}

// TestMergedRevert: a revert that comes by a pull request is one too.
func TestMergedRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	c := f.repo.Clone(t, "main")
	c.Git(t, "checkout", "--quiet", "-b", "undo")
	c.Git(t, "revert", "--no-edit", "HEAD")
	c.Git(t, "checkout", "--quiet", "main")
	c.Git(t, "merge", "--quiet", "--no-ff", "--message", "Merge pull request #7 from team/undo", "undo")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	by := c.Git(t, "rev-parse", "HEAD")
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "changed by hand in "+by[:7]+" by A Person")
}

// TestStaleMark: a mark that lags behind the companion's own commits accuses nobody.
func TestStaleMark(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	f.repo.Git(t, "update-ref", "refs/digestlock/main", "main~1")
	f.replica.sees(lock.Pin{Image: server, Digest: digest(1), ResolvedAt: at(9)}) // the tag was set back
	commits := once(t, f.restarted(t).Companion, 1)
	if !strings.HasPrefix(commits[0].Message, "build: auto-update backend/server to") {
		t.Errorf("message %q", commits[0].Message)
	}
	wantHold(t, f.repo, server, 1, 0, "")
}

// TestNoHistory: where the companion never committed, there is nothing to respect.
func TestNoHistory(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, app: lockText(pin(server, 1))})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 2, 0, "")
}

// TestBranchAnew: a branch that was deleted and made anew has lost nothing that a person would have taken back.
func TestBranchAnew(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"by the same process": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, map[string]string{"app/kustomization.yaml": overlay})
			f.repo.Git(t, "branch", "preview", "main")
			f.replica.rendered(f.repo.URL, "preview", "app", "backend", pin(server, 1))
			f.replica.sees(pin(server, 1))
			once(t, f.Companion, 1)
			f.repo.Git(t, "update-ref", "refs/heads/main", "preview")
			f.replica.sees(pin(server, 2))
			once(t, f.Companion, 1)
			f.repo.Git(t, "branch", "-D", "preview")
			once(t, f.Companion, 0)
			if got := f.repo.Git(t, "for-each-ref", "refs/digestlock/preview"); got != "" {
				t.Errorf("the branch is gone, its mark is not: %s", got)
			}
			f.repo.Git(t, "branch", "preview", "main")
			if restart {
				f.restarted(t)
			}
			once(t, f.Companion, 1)
			wantPins(t, f.repo, "preview", "app", map[string]int{server: 2})
			if text := show(t, f.repo, "preview", app); strings.Contains(text, "hold") {
				t.Errorf("held at once:\n%s", text)
			}
		})
	}
}
