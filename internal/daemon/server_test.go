package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// registry answers with d1, except for repositories named after what is wrong with them.
type registry struct {
	asked   atomic.Int32
	scope   atomic.Value
	patient atomic.Bool   // the last look-up
	slow    chan struct{} // closed when an answer for "slow" may be given
}

func (r *registry) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	r.scope.Store(scope)
	r.patient.Store(image.IsPatient(ctx))
	out := make([]image.Resolution, len(refs))
	for i, ref := range refs {
		r.asked.Add(1)
		out[i] = image.Resolution{Ref: ref, Digest: d1}
		switch ref.Repository {
		case "gone":
			out[i] = image.Resolution{Ref: ref, Err: fmt.Errorf("ghcr.io: %w (404)", image.ErrNotFound)}
		case "secret":
			out[i] = image.Resolution{Ref: ref, Err: fault.New(fault.RegistryUnauthorized, "log in", "ghcr.io: %w (401)", image.ErrUnauthorized)}
		case "slow":
			<-r.slow
		}
	}
	return out
}

// Origins says the scope and the repository, and nothing of what is gone or silent.
func (r *registry) Origins(ctx context.Context, scope string, refs []image.Ref) []image.Origin {
	out := make([]image.Origin, len(refs))
	for i, ref := range refs {
		r.asked.Add(1)
		out[i] = image.Origin{Revision: scope, Source: "https://" + ref.Repository}
		switch ref.Repository {
		case "gone":
			out[i] = image.Origin{Err: fmt.Errorf("ghcr.io: %w (404)", image.ErrNotFound)}
		case "silent":
			<-ctx.Done()
			out[i] = image.Origin{Err: context.Cause(ctx)}
		}
	}
	return out
}

// running is a server on a socket and on TCP.
type running struct {
	registry  *registry
	ledger    *Ledger
	tokenFile string
	secrets   string // directory of webhook secrets
	log       *syncBuffer
	socket    string
	address   string
	stop      context.CancelFunc
	stopped   chan error
}

func run(t *testing.T, change ...func(*Options)) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{registry: &registry{slow: make(chan struct{})}, tokenFile: filepath.Join(dir, "token"), stopped: make(chan error, 1)}
	r.secrets, r.log = filepath.Join(dir, "secrets"), &syncBuffer{}
	r.ledger = openLedger(t, filepath.Join(dir, "state"))
	if err := os.WriteFile(r.tokenFile, []byte("# for CI\none\n\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	short, err := os.MkdirTemp("", "dl") // a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	r.socket = filepath.Join(short, "s")
	unix, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = "http://" + tcp.Addr().String()
	c := cache.New(r.registry, cache.Options{})
	t.Cleanup(c.Close)
	o := Options{
		Resolver: c, Origins: cache.NewOrigins(r.registry), Scope: func(project string) string { return "scope of " + project }, Ledger: r.ledger, Metrics: prometheus.NewRegistry(),
		Log:  slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Keys: door.Keys{TokenFile: r.tokenFile, WebhookSecrets: r.secrets, GoogleEmail: googleEmail},
	}
	for _, f := range change {
		f(&o)
	}
	s := New(o)
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.stopped <- s.Serve(ctx, unix, tcp) }()
	t.Cleanup(stop)
	return r
}

func (r *running) client(t *testing.T, address, token string) *api.Client {
	t.Helper()
	c, err := api.NewClient(address, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func refs(t *testing.T, names ...string) []image.Ref {
	t.Helper()
	out := make([]image.Ref, len(names))
	for i, n := range names {
		r, err := image.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = r
	}
	return out
}

// TestScope: a look is made with the credentials of the project that asks, and a source without a repository names the
// project, is no render, and can wait.
func TestScope(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := r.client(t, "unix://"+r.socket, "")
	for i, tt := range []struct {
		source *lock.Source
		want   string
	}{{&lock.Source{Project: "team"}, "scope of team"}, {nil, ""}} {
		if _, err := plugin.Resolve(t.Context(), tt.source, nil, refs(t, fmt.Sprintf("ghcr.io/a%d", i))); err != nil {
			t.Fatal(err)
		}
		if got := r.registry.scope.Load(); got != tt.want {
			t.Errorf("looked up in scope %q, want %q", got, tt.want)
		}
		if r.registry.patient.Load() != (tt.source != nil) {
			t.Errorf("look-up for %+v is patient: %v", tt.source, r.registry.patient.Load())
		}
	}
	if n := r.ledger.Len(); n != 0 {
		t.Errorf("%d sources recorded, want none", n)
	}
}

func TestResolveAndPins(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := r.client(t, "unix://"+r.socket, "")
	source := rendered("app", "r1", "").Source
	locked := []lock.Pin{{Image: "ghcr.io/locked:latest", Digest: d2, ResolvedAt: t0, Hold: &lock.Hold{Rejected: d1}}}
	res, err := plugin.Resolve(t.Context(), source, locked, refs(t, "ghcr.io/b", "ghcr.io/a"))
	if err != nil {
		t.Fatal(err)
	}
	if len(res) != 2 || res[0].Ref.Repository != "b" || res[0].Digest != d1 || res[1].Ref.Repository != "a" || res[1].At.IsZero() {
		t.Errorf("Resolve = %+v", res)
	}
	docs, err := r.client(t, r.address, "two").Pins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 1 || docs[0].Source.Application != "app" || docs[0].Source.RenderedAt.Equal(t0) {
		t.Fatalf("Pins = %+v", docs)
	}
	var got []string
	for _, p := range docs[0].Pins {
		got = append(got, p.Image+" "+p.Digest)
		if p.Hold != nil {
			t.Errorf("%s: the ledger keeps a hold", p.Image)
		}
	}
	want := []string{"ghcr.io/a:latest " + d1, "ghcr.io/b:latest " + d1, "ghcr.io/locked:latest " + d2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
}

// TestPinFromTheFuture: what a clock that jumped has left in a lock fails no render, and is recorded as of now.
func TestPinFromTheFuture(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := r.client(t, "unix://"+r.socket, "")
	locked := []lock.Pin{{Image: "ghcr.io/locked:latest", Digest: d2, ResolvedAt: time.Now().Add(24 * time.Hour)}}
	res, err := plugin.Resolve(t.Context(), rendered("app", "r1", "").Source, locked, refs(t, "ghcr.io/a"))
	if err != nil || res[0].Digest != d1 {
		t.Fatalf("Resolve = %+v, %v", res, err)
	}
	docs := r.ledger.Pins()
	if len(docs) != 1 || len(docs[0].Pins) != 2 {
		t.Fatalf("Pins = %+v", docs)
	}
	if p := docs[0].Pins[1]; p.Digest != d2 || p.ResolvedAt.After(time.Now()) {
		t.Errorf("recorded %+v, want a time that is not ahead", p)
	}
}

// TestIncompleteRenderIsNotRecorded: a render that fails must not hide the pins of the one before it.
func TestIncompleteRenderIsNotRecorded(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := r.client(t, "unix://"+r.socket, "")
	source := rendered("app", "r1", "").Source
	res, err := plugin.Resolve(t.Context(), source, nil, refs(t, "ghcr.io/gone", "ghcr.io/secret", "ghcr.io/a"))
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(res[0].Err, image.ErrNotFound) || res[0].Err.Error() != "ghcr.io: not found (404)" || res[0].Digest != "" {
		t.Errorf("missing image = %+v", res[0])
	}
	if !errors.Is(res[1].Err, image.ErrUnauthorized) || fault.Hint(res[1].Err) != "log in" {
		t.Errorf("forbidden image = %+v with hint %q", res[1], fault.Hint(res[1].Err))
	}
	if res[2].Digest != d1 {
		t.Errorf("good image = %+v", res[2])
	}
	if n := r.ledger.Len(); n != 0 {
		t.Errorf("%d renders recorded, want none", n)
	}
}

// TestFullDisk: a ledger that cannot be written fails no render.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := run(t)
	if err := os.Remove(r.ledger.dir); err != nil {
		t.Fatal(err)
	}
	plugin := r.client(t, "unix://"+r.socket, "")
	res, err := plugin.Resolve(t.Context(), rendered("app", "r1", "").Source, nil, refs(t, "ghcr.io/a"))
	if err != nil || res[0].Digest != d1 {
		t.Errorf("Resolve = %+v, %v", res, err)
	}
	if n := r.ledger.Len(); n != 1 {
		t.Errorf("%d sources remembered, want 1", n)
	}
	if text := get(t, r.address+"/metrics", 200); !strings.Contains(text, "digestlock_ledger_write_failures_total 1") {
		t.Errorf("the failure is not counted:\n%s", text)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	r := run(t)
	for token, ok := range map[string]bool{"": false, "on": false, "one": true, "two": true, "onetwo": false, "one\ntwo": false, "#": false, "for": false, "# for CI": false} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.address+"/v1/pins", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Authorization"] = []string{"Bearer " + strings.ReplaceAll(token, "\n", " ")}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if (res.StatusCode == http.StatusOK) != ok {
			t.Errorf("token %q: %s", token, res.Status)
		}
	}
	// Rotated without a restart.
	if err := os.WriteFile(r.tokenFile, []byte("three\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client(t, r.address, "one").Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "wrong or missing bearer token (401)") {
		t.Errorf("old token: %v", err)
	}
	if _, err := r.client(t, r.address, "three").Pins(t.Context()); err != nil {
		t.Errorf("new token: %v", err)
	}
	if err := os.WriteFile(r.tokenFile, []byte("three\nfour five\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client(t, r.address, "three").Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "(503)") {
		t.Errorf("token file with a blank in a token: %v", err)
	}
	// No file, no entry.
	if err := os.Remove(r.tokenFile); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client(t, r.address, "three").Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "(503)") {
		t.Errorf("token file gone: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.socket)
	}}}
	defer plugin.CloseIdleConnections()
	many := `"ghcr.io/a:latest"` + strings.Repeat(`,"ghcr.io/a:latest"`, api.MaxImages)
	for name, body := range map[string]string{
		"no JSON":       `{`,
		"short name":    `{"images":["nginx"]}`,
		"digest":        `{"images":["ghcr.io/a:latest@` + d1 + `"]}`,
		"path":          `{"images":["ghcr.io/../a:latest"]}`,
		"too many":      `{"images":[` + many + `]}`,
		"locked digest": `{"locked":[{"image":"ghcr.io/a:latest","digest":"latest"}]}`,
		"no time":       `{"locked":[{"image":"ghcr.io/a:latest","digest":"` + d1 + `","resolvedAt":"0000-01-01T00:00:00Z"}]}`,
		"year 10000":    `{"locked":[{"image":"ghcr.io/a:latest","digest":"` + d1 + `","resolvedAt":"9999-12-31T23:59:59-23:00"}]}`,
		"long source":   `{"source":{"path":"` + strings.Repeat("x", maxField+1) + `"}}`,
	} {
		res, err := plugin.Post("http://resolver/v1/resolve", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s, want 400", name, res.Status)
		}
	}
	if n := r.registry.asked.Load(); n != 0 {
		t.Errorf("bad requests caused %d look-ups", n)
	}
	// The plugin's socket has no door to the rest.
	for _, path := range []string{"/v1/pins", "/v1/origins", "/metrics"} {
		res, err := plugin.Get("http://resolver" + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s on the socket: %s, want 404", path, res.Status)
		}
	}
}

// TestShutdown: a request under way is answered, new ones are not taken, and the socket is gone.
func TestShutdown(t *testing.T) {
	t.Parallel()
	r := run(t)
	plugin := r.client(t, "unix://"+r.socket, "")
	answered := make(chan error, 1)
	go func() {
		res, err := plugin.Resolve(context.Background(), nil, nil, refs(t, "ghcr.io/slow"))
		if err == nil && res[0].Digest != d1 {
			err = fmt.Errorf("got %+v", res[0])
		}
		answered <- err
	}()
	for r.registry.asked.Load() == 0 {
		time.Sleep(time.Millisecond) // the request is on its way
	}
	r.stop()
	for {
		if _, err := net.Dial("unix", r.socket); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(r.registry.slow)
	if err := <-answered; err != nil {
		t.Errorf("request under way: %v", err)
	}
	if err := <-r.stopped; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := os.Stat(r.socket); !os.IsNotExist(err) {
		t.Errorf("socket after shutdown: %v", err)
	}
}

func get(t *testing.T, url string, status int) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != status {
		t.Fatalf("GET %s: %s", url, res.Status)
	}
	return string(body)
}

// TestRefusalsSayWhatToDo: whoever is refused learns the way out, also where only the operator can mend it.
func TestRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	s := serverFor(t, &syncBuffer{}, func(o *Options) { o.Keys.TokenFile = filepath.Join(t.TempDir(), "gone") })
	for name, tt := range map[string]struct {
		handler http.Handler
		body    string
		status  int
		hint    string
	}{
		"no JSON":          {s.resolve(), "{", http.StatusBadRequest, oneVersion},
		"no reference":     {s.resolve(), `{"images":["../x"]}`, http.StatusBadRequest, oneVersion},
		"no token to read": {s.door.Protected(s.pins()), "", http.StatusServiceUnavailable, "try again; the resolver's log says why"},
	} {
		w := httptest.NewRecorder()
		tt.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(tt.body)))
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != tt.status || p.Hint != tt.hint || p.Code == "" {
			t.Errorf("%s: %d %+v, %v, want %d with hint %q", name, w.Code, p, err, tt.status, tt.hint)
		}
	}
}
