package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// stack is a registry behind a proxy, a resolver that asks it, and what renders through the resolver.
type stack struct {
	*registrytest.Registry
	proxy   *registrytest.Proxy // in front of the registry
	login   *registrytest.Proxy // in front of it too, for tokens
	expired atomic.Bool         // the registry's certificate
	noDNS   atomic.Pointer[net.DNSError]
	socket  string // the resolver's
}

// wire is how a stack's resolver reaches the registry.
type wire int

const (
	plain  wire = iota // in plain http, with the resolver's own transport
	secure             // over https
	byName             // with a DNS of the test's own
)

var faults = []struct {
	name   string
	wire   wire
	before func(*stack) // the registry from the start
	fault  func(*stack)

	// What an image that nobody knows yet gets; "" is a digest. One that the resolver knows gets the digest that it
	// knows, unless refused is set: then the registry's answer replaces it.
	text, hint string
	code       string // registry-unavailable where nothing is said
	refused    bool
}{
	{name: "429", fault: status(429, ""), text: `HOST: unavailable (429, throttled until TIME)`, hint: `log in to HOST for a higher limit, or wait`},
	{name: "429 with Retry-After", fault: status(429, "3600"), text: `HOST: unavailable (429, throttled until TIME)`, hint: `log in to HOST for a higher limit, or wait`},
	{name: "500", fault: status(500, ""), text: `HOST: unavailable (500)`, hint: later},
	{name: "502", fault: status(502, ""), text: `HOST: unavailable (502)`, hint: later},
	{name: "connection refused", fault: func(s *stack) { s.proxy.Close() }, text: `HOST: unavailable: connection refused`, hint: later},
	{name: "connection reset", fault: func(s *stack) { s.proxy.Set(registrytest.Reset) }, text: `HOST: unavailable: connection reset by peer`, hint: later},
	{name: "accepts and is silent", fault: func(s *stack) { s.proxy.Set(registrytest.Silence) }, text: `HOST: unavailable: no answer within 1s`, hint: later},
	{name: "drips", fault: func(s *stack) { s.proxy.Set(registrytest.Drip) }, text: `HOST: unavailable: no answer within 1s`, hint: later},
	{
		name: "wrong digest", fault: all(registrytest.Fault{Digest: "sha256:abc"}),
		text: `HOST: answered "sha256:abc", which is not a sha256 digest`, hint: later,
	},
	{name: "no digest", fault: all(registrytest.Fault{NoDigest: true})},
	{
		name: "huge body", fault: all(registrytest.Fault{NoDigest: true, Body: strings.Repeat(" ", 4<<20+1)}),
		text: `HOST: manifest is larger than 4194304 bytes`, hint: later,
	},
	{
		name: "redirect to another host", fault: all(registrytest.Fault{Status: 307, Location: "https://elsewhere.example.com/v2/a/manifests/latest"}),
		text: `HOST: redirect to another host, "elsewhere.example.com", refused`,
		hint: `name the image at elsewhere.example.com instead, or give lists of --allow-registry that have elsewhere.example.com`,
		code: "registry-refused",
	},
	{
		name: "no such host", wire: byName, fault: dns(net.DNSError{IsNotFound: true}),
		text: `HOST: unavailable: no such host`, hint: `check the registry in the image's name, and the DNS here`,
	},
	{name: "DNS down", wire: byName, fault: dns(net.DNSError{IsTimeout: true}), text: `HOST: unavailable: DNS does not answer`, hint: later},
	{
		name: "expired certificate", wire: secure, fault: func(s *stack) {
			s.expired.Store(true)
			s.proxy.Set(registrytest.Pass) // breaks the connections
		},
		text: `HOST: certificate has expired or is not valid yet`, hint: `renew the registry's certificate; if it is in order, mend this machine's clock`,
		code: "registry-certificate",
	},
	{
		name: "expired credentials", before: func(s *stack) { s.RequireBasic("u", "p") }, fault: func(s *stack) { s.RequireBasic("u", "q") },
		text: `HOST: unauthorized (401)`, hint: `check the credentials for HOST`, code: "registry-unauthorized", refused: true,
	},
	{name: "expired token", before: func(s *stack) { s.RequireBearer("u", "p") }, fault: func(s *stack) { s.ExpireTokens() }},
	{
		name: "token server down",
		before: func(s *stack) {
			s.RequireBearer("", "")
			s.SetRealm("http://" + local(s.login) + "/token")
		},
		fault: func(s *stack) {
			s.ExpireTokens()
			s.login.Close()
		},
		text: `HOST: unavailable: connection refused`, hint: later,
	},
	{
		name: "clock slow by two days", before: func(s *stack) { s.RequireBearer("u", "p") },
		fault: func(s *stack) {
			s.SetClock(-48 * time.Hour)
			s.ExpireTokens()
		},
	},
	{
		name: "clock fast by two days", before: func(s *stack) { s.RequireBearer("u", "p") },
		fault: func(s *stack) {
			s.SetClock(48 * time.Hour)
			s.ExpireTokens()
		},
	},
}

// later is the hint for what mends itself.
const later = "try again once the registry answers; an image that digest-lock.yaml names needs no registry"

var repositories = []string{"locked/app", "known/app", "new/app"}

func all(f registrytest.Fault) func(*stack) {
	return func(s *stack) {
		for _, r := range repositories {
			s.Inject(r, f)
		}
	}
}

func status(code int, retryAfter string) func(*stack) {
	return all(registrytest.Fault{Status: code, RetryAfter: retryAfter})
}

func dns(err net.DNSError) func(*stack) {
	return func(s *stack) {
		s.noDNS.Store(&err)
		s.proxy.Set(registrytest.Pass) // breaks the connections
	}
}

// local is a proxy's address by name: go-containerregistry refuses realms on loopback addresses.
func local(p *registrytest.Proxy) string {
	return "localhost" + strings.TrimPrefix(p.Host, "127.0.0.1")
}

// TestRegistryFaults is the table of docs/troubleshooting.md: what a render gets while its registry misbehaves. It fails
// as well when that page does not have the text.
func TestRegistryFaults(t *testing.T) {
	t.Parallel()
	docs, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.text != "" && !strings.Contains(string(docs), "`"+tt.text+"`") {
				t.Errorf("docs/troubleshooting.md has no %q", tt.text)
			}
			s := newStack(t, tt.wire)
			if tt.before != nil {
				tt.before(s)
			}
			digests := map[string]string{}
			for _, repo := range repositories {
				digests[repo] = s.Push(repo, "latest")
			}
			if got, err := s.render(t, "known/app", ""); err != nil || got != digests["known/app"] {
				t.Fatalf("before the fault: %q, %v", got, err)
			}
			newer := s.Push("known/app", "latest")
			tt.fault(s)
			s.ResetCounts()

			if got, err := s.render(t, "locked/app", digests["locked/app"]); err != nil || got != digests["locked/app"] {
				t.Errorf("image in the lock: %q, %v", got, err)
			}
			if n := s.Counts(); n != (registrytest.Counts{}) {
				t.Errorf("image in the lock: %+v requests, want none", n)
			}

			got, err := s.render(t, "known/app", "")
			switch {
			case tt.refused:
				s.wantText(t, err, "known/app", tt.text, tt.hint, tt.code)
			case err != nil || (got != digests["known/app"] && (tt.text != "" || got != newer)):
				t.Errorf("image that the resolver knows: %q, %v, want %s", got, err, digests["known/app"])
			}

			got, err = s.render(t, "new/app", "")
			if tt.text != "" {
				s.wantText(t, err, "new/app", tt.text, tt.hint, tt.code)
			} else if err != nil || got != digests["new/app"] {
				t.Errorf("image that nobody knows: %q, %v", got, err)
			}
		})
	}
}

func (s *stack) wantText(t *testing.T, err error, repo, text, hint, code string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %q", repo, text)
		return
	}
	got := strings.ReplaceAll(err.Error(), s.proxy.Host, "HOST")
	got = regexp.MustCompile(`until \d\d:\d\d:\d\d UTC`).ReplaceAllString(got, "until TIME")
	want := fmt.Sprintf("digestlock: error: 1 of 1 images not resolved: HOST/%s:latest: %s [%s]\ndigestlock: hint: %s\n",
		repo, text, cmp.Or(code, "registry-unavailable"), hint)
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", repo, got, want)
	}
}

func newStack(t *testing.T, w wire) *stack {
	t.Helper()
	s := &stack{Registry: registrytest.New()}
	o := registry.Options{Timeout: time.Second, Keychain: password{}}
	srv := httptest.NewUnstartedServer(s.Registry)
	if w == secure {
		o.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.certify(t, srv)}}
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	s.proxy = registrytest.StartProxy(t, srv.Listener.Addr().String())
	s.login = registrytest.StartProxy(t, srv.Listener.Addr().String())
	switch w {
	case secure:
		o.Allow = registry.Hosts{s.proxy.Host}
	case byName:
		o.Transport = &http.Transport{DialContext: s.dial}
		fallthrough
	default:
		o.Insecure = []string{s.proxy.Host, local(s.login)}
		o.AllowRealm = registry.Hosts{local(s.login)}
	}
	s.serve(t, o)
	return s
}

// dial connects unless DNS is broken.
func (s *stack) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := s.noDNS.Load(); err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// certify gives a server a certificate that can expire, and returns who trusts it.
func (s *stack) certify(t *testing.T, srv *httptest.Server) *x509.CertPool {
	t.Helper()
	valid, expired := certificate(t, time.Hour), certificate(t, -time.Hour)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := valid
		if s.expired.Load() {
			c = expired
		}
		return &tls.Config{Certificates: []tls.Certificate{*c}}, nil
	}}
	pool := x509.NewCertPool()
	pool.AddCert(valid.Leaf)
	pool.AddCert(expired.Leaf)
	return pool
}

// serve runs the resolver, which takes every answer for old at once.
func (s *stack) serve(t *testing.T, o registry.Options) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dl") // a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	logger := slog.New(slog.DiscardHandler)
	ledger, err := daemon.OpenLedger(filepath.Join(dir, "state"), logger)
	if err != nil {
		t.Fatal(err)
	}
	lookups := cache.New(registry.New(o), cache.Options{TTL: time.Nanosecond, NegativeTTL: time.Nanosecond})
	s.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := daemon.New(daemon.Options{Resolver: lookups, Ledger: ledger, Log: logger, Metrics: prometheus.NewRegistry()})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, l, nil) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		lookups.Close()
	})
}

// password is what every registry is told.
type password struct{}

func (password) Find(_ context.Context, _, registry, _ string) (credentials.Login, error) {
	return credentials.Login{Auth: authn.AuthConfig{Username: "u", Password: "p"}, Hint: "check the credentials for " + registry}, nil
}

// certificate returns one that signs itself and is valid until then, or was.
func certificate(t *testing.T, d time.Duration) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(d),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

var pinned = regexp.MustCompile(`image: \S+@(sha256:[0-9a-f]{64})\n`)

// render runs digestlock generate on an overlay with one image, and with a lock if that gives its digest, and returns
// the digest. The error is what people read.
func (s *stack) render(t *testing.T, repo, locked string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	image := s.proxy.Host + "/" + repo + ":latest"
	files := map[string]string{
		"kustomization.yaml": "resources: [pod.yaml]\n",
		"pod.yaml":           "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n    image: " + image + "\n",
	}
	if locked != "" {
		files[lock.FileName] = "apiVersion: digestlock.dev/v1\nkind: DigestLock\npins:\n  - image: " + image +
			"\n    digest: " + locked + "\n    resolvedAt: \"2026-11-22T20:57:00Z\"\n"
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "digestlock", "generate", "--server", "unix://"+s.socket, dir)
	var manifests, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &manifests, &stderr
	if err := cmd.Run(); err != nil {
		if manifests.Len() != 0 {
			t.Errorf("%s: manifests beside an error:\n%s", repo, &manifests)
		}
		return "", errors.New(stderr.String())
	}
	found := pinned.FindSubmatch(manifests.Bytes())
	if found == nil {
		return "", fmt.Errorf("no digest in:\n%s", &manifests)
	}
	return string(found[1]), nil
}
