// Package registrytest is a container registry in memory that misbehaves on request: the tests of every package that
// talks to a registry use it, and so does the demo.
package registrytest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// Targets of [Registry.Inject] besides the name of a repository.
const (
	Ping  = "/v2/"
	Token = "/token"
)

// Registry is an [http.Handler] that serves the images pushed to it, to everybody until RequireBasic or
// RequireBearer is called. All methods may be called concurrently and at any time.
type Registry struct {
	images http.Handler

	mu      sync.Mutex
	auth    auth
	tokens  map[string][]string // token → repositories it opens
	denied  map[string]bool
	strict  bool
	faults  map[string]Fault
	latency time.Duration
	skew    time.Duration
	realm   string
	counts  Counts
}

type auth struct{ scheme, user, password string }

// Counts says how many requests of each kind arrived, those answered by a fault included.
type Counts struct{ Ping, Token, Head, Get, Other int }

// Fault is how a target misbehaves. The zero Fault does nothing.
type Fault struct {
	Method     string        // only requests with this method; "" is all
	Times      int           // how many requests it hits before it is over; 0 is all
	Delay      time.Duration // wait before doing anything else
	Hang       bool          // say nothing until the client leaves
	Status     int           // answer with this status
	RetryAfter string        // and this Retry-After
	Location   string        // and this Location
	Digest     string        // replace Docker-Content-Digest of the real answer
	Quota      string        // add this RateLimit-Remaining to the real answer
	NoDigest   bool          // leave Docker-Content-Digest out of the real answer
	Body       string        // replace the body of the real answer
}

// New returns an empty registry without authentication and without faults.
func New() *Registry {
	return &Registry{
		images: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		tokens: map[string][]string{},
		denied: map[string]bool{},
		faults: map[string]Fault{},
	}
}

// Push stores a new random image under the tag and returns its digest.
func (r *Registry) Push(repo, tag string) string {
	img, err := random.Image(16, 1)
	must(err)
	return r.PushImage(repo, tag, img)
}

// PushLabelled stores a new random image with these labels in its config under the tag and returns its digest.
func (r *Registry) PushLabelled(repo, tag string, labels map[string]string) string {
	img, err := random.Image(16, 1)
	must(err)
	img, err = mutate.Config(img, v1.Config{Labels: labels})
	must(err)
	return r.PushImage(repo, tag, img)
}

// PushIndex stores a new random index of two images under the tag and returns the digest of the index.
func (r *Registry) PushIndex(repo, tag string) string {
	idx, err := random.Index(16, 1, 2)
	must(err)
	return r.PushImages(repo, tag, idx)
}

// PushImages stores an index of images under the tag and returns its digest.
func (r *Registry) PushImages(repo, tag string, idx v1.ImageIndex) string {
	manifest, err := idx.IndexManifest()
	must(err)
	for _, m := range manifest.Manifests {
		img, err := idx.Image(m.Digest)
		must(err)
		r.PushImage(repo, m.Digest.String(), img)
	}
	raw, err := idx.RawManifest()
	must(err)
	r.put(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(manifest.MediaType), raw)
	digest, err := idx.Digest()
	must(err)
	return digest.String()
}

// Delete removes a tag.
func (r *Registry) Delete(repo, tag string) {
	r.put(http.MethodDelete, "/v2/"+repo+"/manifests/"+tag, "", nil)
}

// PushImage stores an image under the tag and returns its digest.
func (r *Registry) PushImage(repo, tag string, img v1.Image) string {
	layers, err := img.Layers()
	must(err)
	for _, l := range layers {
		digest, err := l.Digest()
		must(err)
		body, err := l.Compressed()
		must(err)
		raw, err := io.ReadAll(body)
		must(err)
		r.pushBlob(repo, digest.String(), raw)
	}
	config, err := img.RawConfigFile()
	must(err)
	name, err := img.ConfigName()
	must(err)
	r.pushBlob(repo, name.String(), config)
	raw, err := img.RawManifest()
	must(err)
	mediaType, err := img.MediaType()
	must(err)
	r.put(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(mediaType), raw)
	digest, err := img.Digest()
	must(err)
	return digest.String()
}

func (r *Registry) pushBlob(repo, digest string, raw []byte) {
	r.put(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", raw)
}

// put goes past authentication, faults and counters.
func (r *Registry) put(method, path, mediaType string, body []byte) {
	req, err := http.NewRequestWithContext(context.Background(), method, "http://registrytest"+path, bytes.NewReader(body))
	must(err)
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.images.ServeHTTP(w, req)
	if w.Code >= 300 {
		panic(fmt.Sprintf("registrytest: %s %s: %d %s", method, path, w.Code, w.Body))
	}
}

// must stops the program: the images are our own and live in memory, so that nothing can go wrong for a reason
// outside this package but a name that is not one.
func must(err error) {
	if err != nil {
		panic("registrytest: " + err.Error())
	}
}

// RequireBasic asks for this user and password from now on; calling it again rotates them.
func (r *Registry) RequireBasic(user, password string) {
	r.require(auth{"basic", user, password})
}

// RequireBearer asks for a token from now on, which the token endpoint gives to this user and password, or to
// everybody when user is "". Calling it again rotates them and makes all tokens void.
func (r *Registry) RequireBearer(user, password string) {
	r.require(auth{"bearer", user, password})
}

func (r *Registry) require(a auth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = a
	clear(r.tokens)
}

// ExpireTokens makes every token void that was given so far.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// Deny keeps everybody from these repositories: no token opens them, and without tokens they answer 403.
func (r *Registry) Deny(repos ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, repo := range repos {
		r.denied[repo] = true
	}
}

// StrictTokens makes the token endpoint refuse with 403 a request that names a denied repository among others,
// rather than give a token for the others.
func (r *Registry) StrictTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strict = true
}

// Inject makes a target misbehave: a repository, [Ping] or [Token]. It replaces the target's former fault.
func (r *Registry) Inject(target string, f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[target] = f
}

// SetLatency delays every answer from now on.
func (r *Registry) SetLatency(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latency = d
}

// SetClock makes the registry's clock go wrong by d: the dates of its answers and of its tokens.
func (r *Registry) SetClock(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skew = d
}

// SetRealm makes challenges name a token server elsewhere, by its URL.
func (r *Registry) SetRealm(url string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.realm = url
}

// Counts returns what has arrived since the start or the last ResetCounts.
func (r *Registry) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// ResetCounts starts counting anew.
func (r *Registry) ResetCounts() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts = Counts{}
}

// ServeHTTP answers registry and token requests.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	target := targetOf(req)
	fault, latency, now := r.arrive(req, target)
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	if !wait(req.Context(), latency+fault.Delay) {
		return
	}
	switch {
	case fault.Hang:
		<-req.Context().Done()
	case fault.Status != 0:
		setIf(w.Header(), "Retry-After", fault.RetryAfter)
		setIf(w.Header(), "Location", fault.Location)
		writeError(w, fault.Status, "INJECTED")
	case target == Token:
		r.serveToken(w, req)
	case r.admit(w, req, target):
		r.serveImage(w, req, fault)
	}
}

func (r *Registry) serveImage(w http.ResponseWriter, req *http.Request, f Fault) {
	rec := httptest.NewRecorder()
	r.images.ServeHTTP(rec, req)
	h := w.Header()
	maps.Copy(h, rec.Header())
	if f.NoDigest {
		h.Del("Docker-Content-Digest")
	}
	setIf(h, "Docker-Content-Digest", f.Digest)
	setIf(h, "RateLimit-Remaining", f.Quota)
	body := rec.Body.Bytes()
	if f.Body != "" {
		body = []byte(f.Body)
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(rec.Code)
	w.Write(body) //nolint:errcheck // the client may have left
}

// targetOf returns the repository of a request, or Ping or Token, or "".
func targetOf(req *http.Request) string {
	if req.URL.Path == Ping || req.URL.Path == Token {
		return req.URL.Path
	}
	rest := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/"} {
		if repo, _, ok := strings.Cut(rest, kind); ok {
			return repo
		}
	}
	return ""
}

// arrive counts a request and returns the fault and the latency that it meets, and the registry's time.
func (r *Registry) arrive(req *http.Request, target string) (Fault, time.Duration, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().Add(r.skew)
	switch {
	case target == Ping:
		r.counts.Ping++
	case target == Token:
		r.counts.Token++
	case req.Method == http.MethodHead:
		r.counts.Head++
	case req.Method == http.MethodGet:
		r.counts.Get++
	default:
		r.counts.Other++
	}
	f, ok := r.faults[target]
	if !ok || (f.Method != "" && f.Method != req.Method) {
		return Fault{}, r.latency, now
	}
	switch f.Times {
	case 0:
	case 1:
		delete(r.faults, target)
	default:
		next := f
		next.Times--
		r.faults[target] = next
	}
	return f, r.latency, now
}

// admit lets a request through or answers it with a challenge or a refusal.
func (r *Registry) admit(w http.ResponseWriter, req *http.Request, target string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.auth.scheme {
	case "basic":
		if !r.auth.match(req) {
			w.Header().Set("WWW-Authenticate", `Basic realm="registrytest"`)
			writeError(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return false
		}
	case "bearer":
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		repos, known := r.tokens[token]
		if !known || (target != Ping && !slices.Contains(repos, target)) {
			w.Header().Set("WWW-Authenticate", r.challenge(req, target))
			writeError(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return false
		}
	}
	if r.denied[target] {
		writeError(w, http.StatusForbidden, "DENIED")
		return false
	}
	return true
}

// challenge asks for a token. The caller holds the lock.
func (r *Registry) challenge(req *http.Request, target string) string {
	scheme := "http"
	if req.TLS != nil {
		scheme = "https"
	}
	realm := cmp.Or(r.realm, scheme+"://"+req.Host+Token)
	c := fmt.Sprintf("Bearer realm=%q,service=\"registrytest\"", realm)
	if target != Ping {
		c += fmt.Sprintf(",scope=\"repository:%s:pull\"", target)
	}
	return c
}

func (a auth) match(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return a.user == "" || (ok && user == a.user && password == a.password)
}

// serveToken gives a token for those of the wanted repositories that are not denied.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.auth.match(req) {
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	var granted []string
	for _, scope := range req.URL.Query()["scope"] {
		repo := strings.TrimSuffix(strings.TrimPrefix(scope, "repository:"), ":pull")
		if !r.denied[repo] {
			granted = append(granted, repo)
		} else if r.strict {
			writeError(w, http.StatusForbidden, "DENIED")
			return
		}
	}
	token := rand.Text()
	r.tokens[token] = granted
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300, "issued_at": time.Now().Add(r.skew).UTC()}) //nolint:errcheck // the client may have left
}

func writeError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"registrytest"}]}`, code)
}

func setIf(h http.Header, key, value string) {
	if value != "" {
		h.Set(key, value)
	}
}

// wait returns false when the client left first.
func wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Server is a Registry on a port of the loopback interface, by plain http.
type Server struct {
	*Registry
	Host string // "127.0.0.1:port"
	http *httptest.Server
}

// Listen serves r until Close.
func Listen(r *Registry) *Server {
	s := httptest.NewServer(r)
	return &Server{Registry: r, Host: s.Listener.Addr().String(), http: s}
}

// Close ends the server and all its connections. It may be called more than once.
func (s *Server) Close() {
	s.http.CloseClientConnections()
	s.http.Close()
}

// TB is the part of [testing.TB] that Start needs; a program that is not a test does not link testing.
type TB interface{ Cleanup(func()) }

// Start serves a new registry until the end of the test.
func Start(t TB) *Server {
	s := Listen(New())
	t.Cleanup(s.Close)
	return s
}
