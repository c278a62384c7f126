package companion_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// informed is a replica that knows where images come from.
type informed struct {
	*replica
	mu      sync.Mutex
	origins map[string]image.Origin
	err     error
	asked   []map[string][]string
	hook    func()
}

func (r *informed) Origins(_ context.Context, images map[string][]image.Ref) (map[string]image.Origin, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := map[string][]string{}
	for project, refs := range images {
		for _, ref := range refs {
			asked[project] = append(asked[project], ref.String())
		}
	}
	r.asked = append(r.asked, asked)
	if r.hook != nil {
		r.hook()
	}
	return maps.Clone(r.origins), r.err
}

func (r *informed) wantAsked(t *testing.T, want ...map[string][]string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	r.asked = nil
}

// inform has the companion ask a replica that knows origins.
func inform(t *testing.T, f *fixture, more func(*companion.Options)) *informed {
	t.Helper()
	r := &informed{replica: f.replica, origins: map[string]image.Origin{}}
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas = func(context.Context) ([]companion.Replica, error) { return []companion.Replica{r}, nil }
		o.Repositories = []companion.Repository{{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL}}
		more(o)
	}))
	return r
}

// TestOrigins: a commit says where its new images come from, as far as they do; nobody is asked when there is none.
func TestOrigins(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{
		"a/kustomization.yaml": overlay, "a/digest-lock.yaml": lockText(pin(server, 1), pin(worker, 1)),
		"b/kustomization.yaml": overlay, "b/digest-lock.yaml": lockText(pin(server, 1)),
	})
	r := inform(t, f, func(*companion.Options) {})
	r.rendered(f.repo.URL, "main", "a", "one", pin(server, 1), pin(worker, 1))
	r.rendered(f.repo.URL, "main", "b", "two", pin(server, 1))
	r.sees(pin(server, 1), pin(worker, 1))
	once(t, f.Companion, 0)
	r.wantAsked(t)
	r.origins[server+"@"+digest(2)] = image.Origin{Revision: "3f2c1ab", Source: "https://github.com/acme/server"}
	r.origins[server+"@"+digest(1)] = image.Origin{Revision: "0ld"}
	r.origins[worker+"@"+digest(2)] = image.Origin{Revision: "7a11dad"}
	r.sees(pin(server, 2), pin(worker, 2))
	commits := once(t, f.Companion, 1)
	r.wantAsked(t, map[string][]string{"default": {server + "@" + digest(2), worker + "@" + digest(2)}})
	wantText(t, "message", `build: auto-update 2 images

ghcr.io/acme/backend/server:latest
  `+digest(1)+` → `+digest(2)+`
  source https://github.com/acme/server at 3f2c1ab
  in a/digest-lock.yaml for one
  in b/digest-lock.yaml for two

ghcr.io/acme/worker:latest
  `+digest(1)+` → `+digest(2)+`
  revision 7a11dad
  in a/digest-lock.yaml for one

Digestlock-Companion: devel
`, commits[0].Message)
	r.err = errors.New("silent")
	r.sees(pin(server, 3))
	commits = once(t, f.Companion, 1)
	if strings.Contains(commits[0].Message, "source") {
		t.Errorf("message %q, want nothing of a source", commits[0].Message)
	}
}

// TestOriginsOfAProject: an image is asked about with the credentials of a project that sees it.
func TestOriginsOfAProject(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay, "a/digest-lock.yaml": lockText(pin(server, 1))})
	r := inform(t, f, func(*companion.Options) {})
	r.rendered(f.repo.URL, "main", "a", "one", pin(server, 1))
	r.docs = append(r.docs, lock.Document{Source: &lock.Source{
		Project: "team", Application: "two", Repository: f.repo.URL, TargetRevision: "main", Path: "a", Revision: "3f2c1ab", RenderedAt: noon,
	}, Pins: []lock.Pin{pin(server, 1)}})
	r.private = map[string]string{server: "team"}
	r.sees(pin(server, 2))
	once(t, f.Companion, 1)
	r.wantAsked(t, map[string][]string{"team": {server + "@" + digest(2)}})
}

// TestOriginsOnce: a commit that is applied again asks nobody again, and one that waits for the quiet window asks when it
// is made.
func TestOriginsOnce(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"a/kustomization.yaml": overlay, "a/digest-lock.yaml": lockText(pin(server, 1))})
	r := inform(t, f, func(o *companion.Options) {
		o.Quiet = companion.Quiet{Window: time.Hour, Longest: time.Hour}
	})
	r.rendered(f.repo.URL, "main", "a", "one", pin(server, 1))
	r.sees(pin(server, 2))
	r.origins[server+"@"+digest(2)] = image.Origin{Source: "https://github.com/acme/server"}
	r.hook = func() { f.repo.Commit(t, "main", map[string]string{"README": "moved meanwhile\n"}) }
	run(t, f.Companion, time.Hour)
	if _, err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantAsked(t, map[string][]string{"default": {server + "@" + digest(2)}})
	if text := f.repo.Git(t, "log", "-1", "--format=%B", "main"); !strings.Contains(text, "  source https://github.com/acme/server\n") {
		t.Errorf("message %q, want its source", text)
	}
	if !strings.Contains(f.log.String(), "branch moved, applying again") {
		t.Errorf("the branch did not move:\n%s", f.log)
	}
	r.sees(pin(server, 3))
	if _, err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantAsked(t)
}
