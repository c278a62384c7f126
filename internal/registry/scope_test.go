package registry

import (
	"context"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// scoped has credentials for each scope, and anonymous ones for the others.
type scoped struct {
	mu        sync.Mutex
	passwords map[string]string
}

func (k *scoped) Find(_ context.Context, scope, _, _ string) (credentials.Login, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.passwords[scope] == "" {
		return credentials.Login{Hint: "log in as " + scope}, nil
	}
	return credentials.Login{Auth: login("u", k.passwords[scope]).Auth, Hint: "log in as " + scope}, nil
}

func (k *scoped) set(scope, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.passwords[scope] = password
}

// TestScopesShareNoSession: what one scope may read says nothing about another, whoever asks first, and the session of
// one that is refused costs the other nothing.
func TestScopesShareNoSession(t *testing.T) {
	t.Parallel()
	for name, require := range map[string]func(*registrytest.Server){
		"basic":  func(s *registrytest.Server) { s.RequireBasic("u", "p") },
		"bearer": func(s *registrytest.Server) { s.RequireBearer("u", "p") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			require(s)
			all, want := refs(t, s, 2)
			k := &scoped{passwords: map[string]string{"a": "p", "c": "wrong"}}
			c := client(Options{Keychain: k}, s)
			for range 2 {
				wantResults(t, c.Resolve(t.Context(), "a", all), want)
				for _, scope := range []string{"b", "c", ""} {
					r := c.Resolve(t.Context(), scope, all[:1])[0]
					wantDenied(t, r, "log in as "+scope)
				}
			}
			s.ResetCounts()
			wantResults(t, c.Resolve(t.Context(), "a", all), want)
			wantCounts(t, s, registrytest.Counts{Head: 2})
		})
	}
}

func wantDenied(t *testing.T, r image.Resolution, hint string) {
	t.Helper()
	text := "unauthorized (401)"
	if r.Err != nil && r.Err.Error() != r.Ref.Registry+": "+text {
		text = "unauthorized (401 UNAUTHORIZED)" // the token server's
	}
	wantError(t, r, image.ErrUnauthorized, text, hint)
}

// TestRotationPerScope: credentials that were rotated cost the scope one refused request and one new session, and the
// others nothing.
func TestRotationPerScope(t *testing.T) {
	t.Parallel()
	a, b := registrytest.Start(t), registrytest.Start(t)
	a.RequireBasic("u", "old")
	b.RequireBasic("u", "p")
	k := &scoped{passwords: map[string]string{"a": "old", "b": "p"}}
	c := client(Options{Keychain: k}, a, b)
	ofA, wantA := refs(t, a, 1)
	ofB, wantB := refs(t, b, 1)
	wantResults(t, c.Resolve(t.Context(), "a", ofA), wantA)
	wantResults(t, c.Resolve(t.Context(), "b", ofB), wantB)
	a.RequireBasic("u", "new")
	k.set("a", "new")
	k.set("b", "") // not read: nobody refused the session
	a.ResetCounts()
	b.ResetCounts()
	wantResults(t, c.Resolve(t.Context(), "a", ofA), wantA)
	wantResults(t, c.Resolve(t.Context(), "b", ofB), wantB)
	if got, want := a.Counts(), (registrytest.Counts{Ping: 1, Head: 2}); got != want {
		t.Errorf("rotated: requests %+v, want %s", got, cmp.Diff(want, got))
	}
	wantCounts(t, b, registrytest.Counts{Head: 1})
}
