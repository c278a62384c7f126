package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// The tests of this file are the threats of docs/security.md. They use the transport that serve uses; only DNS and
// the authority that signs certificates are the tests' own.

// over returns options with our own transport that resolves names by n and trusts the certificates of httptest.
func over(t *testing.T, n names, o Options) Options {
	t.Helper()
	timeout := o.Timeout
	if timeout == 0 {
		timeout = stepTimeout
	}
	tr := newTransport(&dialer{Dialer: net.Dialer{Timeout: timeout, Resolver: n.resolver(t)}, policy: newPolicy(o)}, timeout, 16)
	ca := httptest.NewTLSServer(nil)
	defer ca.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	tr.TLSClientConfig = &tls.Config{RootCAs: pool, ServerName: "example.com"}
	o.Transport = tr
	return o
}

// trap is an https server that nothing may reach.
type trap struct {
	port      string
	conns     atomic.Int32
	mu        sync.Mutex
	passwords []string
}

func newTrap(t *testing.T) *trap {
	p := &trap{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.passwords = append(p.passwords, r.Header.Get("Authorization"))
		p.mu.Unlock()
		w.Header().Set(digestHeader, "sha256:"+strings.Repeat("0", 64))
		fmt.Fprint(w, `{"token":"t"}`)
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			p.conns.Add(1)
		}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	_, p.port, _ = net.SplitHostPort(srv.Listener.Addr().String())
	return p
}

func (p *trap) wantUntouched(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.conns.Load(); n != 0 || len(p.passwords) != 0 {
		t.Errorf("%d connections to the inside, which was told %q", n, p.passwords)
	}
}

// secureAt serves a registry over https at a name.
func secureAt(t *testing.T, name string) (host string, r *registrytest.Registry) {
	t.Helper()
	srv, r := secure(t)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return name + ":" + port, r
}

var inside = names{
	"good.test": {"127.0.0.1"}, "evil.test": {"127.0.0.1"}, "login.test": {"127.0.0.1"},
	"six.test": {"::1"}, "harbor.test": {"10.0.0.5"},
	"metadata.test": {"169.254.169.254"}, "amazon.test": {"fd00:ec2::254"}, "nat64.test": {"64:ff9b::a9fe:a9fe"},
	"mapped.test": {"::ffff:169.254.169.254"}, "zero.test": {"0.0.0.0"},
}

func TestNameThatLeadsInside(t *testing.T) {
	t.Parallel()
	const reserved = "correct the registry in the image's name"
	for _, tt := range []struct{ name, kind, hint string }{
		{"evil.test", "loopback", "name %s in full with --allow-registry"},
		{"six.test", "loopback", "name %s in full with --allow-registry"},
		{"harbor.test", "private", "start the resolver with --allow-private-registries, or with a list of --allow-registry that has %s in full"},
		{"metadata.test", "reserved", reserved},
		{"amazon.test", "reserved", reserved},
		{"nat64.test", "reserved", reserved},
		{"mapped.test", "reserved", reserved},
		{"zero.test", "reserved", reserved},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newTrap(t)
			host := tt.name + ":" + p.port
			// A pattern is no permission for what is inside, for others may own some of the names.
			c := client(over(t, inside, Options{Allow: Hosts{"*.test:*"}}))
			hint := strings.ReplaceAll(tt.hint, "%s", host)
			wantError(t, one(c, parse(t, host+"/a:latest")), nil, "has a "+tt.kind+" address, refused", hint)
			p.wantUntouched(t)
		})
	}
}

func TestReservedAddressHasNoFlag(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"metadata.test", "amazon.test", "nat64.test", "mapped.test", "zero.test"} {
		c := client(over(t, inside, Options{Allow: Hosts{name}, AllowPrivate: true}))
		wantError(t, one(c, parse(t, name+"/a:latest")), nil, "has a reserved address, refused", "correct the registry")
	}
}

func TestHostWrittenOutMayBeInside(t *testing.T) {
	t.Parallel()
	host, reg := secureAt(t, "good.test")
	want := reg.Push("a", "latest")
	c := client(over(t, inside, Options{Allow: Hosts{"GOOD" + strings.TrimPrefix(host, "good")}}))
	if r := one(c, parse(t, host+"/a:latest")); r.Err != nil || r.Digest != want {
		t.Errorf("Resolve = %s, %v, want %s", r.Digest, r.Err, want)
	}
}

func TestAddressWrittenAsName(t *testing.T) {
	t.Parallel()
	for _, host := range []string{
		"169.254.169.254", "[fd00:ec2::254]", "[fe80::1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]:443", "[2002:a9fe:a9fe::]",
		"0.0.0.0", "100.100.100.200", "168.63.129.16", "192.0.0.192",
	} {
		// A proxy would connect for us, so that nothing may even be sent.
		var sent atomic.Int32
		c := client(Options{Allow: Hosts{"*"}, AllowPrivate: true, Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			sent.Add(1)
			return nil, errors.New("sent")
		})})
		wantError(t, one(c, parse(t, host+"/x:latest")), nil, "has a reserved address, refused", "correct the registry")
		if sent.Load() != 0 {
			t.Errorf("%s was asked", host)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRegistryThatIsNotListed(t *testing.T) {
	t.Parallel()
	var sent atomic.Int32
	c := client(Options{
		Allow: Hosts{"ghcr.io", "*.example.com", "docker.io", "localhost:5000"}, Insecure: []string{"plain.test"},
		Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			sent.Add(1)
			return nil, errors.New("sent")
		}),
	})
	for _, ref := range []string{"evil.test/a", "ghcr.io.evil.test/a", "ghcr.io:444/a", "example.com/a", "x.example.com:5000/a", "localhost/a"} {
		r := one(c, parse(t, ref))
		wantError(t, r, nil, "not in the list of --allow-registry", "start the resolver with --allow-registry "+r.Ref.Registry+" too")
	}
	if sent.Load() != 0 {
		t.Error("a registry that is not listed was asked")
	}
	for _, ref := range []string{"ghcr.io/a", "x.example.com/a", "nginx", "docker.io/a/b", "plain.test/a", "localhost:5000/a"} {
		before := sent.Load()
		if r := one(c, parse(t, ref)); sent.Load() == before {
			t.Errorf("%s: %v", ref, r.Err)
		}
	}
}

func TestHostsCheck(t *testing.T) {
	t.Parallel()
	for pattern, ok := range map[string]bool{
		"ghcr.io": true, "*.example.com": true, "localhost:5000": true, "[::1]:5000": true, "docker.io": true,
		"": false, "https://ghcr.io": false, "ghcr.io/acme": false, "[a": false, "a b": false,
	} {
		if err := (Hosts{"x", pattern}).Check(); (err == nil) != ok {
			t.Errorf("Check(%q) = %v, want ok = %v", pattern, err, ok)
		}
	}
}

// A realm whose name resolves to the inside got the password from plain go-containerregistry.
func TestRealmThatLeadsInside(t *testing.T) {
	t.Parallel()
	p := newTrap(t)
	host, reg := secureAt(t, "good.test")
	reg.Push("a", "latest")
	reg.RequireBearer("u", "hunter2")
	reg.SetRealm("https://evil.test:" + p.port + "/token")
	c := client(over(t, inside, Options{
		Allow: Hosts{host}, AllowRealm: Hosts{"*.test:*"}, Keychain: &keychain{user: "u", password: "hunter2"},
	}))
	wantError(t, one(c, parse(t, host+"/a:latest")), nil, fmt.Sprintf("%q has a loopback address, refused", "evil.test:"+p.port),
		"name evil.test:"+p.port+" in full")
	p.wantUntouched(t)
}

func TestRealmOfAnotherDomain(t *testing.T) {
	t.Parallel()
	p := newTrap(t)
	host, reg := secureAt(t, "good.test")
	reg.Push("a", "latest")
	reg.RequireBearer("u", "hunter2")
	reg.SetRealm("https://login.test:" + p.port + "/token")
	keychain := &keychain{user: "u", password: "hunter2"}
	ref := parse(t, host+"/a:latest")

	wantError(t, one(client(over(t, inside, Options{Allow: Hosts{host}, Keychain: keychain})), ref), nil,
		fmt.Sprintf("token server %q, of another domain, refused", "login.test:"+p.port),
		"start the resolver with --allow-realm login.test:"+p.port)
	p.wantUntouched(t)

	one(client(over(t, inside, Options{Allow: Hosts{host}, AllowRealm: Hosts{"login.test:" + p.port}, Keychain: keychain})), ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.passwords) == 0 || !strings.HasPrefix(p.passwords[0], "Basic ") {
		t.Errorf("a realm that is allowed was told %q", p.passwords)
	}
}

func TestRealm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		registry, realm string
		credentials     bool
		want            bool
	}{
		{"ghcr.io", "ghcr.io", true, true},
		{"index.docker.io", "auth.docker.io", true, true},
		{"registry.gitlab.com", "gitlab.com", true, true},
		{"registry.acme.co.uk:5050", "gitlab.acme.co.uk", true, true},
		{"quay.io", "quay.io", true, true},
		{"acme.azurecr.io", "acme.azurecr.io", true, true},
		{"harbor.acme.com", "harbor.acme.com:443", true, true},
		{"evil.co.uk", "acme.co.uk", true, false},
		{"evil.github.io", "acme.github.io", true, false},
		{"lscr.io", "ghcr.io", true, false},
		{"lscr.io", "ghcr.io", false, true},
		{"10.0.0.1:5000", "10.9.0.1:5000", true, false},
		{"harbor", "keycloak", true, false},
		{"docker.io.evil.com", "auth.docker.io", true, false},
	} {
		if got := (policy{}).realm(tt.registry, tt.realm, tt.credentials); got != tt.want {
			t.Errorf("realm(%s, %s, %v) = %v, want %v", tt.registry, tt.realm, tt.credentials, got, tt.want)
		}
	}
	listed := newPolicy(Options{Allow: Hosts{"lscr.io"}})
	if listed.realm("lscr.io", "ghcr.io", false) {
		t.Error("with a list of registries, a token may come from a host that is not listed")
	}
}

func TestManifestRedirect(t *testing.T) {
	t.Parallel()
	host, reg := secureAt(t, "good.test")
	reg.Push("a", "latest")
	reg.RequireBasic("u", "hunter2")
	k := &keychain{user: "u", password: "hunter2"}
	ref := parse(t, host+"/a:latest")
	lead := func(to string) { reg.Inject("a", registrytest.Fault{Status: 307, Location: to}) }

	t.Run("to the inside", func(t *testing.T) {
		p := newTrap(t)
		lead("https://evil.test:" + p.port + "/secret")
		c := client(over(t, inside, Options{Allow: Hosts{host, "*.test:*"}, Keychain: k}))
		wantError(t, one(c, ref), nil, fmt.Sprintf("%q has a loopback address, refused", "evil.test:"+p.port), "name evil.test:"+p.port)
		p.wantUntouched(t)
	})
	t.Run("to a host that is not listed", func(t *testing.T) {
		p := newTrap(t)
		lead("https://login.test:" + p.port + "/v2/a/manifests/latest")
		c := client(over(t, inside, Options{Allow: Hosts{host}, Keychain: k}))
		wantError(t, one(c, ref), nil, fmt.Sprintf("redirect to another host, %q, refused", "login.test:"+p.port), "name the image at login.test")
		p.wantUntouched(t)
	})
	t.Run("to one that is", func(t *testing.T) {
		p := newTrap(t)
		lead("https://login.test:" + p.port + "/v2/a/manifests/latest")
		c := client(over(t, inside, Options{Allow: Hosts{host, "login.test:" + p.port}, Keychain: k}))
		if r := one(c, ref); r.Err != nil || r.Digest != "sha256:"+strings.Repeat("0", 64) {
			t.Errorf("Resolve = %s, %v", r.Digest, r.Err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.passwords) != 1 || p.passwords[0] != "" {
			t.Errorf("the other host was told %q, want nothing", p.passwords)
		}
	})
	if !(policy{}).redirect("registry.k8s.io", "europe-west1-docker.pkg.dev") || (policy{}).redirect("evil.com", "europe-west1-docker.pkg.dev") {
		t.Error("registry.k8s.io alone may lead to docker.pkg.dev")
	}
}

// The library and net/http keep credentials to themselves as well; this is our own word.
func TestRedirectCarriesNoCredentials(t *testing.T) {
	t.Parallel()
	var told string
	c := client(Options{Allow: Hosts{"a.test", "b.test"}})
	g := guard{c.host("a.test"), roundTripper(func(r *http.Request) (*http.Response, error) {
		told = r.Header.Get("Authorization")
		return nil, errors.New("nobody there")
	})}
	from := httptest.NewRequest(http.MethodHead, "https://a.test/v2/x/manifests/latest", nil)
	from.Body = nil
	to := from.Clone(t.Context())
	to.URL.Host, to.Response = "b.test", &http.Response{Request: from}
	to.Header.Set("Authorization", "Basic hunter2")
	if _, err := g.RoundTrip(to); err == nil || isRefusal(err) || told != "" {
		t.Errorf("the other host was told %q, %v", told, err)
	}
}

// The library falls back to plain http for these, silently.
func TestForcedHTTPS(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"localhost", "localhost:5000", "127.0.0.1:5000", "10.0.0.1", "192.168.1.1:5000", "harbor.local", "harbor.localhost", "[::1]:5000"} {
		var mu sync.Mutex
		var schemes []string
		c := client(Options{Allow: Hosts{"localhost:5000", "127.0.0.1:5000", "[[]::1]:5000", host}, AllowPrivate: true, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			schemes = append(schemes, r.URL.Scheme)
			return nil, errors.New("nobody there")
		})})
		r := one(c, parse(t, host+"/a:latest"))
		mu.Lock()
		defer mu.Unlock()
		if len(schemes) != 1 || schemes[0] != "https" {
			t.Errorf("%s was asked over %q, want https once: %v", host, schemes, r.Err)
		}
	}
}

func TestEndlessAnswers(t *testing.T) {
	t.Parallel()
	endless := func(w http.ResponseWriter) (written int64) {
		junk := []byte(strings.Repeat("x", 1<<16))
		for {
			n, err := w.Write(junk)
			written += int64(n)
			if err != nil {
				return written
			}
		}
	}
	t.Run("ping", func(t *testing.T) {
		t.Parallel()
		s := registrytest.Start(t)
		want := s.Push("a", "latest")
		written := make(chan int64, 1)
		host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == registrytest.Ping {
				written <- endless(w)
				return
			}
			s.Registry.ServeHTTP(w, r)
		}))
		if r := one(client(Options{Insecure: []string{host}}), parse(t, host+"/a:latest")); r.Digest != want {
			t.Errorf("Resolve = %q, %v, want %s", r.Digest, r.Err, want)
		}
		if n := <-written; n > 64<<20 { // what is read, and the buffers between
			t.Errorf("%d bytes of a ping were taken", n)
		}
	})
	t.Run("token", func(t *testing.T) {
		t.Parallel()
		host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == registrytest.Token {
				endless(w)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+registrytest.Token+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		wantError(t, one(client(Options{Insecure: []string{host}}), parse(t, host+"/a:latest")), nil,
			"login is not understood or names a token server that is not allowed", "check that the registry speaks")
	})
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			endless(w)
		}))
		wantError(t, one(client(Options{Insecure: []string{host}}), parse(t, host+"/a:latest")), nil, "unexpected answer (400)", "")
	})
	t.Run("header", func(t *testing.T) {
		t.Parallel()
		host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Junk", strings.Repeat("x", 2*maxHeader))
		}))
		wantError(t, one(client(Options{Insecure: []string{host}}), parse(t, host+"/a:latest")), image.ErrUnavailable, "unavailable: request failed", "")
	})
}

func TestSilentAndSlow(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]registrytest.Mode{"silent": registrytest.Silence, "slow": registrytest.Drip} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			s.Push("a", "latest")
			p := registrytest.StartProxy(t, s.Host)
			p.Set(mode)
			c := client(Options{Insecure: []string{p.Host}, Timeout: time.Second})
			wantError(t, one(c, parse(t, p.Host+"/a:latest")), image.ErrUnavailable, "unavailable: no answer within 1s", "")
		})
	}
}

// A registry that takes a connection and never begins TLS, or never an answer, is given up before the whole deadline.
func TestStepIsShorterThanTheDeadline(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	s.Push("a", "latest")
	p := registrytest.StartProxy(t, s.Host)
	p.Set(registrytest.Silence)
	o := Options{Insecure: []string{p.Host}, Timeout: 20 * time.Second}
	c := client(o)
	c.step = time.Second
	c.transport = newTransport(&dialer{policy: c.policy}, c.step, 1)
	wantError(t, one(c, parse(t, p.Host+"/a:latest")), image.ErrUnavailable, "unavailable: no answer within 1s", "")
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	reg := registrytest.New()
	want := reg.Push("a", "latest")
	var old atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			old.Add(1)
		}
		reg.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := srv.Listener.Addr().String()
	if r := one(client(over(t, nil, Options{Allow: Hosts{host}})), parse(t, host+"/a:latest")); r.Digest != want {
		t.Fatalf("Resolve = %q, %v, want %s", r.Digest, r.Err, want)
	}
	if n := old.Load(); n != 0 {
		t.Errorf("%d requests over HTTP/1", n)
	}
}

func TestPauseThatIsShortIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, want := refs(t, s, 4)
	c := client(Options{}, s)
	wantResults(t, c.Resolve(t.Context(), "", all), want)
	s.ResetCounts()
	c.host(s.Host).pause(time.Second)
	until := c.host(s.Host).paused()
	wantResults(t, c.Resolve(t.Context(), "", all), want)
	if time.Now().Before(until) {
		t.Error("asked before the registry's time had come")
	}
	wantCounts(t, s, registrytest.Counts{Head: 4})
}

func TestPauseIsBounded(t *testing.T) {
	t.Parallel()
	h := client(Options{}).host("ghcr.io")
	h.pause(100 * 365 * 24 * time.Hour)
	if d := time.Until(h.paused()); d > maxPause {
		t.Errorf("a registry silenced itself for %v", d)
	}
	h.pause(time.Second)
	if d := time.Until(h.paused()); d < time.Minute {
		t.Errorf("a shorter pause replaced a longer one: %v", d)
	}
}

func TestRetryAfterByTheRegistrysClock(t *testing.T) {
	t.Parallel()
	now := time.Now().Add(-48 * time.Hour)
	h := http.Header{}
	h.Set("Date", now.UTC().Format(http.TimeFormat))
	h.Set("Retry-After", now.Add(7*time.Second).UTC().Format(http.TimeFormat))
	if got := retryAfter(h); got != 7*time.Second {
		t.Errorf("retryAfter = %v, want 7s", got)
	}
}

// TestRetryAfterOutOfRange: what no clock can add is a long time, not none.
func TestRetryAfterOutOfRange(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"3601", "2147483648", "9223372036854775808", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		if got := retryAfter(http.Header{"Retry-After": {v}}); got != maxPause {
			t.Errorf("retryAfter(%q) = %v, want %v", v, got, maxPause)
		}
		resp := &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {v}}}
		if _, final := errors.AsType[*backoff.PermanentError](again(t.Context(), resp, nil)); !final {
			t.Errorf("Retry-After: %s is tried again", v)
		}
	}
}

func TestOwnRate(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	all, _ := refs(t, s, 5)
	c := client(Options{QPS: 0.001, Timeout: time.Minute}, s) // one at once, the next in a quarter of an hour
	wantError(t, c.Resolve(t.Context(), "", all)[0], image.ErrUnavailable, "unavailable: 0.001 requests a second are not enough", "raise --registry-qps")
	wantCounts(t, s, registrytest.Counts{Ping: 1})
}

func TestQuotaMetric(t *testing.T) {
	t.Parallel()
	s := registrytest.New()
	s.Push("a", "latest")
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("RateLimit-Remaining", "76;w=21600")
		s.ServeHTTP(w, r)
	}))
	reg := prometheus.NewRegistry()
	one(client(Options{Insecure: []string{host}, Registerer: reg}), parse(t, host+"/a:latest"))
	want := fmt.Sprintf(`
# HELP digestlock_registry_quota_remaining What a registry last said in its RateLimit-Remaining header, as Docker Hub does.
# TYPE digestlock_registry_quota_remaining gauge
digestlock_registry_quota_remaining{registry=%q} 76
`, host)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "digestlock_registry_quota_remaining"); err != nil {
		t.Error(err)
	}
}

func TestInventedRegistriesAreBounded(t *testing.T) {
	t.Parallel()
	c := client(Options{})
	for i := range maxHosts + 10 {
		c.host(fmt.Sprintf("h%d.test", i))
	}
	if n := len(c.hosts); n != maxHosts {
		t.Errorf("%d registries are remembered, want %d", n, maxHosts)
	}
	if _, ok := c.hosts["h0.test"]; ok {
		t.Error("the registry used longest ago is remembered")
	}
	if got := c.metrics.label("h3.test"); got != "h3.test" {
		t.Errorf("label = %q, want the host", got)
	}
	if got := c.metrics.label("one-more.test"); got != otherRegistries {
		t.Errorf("label = %q, want %q", got, otherRegistries)
	}
}

// TestInventedRegistriesKeepTheUsed: a registry in use, with its sessions and its pause, makes no room for invented ones.
func TestInventedRegistriesKeepTheUsed(t *testing.T) {
	t.Parallel()
	c := client(Options{})
	used := c.host("used.test")
	for i := range 3 * maxHosts {
		c.host(fmt.Sprintf("h%d.test", i))
		c.host("used.test")
	}
	if c.hosts["used.test"] != used {
		t.Error("a registry in use was forgotten")
	}
}

// TestInventedRepositoriesAreBounded: repositories that nobody asks for again are forgotten, with and without a session.
func TestInventedRepositoriesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := client(Options{}).host("ghcr.io")
		for i := range 20 * maxScopes {
			ref := image.Ref{Registry: h.name, Repository: fmt.Sprintf("a%d", i), Tag: "latest"}
			for g := range h.join("", []*task{{ref: ref}}) {
				if i%(2*maxScopes) == 0 && g.flight == nil { // every other group has a session, the rest failed to open one
					g.flight = &flight{done: make(chan struct{}), session: &session{opened: time.Now()}}
					close(g.flight.done)
				}
			}
			time.Sleep(sessionAge / maxScopes)
			if n := len(h.groups); n > 3*maxScopes {
				t.Fatalf("%d repositories are remembered after %d in %v each", n, i+1, sessionAge/maxScopes)
			}
		}
	})
}

// TestThrottledWithoutTime: a registry that does not say how long is left alone, longer each time, until it serves again.
func TestThrottledWithoutTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := client(Options{}).host("ghcr.io")
		answer := func(status int) time.Duration {
			p := pace{h, roundTripper(func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: status}, nil })}
			if _, err := p.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodHead, "https://ghcr.io/", nil)); err != nil {
				t.Fatal(err)
			}
			return time.Until(h.paused())
		}
		for want := firstPause; want < lastPause; want *= 2 {
			if got := answer(429); got != want {
				t.Fatalf("paused for %v, want %v", got, want)
			}
			h.throttle(0) // the answer to one that was under way
			if got := time.Until(h.paused()); got != want {
				t.Fatalf("a second answer made it %v, want %v", got, want)
			}
		}
		if got := answer(429); got != lastPause {
			t.Fatalf("paused for %v, want %v", got, lastPause)
		}
		answer(404)
		if got := answer(429); got != firstPause {
			t.Errorf("after an answer paused for %v, want %v", got, firstPause)
		}
	})
}
