package companion_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
)

const locks = "digestlock-live/main"

// aside has the companion keep the locks of mode live on a branch beside the followed one, and know only what Git knows.
func (f *fixture) aside(c *cluster, name func(string) (string, error)) {
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Cluster, o.LockBranch = replicas(f.replica), c, name
	}))
}

func liveLocks(branch string) (string, error) { return "digestlock-live/" + branch, nil }

// recorded has the ledger say that app rendered path at the tip of main, with pins and nothing else.
func (f *fixture) recorded(t *testing.T, path, app string, pins ...lock.Pin) {
	t.Helper()
	f.replica.rendered(f.repo.URL, "", path, app, pins...)
	f.replica.at(f.repo.Git(t, "rev-parse", "main"))
}

// TestLockBranch: what only Applications of mode live render is recorded beside the followed branch, which stays as it is.
func TestLockBranch(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{
		"a/b/kustomization.yaml": overlay, "both/kustomization.yaml": overlay, "prod/kustomization.yaml": overlay, "kustomization.yaml": overlay,
	},
		companion.Application{Name: "one", Path: "a/b", Mode: "live"}, companion.Application{Name: "root", Mode: "live"},
		companion.Application{Name: "shares", Path: "both", Mode: "live"}, companion.Application{Name: "follows", Path: "both"},
		companion.Application{Name: "needs", Path: "prod", Mode: "live"}, companion.Application{Name: "prod", Path: "prod", Mode: "locked"})
	f.aside(c, liveLocks)
	f.recorded(t, "a/b", "one", pin(server, 1))
	f.recorded(t, "", "root", pin(nginx, 1))
	f.recorded(t, "both", "shares", pin(worker, 1))
	f.recorded(t, "prod", "needs", pin(worker, 1))
	f.replica.sees(pin(server, 1), pin(nginx, 1), pin(worker, 1))
	once(t, f.Companion, 2)
	wantText(t, "files beside", "a/b/digest-lock.yaml\ndigest-lock.yaml", f.repo.Git(t, "ls-tree", "-r", "--name-only", locks))
	wantText(t, "locks on main", "both/digest-lock.yaml\nprod/digest-lock.yaml", f.repo.Git(t, "diff", "--name-only", "main~1", "main"))
	wantText(t, "marks", "refs/digestlock/main", f.repo.Git(t, "for-each-ref", "--format=%(refname)", "refs/digestlock"))
	wantPins(t, f.repo, locks, "a/b", map[string]int{server: 1})
	c.wantTold(t, "DigestAdopted follows false "+worker, "DigestAdopted needs false "+worker, "DigestAdopted one false "+server,
		"DigestAdopted prod false "+worker, "DigestAdopted root false "+nginx, "DigestAdopted shares false "+worker,
		"tell follows", "tell needs", "tell prod", "tell shares")

	// The next is one commit on the first, by whatever process, and main knows nothing of it.
	f.aside(c, liveLocks)
	main := f.repo.Git(t, "rev-parse", "main")
	f.replica.docs = nil
	f.recorded(t, "a/b", "one", pin(server, 2))
	f.recorded(t, "", "root", pin(nginx, 2))
	f.replica.sees(pin(server, 3), pin(nginx, 2))
	commits := once(t, f.Companion, 1)
	if commits[0].Branch != locks || f.repo.Git(t, "rev-list", "--count", locks) != "2" || f.repo.Git(t, "rev-parse", "main") != main {
		t.Errorf("commit to %s; beside:\n%s", commits[0].Branch, f.repo.Git(t, "log", "--oneline", locks))
	}
	wantPins(t, f.repo, locks, "a/b", map[string]int{server: 2})
	wantPins(t, f.repo, locks, ".", map[string]int{nginx: 2})
	c.wantTold(t, "DigestAdopted one false "+server, "DigestAdopted root false "+nginx, "stale one")
	s := f.Status().Branches
	if len(s) != 2 || s[0].Branch != locks || s[0].Records != "main" || s[0].Tip != commits[0].Hash || s[1].Records != "" {
		t.Errorf("status %+v", s)
	}
	once(t, f.Companion, 0)
	before := f.server.Requests()
	once(t, f.Companion, 0)
	if n := f.server.Requests() - before; n != 2 {
		t.Errorf("%d requests for a cycle without news, want 2: a listing for each branch", n)
	}
}

// TestLockBranchBeside: a lock that is on the followed branch stays there, and its holds count. That is told once.
func TestLockBranchBeside(t *testing.T) {
	t.Parallel()
	held := pin(worker, 1)
	held.Hold = &lock.Hold{Reason: "wait for the database"}
	f, c := inCluster(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(held, pin(server, 1)),
		"broken/kustomization.yaml": overlay, "broken/" + lock.FileName: "<<<<<<< HEAD\n",
	}, companion.Application{Name: "one", Path: "a", Mode: "live"}, companion.Application{Name: "two", Path: "broken", Mode: "live"})
	f.aside(c, liveLocks)
	main := f.repo.Git(t, "rev-parse", "main")
	f.recorded(t, "a", "one", pin(server, 2), pin(worker, 1))
	f.replica.sees(pin(server, 2), pin(worker, 2))
	once(t, f.Companion, 1)
	once(t, f.Companion, 0)
	wantPins(t, f.repo, locks, "a", map[string]int{server: 2, worker: 1})
	c.wantTold(t, "DigestAdopted one false "+server, "DigestAdopted one false "+worker) // not that worker has moved
	if n := strings.Count(f.log.String(), "locks on the followed branch are left alone"); n != 1 || !strings.Contains(f.log.String(), "paths=a ") {
		t.Errorf("told of locks on main %d times, want once:\n%s", n, f.log)
	}
	if got := f.repo.Git(t, "rev-parse", "main"); got != main {
		t.Error("main has moved")
	}
}

// TestLockBranchEdited: nobody decides there. What runs is what the registry says, and the lock is its record.
func TestLockBranchEdited(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a", Mode: "live"})
	f.aside(c, liveLocks)
	f.recorded(t, "a", "one", pin(server, 2))
	once(t, f.Companion, 1)
	// As a companion that went on from an older state.
	f.repo.Git(t, "update-ref", "refs/heads/"+locks, f.repo.Git(t, "commit-tree", "-p", locks, "-m", "build: back\n\nDigestlock-Companion: devel",
		f.repo.Git(t, "mktree", "--missing")))
	f.replica.docs = nil
	f.recorded(t, "a", "one", pin(server, 3))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, locks, "a", map[string]int{server: 3})
	if text := show(t, f.repo, locks, "a/"+lock.FileName); strings.Contains(text, "hold") {
		t.Errorf("a hold on the lock branch:\n%s", text)
	}
}

// TestLockBranchTaken: a branch that is somebody else's is not written to.
func TestLockBranchTaken(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		name       func(string) (string, error)
		code       fault.Code
		want       string
		also, side string // a branch that another Application follows, and one that a person made
	}{
		"followed":  {name: func(b string) (string, error) { return b + "-next", nil }, also: "main-next", code: fault.Usage, want: `lock branch of main: "main-next" is followed by an Application`},
		"of two":    {name: func(string) (string, error) { return "locks", nil }, also: "other", code: fault.Usage, want: `lock branch of main: "locks" is followed by an Application, or the lock branch of two`},
		"a failure": {name: func(string) (string, error) { return "", errors.New("no idea") }, code: fault.Usage, want: "lock branch of main: no idea"},
		"a person's": {
			name: func(string) (string, error) { return "theirs", nil }, side: "theirs", code: fault.GitBranch,
			want: "lock branch of main: the last commit on theirs, ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a", Mode: "live"})
			if tt.also != "" {
				f.repo.Git(t, "branch", tt.also, "main")
				other := c.apps[0]
				other.Name, other.TargetRevision = "two", tt.also
				c.apps = append(c.apps, other)
			}
			if tt.side != "" {
				f.repo.Git(t, "branch", tt.side, "main")
			}
			refs := f.repo.Git(t, "for-each-ref")
			f.aside(c, tt.name)
			f.recorded(t, "a", "one", pin(server, 1))
			_, err := f.Once(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) || fault.CodeOf(err) != tt.code || !strings.Contains(fault.Hint(err), "--lock-branch") {
				t.Errorf("[%s] %v; hint %q\nwant [%s] %s", fault.CodeOf(err), err, fault.Hint(err), tt.code, tt.want)
			}
			for line := range strings.Lines(refs) {
				if got := f.repo.Git(t, "for-each-ref"); !strings.Contains(got+"\n", strings.TrimSpace(line)+"\n") {
					t.Errorf("refs are\n%s\nwere\n%s", got, refs)
				}
			}
		})
	}
}
