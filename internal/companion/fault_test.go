package companion_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/registrytest"
)

func TestReplicaDown(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(pin(server, 1))})
	up := &replica{name: "up"}
	down := &replica{name: "down", down: fault.New(fault.ResolverUnavailable, "start it", "resolver down: connection refused")}
	up.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
	up.sees(pin(server, 2))
	f.use(t, "", down, up)
	err := failing(t, f.Companion, 1, "resolver down: connection refused")
	if fault.Hint(err) != "start it" || strings.Contains(err.Error(), "problems") {
		t.Errorf("one problem: %v, hint %q", err, fault.Hint(err))
	}
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2})

	// One that goes away in between is reported once, whatever it was asked.
	f.repo.Commit(t, "dev", map[string]string{"app/kustomization.yaml": overlay})
	dying := &replica{name: "dying", noAnswer: errors.New("resolver dying: EOF")}
	dying.rendered(f.repo.URL, "dev", "app", "app", pin(worker, 1))
	up.sees(pin(server, 3))
	f.use(t, "", up, dying)
	if err := failing(t, f.Companion, 2, "resolver dying: EOF"); err.Error() != "resolver dying: EOF" {
		t.Errorf("%v, want one problem", err)
	}
	wantPins(t, f.repo, "main", "app", map[string]int{server: 3})
	wantPins(t, f.repo, "dev", "app", map[string]int{server: 3, worker: 1}) // what its ledger said counts

	f.use(t, "", down, &replica{name: "too", down: errors.New("resolver too: silence")})
	before, requests := f.repo.Git(t, "show-ref"), f.server.Requests()
	failing(t, f.Companion, 0, "2 problems: (1) resolver down: connection refused; (2) resolver too: silence")
	f.use(t, "")
	failing(t, f.Companion, 0, "there is no resolver to ask")
	wantText(t, "refs", before, f.repo.Git(t, "show-ref"))
	if n := f.server.Requests() - requests; n > 0 {
		t.Errorf("%d requests to Git without anything to write", n)
	}
}

// meanwhile has something happen once, at the first request that matches.
type meanwhile struct {
	method, match string
	do            atomic.Pointer[func()]
}

func (m *meanwhile) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == m.method && strings.Contains(r.URL.String(), m.match) {
			if do := m.do.Swap(nil); do != nil {
				(*do)()
			}
		}
		next.ServeHTTP(w, r)
	})
}

// TestMovedMeanwhile: somebody pushes between our reading and our push, to the same lock and to another file.
func TestMovedMeanwhile(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*meanwhile{
		"before the push":        {method: http.MethodGet, match: "service=git-receive-pack"},
		"while the push is sent": {method: http.MethodPost, match: "git-receive-pack"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, map[string]string{
				"app/kustomization.yaml": overlay,
				"app/digest-lock.yaml":   lockText(pin(server, 1)),
				"other/deployment.yaml":  "old\n",
			}, gittest.Wrap(m.wrap))
			f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
			f.replica.sees(pin(server, 2), pin(worker, 3))
			var theirs string
			do := func() {
				theirs = f.repo.Commit(t, "main", map[string]string{
					"app/digest-lock.yaml":  lockText(pin(server, 1), pin(worker, 1)),
					"other/deployment.yaml": "new\n",
				})
			}
			m.do.Store(&do)
			commits := once(t, f.Companion, 1)
			if got := f.repo.Git(t, "rev-parse", commits[0].Hash+"~"); theirs == "" || got != theirs {
				t.Errorf("parent of our commit = %s, want theirs, %s", got, theirs)
			}
			wantText(t, "other file", "new\n", show(t, f.repo, "main", "other/deployment.yaml"))
			wantPins(t, f.repo, "main", "app", map[string]int{server: 2, worker: 3})
			if want := "build: auto-update 2 images\n"; !strings.HasPrefix(commits[0].Message, want) {
				t.Errorf("message %q, want that of the last attempt, %q", commits[0].Message, want)
			}
			wantText(t, "asked", server+" "+worker, strings.Join(f.replica.asked, " "))
			once(t, f.Companion, 0)
		})
	}
}

// TestMovedProblem: what stands in the way of a path is said once, however many attempts find it.
func TestMovedProblem(t *testing.T) {
	t.Parallel()
	m := &meanwhile{method: http.MethodGet, match: "service=git-receive-pack"}
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "bad/kustomization.yaml": overlay, "bad/digest-lock.yaml": "x\n"},
		gittest.Wrap(m.wrap))
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "bad", "app", pin(server, 1))
	do := func() { f.repo.Commit(t, "main", map[string]string{"README": "hello\n"}) }
	m.do.Store(&do)
	if err := failing(t, f.Companion, 1, "bad/digest-lock.yaml:1: "); strings.Contains(err.Error(), "problems") {
		t.Errorf("%v, want one problem", err)
	}
}

// TestGone: the branch is deleted between our reading and our push.
func TestGone(t *testing.T) {
	t.Parallel()
	m := &meanwhile{method: http.MethodGet, match: "service=git-receive-pack"}
	f := start(t, map[string]string{"app/kustomization.yaml": overlay}, gittest.Wrap(m.wrap))
	f.repo.Git(t, "branch", "preview", "main")
	f.replica.rendered(f.repo.URL, "preview", "app", "app", pin(server, 1))
	do := func() { f.repo.Git(t, "branch", "-D", "preview") }
	m.do.Store(&do)
	once(t, f.Companion, 0)
	wantText(t, "branches", "main", f.repo.Git(t, "for-each-ref", "--format=%(refname:short)"))
}

// TestManyCompanions: all pins of all writers land, in one line of commits without empty or doubled ones.
func TestManyCompanions(t *testing.T) {
	t.Parallel()
	const writers, updates = 8, 6
	files := map[string]string{"shared/kustomization.yaml": overlay}
	for w := range writers {
		files[fmt.Sprintf("app%d/kustomization.yaml", w)] = overlay
	}
	f := start(t, files)
	var wg sync.WaitGroup
	for w := range writers {
		dir := fmt.Sprintf("app%d", w)
		r := &replica{name: dir}
		own := fmt.Sprintf("ghcr.io/acme/app%d:latest", w)
		r.rendered(f.repo.URL, "main", dir, dir, pin(own, 1))
		r.rendered(f.repo.URL, "main", "shared", dir, pin(own, 1), pin(server, 1))
		c := newCompanion(f.log, replicas(r), companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL})
		wg.Go(func() {
			for n := 1; n <= updates; n++ {
				r.sees(pin(own, n), pin(server, n))
				for attempt := 0; ; attempt++ {
					_, err := c.Once(t.Context())
					if err == nil {
						break
					}
					late := err != nil && (errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "not done within")) // on a busy machine; the loop tries again, too
					if !errors.Is(err, gitrepo.ErrMoved) && !late || attempt == 5 {
						t.Errorf("%s: %v", dir, err)
						break
					}
				}
			}
		})
	}
	wg.Wait()
	shared := map[string]int{server: updates}
	for w := range writers {
		own := fmt.Sprintf("ghcr.io/acme/app%d:latest", w)
		shared[own] = updates
		wantPins(t, f.repo, "main", fmt.Sprintf("app%d", w), map[string]int{own: updates})
		log := f.repo.Git(t, "log", "--format=%B", "main")
		for n := 1; n <= updates; n++ {
			if landed := strings.Count(log, own+"\n  "+arrow(n)); landed != 1 {
				t.Errorf("update %d of %s was committed %d times, want once", n, own, landed)
			}
		}
	}
	wantPins(t, f.repo, "main", "shared", shared)
	bodies := strings.Split(f.repo.Git(t, "log", "--author=digestlock", "--format=%B%x00", "main"), "\x00")
	slices.Sort(bodies)
	if n := len(slices.Compact(slices.Clone(bodies))); n != len(bodies) {
		t.Errorf("%d commits, of which %d differ", len(bodies), n)
	}
	if merges := f.repo.Git(t, "rev-list", "--min-parents=2", "main"); merges != "" {
		t.Errorf("merges: %s", merges)
	}
}

// arrow is how a message says that a pin moved to its nth digest from the one before.
func arrow(n int) string {
	old := "(new)"
	if n > 1 {
		old = digest(n - 1)
	}
	return old + " → " + digest(n)
}

// TestGitFaults: what is wrong with one repository is said with a way out and without secrets, and the other advances.
func TestGitFaults(t *testing.T) {
	t.Parallel()
	address := "https://" + registrytest.FreeAddress() + "/k8s.git"
	wrong := base64.StdEncoding.EncodeToString([]byte("robot:wrong horse"))
	for name, tt := range map[string]struct {
		prepare    func(t *testing.T, s *gittest.Server, repo *gittest.Repo) companion.Repository
		want, hint string
	}{
		"down": {func(t *testing.T, s *gittest.Server, _ *gittest.Repo) companion.Repository {
			return companion.Repository{URL: address, Remote: open(t, address, s.Auth)}
		}, "revision main: read " + address + ": ", "check that the Git server is up"},
		"password": {func(t *testing.T, s *gittest.Server, repo *gittest.Repo) companion.Repository {
			auth := s.Auth
			auth.Password = "wrong horse"
			return companion.Repository{URL: repo.URL, Remote: open(t, repo.URL, auth)}
		}, "revision main: read https://", "check the credentials of this repository"},
		"protected": {func(t *testing.T, s *gittest.Server, repo *gittest.Repo) companion.Repository {
			repo.Hook(t, "pre-receive", "echo 'main wants a review, not correct horse' >&2; exit 1")
			return companion.Repository{URL: repo.URL, Remote: open(t, repo.URL, s.Auth)}
		}, "branch main was rejected: pre-receive hook declined: main wants a review", "allow the pusher to change this branch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, map[string]string{"app/kustomization.yaml": overlay})
			bad := f.server.Create(t, "bad.git", map[string]string{"app/kustomization.yaml": overlay})
			repository := tt.prepare(t, f.server, bad)
			c := newCompanion(f.log, replicas(f.replica), repository,
				companion.Repository{URL: f.repo.URL, Remote: open(t, f.repo.URL, f.server.Auth)})
			for _, url := range []string{repository.URL, f.repo.URL} {
				f.replica.rendered(url, "main", "app", "app", pin(server, 1))
			}
			tip := bad.Git(t, "rev-parse", "main")
			err := failing(t, c, 1, tt.want)
			if !strings.HasPrefix(fault.Hint(err), tt.hint) {
				t.Errorf("hint %q, want %q", fault.Hint(err), tt.hint)
			}
			if text := err.Error() + f.log.String(); strings.Contains(text, "horse") || strings.Contains(text, wrong) {
				t.Errorf("a secret in %s", text)
			}
			if got := bad.Git(t, "rev-parse", "main"); got != tip {
				t.Error("the branch has moved")
			}
			wantPins(t, f.repo, "main", "app", map[string]int{server: 1})
		})
	}
}
