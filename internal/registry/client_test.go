package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// hint is what the keychains here say where credentials come from.
const hint = "check the credentials of the test"

func login(user, password string) credentials.Login {
	return credentials.Login{Auth: authn.AuthConfig{Username: user, Password: password}, Hint: hint}
}

// keychain is a credential that can be rotated, and how often it was read.
type keychain struct {
	mu             sync.Mutex
	user, password string
	reads          int
}

func (k *keychain) Find(context.Context, string, string, string) (credentials.Login, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads++
	if k.user == "" {
		return credentials.Login{Hint: hint}, nil
	}
	return login(k.user, k.password), nil
}

func (k *keychain) set(user, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.user, k.password = user, password
}

// client returns one that may speak to the servers in plain http, anonymously unless o has a keychain.
func client(o Options, servers ...*registrytest.Server) *Client {
	for _, s := range servers {
		o.Insecure = append(o.Insecure, s.Host)
	}
	if o.Keychain == nil {
		o.Keychain = &keychain{}
	}
	return New(o)
}

// refs pushes n images and returns their references and the results to expect.
func refs(t *testing.T, s *registrytest.Server, n int) ([]image.Ref, []image.Resolution) {
	t.Helper()
	var refs []image.Ref
	var want []image.Resolution
	for i := range n {
		repo := fmt.Sprintf("team/app%02d", i)
		ref := parse(t, s.Host+"/"+repo+":latest")
		refs = append(refs, ref)
		want = append(want, image.Resolution{Ref: ref, Digest: s.Push(repo, "latest")})
	}
	return refs, want
}

func parse(t *testing.T, s string) image.Ref {
	t.Helper()
	ref, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func one(c *Client, ref image.Ref) image.Resolution {
	return c.Resolve(context.Background(), "", []image.Ref{ref})[0]
}

func wantResults(t *testing.T, got, want []image.Resolution) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b error) bool { return a == b }), cmpopts.IgnoreFields(image.Resolution{}, "At")); d != "" {
		t.Errorf("Resolve (-want +got):\n%s", d)
	}
}

func wantCounts(t *testing.T, s *registrytest.Server, want registrytest.Counts) {
	t.Helper()
	if got := s.Counts(); got != want {
		t.Errorf("requests = %+v, want %+v", got, want)
	}
	s.ResetCounts()
}

// wantError checks for a sentinel, nil for none of them, the text after the host, and the hint's beginning.
func wantError(t *testing.T, r image.Resolution, sentinel error, text, hint string) {
	t.Helper()
	if r.Err == nil {
		t.Fatalf("Resolve(%s) = %s, want error %q", r.Ref, r.Digest, text)
	}
	for _, s := range []error{image.ErrNotFound, image.ErrUnauthorized, image.ErrUnavailable} {
		if got, want := errors.Is(r.Err, s), s == sentinel; got != want {
			t.Errorf("errors.Is(%q, %q) = %v, want %v", r.Err, s, got, want)
		}
	}
	if got, want := r.Err.Error(), r.Ref.Registry+": "+text; got != want {
		t.Errorf("error = %q, want %q", got, want)
	}
	if got := fault.Hint(r.Err); (hint == "") != (got == "") || !strings.HasPrefix(got, hint) {
		t.Errorf("hint = %q, want %q…", got, hint)
	}
	if r.Digest != "" {
		t.Errorf("digest = %q beside an error", r.Digest)
	}
}

func TestRequestsPerBatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		require func(*registrytest.Server)
		tokens  int
	}{
		{"anonymous", func(*registrytest.Server) {}, 0},
		{"basic", func(s *registrytest.Server) { s.RequireBasic("u", "p") }, 0},
		{"bearer", func(s *registrytest.Server) { s.RequireBearer("u", "p") }, 1},
		{"anonymous bearer", func(s *registrytest.Server) { s.RequireBearer("", "") }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			tt.require(s)
			all, want := refs(t, s, 50)
			c := client(Options{Keychain: &keychain{user: "u", password: "p"}}, s)

			wantResults(t, c.Resolve(t.Context(), "", all), want)
			wantCounts(t, s, registrytest.Counts{Ping: 1, Token: tt.tokens, Head: 50})
			wantResults(t, c.Resolve(t.Context(), "", all), want)
			wantCounts(t, s, registrytest.Counts{Head: 50})
		})
	}
}

func TestNewRepositoryWidensOnlyATokensSession(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name         string
		bearer       bool
		ping, tokens int
	}{{"bearer", true, 1, 1}, {"basic", false, 0, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, want := refs(t, s, 4)
			s.RequireBasic("u", "p")
			if tt.bearer {
				s.RequireBearer("u", "p")
			}
			c := client(Options{Keychain: &keychain{user: "u", password: "p"}}, s)
			c.Resolve(t.Context(), "", all[:2])
			s.ResetCounts()
			wantResults(t, c.Resolve(t.Context(), "", all[1:]), want[1:])
			wantCounts(t, s, registrytest.Counts{Ping: tt.ping, Token: tt.tokens, Head: 3})
			wantResults(t, c.Resolve(t.Context(), "", all), want)
			wantCounts(t, s, registrytest.Counts{Head: 4})
		})
	}
}

func TestTokenScopesAreBounded(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	s.RequireBearer("", "")
	all, want := refs(t, s, 51)
	c := client(Options{}, s)
	wantResults(t, c.Resolve(t.Context(), "", all), want)
	wantCounts(t, s, registrytest.Counts{Ping: 2, Token: 2, Head: 51})
}

func TestIndexDigest(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	want := s.PushIndex("multi/arch", "v1")
	if r := one(client(Options{}, s), parse(t, s.Host+"/multi/arch:v1")); r.Err != nil || r.Digest != want {
		t.Errorf("Resolve = %s, %v, want %s", r.Digest, r.Err, want)
	}
}

func TestReferenceWithDigestNeedsNoRequest(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("a", 64)
	if r := one(New(Options{}), parse(t, "registry.invalid/a@"+digest)); r.Err != nil || r.Digest != digest {
		t.Errorf("Resolve = %s, %v", r.Digest, r.Err)
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, want := refs(t, s, 1)
	c := client(Options{}, s)
	got := c.Resolve(t.Context(), "", []image.Ref{all[0], parse(t, s.Host+"/team/app00:gone"), parse(t, s.Host+"/nobody:latest")})
	wantResults(t, got[:1], want)
	wantError(t, got[1], image.ErrNotFound, "not found (404)", "")
	wantError(t, got[2], image.ErrNotFound, "not found (404)", "")
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 3})
}

func TestDenied(t *testing.T) {
	t.Parallel()
	t.Run("anonymous", func(t *testing.T) {
		t.Parallel()
		s := registrytest.Start(t)
		s.RequireBasic("u", "p")
		all, _ := refs(t, s, 1)
		wantError(t, one(client(Options{}, s), all[0]), image.ErrUnauthorized, "unauthorized (401)", hint)
		wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1})
	})
	t.Run("wrong password for a token", func(t *testing.T) {
		t.Parallel()
		s := registrytest.Start(t)
		s.RequireBearer("u", "p")
		all, _ := refs(t, s, 5)
		for _, r := range client(Options{Keychain: &keychain{user: "u", password: "hunter2"}}, s).Resolve(t.Context(), "", all) {
			wantError(t, r, image.ErrUnauthorized, "unauthorized (401 UNAUTHORIZED)", hint)
		}
		wantCounts(t, s, registrytest.Counts{Ping: 1, Token: 1})
	})
	t.Run("403 of one repository", func(t *testing.T) {
		t.Parallel()
		s := registrytest.Start(t)
		all, want := refs(t, s, 2)
		s.Deny("team/app00")
		got := client(Options{}, s).Resolve(t.Context(), "", all)
		wantError(t, got[0], image.ErrUnauthorized, "unauthorized (403)", hint)
		wantResults(t, got[1:], want[1:])
		wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 2})
	})
	// Some token servers give a token for the rest, others none at all: neither may cost the rest its digests.
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("one repository of a token, strict %v", strict), func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			s.RequireBearer("", "")
			all, want := refs(t, s, 3)
			s.Deny("team/app00")
			if strict {
				s.StrictTokens()
			}
			c := client(Options{}, s)
			for range 2 {
				got := c.Resolve(t.Context(), "", all)
				if !errors.Is(got[0].Err, image.ErrUnauthorized) {
					t.Errorf("denied: %v", got[0].Err)
				}
				wantResults(t, got[1:], want[1:])
			}
			s.ResetCounts()
			wantResults(t, c.Resolve(t.Context(), "", all[1:]), want[1:])
			wantCounts(t, s, registrytest.Counts{Head: 2})
		})
	}
}

func TestRotatedCredentials(t *testing.T) {
	t.Parallel()
	for name, require := range map[string]func(s *registrytest.Server, user, password string){
		"basic":  func(s *registrytest.Server, u, p string) { s.RequireBasic(u, p) },
		"bearer": func(s *registrytest.Server, u, p string) { s.RequireBearer(u, p) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, want := refs(t, s, 20)
			k := &keychain{user: "u", password: "old"}
			require(s, "u", "old")
			c := client(Options{Keychain: k}, s)
			wantResults(t, c.Resolve(t.Context(), "", all), want)
			s.ResetCounts()

			require(s, "u", "new")
			k.set("u", "new")
			wantResults(t, c.Resolve(t.Context(), "", all), want)
			got := s.Counts()
			if got.Ping != 1 || got.Token > 1 {
				t.Errorf("requests = %+v, want one ping and at most one token", got)
			}
		})
	}
}

func TestExpiredTokenIsRenewedOnce(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	s.RequireBearer("", "")
	all, want := refs(t, s, 20)
	c := client(Options{}, s)
	c.Resolve(t.Context(), "", all)
	s.ResetCounts()
	s.ExpireTokens()
	wantResults(t, c.Resolve(t.Context(), "", all), want)
	if got := s.Counts(); got.Ping != 1 || got.Token != 1 {
		t.Errorf("requests = %+v, want one ping and one token", got)
	}
}

func TestOldSessionIsReplaced(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, want := refs(t, s, 2)
	k := &keychain{}
	c := client(Options{Keychain: k}, s)
	c.Resolve(t.Context(), "", all)
	s.ResetCounts()
	c.sessionAge = 0
	wantResults(t, c.Resolve(t.Context(), "", all[:1]), want[:1])
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1})
	if n := len(c.host(s.Host).groups); n != 1 {
		t.Errorf("%d repositories are remembered, want the used one only", n)
	}
}

// repoKeychain has other credentials for one repository than for the rest of its registry.
type repoKeychain struct{ repo string }

func (k repoKeychain) Find(_ context.Context, _, _, repo string) (credentials.Login, error) {
	if repo != k.repo {
		return credentials.Login{}, nil
	}
	own := login("u", "p")
	own.Own = true
	return own, nil
}

func TestCredentialsOfOneRepository(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	s.RequireBasic("u", "p")
	all, want := refs(t, s, 2)
	got := client(Options{Keychain: repoKeychain{"team/app01"}}, s).Resolve(t.Context(), "", all)
	if !errors.Is(got[0].Err, image.ErrUnauthorized) {
		t.Errorf("other repository: %v", got[0].Err)
	}
	wantResults(t, got[1:], want[1:])
}

func TestTemporaryFailureIsRetried(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, target string
		fault        registrytest.Fault
		want         registrytest.Counts
	}{
		{"500", "team/app00", registrytest.Fault{Status: 500, Times: 1}, registrytest.Counts{Ping: 1, Head: 2}},
		{"503 at the ping", registrytest.Ping, registrytest.Fault{Status: 503, Times: 2}, registrytest.Counts{Ping: 3, Head: 1}},
		{"429 that says when", "team/app00", registrytest.Fault{Status: 429, RetryAfter: "1", Times: 1}, registrytest.Counts{Ping: 1, Head: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, want := refs(t, s, 1)
			s.Inject(tt.target, tt.fault)
			start := time.Now()
			wantResults(t, client(Options{}, s).Resolve(t.Context(), "", all), want)
			wantCounts(t, s, tt.want)
			if d := time.Since(start); tt.fault.RetryAfter != "" && d < time.Second {
				t.Errorf("asked again after %v", d)
			}
		})
	}
}

func TestBrokenConnectionIsRetried(t *testing.T) {
	t.Parallel()
	s := registrytest.New()
	want := s.Push("a", "latest")
	var n atomic.Int32
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		s.ServeHTTP(w, r)
	}))
	if r := one(New(Options{Insecure: []string{host}, Keychain: &keychain{}}), parse(t, host+"/a:latest")); r.Digest != want {
		t.Errorf("Resolve = %q, %v, want %s", r.Digest, r.Err, want)
	}
}

func TestTemporaryFailureThatStays(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	s.Inject("team/app00", registrytest.Fault{Status: 502})
	wantError(t, one(client(Options{}, s), all[0]), image.ErrUnavailable, "unavailable (502)", "")
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: maxTries})
}

func TestThrottledBeyondDeadlineFailsAtOnce(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 3)
	s.Inject("team/app00", registrytest.Fault{Status: 429, RetryAfter: "20"})
	start := time.Now()
	c := client(Options{Timeout: 10 * time.Second}, s)
	r := one(c, all[0])
	until := c.host(s.Host).paused()
	text := "unavailable (429, throttled until " + until.UTC().Format("15:04:05 MST") + ")"
	wantError(t, r, image.ErrUnavailable, text, "log in to "+s.Host)
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1})
	// It was said for the whole registry.
	for _, r := range c.Resolve(t.Context(), "", all) {
		wantError(t, r, image.ErrUnavailable, text, "log in to "+s.Host)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	wantCounts(t, s, registrytest.Counts{})
}

func TestOtherStatusIsNotRetried(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	s.Inject("team/app00", registrytest.Fault{Status: 400})
	wantError(t, one(client(Options{}, s), all[0]), nil, "unexpected answer (400)", "")
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1})
}

func TestNotARegistry(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	s.Inject(registrytest.Ping, registrytest.Fault{Status: 404})
	wantError(t, one(client(Options{}, s), all[0]), nil, "is not a registry (404)", "check the registry in")
}

// A registry that takes requests and says nothing: before a session, and after.
func TestSilentRegistry(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second // the good registry must make it on a busy machine
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprintf("warm %v", warm), func(t *testing.T) {
			t.Parallel()
			silent, mute, good := registrytest.Start(t), registrytest.Start(t), registrytest.Start(t)
			dumb, _ := refs(t, silent, 20)
			more, _ := refs(t, mute, 1)
			dumb = append(dumb, more...)
			fine, want := refs(t, good, 5)
			c := client(Options{Timeout: timeout, Concurrency: 2}, silent, mute, good)
			if warm {
				c.Resolve(t.Context(), "", dumb)
			}
			for _, s := range []*registrytest.Server{silent, mute} {
				s.Inject(registrytest.Ping, registrytest.Fault{Hang: true})
				for _, ref := range dumb {
					s.Inject(ref.Repository, registrytest.Fault{Hang: true})
				}
			}
			start := time.Now()
			got := c.Resolve(t.Context(), "", append(dumb, fine...))
			if d := time.Since(start); d > timeout*7/4 {
				t.Errorf("took %v, the deadline is %v", d, timeout)
			}
			for _, r := range got[:21] {
				wantError(t, r, image.ErrUnavailable, "unavailable: no answer within 2s", "")
			}
			wantResults(t, got[21:], want)
		})
	}
}

func TestConnectionRefused(t *testing.T) {
	t.Parallel()
	s, good := registrytest.Start(t), registrytest.Start(t)
	ref := parse(t, s.Host+"/a:latest")
	fine, want := refs(t, good, 1)
	s.Close()
	got := client(Options{}, s, good).Resolve(t.Context(), "", append(fine, ref))
	wantError(t, got[1], image.ErrUnavailable, "unavailable: connection refused", "")
	wantResults(t, got[:1], want)
}

func TestNoSuchHost(t *testing.T) {
	t.Parallel()
	r := one(client(Options{Timeout: 30 * time.Second}), parse(t, "nowhere.invalid/a:latest"))
	if !errors.Is(r.Err, image.ErrUnavailable) {
		t.Errorf("error = %v, want image.ErrUnavailable", r.Err)
	}
}

func TestManifestIsReadOnlyWhenHeadDoesNotTell(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]registrytest.Fault{
		"no digest header": {NoDigest: true},
		"405 to HEAD":      {Status: 405, Method: http.MethodHead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, want := refs(t, s, 1)
			s.Inject("team/app00", f)
			wantResults(t, client(Options{}, s).Resolve(t.Context(), "", all), want)
			wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1, Get: 1})
		})
	}
}

func TestUntrustworthyAnswer(t *testing.T) {
	t.Parallel()
	wrong := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		name  string
		fault registrytest.Fault
		text  string
	}{
		{"digest", registrytest.Fault{Digest: "sha512:\x1babc"}, ""},
		{"long digest", registrytest.Fault{Digest: wrong + wrong + wrong}, `answered "` + (wrong + wrong)[:maxForeign] + `…", which is not a sha256 digest`},
		{"body", registrytest.Fault{NoDigest: true, Body: "<html>login</html>"}, "answered a malformed manifest"},
		{"schema", registrytest.Fault{NoDigest: true, Body: `{"schemaVersion":1}`}, "answered a malformed manifest"},
		{"large body", registrytest.Fault{NoDigest: true, Body: strings.Repeat(" ", maxManifest+2)}, "manifest is larger than 4194304 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, _ := refs(t, s, 1)
			s.Inject("team/app00", tt.fault)
			r := one(client(Options{}, s), all[0])
			if tt.text == "" {
				if r.Err == nil || strings.Contains(r.Err.Error(), "\x1b") {
					t.Errorf("Resolve = %q, %v", r.Digest, r.Err)
				}
				return
			}
			wantError(t, r, nil, tt.text, "")
		})
	}
}

func TestDigestThatTheBodyHasNot(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	_, want := refs(t, s, 1)
	lie := "sha256:" + strings.Repeat("0", 64)
	mux := http.NewServeMux()
	mux.HandleFunc("HEAD /v2/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.Inject("team/app00", registrytest.Fault{Digest: lie})
		s.Registry.ServeHTTP(w, r)
	})
	host := plain(t, mux)
	c := New(Options{Insecure: []string{host}, Keychain: &keychain{}})
	r := one(c, parse(t, host+"/team/app00:latest"))
	wantError(t, r, nil, fmt.Sprintf("manifest is %s but the registry says %q", want[0].Digest, lie), "")
}

func TestPageThatIsNoManifest(t *testing.T) {
	t.Parallel()
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, `{"schemaVersion":2}`)
	}))
	c := New(Options{Insecure: []string{host}, Keychain: &keychain{}})
	wantError(t, one(c, parse(t, host+"/a:latest")), nil, `answered "text/html", which is not an image manifest`, "")
}

// plain serves h in plain http.
func plain(t *testing.T, h http.Handler) (host string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func TestRedirectToAnotherHostIsRefused(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	other := plain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set(digestHeader, "sha256:"+strings.Repeat("0", 64))
	}))
	for _, target := range []string{"team/app00", registrytest.Ping} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, _ := refs(t, s, 1)
			s.Inject(target, registrytest.Fault{Status: 307, Location: "http://" + other + "/v2/secret"})
			c := client(Options{Insecure: []string{other}}, s)
			wantError(t, one(c, all[0]), nil, fmt.Sprintf("redirect to another host, %q, refused", other), "name the image at "+other)
			if asked.Load() != 0 {
				t.Error("the other host was asked")
			}
		})
	}
}

func TestPlainHTTPOnlyWhereListed(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	r := one(client(Options{Allow: Hosts{s.Host}}), all[0])
	wantError(t, r, nil, "answers in plain http only", "serve it over https, or allow plain http with --insecure-registry "+s.Host)
	wantCounts(t, s, registrytest.Counts{})
}

// secure serves a registry over https.
func secure(t *testing.T) (*httptest.Server, *registrytest.Registry) {
	t.Helper()
	r := registrytest.New()
	srv := httptest.NewUnstartedServer(r)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, r
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	srv, reg := secure(t)
	host := srv.Listener.Addr().String()
	ref := parse(t, host+"/a:latest")
	want := reg.Push("a", "latest")

	wantError(t, one(client(Options{Allow: Hosts{host}}), ref), nil, "certificate is signed by an unknown authority", "give the authority's certificate")

	c := client(Options{Transport: srv.Client().Transport, Allow: Hosts{host}})
	if r := one(c, ref); r.Err != nil || r.Digest != want {
		t.Errorf("Resolve = %s, %v, want %s", r.Digest, r.Err, want)
	}
	// The library turns it into https again, so that it leads in a circle.
	reg.Inject("a", registrytest.Fault{Status: 307, Location: "http://" + host + "/v2/a/manifests/latest"})
	reg.ResetCounts()
	wantError(t, one(c, ref), nil, "too many redirects", "name the image by")
	if got := reg.Counts().Head; got != 1+maxRedirects {
		t.Errorf("%d requests, want %d", got, 1+maxRedirects)
	}
}

func TestHTTPSThatLeadsToPlainHTTP(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	other := plain(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	challenge := func(realm string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	t.Run("redirect of the ping", func(t *testing.T) {
		t.Parallel()
		srv, reg := secure(t)
		host := srv.Listener.Addr().String()
		reg.Inject(registrytest.Ping, registrytest.Fault{Status: 307, Location: "http://" + host + "/v2/"})
		c := client(Options{Transport: srv.Client().Transport, Allow: Hosts{host}})
		wantError(t, one(c, parse(t, host+"/a:latest")), nil, fmt.Sprintf("plain http to %q refused", host), "serve it over https")
	})
	t.Run("token server", func(t *testing.T) {
		t.Parallel()
		srv := httptest.NewTLSServer(challenge("http://u:hunter2@" + other + "/token"))
		t.Cleanup(srv.Close)
		c := client(Options{Transport: srv.Client().Transport, Allow: Hosts{srv.Listener.Addr().String()}})
		wantError(t, one(c, parse(t, srv.Listener.Addr().String()+"/a:latest")), nil,
			"login is not understood or names a token server that is not allowed", "check that the registry speaks")
	})
	t.Run("token server of a registry in plain http", func(t *testing.T) {
		t.Parallel()
		host := plain(t, challenge("http://localhost.localdomain:1/token"))
		c := client(Options{Insecure: []string{host}})
		wantError(t, one(c, parse(t, host+"/a:latest")), nil, `plain http to "localhost.localdomain:1" refused`,
			"serve it over https, or allow plain http with --insecure-registry localhost.localdomain:1")
	})
	if asked.Load() != 0 {
		t.Error("the other host was asked")
	}
}

// What a token server says is foreign and may be a secret.
func TestTokenAnswerIsNotRepeated(t *testing.T) {
	t.Parallel()
	var host string
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"refresh_token":"hunter2"}`) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	host = plain(t, mux)
	r := one(client(Options{Insecure: []string{host}}), parse(t, host+"/a:latest"))
	wantError(t, r, nil, "login is not understood or names a token server that is not allowed", "check that the registry speaks")
}

func TestImpatientCallerDoesNotFailAPatientOne(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, want := refs(t, s, 1)
	s.Inject(registrytest.Ping, registrytest.Fault{Delay: 500 * time.Millisecond})
	c := client(Options{}, s)
	hasty, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	r := c.Resolve(hasty, "", all)[0]
	if d := time.Since(start); !errors.Is(r.Err, context.DeadlineExceeded) || !errors.Is(r.Err, image.ErrUnavailable) || d > 400*time.Millisecond {
		t.Errorf("impatient caller: %v after %v", r.Err, d)
	}
	wantResults(t, c.Resolve(t.Context(), "", all), want)
	wantCounts(t, s, registrytest.Counts{Ping: 1, Head: 1})
}

func TestCallerWhoLeft(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	s.Inject("team/app00", registrytest.Fault{Hang: true})
	c := client(Options{}, s)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	r := c.Resolve(ctx, "", all)[0]
	wantError(t, r, nil, "context canceled", "")
	if !errors.Is(r.Err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", r.Err)
	}
}

func TestConcurrencyPerRegistry(t *testing.T) {
	t.Parallel()
	s := registrytest.New()
	var now, most atomic.Int32
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		s.ServeHTTP(w, r)
	}))
	s.SetLatency(20 * time.Millisecond)
	s.Push("a", "latest")
	var all []image.Ref
	for range 20 {
		all = append(all, parse(t, host+"/a:latest"))
	}
	for _, r := range New(Options{Insecure: []string{host}, Keychain: &keychain{}, Concurrency: 3}).Resolve(t.Context(), "", all) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if got := most.Load(); got != 3 {
		t.Errorf("%d requests at a time, want 3", got)
	}
}

// TestPatient: look-ups that nobody waits for leave half of the slots to the others, and fewer where the rate is low.
func TestPatient(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		concurrency int
		qps         float64
		want        int32
	}{"half": {4, 1000, 2}, "one": {1, 1000, 1}, "half a second": {50, 6, 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.New()
			let := make(chan struct{})
			var waiting atomic.Int32
			host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/slow/") {
					waiting.Add(1)
					<-let
				}
				s.ServeHTTP(w, r)
			}))
			s.Push("slow", "latest")
			s.Push("a", "latest")
			c := New(Options{Insecure: []string{host}, Keychain: &keychain{}, Concurrency: tt.concurrency, QPS: tt.qps})
			all := slices.Repeat([]image.Ref{parse(t, host+"/slow:latest")}, 10)
			done := make(chan []image.Resolution, 1)
			go func() { done <- c.Resolve(image.Patient(t.Context()), "", all) }()
			for waiting.Load() < tt.want {
				time.Sleep(time.Millisecond)
			}
			if tt.concurrency > 1 {
				if r := one(c, parse(t, host+"/a:latest")); r.Err != nil {
					t.Error(r.Err)
				}
			}
			if n := waiting.Load(); n != tt.want {
				t.Errorf("%d patient look-ups at a time, want %d", n, tt.want)
			}
			close(let)
			for _, r := range <-done {
				if r.Err != nil {
					t.Error(r.Err)
				}
			}
		})
	}
}

func TestUserAgentAndAccept(t *testing.T) {
	t.Parallel()
	s := registrytest.New()
	s.Push("a", "latest")
	var mu sync.Mutex
	var agents, accepts []string
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		agents = append(agents, r.UserAgent())
		accepts = append(accepts, r.Header.Get("Accept"))
		mu.Unlock()
		s.ServeHTTP(w, r)
	}))
	c := New(Options{Insecure: []string{host}, Keychain: &keychain{}, UserAgent: "digestlock/test"})
	if r := one(c, parse(t, host+"/a:latest")); r.Err != nil {
		t.Fatal(r.Err)
	}
	if d := cmp.Diff([]string{"digestlock/test", "digestlock/test"}, agents); d != "" {
		t.Errorf("User-Agent (-want +got):\n%s", d)
	}
	for _, m := range mediaTypes {
		if !strings.Contains(accepts[1], m) {
			t.Errorf("Accept = %q, want %s in it", accepts[1], m)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 2)
	s.Inject("team/app00", registrytest.Fault{Status: 500, Times: 1})
	reg := prometheus.NewRegistry()
	c := client(Options{Registerer: reg}, s)
	c.Resolve(t.Context(), "", append(all, parse(t, s.Host+"/nobody:latest")))
	want := fmt.Sprintf(`
# HELP digestlock_registry_requests_total Requests to container registries by outcome; a 429 is throttled.
# TYPE digestlock_registry_requests_total counter
digestlock_registry_requests_total{outcome="not_found",registry=%[1]q} 1
digestlock_registry_requests_total{outcome="ok",registry=%[1]q} 3
digestlock_registry_requests_total{outcome="server_error",registry=%[1]q} 1
`, s.Host)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "digestlock_registry_requests_total"); err != nil {
		t.Error(err)
	}
	want = fmt.Sprintf(`
# HELP digestlock_registry_lookups_total Tags looked up in container registries by outcome; refused is a registry that --allow-registry does not list.
# TYPE digestlock_registry_lookups_total counter
digestlock_registry_lookups_total{outcome="not_found",registry=%[1]q} 1
digestlock_registry_lookups_total{outcome="ok",registry=%[1]q} 2
# HELP digestlock_registry_retries_total Requests to container registries that repeated one which met a temporary failure.
# TYPE digestlock_registry_retries_total counter
digestlock_registry_retries_total{registry=%[1]q} 1
`, s.Host)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "digestlock_registry_lookups_total", "digestlock_registry_retries_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "digestlock_registry_request_seconds"); err != nil || n != 1 {
		t.Errorf("histograms = %d, %v, want 1", n, err)
	}
}
