package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// post flushes images with an Authorization header, and returns the answer, which is a problem unless it is 200.
func (r *running) post(t *testing.T, authorization string, images ...string) (*http.Response, api.FlushResponse, api.Problem) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.address+"/flush?"+url.Values{"image": images}.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var flushed api.FlushResponse
	var problem api.Problem
	into := any(&flushed)
	if res.StatusCode != http.StatusOK {
		into = &problem
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		t.Fatalf("%s: %v", res.Status, err)
	}
	return res, flushed, problem
}

func TestFlush(t *testing.T) {
	t.Parallel()
	r := run(t)
	other := rendered("other", "r1", d1)
	other.Pins = append(other.Pins, other.Pins[0])
	other.Pins[1].Image = "ghcr.io/acme/worker:latest"
	again := rendered("server", "r1", d1)
	again.Source.Path = "another/overlay" // of the same Application
	record(t, r.ledger, rendered("server", "r1", d1), again, other)
	want := []api.Flushed{
		{Image: "ghcr.io/acme/worker:latest", New: d1, Applications: []string{"default/other"}},
		{Image: "ghcr.io/acme/server:latest", New: d1, Applications: []string{"default/other", "default/server"}},
		{Image: "ghcr.io/acme/server:v1", New: d1},
	}
	images := []string{"ghcr.io/acme/worker:latest", "ghcr.io/acme/server:latest", "ghcr.io/acme/server:v1"}
	_, got, _ := r.post(t, "Bearer two", images...)
	if diff := cmp.Diff(want, got.Flushed); diff != "" {
		t.Errorf("flush (-want +got):\n%s", diff)
	}
	// The client, over the socket, which wants a token for this as well.
	for i := range want {
		want[i].Old = d1
	}
	got, _ = r.client(t, "unix://"+r.socket, "one").Flush(t.Context(), images)
	if diff := cmp.Diff(want, got.Flushed); diff != "" {
		t.Errorf("flush over the socket (-want +got):\n%s", diff)
	}
	if _, err := r.client(t, "unix://"+r.socket, "").Flush(t.Context(), images); err == nil || !strings.Contains(err.Error(), "(401)") {
		t.Errorf("flush over the socket without a token: %v", err)
	}
	if text := get(t, r.address+"/metrics", 200); !strings.Contains(text, "digestlock_flushed_references_total 6") {
		t.Errorf("6 references flushed, and not counted:\n%s", text)
	}
}

// trust returns an issuer, and the option that lets its tokens flush ghcr.io/acme.
func trust(t *testing.T) (*accesstest.Issuer, func(*Options)) {
	t.Helper()
	i := accesstest.Listen()
	t.Cleanup(i.Close)
	dir := t.TempDir()
	ca, err := i.CAFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "oidc.yaml")
	text := fmt.Sprintf(`issuers:
- issuer: %s
  audience: digestlock
  caFile: %s
  rules:
  - claims: {sub: "system:serviceaccount:ci:*"}
    images: [ghcr.io/acme]
`, i.URL, ca)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := access.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return i, func(o *Options) { o.Keys.OIDC = f }
}

// TestFlushOIDC: a token of a trusted issuer opens what its rule says, and nothing else.
func TestFlushOIDC(t *testing.T) {
	t.Parallel()
	i, oidc := trust(t)
	r := run(t, oidc)
	builder := "Bearer " + i.Token(accesstest.Claims{"sub": "system:serviceaccount:ci:builder"})
	tests := []struct {
		name, authorization string
		images              []string
		status              int
		code                fault.Code
	}{
		{"allowed", builder, []string{"ghcr.io/acme/server:latest"}, 200, ""},
		{"allowed, all tags", builder, []string{"ghcr.io/acme/server"}, 200, ""},
		{"another repository", builder, []string{"ghcr.io/other/server:latest"}, 403, fault.FlushForbidden},
		{"one of two", builder, []string{"ghcr.io/acme/server", "ghcr.io/other/server"}, 403, fault.FlushForbidden},
		{"another subject", "Bearer " + i.Token(accesstest.Claims{"sub": "system:serviceaccount:dev:x"}), []string{"ghcr.io/acme/server"}, 403, fault.FlushForbidden},
		{"expired", "Bearer " + i.Token(accesstest.Claims{"exp": 1}), []string{"ghcr.io/acme/server"}, 401, fault.ResolverToken},
		{"another audience", "Bearer " + i.Token(accesstest.Claims{"aud": "x"}), []string{"ghcr.io/acme/server"}, 401, fault.ResolverToken},
		{"no scheme", strings.TrimPrefix(builder, "Bearer "), []string{"ghcr.io/acme/server"}, 401, fault.ResolverToken},
		{"static", "Bearer one", []string{"ghcr.io/other/server"}, 200, ""},
		{"static without scheme", "one", []string{"ghcr.io/other/server"}, 401, fault.ResolverToken},
		{"wrong static", "Bearer three", []string{"ghcr.io/acme/server"}, 401, fault.ResolverToken},
	}
	for _, tt := range tests {
		res, _, problem := r.post(t, tt.authorization, tt.images...)
		if res.StatusCode != tt.status || problem.Code != tt.code || (tt.status != 200) != (problem.Hint != "") {
			t.Errorf("%s: %s %+v, want %d [%s] with a hint", tt.name, res.Status, problem, tt.status, tt.code)
		}
		if (res.Header.Get("WWW-Authenticate") != "") != (tt.status == 401) {
			t.Errorf("%s: %s with WWW-Authenticate %q", tt.name, res.Status, res.Header.Get("WWW-Authenticate"))
		}
	}
	closed := r.client(t, r.address, strings.TrimPrefix(builder, "Bearer "))
	if _, err := closed.Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "(401)") {
		t.Errorf("the ledger for a CI system: %v", err)
	}
	if _, err := closed.Resolve(t.Context(), nil, nil, refs(t, "ghcr.io/acme/server")); err == nil || !strings.Contains(err.Error(), "(401)") {
		t.Errorf("resolving for a CI system: %v", err)
	}
}

// TestFlushIssuerDown: the resolver's own tokens go on without the issuer, and the answer tells nothing about why.
func TestFlushIssuerDown(t *testing.T) {
	t.Parallel()
	i, oidc := trust(t)
	r := run(t, oidc)
	i.Fail(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	builder := "Bearer " + i.Token(accesstest.Claims{"sub": "system:serviceaccount:ci:builder"})
	res, _, problem := r.post(t, builder, "ghcr.io/acme/server")
	if res.StatusCode != 503 || problem.Message != "the resolver cannot check this token now" {
		t.Errorf("issuer down: %s %+v", res.Status, problem)
	}
	if res, _, problem := r.post(t, "Bearer one", "ghcr.io/acme/server"); res.StatusCode != 200 {
		t.Errorf("the resolver's own token: %s %+v", res.Status, problem)
	}
	i.Fail(nil)
	if res, _, problem := r.post(t, builder, "ghcr.io/acme/server"); res.StatusCode != 200 {
		t.Errorf("issuer up again: %s %+v", res.Status, problem)
	}
}

// TestFlushOIDCOnly: without a token file, the other routes are closed and not open.
func TestFlushOIDCOnly(t *testing.T) {
	t.Parallel()
	i, oidc := trust(t)
	r := run(t, oidc, func(o *Options) { o.Keys.TokenFile = "" })
	if res, _, problem := r.post(t, "Bearer "+i.Token(accesstest.Claims{"sub": "system:serviceaccount:ci:x"}), "ghcr.io/acme/server"); res.StatusCode != 200 {
		t.Errorf("token of the issuer: %s %+v", res.Status, problem)
	}
	for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer one"} {
		if res, _, problem := r.post(t, authorization, "ghcr.io/acme/server"); res.StatusCode != 401 || !strings.Contains(problem.Hint, "--oidc-config") {
			t.Errorf("%q: %s %+v", authorization, res.Status, problem)
		}
	}
	if _, err := r.client(t, r.address, "").Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "(403)") {
		t.Errorf("the ledger without a token: %v", err)
	}
}

// TestFlushTooOften: one caller's flood is refused and says for how long, and is nobody else's.
func TestFlushTooOften(t *testing.T) {
	t.Parallel()
	r := run(t)
	flood := slices.Repeat([]string{"ghcr.io/acme/server:latest"}, 300) // all that docs/flush.md allows
	if res, _, problem := r.post(t, "Bearer one", flood...); res.StatusCode != 200 {
		t.Fatalf("the first: %s %+v", res.Status, problem)
	}
	asked := r.registry.asked.Load()
	res, _, problem := r.post(t, "Bearer one", flood...)
	after, err := strconv.Atoi(res.Header.Get("Retry-After"))
	if res.StatusCode != 429 || err != nil || after < 1 || after > 150 || problem.Code != fault.RateLimited {
		t.Errorf("the second: %s, Retry-After %q, %+v", res.Status, res.Header.Get("Retry-After"), problem)
	}
	if r.registry.asked.Load() != asked {
		t.Error("a flush that was refused made look-ups")
	}
	if res, _, problem := r.post(t, "Bearer two", "ghcr.io/acme/server:latest"); res.StatusCode != 200 {
		t.Errorf("somebody else: %s %+v", res.Status, problem)
	}
}

// watched tells when a flush has ended.
type watched struct {
	Resolver
	ended atomic.Bool
}

func (w *watched) Flush(ctx context.Context, targets []image.Target) []cache.Flushed {
	defer w.ended.Store(true)
	return w.Resolver.Flush(ctx, targets)
}

// TestFlushAtShutdown: the server does not stop under a flush, even when its client is gone.
func TestFlushAtShutdown(t *testing.T) {
	t.Parallel()
	w := &watched{}
	r := run(t, func(o *Options) {
		w.Resolver = o.Resolver
		o.Resolver = w
	})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := r.client(t, r.address, "one").Flush(ctx, []string{"ghcr.io/slow:latest"})
		gone <- err
	}()
	for r.registry.asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-gone; err == nil {
		t.Error("a flush that its client gave up: no error")
	}
	r.stop()
	time.AfterFunc(200*time.Millisecond, func() { close(r.registry.slow) })
	if err := <-r.stopped; err != nil || !w.ended.Load() {
		t.Errorf("Serve = %v, and the flush has ended: %v", err, w.ended.Load())
	}
}

// TestForwarded: what a companion passes on needs a token, is not limited, and asks for what nobody uses in a flush only.
func TestForwarded(t *testing.T) {
	t.Parallel()
	i, oidc := trust(t)
	r := run(t, oidc)
	record(t, r.ledger, rendered("server", "r1", d1))
	companion := r.client(t, r.address, "one")
	if n, err := companion.Invalidate(t.Context(), []string{"ghcr.io/acme/server", "ghcr.io/acme/server:latest"}); err != nil || n != 0 || r.registry.asked.Load() != 0 {
		t.Errorf("Invalidate = %d, %v, asked %d times, want nothing for what nobody uses", n, err, r.registry.asked.Load())
	}
	for range 3 {
		res, err := companion.Forward(t.Context(), slices.Repeat([]string{"ghcr.io/acme/server:latest"}, 300))
		if err != nil || len(res.Flushed) != 300 || res.Flushed[0].New != d1 || len(res.Flushed[0].Applications) != 1 {
			t.Fatalf("Forward = %+v, %v", res, err)
		}
	}
	if n, err := companion.Invalidate(t.Context(), []string{"ghcr.io/acme/server"}); err != nil || n != 1 {
		t.Errorf("Invalidate = %d, %v, want 1", n, err)
	}
	if text := get(t, r.address+"/metrics", 200); !strings.Contains(text, "digestlock_flushed_references_total 901") {
		t.Errorf("901 references flushed, and not counted:\n%s", text)
	}
	builder := i.Token(accesstest.Claims{"sub": "system:serviceaccount:ci:builder"})
	for _, stranger := range []*api.Client{r.client(t, r.address, ""), r.client(t, r.address, "three"), r.client(t, r.address, builder), r.client(t, "unix://"+r.socket, "one")} {
		if _, err := stranger.Forward(t.Context(), []string{"ghcr.io/acme/server"}); err == nil {
			t.Errorf("%s: Forward is open", stranger)
		}
		if _, err := stranger.Invalidate(t.Context(), []string{"ghcr.io/acme/server"}); err == nil {
			t.Errorf("%s: Invalidate is open", stranger)
		}
	}
	for _, bad := range [][]string{nil, {"../x"}, {"ghcr.io/acme/server@" + d1}, slices.Repeat([]string{"a"}, api.MaxImages+1)} {
		if _, err := companion.Forward(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "(400)") {
			t.Errorf("Forward(%.40q): %v", bad, err)
		}
		if _, err := companion.Invalidate(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "(400)") {
			t.Errorf("Invalidate(%.40q): %v", bad, err)
		}
	}
}
