package companion_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	server = "ghcr.io/acme/backend/server:latest"
	worker = "ghcr.io/acme/worker:latest"
	nginx  = "index.docker.io/library/nginx:latest"

	overlay = "resources: []\n"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// digest is the nth digest; later ones were pushed later.
func digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// at is n minutes past noon.
func at(n int) time.Time { return noon.Add(time.Duration(n) * time.Minute) }

// pin is what was seen of image at minute n: its nth digest.
func pin(image string, n int) lock.Pin {
	return lock.Pin{Image: image, Digest: digest(n), ResolvedAt: at(n)}
}

// replica is a resolver that says what it is told to.
type replica struct {
	name string

	mu       sync.Mutex
	docs     []lock.Document
	looks    map[string]lock.Pin
	private  map[string]string // images that only one project may read
	down     error             // of both calls
	noAnswer error             // of Resolve
	asked    []string
	unasked  []lock.Pin // that it answers all the same
}

func (r *replica) String() string { return r.name }

func (r *replica) Pins(context.Context) ([]lock.Document, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.docs, r.down
}

func (r *replica) Resolve(_ context.Context, source *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]image.Resolution, len(refs))
	for i, ref := range refs {
		r.asked = append(r.asked, ref.String())
		out[i] = image.Resolution{Ref: ref, Err: fmt.Errorf("registry: %w", image.ErrUnavailable)}
		if of, ok := r.private[ref.String()]; ok && of != source.Project {
			out[i] = image.Resolution{Ref: ref, Err: fmt.Errorf("registry: %w", image.ErrUnauthorized)}
			continue
		}
		if p, ok := r.looks[ref.String()]; ok {
			out[i] = image.Resolution{Ref: ref, Digest: p.Digest, At: p.ResolvedAt}
		}
	}
	for _, p := range r.unasked {
		ref, err := image.ParseFull(p.Image)
		if err != nil {
			panic(err)
		}
		out = append(out, image.Resolution{Ref: ref, Digest: p.Digest, At: p.ResolvedAt})
	}
	return out, errors.Join(r.down, r.noAnswer)
}

// rendered has the ledger remember that app rendered path, with pins.
func (r *replica) rendered(url, revision, path, app string, pins ...lock.Pin) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.docs = append(r.docs, lock.Document{
		Source: &lock.Source{
			Project: "default", Application: app, Repository: url, TargetRevision: revision, Path: path,
			Revision: "3f2c1ab", RenderedAt: noon,
		},
		Pins: pins,
	})
}

// sees sets where the registry's tags stand.
func (r *replica) sees(pins ...lock.Pin) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looks == nil {
		r.looks = map[string]lock.Pin{}
	}
	for _, p := range pins {
		r.looks[p.Image] = p
	}
}

// log is a log that tests read.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// replicas adapts for Options.
func replicas(all ...*replica) func(context.Context) ([]companion.Replica, error) {
	return func(context.Context) ([]companion.Replica, error) {
		var out []companion.Replica
		for _, r := range all {
			out = append(out, r)
		}
		return out, nil
	}
}

func open(t *testing.T, url string, auth gitrepo.Auth) *gitrepo.Remote {
	t.Helper()
	remote, err := gitrepo.Open(url, auth)
	if err != nil {
		t.Fatal(err)
	}
	return remote
}

// fixture is one repository, one replica and one companion.
type fixture struct {
	*companion.Companion
	server  *gittest.Server
	repo    *gittest.Repo
	replica *replica
	log     *log
}

func start(t *testing.T, files map[string]string, options ...gittest.Option) *fixture {
	t.Helper()
	f := &fixture{server: gittest.HTTPS(t, options...), replica: &replica{name: "resolver"}, log: &log{}}
	f.repo = f.server.Create(t, "team/k8s.git", files)
	f.use(t, "", f.replica)
	return f
}

// use makes a companion that asks the given replicas, and writes to one branch or, with "", all.
func (f *fixture) use(t *testing.T, branch string, all ...*replica) {
	t.Helper()
	repository := companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL, Branch: branch}
	f.Companion = newCompanion(f.log, replicas(all...), repository)
	t.Cleanup(func() { wellBehaved(t, f.repo) })
}

func newCompanion(l *log, r func(context.Context) ([]companion.Replica, error), all ...companion.Repository) *companion.Companion {
	return companion.New(options(l, func(o *companion.Options) { o.Replicas, o.Repositories = r, all }))
}

// options are what companions of these tests share, and what one of them has beside that.
func options(l *log, more func(*companion.Options)) companion.Options {
	o := companion.Options{
		Author: gitrepo.Signature{Name: "digestlock", Email: "digestlock@localhost"},
		Log:    slog.New(slog.NewTextHandler(l, nil)),
	}
	more(&o)
	return o
}

// wellBehaved looks through the whole history: the companion's commits have one parent, or none on a
// branch of their own, and touch lock files and at
// least one of them. It runs after the test, whose context has ended.
func wellBehaved(t *testing.T, repo *gittest.Repo) {
	t.Helper()
	git := func(args ...string) string {
		out, err := exec.Command("git", append([]string{"-C", repo.Dir}, args...)...).Output()
		if err != nil {
			t.Errorf("git %v: %v", args, err)
		}
		return string(out)
	}
	for _, hash := range strings.Fields(git("log", "--branches", "--author=digestlock", "--format=%H")) {
		parents := strings.Fields(git("log", "-1", "--format=%P", hash))
		if len(parents) > 1 { // without one, what it touches is all there is
			t.Errorf("commit %s has parents %v, want one", hash, parents)
		}
		files := strings.Split(strings.TrimSuffix(git("diff-tree", "--root", "--no-commit-id", "--name-only", "-r", "-z", hash), "\x00"), "\x00")
		for _, file := range files { // one, "", for an empty commit
			if file != lock.FileName && !strings.HasSuffix(file, "/"+lock.FileName) {
				t.Errorf("commit %s touches %q", hash, file)
			}
		}
	}
}

// once runs a cycle that must do everything, and make that many commits.
func once(t *testing.T, c *companion.Companion, want int) []companion.Commit {
	t.Helper()
	commits, err := c.Once(t.Context())
	if err != nil || len(commits) != want {
		t.Fatalf("Once = %d commits, %v, want %d", len(commits), err, want)
	}
	return commits
}

// failing runs a cycle that makes that many commits and an error with all those texts.
func failing(t *testing.T, c *companion.Companion, want int, texts ...string) error {
	t.Helper()
	commits, err := c.Once(t.Context())
	if err == nil || len(commits) != want {
		t.Fatalf("Once = %d commits, %v, want %d and an error", len(commits), err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("Once: %v\nwant %q in it", err, text)
		}
	}
	return err
}

func show(t *testing.T, repo *gittest.Repo, revision, file string) string {
	t.Helper()
	return repo.Git(t, "show", revision+":"+file) + "\n"
}

// wantPins checks a lock in Git: image → which of its digests.
func wantPins(t *testing.T, repo *gittest.Repo, branch, path string, want map[string]int) {
	t.Helper()
	doc, err := lock.Parse(path, []byte(show(t, repo, branch, strings.TrimPrefix(path+"/", "./")+lock.FileName)))
	if err != nil {
		t.Error(err)
		return
	}
	wantDigests, got := map[string]string{}, map[string]string{}
	for name, n := range want {
		wantDigests[name] = digest(n)
	}
	for _, p := range doc.Pins {
		got[p.Image] = p.Digest
	}
	if diff := cmp.Diff(wantDigests, got); diff != "" {
		t.Errorf("lock of %s in %s (-want +got):\n%s", path, branch, diff)
	}
}

func lockText(pins ...lock.Pin) string { return string((&lock.Document{Pins: pins}).Format()) }

func wantText(t *testing.T, what, want, got string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestFirstLock(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1))
	commits := once(t, f.Companion, 1)

	want := companion.Commit{Repository: f.repo.URL, Branch: "main", Hash: f.repo.Git(t, "rev-parse", "main"), Message: `build: auto-update backend/server to sha256:000000000000…

ghcr.io/acme/backend/server:latest
  (new) → sha256:0000000000000000000000000000000000000000000000000000000000000001
  in app/digest-lock.yaml for backend

Digestlock-Companion: devel
`}
	if diff := cmp.Diff(want, commits[0]); diff != "" {
		t.Errorf("commit (-want +got):\n%s", diff)
	}
	wantText(t, "message in Git", want.Message, f.repo.Git(t, "log", "-1", "--format=%B", "main")+"\n")
	wantText(t, "author", "digestlock <digestlock@localhost>", f.repo.Git(t, "log", "-1", "--format=%an <%ae>", "main"))
	wantText(t, "lock", `# Maintained by digestlock: the digest behind each mutable tag this overlay renders.
apiVersion: digestlock.dev/v1
kind: DigestLock
pins:
  - image: ghcr.io/acme/backend/server:latest
    digest: sha256:0000000000000000000000000000000000000000000000000000000000000001
    resolvedAt: "2026-03-01T12:01:00Z"
`, show(t, f.repo, "main", "app/digest-lock.yaml"))

	once(t, f.Companion, 0) // fetches its own commit
	f.replica.sees(lock.Pin{Image: server, Digest: digest(1), ResolvedAt: at(9)})
	before := f.server.Requests()
	once(t, f.Companion, 0)
	if n := f.server.Requests() - before; n != 1 {
		t.Errorf("%d requests for a cycle without news, want 1: the listing", n)
	}
}

func TestOnlyWhatMovedDiffers(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{
		"app/kustomization.yaml": overlay,
		"app/digest-lock.yaml":   lockText(pin(server, 1), pin(worker, 2), pin(nginx, 3)),
	})
	f.replica.rendered(f.repo.URL, "main", "app", "backend", pin(server, 1))
	f.replica.sees(pin(server, 1), pin(worker, 5), lock.Pin{Image: nginx, Digest: digest(3), ResolvedAt: at(6)})
	once(t, f.Companion, 1)
	var changed []string
	for line := range strings.Lines(f.repo.Git(t, "diff", "-U0", "main~", "main")) {
		if strings.HasPrefix(line, "+ ") || strings.HasPrefix(line, "- ") {
			changed = append(changed, strings.TrimSpace(line))
		}
	}
	want := []string{
		"-    digest: " + digest(2), `-    resolvedAt: "2026-03-01T12:02:00Z"`,
		"+    digest: " + digest(5), `+    resolvedAt: "2026-03-01T12:05:00Z"`,
	}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("changed lines (-want +got):\n%s", diff)
	}
	once(t, f.Companion, 0)
}

// TestOneCommit: several paths, spelled in several ways, several images, two Applications at one path.
func TestOneCommit(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{
		"kustomization.yml":      overlay,
		"a/kustomization.yaml":   overlay,
		"b/c/Kustomization":      overlay,
		"a/digest-lock.yaml":     lockText(pin(server, 1)),
		"b/c/digest-lock.yaml":   lockText(pin(server, 1)),
		"else/digest-lock.yaml":  "not ours\n",
		"a/b/kustomization.yaml": overlay,
	})
	f.replica.rendered(f.repo.URL, "main", "./a", "one", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "a/", "two", pin(worker, 2))
	f.replica.rendered(f.repo.URL, "main", "b/c", "three", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "", "root", pin(nginx, 3))
	f.replica.sees(pin(server, 4), pin(worker, 2), pin(nginx, 3))
	commits := once(t, f.Companion, 1)
	wantText(t, "message", `build: auto-update 3 images

ghcr.io/acme/backend/server:latest
  sha256:0000000000000000000000000000000000000000000000000000000000000001 → sha256:0000000000000000000000000000000000000000000000000000000000000004
  in a/digest-lock.yaml for one, two
  in b/c/digest-lock.yaml for three

ghcr.io/acme/worker:latest
  (new) → sha256:0000000000000000000000000000000000000000000000000000000000000002
  in a/digest-lock.yaml for one, two

index.docker.io/library/nginx:latest
  (new) → sha256:0000000000000000000000000000000000000000000000000000000000000003
  in digest-lock.yaml for root

Digestlock-Companion: devel
`, commits[0].Message)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 4, worker: 2})
	wantPins(t, f.repo, "main", "b/c", map[string]int{server: 4})
	wantPins(t, f.repo, "main", ".", map[string]int{nginx: 3})
	wantText(t, "asked", strings.Join([]string{server, worker, nginx}, " "), strings.Join(slices.Sorted(slices.Values(f.replica.asked)), " "))
	once(t, f.Companion, 0)
}

// TestBranches: one commit per repository and branch, whatever Applications call it.
func TestBranches(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay, "b/kustomization.yaml": overlay, "c/kustomization.yaml": overlay, "d/kustomization.yaml": overlay})
	other := f.server.Create(t, "team/other.git", map[string]string{"a/kustomization.yaml": overlay})
	f.repo.Commit(t, "feature/x", map[string]string{"a/kustomization.yaml": overlay})
	f.Companion = newCompanion(f.log, replicas(f.replica),
		companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL},
		companion.Repository{Remote: open(t, other.URL, f.server.Auth), URL: other.URL})
	f.replica.rendered(f.repo.URL, "main", "a", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "", "b", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "HEAD", "c", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "refs/heads/main", "d", "app", pin(server, 1))
	f.replica.rendered(f.repo.URL, "feature/x", "a", "app", pin(server, 2))
	f.replica.rendered(other.URL, "HEAD", "a", "app", pin(worker, 3))
	f.replica.sees(pin(server, 2), pin(worker, 3))
	commits := once(t, f.Companion, 3)
	var got []string
	for _, c := range commits {
		got = append(got, c.Repository+" "+c.Branch)
	}
	want := []string{f.repo.URL + " feature/x", f.repo.URL + " main", other.URL + " main"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commits (-want +got):\n%s", diff)
	}
	for _, path := range []string{"a", "b", "c", "d"} {
		wantPins(t, f.repo, "main", path, map[string]int{server: 2})
	}
	wantPins(t, f.repo, "feature/x", "a", map[string]int{server: 2})
	wantPins(t, other, "main", "a", map[string]int{worker: 3})
	if len(f.replica.asked) != 2 {
		t.Errorf("asked for %v, want each image once", f.replica.asked)
	}
	once(t, f.Companion, 0)
}

func TestNewestLookCounts(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(pin(server, 1))})
	flushed, stale := &replica{name: "flushed"}, &replica{name: "stale"}
	f.use(t, "", flushed, stale)
	stale.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), pin(worker, 1))
	flushed.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), pin(worker, 4))
	stale.sees(pin(server, 2), pin(worker, 1))
	flushed.sees(pin(server, 3), pin(worker, 4))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 3, worker: 4})

	f.use(t, "", stale) // alone, it moves nothing back
	once(t, f.Companion, 0)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 3, worker: 4})
}

// TestLedgerMovesNoPin: a lock in any commit that somebody has rendered may claim any digest at any time.
func TestLedgerMovesNoPin(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(pin(server, 1))})
	f.replica.rendered(f.repo.URL, "main", "app", "app",
		lock.Pin{Image: server, Digest: digest(666), ResolvedAt: at(1 << 20)},
		lock.Pin{Image: "x:latest\n  - image: y", Digest: digest(1), ResolvedAt: at(1)},
		lock.Pin{Image: worker, Digest: "sha256:short", ResolvedAt: at(1)})
	once(t, f.Companion, 0)
	f.replica.sees(pin(server, 2))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2})
}

// TestProjectsLook: an image is looked at with the credentials of the projects that render the path, and what one of
// them may read moves no lock of another, whatever that lock names.
func TestProjectsLook(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/digest-lock.yaml": lockText(pin(server, 1)),
		"b/kustomization.yaml": overlay, "b/digest-lock.yaml": lockText(pin(server, 1), pin(worker, 1)),
	})
	f.replica.rendered(f.repo.URL, "main", "a", "app-a", pin(server, 1))
	f.replica.rendered(f.repo.URL, "main", "b", "app-b", pin(worker, 1))
	f.replica.docs[0].Source.Project = "team-a"
	f.replica.docs[1].Source.Project = "team-b"
	f.replica.private = map[string]string{server: "team-a"}
	f.replica.sees(pin(server, 2), pin(worker, 2))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "a", map[string]int{server: 2})
	wantPins(t, f.repo, "main", "b", map[string]int{server: 1, worker: 2})
}

func TestPinsStay(t *testing.T) {
	t.Parallel()
	held := pin(worker, 1)
	held.Hold = &lock.Hold{Rejected: digest(2), Reason: "reverted"}
	f := start(t, map[string]string{
		"app/kustomization.yaml": overlay,
		"app/digest-lock.yaml":   lockText(pin(server, 1), held),
	})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), pin(nginx, 1))
	f.replica.sees(pin(worker, 2)) // rejected; server and nginx cannot be resolved
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 1, worker: 1, nginx: 1})
	if !strings.Contains(show(t, f.repo, "main", "app/digest-lock.yaml"), `reason: "reverted"`) {
		t.Error("the hold is gone")
	}
	if !strings.Contains(f.log.String(), `msg="image not resolved, its pin stays" image=`+server) {
		t.Errorf("log does not say that %s stays:\n%s", server, f.log)
	}
	f.replica.sees(pin(worker, 3)) // the tag moves past what was rejected
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 1, worker: 3, nginx: 1})
}

func TestSSH(t *testing.T) {
	t.Parallel()
	s := gittest.SSH(t)
	repo := s.Create(t, "k8s.git", map[string]string{"app/kustomization.yaml": overlay})
	r, l := &replica{name: "resolver"}, &log{}
	c := newCompanion(l, replicas(r), companion.Repository{Remote: open(t, repo.URL, s.Auth), URL: repo.URL})
	r.rendered(strings.TrimSuffix(repo.URL, ".git"), "main", "app", "app", pin(server, 1))
	once(t, c, 1)
	once(t, c, 0)
	wantPins(t, repo, "main", "app", map[string]int{server: 1})
	wellBehaved(t, repo)
}

// TestClockJumped: a look from the future is not believed, and one that is in a lock already keeps no pin from moving.
func TestClockJumped(t *testing.T) {
	t.Parallel()
	ahead := lock.Pin{Image: server, Digest: digest(1), ResolvedAt: time.Now().Add(24 * time.Hour)}
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(ahead, pin(worker, 1))})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), lock.Pin{Image: nginx, Digest: digest(1), ResolvedAt: time.Now().Add(time.Hour)})
	f.replica.sees(lock.Pin{Image: worker, Digest: digest(2), ResolvedAt: time.Now().Add(time.Hour)})
	once(t, f.Companion, 0)
	if !strings.Contains(f.log.String(), "the resolver's clock is ahead") {
		t.Errorf("nothing about the clock in the log:\n%s", f.log)
	}
	f.replica.sees(pin(worker, 3))
	once(t, f.Companion, 1)
	if text := show(t, f.repo, "main", "app/digest-lock.yaml"); !strings.Contains(text, lockText(ahead)[strings.Index(lockText(ahead), "  - image"):]) {
		t.Errorf("what did not move has other lines now:\n%s", text)
	}
	f.replica.sees(pin(server, 4))
	once(t, f.Companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 4, worker: 3})
}

// TestLyingResolver: an answer to what nobody asked changes nothing.
func TestLyingResolver(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(pin(server, 1))})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
	f.replica.sees(pin(server, 1))
	f.replica.unasked = []lock.Pin{pin(nginx, 6), {Image: server, Digest: "sha256:short", ResolvedAt: at(9)}}
	once(t, f.Companion, 0)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 1})
}
