package fanout

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
)

// lease says who leads, as one companion sees it.
type lease struct{ leader atomic.Value }

var errNobody = errors.New("no companion leads now")

// set has the companion see another at the address of its door lead; nil is itself.
func (l *lease) set(leader *front) {
	if leader == nil {
		l.leader.Store("")
		return
	}
	l.leader.Store(strings.TrimPrefix(leader.address, "http://"))
}

func (l *lease) see() (string, error) {
	address, ok := l.leader.Load().(string)
	if !ok {
		return "", errNobody
	}
	return address, nil
}

// pair is two companions.
type pair struct {
	fronts [2]*front
	loops  [2]*loop
	leases [2]*lease // what each of them sees
}

// startPair starts two, of which the first leads. Only the first has a secret of Docker Hub, and knows the token three.
func startPair(t *testing.T, replicas []replica) *pair {
	t.Helper()
	p := &pair{}
	for i := range p.fronts {
		p.loops[i], p.leases[i] = &loop{commits: committed}, &lease{}
		p.fronts[i] = start(t, p.loops[i], replicas, func(o *Options) {
			o.Leader = p.leases[i].see
			o.Status = func() any { return map[string]int{"companion": i} }
			if i == 0 {
				o.Keys.TokenFile = write(t, t.TempDir(), "token", "one\nthree\n")
			}
		})
	}
	write(t, p.fronts[0].secrets, "dockerhub", "hush/hush\n")
	p.leases[0].set(nil)
	p.leases[1].set(p.fronts[0])
	return p
}

// TestFollower: whatever the loop does is asked of the leader, which also says who may; how a companion is, it says itself.
func TestFollower(t *testing.T) {
	t.Parallel()
	r, replicas := two(t)
	p := startPair(t, replicas)
	leader, follower := p.fronts[0], p.fronts[1]
	r.digest.Store(d2)
	res, got, _ := follower.flush(t, "three", "", server)
	if res.StatusCode != 200 || len(got.Flushed) != 1 || got.Flushed[0].New != d2 || len(got.Commits) != 2 || p.loops[0].synced.Load() != 1 {
		t.Errorf("flush: %s %+v, %d cycles", res.Status, got, p.loops[0].synced.Load())
	}
	p.loops[0].stuck = true
	if res, got, _ := follower.flush(t, "one", "&wait=0s", server); res.StatusCode != 202 || res.Header.Get("Location") != api.StatusPath || got.Status != api.StatusPath {
		t.Errorf("flush that does not wait: %s %v %+v", res.Status, res.Header, got)
	}
	if res, _, problem := follower.flush(t, "two", "", server); res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") != "Bearer" || problem.Code != fault.ResolverToken {
		t.Errorf("the follower's own token: %s %+v", res.Status, problem)
	}
	if res, text := follower.send(t, http.MethodGet, api.StatusPath, "Authorization", "Bearer three", ""); res.StatusCode != 200 || text != "{\"companion\":0}\n" {
		t.Errorf("status: %s %s", res.Status, text)
	}
	event := `{"push_data":{"tag":"latest"},"repository":{"repo_name":"acme/server"}}`
	if res, text := follower.send(t, http.MethodPost, "/webhook/dockerhub/hush%2Fhush", "", "", event); res.StatusCode != 202 {
		t.Errorf("webhook: %s %s", res.Status, text)
	}
	if res, text := follower.send(t, http.MethodPost, "/webhook/dockerhub/wrong", "", "", event); res.StatusCode != 401 {
		t.Errorf("webhook with a wrong secret: %s %s", res.Status, text)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n"} {
		if res, text := follower.send(t, http.MethodGet, path, "", "", ""); res.StatusCode != 200 || text != want {
			t.Errorf("%s: %s %s", path, res.Status, text)
		}
	}
	_, here := follower.send(t, http.MethodGet, "/metrics", "", "", "")
	_, there := leader.send(t, http.MethodGet, "/metrics", "", "", "")
	const flushes = `digestlock_http_request_seconds_count{route="/flush",status="2xx"} 2`
	if !strings.Contains(here, flushes) || !strings.Contains(here, "digestlock_flushed_references_total 0") ||
		!strings.Contains(there, flushes) || !strings.Contains(there, "digestlock_flushed_references_total 2") {
		t.Errorf("metrics of the follower:\n%s\nof the leader:\n%s", here, there)
	}
	if n := p.loops[1].synced.Load() + p.loops[1].woken.Load(); n != 0 {
		t.Errorf("the follower's loop was asked %d times", n)
	}
}

// TestLeaderChanges: with nobody, somebody who is gone, or two who take each other for the leader, whoever asks is told at
// once to try again; and once the follower leads, it answers.
func TestLeaderChanges(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	p := startPair(t, replicas)
	refused := func(what, message string) {
		t.Helper()
		res, _, problem := p.fronts[1].flush(t, "one", "", server)
		if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || problem.Message != message || problem.Code != fault.ResolverUnavailable ||
			!strings.HasPrefix(problem.Hint, "try again in some seconds") {
			t.Errorf("%s: %s %+v, want %s", what, res.Status, problem, message)
		}
	}
	p.leases[0].set(p.fronts[1])
	refused("a circle", "the companion that leads is changing")
	p.fronts[0].stop()
	<-p.fronts[0].stopped
	refused("a leader that is gone", "the companion that leads does not answer")
}

func TestNobodyLeads(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	l, own := &loop{commits: committed}, &lease{}
	f := start(t, l, replicas, func(o *Options) { o.Leader = own.see })
	for _, path := range []string{"/flush?image=" + server, "/webhook/dockerhub/x"} {
		if res, text := f.send(t, http.MethodPost, path, "Authorization", "Bearer one", ""); res.StatusCode != 503 || !strings.Contains(text, errNobody.Error()) {
			t.Errorf("%s: %s %s", path, res.Status, text)
		}
	}
	if res, text := f.send(t, http.MethodGet, "/readyz", "", "", ""); res.StatusCode != 200 {
		t.Errorf("not ready without a leader, and a Deployment would wait: %s %s", res.Status, text)
	}
	own.set(nil)
	if res, got, _ := f.flush(t, "one", "", server); res.StatusCode != 200 || len(got.Commits) != 2 || l.synced.Load() != 1 {
		t.Errorf("once it leads: %s %+v", res.Status, got)
	}
}

// TestPassedOnAsItIs: what arrives is what was sent, and what comes back what was answered.
func TestPassedOnAsItIs(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, "as I said")
	}))
	defer leader.Close()
	f := start(t, &loop{}, nil, func(o *Options) {
		o.Leader = func() (string, error) { return strings.TrimPrefix(leader.URL, "http://"), nil }
	})
	const path = "/webhook/github/a%2Fb?image=a;b&x=%zz"
	res, text := f.send(t, http.MethodPost, path, "X-Hub-Signature-256", "sha256=0", "\x00 { }\n")
	if res.StatusCode != 429 || res.Header.Get("Retry-After") != "7" || text != "as I said" {
		t.Errorf("answer: %s %v %q", res.Status, res.Header, text)
	}
	if got == nil || got.RequestURI != path || got.Host != strings.TrimPrefix(f.address, "http://") || string(body) != "\x00 { }\n" {
		t.Fatalf("request: %+v with body %q", got, body)
	}
	want := http.Header{"X-Hub-Signature-256": {"sha256=0"}, "Content-Length": {"6"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"Go-http-client/1.1"}, passedOn: {"true"}, "Connection": {"close"}}
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if res, text := f.send(t, http.MethodPost, "/webhook/github", "", "", strings.Repeat("x", api.MaxBody+1)); res.StatusCode != 413 {
		t.Errorf("a body that is too large: %s %s", res.Status, text)
	}
}

// TestSilentLeader: its silence has an end.
func TestSilentLeader(t *testing.T) {
	t.Parallel()
	leader := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer leader.Close()
	u, err := url.Parse(leader.URL)
	if err != nil {
		t.Fatal(err)
	}
	logged := filepath.Join(t.TempDir(), "log")
	out, err := os.Create(logged)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	s := New(Options{
		Loop: &loop{}, Keys: door.Keys{}, Log: slog.New(slog.NewTextHandler(out, nil)), Metrics: prometheus.NewRegistry(),
		Leader: func() (string, error) { return u.Host, nil },
	})
	s.patience = 50 * time.Millisecond
	w := httptest.NewRecorder()
	s.led(nil).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook/dockerhub/s3cret", nil))
	text, err := os.ReadFile(logged)
	if w.Code != 503 || err != nil || !strings.Contains(string(text), "no answer within 50ms") || strings.Contains(string(text), "s3cret") {
		t.Errorf("%d %s, log: %s, %v", w.Code, w.Body, text, err)
	}
}
