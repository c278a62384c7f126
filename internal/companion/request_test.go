package companion_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gittest"
)

const side = "digestlock/main"

// forge writes down which requests it is to see to.
type forge struct {
	asked []companion.Request
	down  error
}

func (f *forge) ensure(_ context.Context, r companion.Request) (string, bool, error) {
	if f.down != nil {
		return "", false, f.down
	}
	f.asked = append(f.asked, r)
	return "https://forge.example.com/pulls/7", len(f.asked) == 1, nil
}

// wantAsked checks the titles of the requests that were asked for since the last time.
func (f *forge) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	var titles []string
	for _, r := range f.asked {
		titles = append(titles, r.Title)
	}
	if diff := cmp.Diff(want, titles); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	f.asked = nil
}

func beside(branch string) (string, error) { return "digestlock/" + branch, nil }

// protect makes a companion that knows what Git knows, and that proposes.
func (f *fixture) protect(t *testing.T, forge *forge) {
	t.Helper()
	repository := companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL, Ensure: forge.ensure}
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Repositories, o.PushBranch = replicas(f.replica), []companion.Repository{repository}, beside
	}))
}

// proposing starts a repository whose main has server at its first digest, and a companion that has proposed the second.
func proposing(t *testing.T) (*fixture, *forge) {
	t.Helper()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, app: lockText(pin(server, 1))})
	f.repo.Hook(t, "update", `case "$1" in refs/heads/main) echo "$1 is protected" >&2; exit 1;; esac`)
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 2))
	forge := &forge{}
	f.protect(t, forge)
	once(t, f.Companion, 1)
	return f, forge
}

// merge takes the push branch into main as a forge does.
func merge(t *testing.T, repo *gittest.Repo, args ...string) {
	t.Helper()
	c := repo.Clone(t, "main")
	c.Git(t, append([]string{"merge", "--quiet"}, append(args, "origin/"+side)...)...)
	if c.Git(t, "diff", "--cached", "--name-only") != "" { // squashed
		c.Git(t, "commit", "--quiet", "--message", "Update (#7)\n\n"+repo.Git(t, "log", "-1", "--format=%B", side))
	}
	pushPast(t, repo, c, "main")
}

// pushPast pushes as somebody whom the hook lets.
func pushPast(t *testing.T, repo *gittest.Repo, c *gittest.Clone, branch string) {
	t.Helper()
	c.Git(t, "fetch", "--quiet")
	repo.Git(t, "fetch", "--quiet", c.Dir, "+HEAD:refs/heads/"+branch)
}

// wantSide checks that main has not moved since, and that the push branch is one commit on it with server at its nth digest.
func wantSide(t *testing.T, repo *gittest.Repo, main string, n int) {
	t.Helper()
	if got := repo.Git(t, "rev-parse", "main", side+"~1"); got != main+"\n"+main {
		t.Errorf("main, and the parent of %s, are\n%s\nwant %s", side, got, main)
	}
	wantPins(t, repo, side, "app", map[string]int{server: n})
}

// TestPropose is a request's life: opened, left alone, brought up to date, merged, followed by the next.
func TestPropose(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"merge": {"--no-ff"}, "fast-forward": {"--ff-only"}, "squash": {"--squash"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, forge := proposing(t)
			main := f.repo.Git(t, "rev-parse", "main")
			wantSide(t, f.repo, main, 2)
			want := companion.Request{Head: side, Base: "main", Title: "build: auto-update backend/server to sha256:000000000000…", Body: "```text\n" +
				server + "\n  " + digest(1) + " → " + digest(2) + "\n  in app/digest-lock.yaml for backend\n```\n\n" +
				"Kept up to date by digestlock-companion. Merge it to adopt this; once closed, it comes back when there is something new.\n\n" +
				"Digestlock-Companion: devel\n"}
			if diff := cmp.Diff([]companion.Request{want}, forge.asked); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			forge.asked = nil
			if s := f.Status().Branches[0]; s.Request != "https://forge.example.com/pulls/7" || s.PushBranch != side || s.Tip != main || s.LastCommit == nil {
				t.Errorf("status %+v", s)
			}
			if refs := f.repo.Git(t, "for-each-ref", "--format=%(refname)", "refs/digestlock"); refs != "refs/digestlock/"+side {
				t.Errorf("marks %q, want none of main", refs)
			}

			// Looked at again, later, while main moves: nothing to do, and nobody's closing is undone.
			later := pin(server, 2)
			later.ResolvedAt = at(30)
			f.replica.sees(later)
			once(t, f.Companion, 0)
			f.protect(t, forge)
			once(t, f.Companion, 0)
			forge.wantAsked(t)
			f.protect(t, forge)
			person(t, f.repo, map[string]string{"elsewhere": "anything\n"})
			once(t, f.Companion, 0)
			forge.wantAsked(t)

			later.Digest, later.ResolvedAt = digest(3), at(31)
			f.replica.sees(later)
			once(t, f.Companion, 1)
			wantSide(t, f.repo, f.repo.Git(t, "rev-parse", "main"), 3)
			forge.wantAsked(t, want.Title)
			once(t, f.Companion, 0)
			forge.wantAsked(t)
			if s := f.Status().Branches[0]; s.Request == "" {
				t.Error("the status has lost the request")
			}
			before := f.server.Requests()
			once(t, f.Companion, 0)
			if n := f.server.Requests() - before; n != 2 {
				t.Errorf("%d requests for a cycle without news, want 2: a listing for each branch", n)
			}

			merge(t, f.repo, args...)
			once(t, f.Companion, 0)
			forge.wantAsked(t)
			wantPins(t, f.repo, "main", "app", map[string]int{server: 3})
			if s := f.Status().Branches[0]; s.Request != "" {
				t.Errorf("status has request %q after the merge", s.Request)
			}
			later.Digest, later.ResolvedAt = digest(4), at(32)
			f.replica.sees(later)
			f.protect(t, forge)
			once(t, f.Companion, 1)
			wantSide(t, f.repo, f.repo.Git(t, "rev-parse", "main"), 4)
		})
	}
}

// person commits to main past the hook.
func person(t *testing.T, repo *gittest.Repo, files map[string]string) {
	t.Helper()
	c := repo.Clone(t, "main")
	for name, content := range files {
		c.Write(t, name, content)
	}
	c.Git(t, "add", "--all")
	c.Git(t, "commit", "--quiet", "--message", "a person's change")
	pushPast(t, repo, c, "main")
}

// TestProposeRespectsRevert: what was merged and then reverted is proposed as a hold, and not again.
func TestProposeRespectsRevert(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"merge": {"--no-ff"}, "squash": {"--squash"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, forge := proposing(t)
			merge(t, f.repo, args...)
			c := f.repo.Clone(t, "main")
			if name == "merge" {
				c.Git(t, "revert", "--no-edit", "--mainline", "1", "HEAD")
			} else {
				c.Git(t, "revert", "--no-edit", "HEAD")
			}
			pushPast(t, f.repo, c, "main")
			by := f.repo.Git(t, "rev-parse", "main")
			forge.asked = nil
			f.protect(t, forge)
			once(t, f.Companion, 1)
			forge.wantAsked(t, "build: hold backend/server at sha256:000000000000…")
			wantPins(t, f.repo, "main", "app", map[string]int{server: 1})
			wantSide(t, f.repo, by, 1)
			if text := show(t, f.repo, side, app); !strings.Contains(text, "reverted in "+by[:7]+" by A Person") {
				t.Errorf("no hold is proposed:\n%s", text)
			}
			once(t, f.Companion, 0)
			forge.wantAsked(t)
		})
	}
}

// TestProposeConflict: where the lock changes under a request, it is made anew, so that it can be merged.
func TestProposeConflict(t *testing.T) {
	t.Parallel()
	f, forge := proposing(t)
	forge.asked = nil
	person(t, f.repo, map[string]string{app: lockText(pin(server, 1), pin(worker, 1))})
	once(t, f.Companion, 1)
	if got := f.repo.Git(t, "rev-parse", side+"~1"); got != f.repo.Git(t, "rev-parse", "main") {
		t.Errorf("the push branch is on %s, not on main", got)
	}
	wantPins(t, f.repo, side, "app", map[string]int{server: 2, worker: 1})
	if len(forge.asked) != 1 {
		t.Errorf("%d requests, want 1", len(forge.asked))
	}

	// Another digest below the one that is proposed: the request says what it did, and could not be merged.
	theirs := pin(server, 1)
	theirs.Digest = digest(7)
	person(t, f.repo, map[string]string{app: lockText(theirs, pin(worker, 1))})
	once(t, f.Companion, 1)
	if got := f.repo.Git(t, "rev-parse", side+"~1"); got != f.repo.Git(t, "rev-parse", "main") {
		t.Errorf("the push branch is on %s, not on main", got)
	}
	once(t, f.Companion, 0)

	// A history that never met the one it was made from.
	c := f.repo.Clone(t, "main")
	c.Git(t, "checkout", "--quiet", "--orphan", "fresh")
	c.Git(t, "commit", "--quiet", "--message", "all anew")
	pushPast(t, f.repo, c, "main")
	once(t, f.Companion, 1)
	if got := f.repo.Git(t, "rev-parse", side+"~1"); got != f.repo.Git(t, "rev-parse", "main") {
		t.Errorf("the push branch is on %s, not on main", got)
	}
}

// TestProposeKeepsPersonsCommit: what a person put on the push branch is not thrown away.
func TestProposeKeepsPersonsCommit(t *testing.T) {
	t.Parallel()
	f, _ := proposing(t)
	by := f.repo.Commit(t, side, map[string]string{"app/patch.yaml": "theirs\n"})
	f.replica.sees(pin(server, 3))
	err := failing(t, f.Companion, 0, "push branch digestlock/main: its last commit, "+by[:7]+" by A Person, was made by no companion")
	if fault.CodeOf(err) != fault.GitBranch || !strings.Contains(fault.Hint(err), "delete the branch") {
		t.Errorf("[%s] %s", fault.CodeOf(err), fault.Hint(err))
	}
	if got := f.repo.Git(t, "rev-parse", side); got != by {
		t.Errorf("the push branch is at %s, want %s", got, by)
	}
	f.repo.Git(t, "branch", "-D", side)
	once(t, f.Companion, 1)
	wantSide(t, f.repo, f.repo.Git(t, "rev-parse", "main"), 3)

	// One that is in the branch itself is not lost.
	person(t, f.repo, map[string]string{"elsewhere": "x\n"})
	f.repo.Git(t, "update-ref", "refs/heads/"+side, "main")
	once(t, f.Companion, 1)
	wantSide(t, f.repo, f.repo.Git(t, "rev-parse", "main"), 3)
}

// TestProposeForgeDown: the request is opened when the forge is back, and nothing is pushed again for it.
func TestProposeForgeDown(t *testing.T) {
	t.Parallel()
	f, forge := proposing(t)
	f.replica.sees(pin(server, 3))
	forge.asked, forge.down = nil, errors.New("the forge is down")
	failing(t, f.Companion, 1, "the forge is down")
	failing(t, f.Companion, 0, "the forge is down")
	forge.down = nil
	f.protect(t, forge) // what is not marked was not opened
	once(t, f.Companion, 0)
	if len(forge.asked) != 1 {
		t.Errorf("%d requests, want 1", len(forge.asked))
	}
}

// TestProposeEvents: the Applications are told what will happen, and Argo CD is not asked to look: nothing has.
func TestProposeEvents(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/digest-lock.yaml": lockText(pin(server, 1))}, companion.Application{Name: "one", Path: "a"})
	forge := &forge{}
	c.ensure = forge.ensure
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Cluster, o.PushBranch = replicas(f.replica), c, beside
	}))
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	c.wantTold(t, "DigestProposed one false "+server)
	once(t, f.Companion, 0)
	c.wantTold(t)
	if len(forge.asked) != 1 {
		t.Errorf("%d requests, want 1", len(forge.asked))
	}
}

// TestPushBranchTaken: a branch that is followed, or two branches' push branch, is not pushed to.
func TestPushBranchTaken(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		name  func(string) (string, error)
		other string
	}{
		"followed": {func(branch string) (string, error) { return branch + "-next", nil }, "main-next"},
		"of two":   {func(string) (string, error) { return "next", nil }, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, map[string]string{"app/kustomization.yaml": overlay})
			f.repo.Git(t, "branch", tt.other, "main")
			f.replica.rendered(f.repo.URL, "main", "app", "one", pin(server, 1))
			f.replica.rendered(f.repo.URL, tt.other, "app", "two", pin(server, 1))
			repository := companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL}
			f.Companion = companion.New(options(f.log, func(o *companion.Options) {
				o.Replicas, o.Repositories, o.PushBranch = replicas(f.replica), []companion.Repository{repository}, tt.name
			}))
			_, err := f.Once(t.Context())
			if err == nil || !strings.Contains(err.Error(), "branch main: push branch: ") || !strings.Contains(fault.Hint(err), "--push-branch") {
				t.Errorf("Once: %v", err)
			}
			if got := f.repo.Git(t, "rev-parse", tt.other); got != f.repo.Git(t, "rev-parse", "main") {
				t.Error("the other branch has moved")
			}
			if got := f.repo.Git(t, "for-each-ref", "refs/heads/next"); got != "" {
				t.Errorf("there is %s", got)
			}
		})
	}
}

func TestCheckBranchName(t *testing.T) {
	t.Parallel()
	for want, name := range map[string]func(string) (string, error){
		"":                                  beside,
		`"main" is the branch itself`:       func(branch string) (string, error) { return branch, nil },
		`it is "digestlock" for every`:      func(string) (string, error) { return "digestlock", nil },
		`"release" is the branch itself`:    func(string) (string, error) { return "release", nil },
		`"a b/main" is no name of a branch`: func(branch string) (string, error) { return "a b/" + branch, nil },
		`"" is no name of a branch`:         func(string) (string, error) { return "", nil },
		"no idea":                           func(string) (string, error) { return "", errors.New("no idea") },
	} {
		if err := companion.CheckBranchName(name); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
