package fanout

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

var (
	d1 = "sha256:" + strings.Repeat("1", 64)
	d2 = "sha256:" + strings.Repeat("2", 64)
)

const (
	server = "ghcr.io/acme/server:latest"
	worker = "ghcr.io/acme/worker:latest"
)

// registry answers everything with one digest.
type registry struct {
	digest atomic.Value
	asked  atomic.Int32
}

func (r *registry) Resolve(_ context.Context, _ string, refs []image.Ref) []image.Resolution {
	out := make([]image.Resolution, len(refs))
	for i, ref := range refs {
		r.asked.Add(1)
		out[i] = image.Resolution{Ref: ref, Digest: r.digest.Load().(string), At: time.Now()}
	}
	return out
}

// replica is a resolver.
type replica struct {
	address string
	stop    func()
}

// resolver starts a resolver that was asked for the images by one Application.
func resolver(t *testing.T, r *registry, app string, images ...string) replica {
	t.Helper()
	dir := t.TempDir()
	c := cache.New(r, cache.Options{})
	t.Cleanup(c.Close)
	log := slog.New(slog.DiscardHandler)
	ledger, err := daemon.OpenLedger(filepath.Join(dir, "state"), log)
	if err != nil {
		t.Fatal(err)
	}
	s := daemon.New(daemon.Options{
		Resolver: c, Ledger: ledger, Keys: door.Keys{TokenFile: write(t, dir, "token", "peer\n")}, Log: log, Metrics: prometheus.NewRegistry(),
	})
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ctx, nil, l) })
	stop := sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(stop)
	out := replica{"http://" + l.Addr().String(), stop}
	client, err := api.NewClient(out.address, "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	refs := make([]image.Ref, len(images))
	for i, text := range images {
		if refs[i], err = image.ParseFull(text); err != nil {
			t.Fatal(err)
		}
	}
	source := &lock.Source{
		Project: "default", Application: app, Repository: "https://git.example.com/k8s.git", TargetRevision: "main", Path: app,
		Revision: "3f2c1ab", RenderedAt: time.Now(),
	}
	if _, err := client.Resolve(t.Context(), source, nil, refs); err != nil {
		t.Fatal(err)
	}
	return out
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// loop commits what it is told to.
type loop struct {
	woken   atomic.Int32
	synced  atomic.Int32
	flushed atomic.Value // what the last cycle was about, as []image.Target
	atSync  func()       // when not nil, called before the cycle
	stuck   bool         // no cycle ends
	waits   bool
	commits []companion.Commit
	err     error
}

func (l *loop) Waits() bool { return l.waits }

func (l *loop) Wake(flushed ...image.Target) {
	l.flushed.Store(flushed)
	l.woken.Add(1)
}

func (l *loop) Sync(ctx context.Context, flushed ...image.Target) ([]companion.Commit, error) {
	l.flushed.Store(flushed)
	l.synced.Add(1)
	if l.atSync != nil {
		l.atSync()
	}
	if l.stuck {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return l.commits, l.err
}

// front is a companion's door over resolvers.
type front struct {
	address string
	secrets string // directory
	stop    context.CancelFunc
	stopped chan error
}

// start starts a door with the tokens one and two.
func start(t *testing.T, l *loop, replicas []replica, change ...func(*Options)) *front {
	t.Helper()
	dir := t.TempDir()
	f := &front{secrets: dir, stopped: make(chan error, 1)}
	o := Options{
		Replicas: func(context.Context) ([]*api.Client, error) {
			var out []*api.Client
			for _, r := range replicas {
				c, err := api.NewClient(r.address, "peer")
				if err != nil {
					return nil, err
				}
				out = append(out, c)
			}
			return out, nil
		},
		Loop:    l,
		Status:  func() any { return map[string]string{"branch": "main"} },
		Keys:    door.Keys{TokenFile: write(t, t.TempDir(), "token", "one\ntwo\n"), WebhookSecrets: dir},
		Log:     slog.New(slog.DiscardHandler),
		Metrics: prometheus.NewRegistry(),
	}
	for _, c := range change {
		c(&o)
	}
	s, tcp := New(o), listen(t)
	f.address = "http://" + tcp.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	go func() {
		f.stopped <- s.Serve(ctx, tcp)
		close(f.stopped)
	}()
	t.Cleanup(func() {
		stop()
		<-f.stopped
	})
	return f
}

// flush flushes with what is added to the query, and returns the answer, which is a problem from 400 on.
func (f *front) flush(t *testing.T, token, query string, images ...string) (*http.Response, api.FlushResponse, api.Problem) {
	t.Helper()
	res, body := f.send(t, http.MethodPost, "/flush?"+url.Values{"image": images}.Encode()+query, "Authorization", "Bearer "+token, "")
	var flushed api.FlushResponse
	var problem api.Problem
	into := any(&flushed)
	if res.StatusCode >= 400 {
		into = &problem
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("%s: %v in %s", res.Status, err, body)
	}
	return res, flushed, problem
}

func (f *front) send(t *testing.T, method, path, header, value, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != "" {
		req.Header.Set(header, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

// two returns two resolvers of one registry at d1, which both know the server.
func two(t *testing.T) (*registry, []replica) {
	t.Helper()
	r := &registry{}
	r.digest.Store(d1)
	out := []replica{resolver(t, r, "dev", server), resolver(t, r, "stage", server, worker)}
	slices.SortFunc(out, func(a, b replica) int { return strings.Compare(a.address, b.address) })
	return r, out
}

var committed = []companion.Commit{
	{Repository: "https://git.example.com/k8s.git", Branch: "main", Hash: "3f2c1ab", Message: "server moves\n\nghcr.io/acme/server:latest 1 -> 2\n"},
	{Repository: "https://git.example.com/other.git", Branch: "main", Hash: "4f2c1ab", Message: "other moves\n\nghcr.io/acme/server:latest-2 1 -> 2\n"},
}

// TestFlush: every replica has forgotten before the cycle begins, and the answer is what all of them know and what was
// committed.
func TestFlush(t *testing.T) {
	t.Parallel()
	r, replicas := two(t)
	before := r.asked.Load()
	l := &loop{commits: committed, err: fault.New(fault.GitRefused, "unprotect it", "branch main of other.git is protected")}
	l.atSync = func() {
		if n := r.asked.Load() - before; n != 4 {
			t.Errorf("the registry was asked %d times before the cycle, want twice by each replica", n)
		}
	}
	f := start(t, l, replicas)
	r.digest.Store(d2)
	res, got, _ := f.flush(t, "one", "", server, worker)
	want := api.FlushResponse{
		Flushed: []api.Flushed{
			{Image: server, Old: d1, New: d2, Applications: []string{"default/dev", "default/stage"}},
			{Image: worker, Old: d1, New: d2, Applications: []string{"default/stage"}},
		},
		Replicas: []api.Replica{{Address: replicas[0].address}, {Address: replicas[1].address}},
		Commits: []api.Commit{
			{Repository: committed[0].Repository, Branch: "main", Commit: "3f2c1ab", Subject: "server moves"},
			{Repository: committed[1].Repository, Branch: "main", Commit: "4f2c1ab", Subject: "other moves"},
		},
		Error: &api.Problem{Code: fault.GitRefused, Message: "branch main of other.git is protected", Hint: "unprotect it"},
	}
	if diff := cmp.Diff(want, got); diff != "" || res.StatusCode != 200 {
		t.Errorf("%s (-want +got):\n%s", res.Status, diff)
	}
	if _, text := f.send(t, http.MethodGet, "/metrics", "", "", ""); !strings.Contains(text, `digestlock_companion_forwarded_total{outcome="ok"} 2`) ||
		!strings.Contains(text, `digestlock_companion_forwarded_total{outcome="failed"} 0`) || !strings.Contains(text, "digestlock_flushed_references_total 2") {
		t.Errorf("metrics:\n%s", text)
	}
	// The commit is to come.
	l.atSync, l.commits, l.err, l.waits = nil, nil, nil, true
	if res, _, _ := f.flush(t, "one", "", server); res.StatusCode != 202 || res.Header.Get("Location") != "/v1/status" {
		t.Errorf("with a commit to come: %s, Location %q, want 202 and where to look", res.Status, res.Header.Get("Location"))
	}
	// Nothing more to do, and all tags of a repository.
	l.waits = false
	if res, got, _ := f.flush(t, "one", "", "ghcr.io/acme/server"); res.StatusCode != 200 || got.Commits == nil || len(got.Commits) > 0 ||
		len(got.Flushed) != 1 || got.Flushed[0].Image != server || got.Flushed[0].Old != d2 || got.Error != nil {
		t.Errorf("nothing to commit: %s %+v", res.Status, got)
	}
	if got := fmt.Sprint(l.flushed.Load()); got != "[ghcr.io/acme/server]" {
		t.Errorf("the cycle is about %s, want what was flushed", got)
	}
}

// TestReplicaDown: one that does not answer is told of, and the others count.
func TestReplicaDown(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	l := &loop{}
	f := start(t, l, replicas)
	replicas[0].stop()
	res, got, _ := f.flush(t, "one", "", server)
	if res.StatusCode != 200 || len(got.Flushed) != 1 || got.Flushed[0].New != d1 || len(got.Replicas) != 2 || got.Replicas[1].Error != nil ||
		got.Replicas[0].Error == nil || got.Replicas[0].Error.Code != fault.ResolverUnavailable || l.synced.Load() != 1 {
		t.Errorf("one down: %s %+v, %d cycles", res.Status, got, l.synced.Load())
	}
	replicas[1].stop()
	res, _, problem := f.flush(t, "one", "", server)
	if res.StatusCode != 503 || problem.Code != fault.ResolverUnavailable || problem.Hint == "" ||
		!strings.Contains(problem.Message, replicas[0].address) || !strings.Contains(problem.Message, replicas[1].address) || l.synced.Load() != 1 {
		t.Errorf("both down: %s %+v, %d cycles", res.Status, problem, l.synced.Load())
	}
	if _, text := f.send(t, http.MethodGet, "/metrics", "", "", ""); !strings.Contains(text, `digestlock_companion_forwarded_total{outcome="failed"} 3`) {
		t.Errorf("metrics:\n%s", text)
	}
	for _, none := range []func(context.Context) ([]*api.Client, error){
		func(context.Context) ([]*api.Client, error) { return nil, nil },
		func(context.Context) ([]*api.Client, error) { return nil, errors.New("no such host") },
	} {
		f := start(t, l, nil, func(o *Options) { o.Replicas = none })
		if res, _, problem := f.flush(t, "one", "", server); res.StatusCode != 503 {
			t.Errorf("no resolver: %s %+v", res.Status, problem)
		}
	}
}

// TestSlowCycle: whoever does not wait for the commit learns where to ask for it.
func TestSlowCycle(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	f := start(t, &loop{stuck: true}, replicas)
	for _, wait := range []string{"0s", "20ms"} {
		res, got, _ := f.flush(t, "one", "&wait="+wait, server)
		if res.StatusCode != 202 || res.Header.Get("Location") != "/v1/status" || got.Status != "/v1/status" || got.Commits != nil ||
			len(got.Flushed) != 1 || len(got.Replicas) != 2 {
			t.Errorf("wait=%s: %s %+v", wait, res.Status, got)
		}
	}
	if res, text := f.send(t, http.MethodGet, "/v1/status", "Authorization", "Bearer two", ""); res.StatusCode != 200 || strings.TrimSpace(text) != `{"branch":"main"}` {
		t.Errorf("status: %s %s", res.Status, text)
	}
	// The client's own timeout is longer; the server stops before.
	answered := make(chan *http.Response)
	go func() {
		res, _, _ := f.flush(t, "one", "&wait=30s", server)
		answered <- res
	}()
	time.AfterFunc(200*time.Millisecond, f.stop)
	if res := <-answered; res.StatusCode != 202 {
		t.Errorf("at the end: %s", res.Status)
	}
	if err := <-f.stopped; err != nil {
		t.Error(err)
	}
}

// TestRefusals: nobody gets in without what they have to have, and each refusal says what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r, replicas := two(t)
	l := &loop{}
	f := start(t, l, replicas)
	write(t, f.secrets, "acr", "correct-horse\n")
	closed := start(t, l, replicas, func(o *Options) { o.Keys = door.Keys{} })
	before := r.asked.Load()
	const one = "Bearer one"
	for _, tt := range []struct {
		name                string
		front               *front
		method, path, token string
		status              int
		want                string
	}{
		{"no token", f, "POST", "/flush?image=" + server, "", 401, "the companion's token file"},
		{"wrong token", f, "POST", "/flush?image=" + server, "Bearer peer", 401, "the companion's token file"},
		{"closed", closed, "POST", "/flush?image=" + server, one, 403, "start digestlock-companion with --token-file"},
		{"no image", f, "POST", "/flush", one, 400, "0 images to flush"},
		{"no reference", f, "POST", "/flush?image=../x", one, 400, "is not a registry host"},
		{"digest", f, "POST", "/flush?image=" + server + "@" + d1, one, 400, "a digest never changes"},
		{"waits too long", f, "POST", "/flush?wait=31s&image=" + server, one, 400, "no time from 0s to 30s"},
		{"waits less than nothing", f, "POST", "/flush?wait=-1s&image=" + server, one, 400, "no time from 0s to 30s"},
		{"waits for what", f, "POST", "/flush?wait=long&image=" + server, one, 400, "no time from 0s to 30s"},
		{"too many", f, "POST", "/flush?" + url.Values{"image": slices.Repeat([]string{server}, api.MaxImages+1)}.Encode(), one, 400, "1501 images"},
		{"not a flush", f, "GET", "/flush?image=" + server, one, 405, ""},
		{"status without token", f, "GET", "/v1/status", "", 401, "the companion's token file"},
		{"status closed", closed, "GET", "/v1/status", one, 403, "start digestlock-companion with --token-file"},
		{"no resolver", f, "GET", "/v1/pins", one, 404, ""},
		{"unknown sender", f, "POST", "/webhook/nobody", "", 404, "acr, artifactory"},
		{"sender without secret", f, "POST", "/webhook/harbor", "", 403, "digestlock-companion --webhook-secrets"},
		{"wrong secret", f, "POST", "/webhook/acr", "Bearer wrong", 401, "the companion's file acr"},
		{"closed sender", closed, "POST", "/webhook/acr", "Bearer correct-horse", 403, "digestlock-companion --webhook-secrets"},
		{"health", closed, "GET", "/healthz", "", 200, "ok\n"},
		{"ready", closed, "GET", "/readyz", "", 200, "ready\n"},
	} {
		res, text := tt.front.send(t, tt.method, tt.path, "Authorization", tt.token, "{}")
		if res.StatusCode != tt.status || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %s %s, want %d with %q", tt.name, res.Status, text, tt.status, tt.want)
		}
	}
	if r.asked.Load() != before || l.synced.Load()+l.woken.Load() != 0 {
		t.Errorf("what was refused asked the registry %d times and began %d cycles", r.asked.Load()-before, l.synced.Load()+l.woken.Load())
	}
}

// TestLimits: the companion limits its callers one by one, and the resolvers do not limit it.
func TestLimits(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	f := start(t, &loop{}, replicas)
	flood := slices.Repeat([]string{server}, 300)
	for _, step := range []struct {
		token  string
		status int
	}{{"one", 200}, {"two", 200}, {"one", 429}} {
		res, got, problem := f.flush(t, step.token, "", flood...)
		if res.StatusCode != step.status || (res.Header.Get("Retry-After") != "") != (step.status == 429) {
			t.Errorf("token %s: %s %+v, want %d", step.token, res.Status, problem, step.status)
		}
		for _, x := range got.Replicas {
			if x.Error != nil {
				t.Errorf("token %s: %+v", step.token, x.Error)
			}
		}
	}
}

// TestOIDC: a CI system flushes what its rule says, and learns of no other commits.
func TestOIDC(t *testing.T) {
	t.Parallel()
	_, replicas := two(t)
	issuer := accesstest.Listen()
	t.Cleanup(issuer.Close)
	dir := t.TempDir()
	ca, err := issuer.CAFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := access.Open(write(t, dir, "oidc.yaml", fmt.Sprintf(
		"issuers:\n- {issuer: %s, audience: digestlock, caFile: %s, rules: [{claims: {sub: \"ci:*\"}, images: [ghcr.io/acme]}]}\n", issuer.URL, ca)))
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, &loop{commits: committed, err: errors.New("secret.git is broken")}, replicas, func(o *Options) { o.Keys.OIDC = rules })
	token := issuer.Token(accesstest.Claims{"sub": "ci:builder"})
	res, got, _ := f.flush(t, token, "", server)
	if res.StatusCode != 200 || len(got.Commits) != 1 || got.Commits[0].Commit != "3f2c1ab" || got.Error == nil || strings.Contains(fmt.Sprint(*got.Error), "secret.git") {
		t.Errorf("flush: %s %+v with error %+v", res.Status, got, got.Error)
	}
	if res, _, problem := f.flush(t, token, "", "ghcr.io/other/server:latest"); res.StatusCode != 403 || problem.Code != fault.FlushForbidden {
		t.Errorf("another image: %s %+v", res.Status, problem)
	}
	if res, text := f.send(t, http.MethodGet, "/v1/status", "Authorization", "Bearer "+token, ""); res.StatusCode != 401 {
		t.Errorf("status for a CI system: %s %s", res.Status, text)
	}
}

func signed(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// TestWebhooks: an event reaches every replica and wakes the loop, unless nobody uses what it names.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	acr := func(repository string) string {
		return `{"action":"push","target":{"repository":"` + repository + `","tag":"latest"},"request":{"host":"ghcr.io"}}`
	}
	const (
		quay  = `{"docker_url":"ghcr.io/acme/server","updated_tags":["latest"]}`
		early = `{"events":[{"action":"push","target":{"repository":"acme/server","tag":"latest"},"request":{"host":"ghcr.io"}}]}`
		gitea = `{"action":"created","package":{"type":"container","name":"server","version":"latest","owner":{"login":"acme"},"html_url":"https://ghcr.io/acme/-/packages/container/server/latest"}}`
	)
	for name, tt := range map[string]struct {
		sender, path, header, value, body string
		asked, woken                      int32 // for both replicas together
	}{
		"header":       {"acr", "", "Authorization", "Bearer correct-horse", acr("acme/server"), 2, 1},
		"path":         {"quay", "/correct-horse", "", "", quay, 2, 1},
		"signature":    {"gitea", "?registry=ghcr.io", "X-Gitea-Signature", strings.TrimPrefix(signed("correct-horse", gitea), "sha256="), gitea, 2, 1},
		"early":        {"distribution", "", "Authorization", "Bearer correct-horse", early, 4, 2},
		"nobody's":     {"acr", "", "Authorization", "Bearer correct-horse", acr("nobody/uses"), 0, 0},
		"one replica":  {"acr", "", "Authorization", "Bearer correct-horse", acr("acme/worker"), 1, 1},
		"no tag moved": {"acr", "", "Authorization", "Bearer correct-horse", `{"action":"ping"}`, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, replicas := two(t)
			l, before := &loop{}, r.asked.Load()
			f := start(t, l, replicas)
			write(t, f.secrets, tt.sender, "correct-horse\n")
			res, text := f.send(t, http.MethodPost, "/webhook/"+tt.sender+tt.path, tt.header, tt.value, tt.body)
			want := 202
			if name == "no tag moved" {
				want = 200
			}
			if res.StatusCode != want || res.StatusCode == 202 && strings.Contains(text, "refreshed") {
				t.Fatalf("%s %s", res.Status, text)
			}
			waitFor(t, func() bool { return l.woken.Load() >= tt.woken && r.asked.Load()-before >= tt.asked })
			f.stop()
			if err := <-f.stopped; err != nil {
				t.Error(err)
			}
			if l.woken.Load() != tt.woken || r.asked.Load()-before != tt.asked || l.synced.Load() != 0 {
				t.Errorf("woken %d times, asked %d times, synced %d times, want %d, %d and none", l.woken.Load(), r.asked.Load()-before, l.synced.Load(), tt.woken, tt.asked)
			}
		})
	}
}

// TestEventsDoNotPileUp: while a replica is silent, what comes waits for one request.
func TestEventsDoNotPileUp(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var mu sync.Mutex
	var asked []string
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, strings.Join(r.URL.Query()["image"], " "))
		mu.Unlock()
		<-release
		_, _ = fmt.Fprint(w, `{"images":[],"refreshed":1}`)
	}))
	defer silent.Close()
	l := &loop{}
	f := start(t, l, []replica{{address: silent.URL}})
	write(t, f.secrets, "acr", "one\n")
	send := func(i int) {
		body := fmt.Sprintf(`{"action":"push","target":{"repository":"a%d","tag":"latest"},"request":{"host":"r.example.com"}}`, i)
		if res, text := f.send(t, http.MethodPost, "/webhook/acr", "Authorization", "one", body); res.StatusCode != 202 {
			t.Errorf("event %d: %s %s", i, res.Status, text)
		}
	}
	send(0)
	waitFor(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(asked) == 1
	})
	for i := range 3 {
		send(i + 1)
		send(i + 1)
	}
	f.stop()
	time.AfterFunc(200*time.Millisecond, func() { close(release) }) // what was answered with 202 is passed on before the end
	if err := <-f.stopped; err != nil {
		t.Error(err)
	}
	want := []string{"r.example.com/a0:latest", "r.example.com/a1:latest r.example.com/a2:latest r.example.com/a3:latest"}
	if diff := cmp.Diff(want, asked); diff != "" || l.woken.Load() != 2 {
		t.Errorf("woken %d times, asked (-want +got):\n%s", l.woken.Load(), diff)
	}
}

// TestShared: callers who flush the same while one is about it share one fan-out and one cycle.
func TestShared(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var asked atomic.Int32
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		<-release
		_, _ = fmt.Fprint(w, `{"flushed":[]}`)
	}))
	defer slow.Close()
	l := &loop{}
	f := start(t, l, []replica{{address: slow.URL}})
	var wg sync.WaitGroup
	flush := func() {
		wg.Go(func() {
			if res, got, _ := f.flush(t, "one", "", server); res.StatusCode != 200 || got.Commits == nil {
				t.Errorf("%s %+v", res.Status, got)
			}
		})
	}
	flush()
	waitFor(t, func() bool { return asked.Load() == 1 })
	for range 20 {
		flush()
	}
	waitFor(t, func() bool {
		_, text := f.send(t, http.MethodGet, "/metrics", "", "", "")
		return strings.Contains(text, "digestlock_http_requests_in_flight 22\n") // with this one
	})
	close(release)
	wg.Wait()
	if n := l.synced.Load(); n < 2 || n > 4 { // 2, unless the last of them have only just come in
		t.Errorf("%d cycles for 21 flushes, want 2", n)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	gone := &api.Problem{Message: "gone"}
	got := merge([][]api.Flushed{
		{{Image: "a", Error: gone}, {Image: "b", Old: d2, New: d2, Applications: []string{"x", "z"}}, {Image: "c", Old: d1, Error: gone}},
		{{Image: "d", New: d1}, {Image: "a", Old: d1, New: d2}, {Image: "b", Old: d1, New: d2, Applications: []string{"x", "y"}}, {Image: "c", Error: gone}},
		nil,
	})
	want := []api.Flushed{
		{Image: "a", Old: d1, New: d2},
		{Image: "b", Old: d1, New: d2, Applications: []string{"x", "y", "z"}},
		{Image: "c", Old: d1, Error: gone},
		{Image: "d", New: d1},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("merge (-want +got):\n%s", diff)
	}
	if got := merge(nil); got == nil {
		t.Error("nothing is not an empty list on the wire")
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for range 400 {
		if done() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("waited in vain")
}
