package companion_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/lock"
)

// reverted is the reason of a hold after a person's commit.
func reverted(commit string) string { return "reverted in " + commit[:7] + " by A Person" }

// twoPaths starts a repository with an overlay in app, which one replica knows, and one in b, which another knows.
func twoPaths(t *testing.T) (f *fixture, other *replica) {
	t.Helper()
	f = start(t, map[string]string{"app/kustomization.yaml": overlay, "b/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1))
	other = &replica{name: "other"}
	other.rendered(f.repo.URL, "main", "b", "other", pin(worker, 1))
	other.sees(pin(worker, 1))
	return f, other
}

// TestSecondRevert: reverting the commit that ended a hold brings the old hold back, which is not for this digest.
func TestSecondRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	revert(t, f.repo, "main")
	once(t, f.Companion, 1) // holds d2 back
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 1)
	by := revert(t, f.repo, "main") // d3 is bad too
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 1, 3, reverted(by))
	once(t, f.restarted(t).Companion, 0)
}

// TestRevertToExpiredHold: a hold that is over keeps nothing, and excuses nothing.
func TestRevertToExpiredHold(t *testing.T) {
	t.Parallel()
	over := pin(server, 1)
	over.Hold = &lock.Hold{Reason: "freeze", Until: at(0).Add(-time.Hour)}
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, app: lockText(over)})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	by := revert(t, f.repo, "main")
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 1, 2, reverted(by))
}

// TestHoldThatIsOver: a hold put back what the companion had committed, for a while. Then the pin follows again, whoever
// remembers of that commit.
func TestHoldThatIsOver(t *testing.T) {
	t.Parallel()
	for _, rejected := range []string{"", digest(2)} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("rejected=%q restarted=%v", rejected, restarted), func(t *testing.T) {
				t.Parallel()
				f := start(t, map[string]string{"app/kustomization.yaml": overlay, app: lockText(pin(server, 1))})
				f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
				f.replica.sees(pin(server, 2))
				once(t, f.Companion, 1)
				held, until := pin(server, 1), time.Now().Add(5*time.Second) // the commit has to come before
				held.Hold = &lock.Hold{Rejected: rejected, Reason: "freeze", Until: until}
				f.repo.Commit(t, "main", map[string]string{app: lockText(held)})
				if restarted {
					f.use(t, "", f.replica)
				}
				once(t, f.Companion, 0)
				time.Sleep(time.Until(until)) // the clock that holds are over by is the real one
				later := pin(server, 2)
				later.ResolvedAt = time.Now()
				f.replica.sees(later)
				once(t, f.Companion, 1)
				wantPins(t, f.repo, "main", "app", map[string]int{server: 2})
				wantHold(t, f.repo, server, 2, 0, "")
				once(t, f.Companion, 0)
			})
		}
	}
}

// TestTwoCompanionsOfOneBranch: a commit of another companion, for another path, moves the mark past a revert.
func TestTwoCompanionsOfOneBranch(t *testing.T) {
	t.Parallel()
	f, other := twoPaths(t)
	one := f.Companion
	f.use(t, "", other)
	two := f.Companion
	once(t, one, 1)
	once(t, two, 1)
	f.replica.sees(pin(server, 2))
	once(t, one, 1)
	by := revert(t, f.repo, "main")
	other.sees(pin(worker, 2))
	once(t, two, 1)
	once(t, one, 1)
	wantHold(t, f.repo, server, 1, 2, reverted(by))
}

// TestPassedByAtRevert: a path is not looked at while another one is committed, past its revert.
func TestPassedByAtRevert(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		pass   func(t *testing.T, f *fixture) (by string) // what happens until its lock says what it said before
		reason string
	}{
		"the resolver that knows of it is away": {func(t *testing.T, f *fixture) string {
			by := revert(t, f.repo, "main")
			f.replica.down = errors.New("restarting")
			failing(t, f.Companion, 1, "restarting")
			f.replica.down = nil
			return by
		}, "reverted"},
		"its lock is broken": {func(t *testing.T, f *fixture) string {
			f.repo.Commit(t, "main", map[string]string{app: "<<<<<<< HEAD\n" + lockText(pin(server, 1))})
			failing(t, f.Companion, 1, "merge conflict marker")
			return f.repo.Commit(t, "main", map[string]string{app: lockText(pin(server, 1))})
		}, "changed by hand"},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", name, restarted), func(t *testing.T) {
				t.Parallel()
				f, other := twoPaths(t)
				f.use(t, "", f.replica, other)
				once(t, f.Companion, 1)
				f.replica.sees(pin(server, 2))
				once(t, f.Companion, 1)
				other.sees(pin(worker, 2))
				by := tt.pass(t, f)
				if restarted {
					f.use(t, "", f.replica, other)
				}
				once(t, f.Companion, 1)
				wantHold(t, f.repo, server, 1, 2, tt.reason+" in "+by[:7]+" by A Person")
				once(t, f.Companion, 0)
				f.replica.sees(pin(server, 3))
				once(t, f.Companion, 1)
				wantHold(t, f.repo, server, 3, 0, "")
			})
		}
	}
}

// TestStaleLookAtRevert: a look that is older than the digest does not say that the tag has moved past it.
func TestStaleLookAtRevert(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	by := revert(t, f.repo, "main")
	f.replica.looks = map[string]lock.Pin{worker: pin(worker, 5), server: pin(server, 1)} // it is behind
	once(t, f.restarted(t).Companion, 1)
	f.replica.sees(pin(server, 2))
	once(t, f.restarted(t).Companion, 0)
	wantHold(t, f.repo, server, 1, 2, reverted(by))
}

// TestMergedForeignCommit: what the companion committed to another branch, and later, says nothing of this one.
func TestMergedForeignCommit(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "p/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1), pin(worker, 1))
	once(t, f.Companion, 1)
	f.repo.Git(t, "branch", "feature", "main")
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	time.Sleep(1100 * time.Millisecond) // commits have whole seconds
	f.replica.rendered(f.repo.URL, "feature", "p", "preview", pin(worker, 1))
	once(t, f.Companion, 1)
	c := f.repo.Clone(t, "main")
	c.Git(t, "revert", "--no-edit", "HEAD")
	by := c.Git(t, "rev-parse", "HEAD")
	c.Git(t, "merge", "--quiet", "--no-ff", "--message", "Merge feature", "origin/feature")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	f.replica.docs = f.replica.docs[:1]
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, reverted(by))
}

// TestMarkRefused: a server that takes branches and no marks is told of once for each branch, and gets its commits.
func TestMarkRefused(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.repo.Git(t, "branch", "dev", "main")
	f.repo.Hook(t, "update", `case "$1" in refs/digestlock/*) echo "no such refs here" >&2; exit 1;; esac`)
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.rendered(f.repo.URL, "dev", "app", "backend", pin(server, 1))
	for n := 1; n < 4; n++ {
		f.replica.sees(pin(server, n))
		once(t, f.Companion, 2)
	}
	var told []string
	for line := range strings.Lines(f.log.String()) {
		if strings.Contains(line, `level=WARN msg="mark refused, the branch was pushed without"`) && strings.Contains(line, "code=git-refused") &&
			strings.Contains(line, `hint="allow the pusher to write refs/digestlock/*, `) {
			_, ref, _ := strings.Cut(line, ": refs/digestlock/")
			ref, _, _ = strings.Cut(ref, ":")
			told = append(told, ref)
		}
	}
	slices.Sort(told)
	wantText(t, "told", "dev was rejected main was rejected", strings.Join(told, " "))

	proposed, _ := proposing(t)
	proposed.repo.Hook(t, "update", `case "$1" in refs/digestlock/*) echo "no such refs here" >&2; exit 1;; esac`)
	proposed.replica.sees(pin(server, 3))
	once(t, proposed.Companion, 1)
	if text := proposed.log.String(); !strings.Contains(text, "cannot mark the push branch") || !strings.Contains(text, "no such refs here") {
		t.Errorf("no word on the mark of the push branch:\n%s", text)
	}
}

// TestMarkConflict: a mark that cannot be set costs no other branch its own.
func TestMarkConflict(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.replica.sees(pin(server, 1))
	follow := func(branch string) {
		f.replica.docs = nil
		f.replica.rendered(f.repo.URL, branch, "app", "backend", pin(server, 1))
		once(t, f.Companion, 1)
	}
	f.repo.Git(t, "branch", "rel", "main")
	follow("rel")
	f.repo.Git(t, "update-ref", "-d", "refs/heads/rel")
	f.repo.Git(t, "branch", "rel/1.0", "main")
	follow("rel/1.0") // its mark would lie below that of rel
	follow("main")
	f.replica.sees(pin(server, 2))
	ours := once(t, f.Companion, 1)[0].Hash
	f.repo.Git(t, "update-ref", "refs/heads/main", "main~1")
	once(t, f.restarted(t).Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "branch reset past "+ours[:7])
}

// TestMergeOfAnOldLock: a conflict in the lock that was resolved by taking the side that knew of nothing accuses nobody.
func TestMergeOfAnOldLock(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	f.repo.Git(t, "branch", "feature", "main~1")
	f.repo.Commit(t, "feature", map[string]string{app: lockText(pin(nginx, 1), pin(server, 1), pin(worker, 1))})
	c := f.repo.Clone(t, "main")
	c.Git(t, "merge", "--quiet", "--no-commit", "--no-ff", "--strategy-option", "theirs", "origin/feature")
	c.Git(t, "checkout", "--quiet", "origin/feature", "--", app)
	c.Git(t, "commit", "--quiet", "--message", "Merge feature")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	wantHold(t, f.repo, server, 1, 0, "")
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 2, 0, "")
}

// TestLaggingMark: a server that moves branch and mark one after the other, and a companion that is stopped in between.
func TestLaggingMark(t *testing.T) {
	t.Parallel()
	var stop context.CancelFunc
	f := adopted(t, gittest.Config("receive.advertiseAtomic=false"), gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || stop != nil && bytes.Contains(body, []byte("refs/digestlock/")) {
				stop()
				panic(http.ErrAbortHandler)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
		})
	}))
	f.replica.sees(pin(server, 3))
	mark := f.repo.Git(t, "rev-parse", "refs/digestlock/main")
	ctx, cancel := context.WithCancel(t.Context())
	stop = cancel
	if _, err := f.Once(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Once = %v, want it to be stopped", err)
	}
	stop = nil
	wantPins(t, f.repo, "main", "app", map[string]int{server: 3, worker: 1})
	wantText(t, "mark", mark, f.repo.Git(t, "rev-parse", "refs/digestlock/main"))
	by := revert(t, f.repo, "main")
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 2, 3, reverted(by))
}

// TestTrailerInTheMiddle: a person who squashes the companion's message into an own one is a person.
func TestTrailerInTheMiddle(t *testing.T) {
	t.Parallel()
	f := adopted(t)
	c := f.repo.Clone(t, "main")
	c.Git(t, "revert", "--no-edit", "HEAD")
	c.Git(t, "commit", "--quiet", "--amend", "--message", "Feature (#12)\n\n* build: auto-update x\n\nDigestlock-Companion: v0.4.0\n\n* take server back")
	c.Git(t, "push", "--quiet", "origin", "HEAD:refs/heads/main")
	once(t, f.Companion, 1)
	wantHold(t, f.repo, server, 1, 2, "changed by hand in "+c.Git(t, "rev-parse", "HEAD")[:7]+" by A Person")
}

// TestLockedNow: an Application that became locked keeps its lock, whatever it rendered before.
func TestLockedNow(t *testing.T) {
	t.Parallel()
	f, _ := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1))},
		companion.Application{Name: "prod", Path: "a", Mode: "locked"})
	f.replica.rendered(f.repo.URL, "", "a", "prod", pin(server, 1))
	f.replica.docs[0].Source.Mode = "follow"
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 0)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
}

// scoped is a cluster in which only one project has credentials.
type scoped struct{ *cluster }

func (s scoped) Open(ctx context.Context, url, project string) (companion.Repository, error) {
	if project != "default" {
		return companion.Repository{}, errors.New("no credentials for project " + project)
	}
	return s.cluster.Open(ctx, url, project)
}

// TestOtherProject: a project without credentials stops no other, borrows none, and loses no pin to another.
func TestOtherProject(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1)),
		"b/kustomization.yaml": overlay, "b/" + lock.FileName: lockText(pin(server, 1)),
	},
		companion.Application{Name: "aaa", Path: "b"}, companion.Application{Name: "good", Path: "a"}, companion.Application{Name: "zzz", Path: "a"})
	c.apps[0].Project, c.apps[2].Project = "poor", "poor"
	f.Companion = companion.New(options(f.log, func(o *companion.Options) { o.Replicas, o.Cluster = replicas(f.replica), scoped{c} }))
	for n, order := range [][]int{{0, 1, 2}, {2, 1, 0}} {
		t.Log("order", order)
		apps := c.apps
		c.apps = []companion.Application{apps[order[0]], apps[order[1]], apps[order[2]]}
		f.replica.docs = nil
		f.replica.rendered(f.repo.URL, "", "a", "good", pin(server, 1)) // without worker, which zzz may render
		f.replica.at(f.repo.Git(t, "rev-parse", "main"))
		f.replica.sees(pin(server, n+2))
		failing(t, f.Companion, 1, "no credentials for project poor")
		wantPins(t, f.repo, "main", "a", map[string]int{server: n + 2, worker: 1})
		wantPins(t, f.repo, "main", "b", map[string]int{server: 1})
		c.apps = apps
	}
	c.apps[2].Mode = "locked" // needs no credentials, and its pins all the same
	c.apps = c.apps[1:]
	f.replica.at(f.repo.Git(t, "rev-parse", "main"))
	once(t, f.Companion, 0)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 3, worker: 1})
}

// TestNotBusy: what waits for a branch that is gone does not keep the loop running.
func TestNotBusy(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a"})
	cycles := 0 // read once the loop has ended
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Cluster, o.Quiet = c, companion.Quiet{Window: time.Hour, Longest: 2 * time.Second}
		o.Replicas = func(ctx context.Context) ([]companion.Replica, error) {
			cycles++
			return replicas(f.replica)(ctx)
		}
	}))
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
	f.replica.sees(pin(server, 1))
	stop := run(t, f.Companion, time.Hour)
	for n := 1; n <= 2; n++ {
		f.replica.sees(pin(server, n))
		if _, err := f.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !f.Waits() {
		t.Fatal("nothing waits: the test shows nothing")
	}
	f.repo.Git(t, "branch", "x", "main")
	f.repo.Git(t, "symbolic-ref", "HEAD", "refs/heads/x") // what the Application follows is another branch now
	time.Sleep(4 * time.Second)
	stop()
	if cycles > 10 {
		t.Errorf("%d cycles, want about 4", cycles)
	}
}

// TestSpellingsOfOneSource: two renders of one source, spelled differently, are one; they do not drop and add for ever.
func TestSpellingsOfOneSource(t *testing.T) {
	t.Parallel()
	f, _ := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1))},
		companion.Application{Name: "one", Path: "a"})
	f.replica.sees(pin(server, 1), pin(worker, 1))
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))                     // now
	f.replica.rendered(f.repo.URL, "HEAD", "a", "one", pin(server, 1), pin(worker, 1)) // before HEAD was taken out
	f.replica.docs[1].Source.RenderedAt = noon.Add(-time.Hour)
	for n := range 4 {
		f.replica.docs[0].Source.Revision = f.repo.Git(t, "rev-parse", "main") // Argo CD renders the tip
		once(t, f.Companion, map[bool]int{true: 1, false: 0}[n == 0])
	}
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
	if strings.Contains(f.log.String(), "render refused") {
		t.Errorf("one of the spellings was refused:\n%s", f.log)
	}
}
