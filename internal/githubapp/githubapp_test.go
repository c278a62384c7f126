package githubapp_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/githubapp"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

const appID = 4711

// keys are slow to make. The first is the app's.
var keys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

func pemKey(key *rsa.PrivateKey) []byte { // as GitHub hands it out
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

// github is what an app sees of GitHub, or of GitHub Enterprise. It checks each signature with another library than ours.
type github struct {
	server *httptest.Server

	mu            sync.Mutex
	clock         time.Duration    // how far it is ahead of ours
	installations map[string]int64 // by "orgs/acme", "users/jane", "repos/acme/k8s"
	life          time.Duration    // of tokens
	fail          http.Handler     // answers instead, when set
	tokens        int              // handed out
	lookups       int
}

func start(t *testing.T) *github {
	t.Helper()
	g := &github{installations: map[string]int64{"orgs/acme": 1, "users/jane": 2, "repos/acme/k8s": 1}, life: time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v3/app/installations/{id}/access_tokens", g.accessToken)
	mux.HandleFunc("GET /api/v3/orgs/{owner}/installation", g.installation)
	mux.HandleFunc("GET /api/v3/users/{owner}/installation", g.installation)
	mux.HandleFunc("GET /api/v3/repos/{owner}/{name}/installation", g.installation)
	g.server = httptest.NewTLSServer(g.guarded(mux))
	t.Cleanup(g.server.Close)
	return g
}

func (g *github) source(t *testing.T, installation int64, owner string) func(context.Context) (string, string, error) {
	t.Helper()
	s, err := githubapp.Source(appID, installation, pemKey(keys()[0]), g.server.URL+"/api/v3/", owner, g.server.Client())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (g *github) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// token is the one that was handed out last.
func (g *github) token() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprintf("ghs_s3cret%d", g.tokens)
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest"})
}

// guarded lets only the app in, as GitHub's documentation has it: RS256, not before iat, not after exp, which is at most
// ten minutes away.
func (g *github) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		now := time.Now().Add(g.clock)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		if g.fail != nil {
			g.fail.ServeHTTP(w, r)
			return
		}
		raw, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		token, err := josejwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
		var claims josejwt.Claims
		switch {
		case err != nil || token.Claims(&keys()[0].PublicKey, &claims) != nil:
			refuse(w, http.StatusUnauthorized, "A JSON web token could not be decoded: "+raw)
		case claims.Issuer != strconv.Itoa(appID):
			refuse(w, http.StatusNotFound, "Integration not found")
		case claims.IssuedAt == nil || claims.IssuedAt.Time().After(now):
			refuse(w, http.StatusUnauthorized, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued")
		case claims.Expiry == nil || claims.Expiry.Time().Before(now):
			refuse(w, http.StatusUnauthorized, "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires")
		case claims.Expiry.Time().After(now.Add(10 * time.Minute)):
			refuse(w, http.StatusUnauthorized, "'Expiration time' claim ('exp') is too far in the future")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (g *github) installation(w http.ResponseWriter, r *http.Request) {
	g.lookups++
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/api/v3/"), "/installation")
	id, ok := g.installations[path]
	if !ok {
		refuse(w, http.StatusNotFound, "Not Found")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"id": id, "app_id": appID, "target_type": "Organization"})
}

func (g *github) accessToken(w http.ResponseWriter, r *http.Request) {
	for _, id := range g.installations {
		if r.PathValue("id") == strconv.FormatInt(id, 10) {
			g.tokens++
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"token": fmt.Sprintf("ghs_s3cret%d", g.tokens), "expires_at": time.Now().Add(g.life).UTC().Format(time.RFC3339),
				"permissions": map[string]string{"contents": "write"}, "repository_selection": "all",
			})
			return
		}
	}
	refuse(w, http.StatusNotFound, "Not Found")
}

func get(t *testing.T, source func(context.Context) (string, string, error)) string {
	t.Helper()
	user, token, err := source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if user != "x-access-token" {
		t.Errorf("user name %q", user)
	}
	return token
}

// TestOneTokenForMany: whoever comes while a token is good, or is being asked for, gets that one.
func TestOneTokenForMany(t *testing.T) {
	t.Parallel()
	g := start(t)
	source := g.source(t, 1, "")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, token, err := source(t.Context()); err != nil || token != "ghs_s3cret1" {
				t.Errorf("token %q, %v", token, err)
			}
		})
	}
	wg.Wait()
	get(t, source)
	if g.tokens != 1 || g.lookups != 0 {
		t.Errorf("%d tokens, %d look-ups, want 1 and 0", g.tokens, g.lookups)
	}
}

func TestTokenIsReplacedEarly(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		life time.Duration
		want string
	}{
		{5*time.Minute + 30*time.Second, "ghs_s3cret1"},
		{5*time.Minute - 2*time.Second, "ghs_s3cret2"},
		{-time.Hour, "ghs_s3cret2"},
	} {
		g := start(t)
		g.life = tt.life
		source := g.source(t, 1, "")
		get(t, source)
		if got := get(t, source); got != tt.want {
			t.Errorf("a token good for %v: the second is %q, want %q", tt.life, got, tt.want)
		}
	}
}

// TestGit: a repository that wants the current token, over more than one of them.
func TestGit(t *testing.T) {
	t.Parallel()
	g := start(t)
	g.life = time.Minute // each session gets its own
	server := gittest.HTTPS(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, token, _ := r.BasicAuth(); user != "x-access-token" || token != g.token() {
				http.Error(w, "Bad credentials: "+token, http.StatusUnauthorized)
				return
			}
			r.SetBasicAuth("robot", "correct horse")
			next.ServeHTTP(w, r)
		})
	}))
	repo := server.Create(t, "k8s.git", map[string]string{"a": "1\n"})
	a := server.Auth
	a.TokenSource = g.source(t, 0, "acme/k8s")
	remote, err := gitrepo.Open(repo.URL, a)
	if err != nil {
		t.Fatal(err)
	}
	s, err := remote.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	who := gitrepo.Signature{Name: "robot", Email: "robot@example.com"}
	if _, err := s.Push(t.Context(), gitrepo.Change{Files: map[string][]byte{"a": []byte("2\n")}, Message: "m", Author: who, When: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if g.tokens < 2 {
		t.Errorf("%d tokens: they did not change", g.tokens)
	}
}

func TestInstallationIsLookedUp(t *testing.T) {
	t.Parallel()
	for owner, lookups := range map[string]int{"acme": 1, "jane": 2, "acme/k8s": 1, "/acme/": 1} {
		g := start(t)
		g.life = time.Minute
		source := g.source(t, 0, owner)
		get(t, source)
		get(t, source)
		if g.lookups != lookups {
			t.Errorf("%s: %d look-ups for two tokens, want %d", owner, g.lookups, lookups)
		}
	}
}

// TestInstalledAnew: the number of an installation is no more, and the app is there under another.
func TestInstalledAnew(t *testing.T) {
	t.Parallel()
	g := start(t)
	g.life = time.Minute
	source := g.source(t, 0, "acme")
	get(t, source)
	g.set(func() { g.installations = map[string]int64{"orgs/acme": 3} })
	if _, _, err := source(t.Context()); fault.CodeOf(err) != fault.GitCredentials {
		t.Errorf("uninstalled: %v", err)
	}
	get(t, source)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	answer := func(status int, header, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if name, value, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(body, "%s", r.Header.Get("Authorization")))
		})
	}
	mine := func(g *github, id, installation int64, key *rsa.PrivateKey, owner string) func(context.Context) (string, string, error) {
		s, err := githubapp.Source(id, installation, pemKey(key), g.server.URL+"/api/v3", owner, g.server.Client())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	key, other := keys()[0], keys()[1]
	for _, tt := range []struct {
		name         string
		id           int64
		installation int64
		key          *rsa.PrivateKey
		clock        time.Duration
		fail         http.Handler
		code         fault.Code
		want, hint   string
	}{
		{"clock ahead", appID, 1, key, -5 * time.Minute, nil, fault.GitCredentials, "this clock is off by 5m", "set the clock"},
		{"clock behind", appID, 1, key, 20 * time.Minute, nil, fault.GitCredentials, "this clock is off by -", "set the clock"},
		{"clock a little off", appID, 1, other, 10 * time.Second, nil, fault.GitCredentials, "401 Unauthorized: A JSON web token could not be decoded", "private key is one of this app"},
		{"wrong key", appID, 1, other, 0, nil, fault.GitCredentials, "could not be decoded: ***", "private key is one of this app"},
		{"wrong app", appID + 1, 1, key, 0, nil, fault.GitCredentials, "404 Not Found: Integration not found", "check the IDs of the app and"},
		{"wrong installation", appID, 99, key, 0, nil, fault.GitCredentials, "it has no installation 99: 404 Not Found", "check the IDs of the app and"},
		{"not installed", appID, 0, key, 0, nil, fault.GitCredentials, `it is not installed for "nobody": 404 Not Found`, "install the app there"},
		{"suspended", appID, 1, key, 0, answer(403, "", `{"message":"This installation has been suspended"}`), fault.GitCredentials, "403 Forbidden: This installation has been suspended", "may be suspended"},
		{"limited", appID, 1, key, 0, answer(403, "X-RateLimit-Remaining: 0", `{}`), fault.RateLimited, "rate limited until 20", "wait until then"},
		{"down", appID, 1, key, 0, answer(502, "", "<html>%s"), fault.GitUnavailable, "access_tokens: 502 Bad Gateway", "wait"},
		{"another program", appID, 1, key, 0, answer(200, "", "<html>%s"), fault.GitURL, "is not the JSON of this API", "check the address"},
		{"no token", appID, 1, key, 0, answer(200, "", "{}"), fault.GitURL, "without a token", "check the address"},
		{"no installation", appID, 0, key, 0, answer(200, "", "{}"), fault.GitURL, "without an installation", "check the address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := start(t)
			g.clock, g.fail = tt.clock, tt.fail
			source := mine(g, tt.id, tt.installation, tt.key, "nobody")
			_, token, err := source(t.Context())
			if err == nil || token != "" {
				t.Fatalf("token %q, %v", token, err)
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(err), tt.hint) || fault.CodeOf(err) != tt.code {
				t.Errorf("\n got %q [%s]\nhint %q\nwant %q [%s]\nhint %q", err, fault.CodeOf(err), fault.Hint(err), tt.want, tt.code, tt.hint)
			}
			if strings.Contains(err.Error(), "eyJ") || strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("%q gives a secret away", err)
			}
			// No failure is remembered.
			g.set(func() { g.clock, g.fail, g.installations["orgs/nobody"] = 0, nil, 5 })
			if tt.id == appID && tt.key == key && tt.installation != 99 {
				get(t, source)
			}
		})
	}
}

// TestImpatientCaller: one that waits for another's request leaves when its own time is up.
func TestImpatientCaller(t *testing.T) {
	t.Parallel()
	g := start(t)
	entered, release := make(chan struct{}), make(chan struct{})
	g.fail = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		g.fail = nil
		w.WriteHeader(http.StatusBadGateway)
	})
	source := g.source(t, 1, "")
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := source(t.Context()); err == nil {
			t.Error("the patient caller: no error")
		}
	})
	<-entered
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time"))
	if _, _, err := source(ctx); err == nil || !strings.Contains(err.Error(), "no time") {
		t.Errorf("the impatient caller: %v", err)
	}
	close(release)
	wg.Wait()
	get(t, source)
}

func TestSourceRefuses(t *testing.T) {
	t.Parallel()
	good := pemKey(keys()[0])
	for _, tt := range []struct {
		name             string
		id, installation int64
		key              []byte
		base, owner      string
		want, hint       string
	}{
		{"no key", appID, 1, nil, "", "", "private key of GitHub App 4711 cannot be used", "PEM without a passphrase"},
		{"another key", appID, 1, []byte("s3cret"), "", "", "private key of GitHub App 4711 cannot be used", "PEM without a passphrase"},
		{"no app", 0, 1, good, "", "", "no such numbers", "settings page"},
		{"no owner", appID, 0, good, "", "/", "without an owner", "give the installation's ID"},
		{"http", appID, 1, good, "http://ghe.example.com/api/v3", "", "not plain https", "as in https://ghe.example.com/api/v3"},
		{"password", appID, 1, good, "https://u:s3cret@ghe.example.com/api/v3", "", "not plain https", "as in https://ghe.example.com/api/v3"},
	} {
		_, err := githubapp.Source(tt.id, tt.installation, tt.key, tt.base, tt.owner, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(err), tt.hint) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v (hint %q), want %q (hint %q)", tt.name, err, fault.Hint(err), tt.want, tt.hint)
		}
	}
}
