package companion_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lock"
)

// cluster is an Argo CD that knows what it is told, and writes down what it is told.
type cluster struct {
	mu     sync.Mutex
	apps   []companion.Application
	left   int
	down   error
	open   map[string]*gitrepo.Remote // by URL
	opened []string
	told   []string
	ensure func(context.Context, companion.Request) (string, bool, error)
}

func (c *cluster) Applications() ([]companion.Application, error) { return c.apps, c.down }

func (c *cluster) LeftOut() int { return c.left }

func (c *cluster) Open(_ context.Context, url, project string) (companion.Repository, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = append(c.opened, url+" for "+project)
	if r := c.open[url]; r != nil {
		return companion.Repository{Remote: r, Ensure: c.ensure}, nil
	}
	return companion.Repository{}, errors.New("no write credentials for " + url)
}

func (c *cluster) Tell(_ context.Context, app companion.Application) {
	c.note("tell " + app.Name)
}

func (c *cluster) Stale(_ context.Context, app companion.Application) { c.note("stale " + app.Name) }

func (c *cluster) Event(_ context.Context, app companion.Application, warning bool, reason, message string) {
	c.note(fmt.Sprintf("%s %s %t %s", reason, app.Name, warning, message[:strings.IndexByte(message, ' ')]))
}

func (c *cluster) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, s)
}

// wantTold checks what Argo CD was told since the last time.
func (c *cluster) wantTold(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(c.told)
	if diff := cmp.Diff(want, c.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	c.told = nil
}

// inCluster starts a companion that finds its Applications, and how to reach their repository, in a cluster.
func inCluster(t *testing.T, files map[string]string, apps ...companion.Application) (*fixture, *cluster) {
	t.Helper()
	f := start(t, files)
	c := &cluster{open: map[string]*gitrepo.Remote{f.repo.URL: open(t, f.repo.URL, f.server.Auth)}}
	for _, a := range apps {
		if a.Repository == "" {
			a.Repository = f.repo.URL
		}
		a.Project = "default"
		c.apps = append(c.apps, a)
	}
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Cluster = replicas(f.replica), c
	}))
	return f, c
}

// TestTargetsOfApplications: what no Application has is refused, whatever a render says.
func TestTargetsOfApplications(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "b/kustomization.yaml": overlay, "c/kustomization.yaml": overlay},
		companion.Application{Name: "one", Path: "a", TargetRevision: "HEAD"},
		companion.Application{Name: "two", Path: "./b/", TargetRevision: "main"},
		companion.Application{Name: "prod", Path: "c", Mode: "locked"},
		companion.Application{Name: "elsewhere", Path: "a", Repository: "https://git.example.com/other.git"})
	f.replica.rendered(f.repo.URL, "HEAD", "a", "one", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "b", "two", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "a", "one", pin(worker, 1))   // a revision that it does not follow
	f.replica.rendered(f.repo.URL, "HEAD", "c", "evil", pin(worker, 1))  // the path of one that is locked
	f.replica.rendered(f.repo.URL, "HEAD", "a", "other", pin(nginx, 1))  // a path that others may write to, a name that nobody has
	f.replica.rendered(f.repo.URL, "HEAD", "a/b", "evil", pin(nginx, 1)) // a path that nobody has
	f.replica.sees(pin(server, 1))
	failing(t, f.Companion, 1, "application elsewhere: no write credentials for https://git.example.com/other.git")
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
	wantPins(t, f.repo, "main", "b", map[string]int{server: 1})
	if names := f.repo.Git(t, "ls-tree", "-r", "--name-only", "main"); strings.Contains(names, "c/"+lock.FileName) {
		t.Errorf("a lock where only an Application of mode locked is: %s", names)
	}
	if n := strings.Count(f.log.String(), "render refused"); n != 2 {
		t.Errorf("%d renders refused, want 2:\n%s", n, f.log)
	}
	c.wantTold(t, "DigestAdopted one false "+server, "DigestAdopted two false "+server, "LockNotUpdated elsewhere true no", "tell one", "tell two")

	failing(t, f.Companion, 0, "application elsewhere: no write credentials")
	c.wantTold(t) // not again

	c.down = errors.New("the cluster does not answer")
	f.replica.sees(pin(server, 2))
	failing(t, f.Companion, 0, "the cluster does not answer")
}

// TestAdvanceWithoutRenders: a resolver that forgot what was rendered, as one in a new pod, costs no pin its advance.
func TestAdvanceWithoutRenders(t *testing.T) {
	t.Parallel()
	f, _ := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1))},
		companion.Application{Name: "one", Path: "a"})
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 2})
}

// at has the ledger say that its last render was of commit.
func (r *replica) at(commit string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.docs[len(r.docs)-1].Source.Revision = commit
}

// TestDropped: a pin goes when all Applications of the path were rendered at the tip without its image, and not before.
func TestDropped(t *testing.T) {
	t.Parallel()
	held := pin(nginx, 1)
	held.Hold = &lock.Hold{Rejected: digest(2), Reason: "reverted"}
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1), held)},
		companion.Application{Name: "one", Path: "a"}, companion.Application{Name: "two", Path: "a"})
	tip := f.repo.Git(t, "rev-parse", "main")
	everything := map[string]int{server: 1, worker: 1, nginx: 1}
	unchanged := func(why string) {
		t.Helper()
		t.Log(why)
		once(t, f.Companion, 0)
		wantPins(t, f.repo, "main", "a", everything)
	}
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
	f.replica.at(tip)
	unchanged("the other has not been rendered")
	f.replica.rendered(f.repo.URL, "", "a", "two", pin(server, 1))
	unchanged("the other was rendered at another commit")
	f.replica.at(tip)
	down := &replica{name: "down", down: errors.New("resolver down")}
	f.Companion = companion.New(options(f.log, func(o *companion.Options) { o.Replicas, o.Cluster = replicas(f.replica, down), c }))
	failing(t, f.Companion, 0, "resolver down")
	wantPins(t, f.repo, "main", "a", everything)
	f.Companion = companion.New(options(f.log, func(o *companion.Options) { o.Replicas, o.Cluster = replicas(f.replica), c }))
	c.apps = append(c.apps, companion.Application{Name: "prod", Path: "a", Mode: "locked", Repository: f.repo.URL, Project: "default"})
	unchanged("one of mode locked needs the lock, and reports nothing")
	c.apps = c.apps[:2]
	c.wantTold(t)
	commits := once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1, nginx: 1})
	if want := "build: drop acme/worker\n\n" + worker + "\n  " + digest(1) + " → (no longer rendered)\n"; !strings.HasPrefix(commits[0].Message, want) {
		t.Errorf("message %q, want %q", commits[0].Message, want)
	}
	c.wantTold(t, "DigestDropped one false "+worker, "DigestDropped two false "+worker, "tell one", "tell two")
	once(t, f.Companion, 0)
}

// TestClockAhead: a resolver whose clock is an hour ahead does not hide what another rendered since, at the tip.
func TestClockAhead(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1))},
		companion.Application{Name: "one", Path: "a"})
	ahead := &replica{name: "ahead"}
	ahead.rendered(f.repo.URL, "", "a", "one", pin(server, 1), pin(worker, 1))
	ahead.docs[0].Source.RenderedAt = time.Now().Add(time.Hour)
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1), pin(nginx, 1))
	f.replica.docs[0].Source.RenderedAt = time.Now()
	f.replica.at(f.repo.Git(t, "rev-parse", "main"))
	for _, withCluster := range []bool{false, true} {
		want := map[string]int{server: 1, worker: 1, nginx: 1}
		f.use(t, "", ahead, f.replica)
		if withCluster {
			f.replica.at(f.repo.Git(t, "rev-parse", "main"))
			delete(want, worker)
			f.Companion = companion.New(options(f.log, func(o *companion.Options) { o.Replicas, o.Cluster = replicas(ahead, f.replica), c }))
		}
		once(t, f.Companion, 1)
		wantPins(t, f.repo, "main", "a", want)
	}
}

// TestNotDropped: two sources of one Application at one path, with other parameters, have one entry in the ledger, and each
// overwrites what the other reported.
func TestNotDropped(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]companion.Application{
		"the same source twice": {Name: "one", Path: "a"}, "under another spelling": {Name: "one", Path: "./a", TargetRevision: "HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1), pin(worker, 1))},
				companion.Application{Name: "one", Path: "a"}, second)
			f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
			f.replica.at(f.repo.Git(t, "rev-parse", "main"))
			once(t, f.Companion, 0)
			wantPins(t, f.repo, "main", "a", map[string]int{server: 1, worker: 1})
			c.apps = c.apps[:1]
			once(t, f.Companion, 1)
			wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
		})
	}
}

// TestLive: the lock of an Application of mode live records what was rendered at the tip, and is not ahead of it; Argo
// CD is told once that a tag has moved.
func TestLive(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay, "a/" + lock.FileName: lockText(pin(server, 1))},
		companion.Application{Name: "one", Path: "a", Mode: "live"})
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 0)
	c.wantTold(t, "stale one")
	once(t, f.Companion, 0)
	c.wantTold(t)
	f.replica.sees(pin(server, 3))
	once(t, f.Companion, 0)
	c.wantTold(t, "stale one")

	f.replica.docs = nil
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 9)) // of some other commit, whose lock says what it likes
	once(t, f.Companion, 0)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 1})
	f.replica.docs = nil
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 3))
	f.replica.at(f.repo.Git(t, "rev-parse", "main"))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 3})
}

// TestManySources: a thousand sources of one repository are one commit, and as many requests as one.
func TestManySources(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	var apps []companion.Application
	for i := range 1000 {
		dir := fmt.Sprintf("apps/%03d/overlay", i)
		files[dir+"/kustomization.yaml"] = overlay
		apps = append(apps, companion.Application{Name: fmt.Sprintf("app-%03d", i), Path: dir})
	}
	f, _ := inCluster(t, files, apps...)
	for _, a := range apps {
		f.replica.rendered(f.repo.URL, "", a.Path, a.Name, pin(server, 1))
	}
	f.replica.sees(pin(server, 1))
	before := f.server.Requests()
	once(t, f.Companion, 1)
	if n := f.server.Requests() - before; n > 5 { // list, fetch, history, list, push
		t.Errorf("%d requests, want 5", n)
	}
	if len(f.replica.asked) != 1 {
		t.Errorf("asked for %d images, want 1", len(f.replica.asked))
	}
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "apps/999/overlay", map[string]int{server: 2})
	before = f.server.Requests()
	once(t, f.Companion, 0) // fetches its own commit
	once(t, f.Companion, 0)
	if n := f.server.Requests() - before; n > 4 { // list, fetch, contents, list
		t.Errorf("%d requests for two cycles without news, want 4", n)
	}
}

// TestTrouble: each Application learns what is in the way of its own lock, once.
func TestTrouble(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/" + lock.FileName: "<<<<<<< HEAD\n", "b/kustomization.yaml": overlay, "c/kustomization.yaml": overlay,
	},
		companion.Application{Name: "broken", Path: "a"}, companion.Application{Name: "fine", Path: "b"},
		companion.Application{Name: "prod", Path: "a", Mode: "locked"})
	f.replica.rendered(f.repo.URL, "", "b", "fine", pin(server, 1))
	failing(t, f.Companion, 1, "merge conflict marker")
	c.wantTold(t, "DigestAdopted fine false "+server, "LockNotUpdated broken true a/digest-lock.yaml:1:", "tell fine")
	failing(t, f.Companion, 0, "merge conflict marker")
	c.wantTold(t)

	f.repo.Hook(t, "pre-receive", "echo no pushes today; exit 1")
	f.replica.sees(pin(server, 2))
	failing(t, f.Companion, 0, "no pushes today")
	c.wantTold(t, "LockNotUpdated broken true push", "LockNotUpdated fine true push")
	f.repo.Hook(t, "pre-receive", "exit 0")
	f.repo.Commit(t, "main", map[string]string{"a/" + lock.FileName: ""})
	once(t, f.Companion, 1)
	c.wantTold(t, "DigestAdopted fine false "+server, "tell fine")
}
