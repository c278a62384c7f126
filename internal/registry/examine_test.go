package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// step returns the step of that name; there must be one.
func step(t *testing.T, steps []Step, name string) Step {
	t.Helper()
	for _, s := range steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no step %s in %+v", name, steps)
	return Step{}
}

// TestExamineFailsWhereResolveFails: whatever is wrong, the last step has the very error that a lookup has, and when
// nothing is, none has one.
func TestExamineFailsWhereResolveFails(t *testing.T) {
	t.Parallel()
	in := func(target string, f registrytest.Fault) func(*registrytest.Server) {
		return func(s *registrytest.Server) { s.Inject(target, f) }
	}
	const repo = "team/app00"
	for _, tt := range []struct {
		name, step string // "" when it does not fail
		do         func(*registrytest.Server)
		o          Options
	}{
		{"nothing", "", func(*registrytest.Server) {}, Options{}},
		{"basic", "", func(s *registrytest.Server) { s.RequireBasic("u", "p") }, Options{Keychain: &keychain{user: "u", password: "p"}}},
		{"bearer", "", func(s *registrytest.Server) { s.RequireBearer("u", "p") }, Options{Keychain: &keychain{user: "u", password: "p"}}},
		{"credentials of the repository", "", func(s *registrytest.Server) { s.RequireBearer("u", "p") }, Options{Keychain: repoKeychain{"team/app00"}}},
		{"no digest", "", in(repo, registrytest.Fault{NoDigest: true}), Options{}},
		{"a moment's trouble", "", in(registrytest.Ping, registrytest.Fault{Status: 503, Times: 1}), Options{}},
		{"not allowed", stepAllowed, func(*registrytest.Server) {}, Options{Allow: Hosts{"ghcr.io"}}},
		{"loopback", stepDNS, func(*registrytest.Server) {}, Options{Insecure: []string{}}},
		{"stopped", stepConnect, (*registrytest.Server).Close, Options{}},
		{"plain http", stepConnect, func(*registrytest.Server) {}, Options{AllowRealm: Hosts{"HOST"}}},
		{"ping", stepPing, in(registrytest.Ping, registrytest.Fault{Status: 503}), Options{}},
		{"no registry", stepPing, in(registrytest.Ping, registrytest.Fault{Status: 404}), Options{}},
		{"silent", stepPing, in(registrytest.Ping, registrytest.Fault{Hang: true}), Options{Timeout: 100 * time.Millisecond}},
		{"ping that leads elsewhere", stepPing, in(registrytest.Ping, registrytest.Fault{Status: 307, Location: "http://ghcr.io/"}), Options{}},
		{"wrong password", stepManifest, func(s *registrytest.Server) { s.RequireBasic("u", "p") }, Options{Keychain: &keychain{user: "u", password: "q"}}},
		{"wrong password for a token", stepLogin, func(s *registrytest.Server) { s.RequireBearer("u", "p") }, Options{Keychain: &keychain{user: "u", password: "q"}}},
		{"realm elsewhere", stepLogin, func(s *registrytest.Server) { s.RequireBearer("u", "p"); s.SetRealm("http://ghcr.io/token") }, Options{Keychain: &keychain{user: "u", password: "p"}}},
		{"denied", stepManifest, func(s *registrytest.Server) { s.RequireBearer("", ""); s.Deny(repo) }, Options{}},
		{"not found", stepManifest, func(s *registrytest.Server) { s.Delete(repo, "latest") }, Options{}},
		{"throttled", stepManifest, in(repo, registrytest.Fault{Status: 429}), Options{}},
		{"wrong digest", stepManifest, in(repo, registrytest.Fault{Digest: "sha256:abc"}), Options{}},
		{"too many requests of ours", stepManifest, func(*registrytest.Server) {}, Options{QPS: 0.001}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			all, _ := refs(t, s, 1)
			tt.do(s)
			o := tt.o
			if o.Keychain == nil {
				o.Keychain = &keychain{}
			}
			switch {
			case o.AllowRealm != nil:
				o.AllowRealm = Hosts{s.Host} // may be connected to, and not by plain http
			case o.Insecure == nil && o.Allow == nil:
				o.Insecure = []string{s.Host}
			}
			steps, found := Examine(t.Context(), o, "", all[0])
			real := one(New(o), all[0])
			untimed := func(err error) string { return regexp.MustCompile(` until .* UTC`).ReplaceAllString(err.Error(), "") }
			if (found.Err == nil) != (real.Err == nil) || found.Digest != real.Digest ||
				found.Err != nil && (untimed(found.Err) != untimed(real.Err) || fault.Hint(found.Err) != fault.Hint(real.Err)) {
				t.Errorf("Examine found %q, %v, Resolve %q, %v", found.Digest, found.Err, real.Digest, real.Err)
			}
			last := steps[len(steps)-1]
			if tt.step == "" {
				if found.Err != nil || last.Name != stepManifest || last.Err != nil {
					t.Errorf("ended with %+v, %v", last, found.Err)
				}
			} else if last.Name != tt.step || last.Err == nil || last.Err != found.Err {
				t.Errorf("ended with %+v, %v, want it to fail at %s", last, found.Err, tt.step)
			}
			for _, s := range steps[:len(steps)-1] {
				if s.Err != nil {
					t.Errorf("%s failed, and was not the end: %v", s.Name, s.Err)
				}
			}
		})
	}
}

// TestExamineTellsNoSecret: neither the password nor the token that went over the wire is in any text.
func TestExamineTellsNoSecret(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"basic", "bearer"} {
		s := registrytest.New()
		s.Push("a", "latest")
		var mu sync.Mutex
		secrets := []string{"hunter2"}
		host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, secret, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
				mu.Lock()
				secrets = append(secrets, secret)
				mu.Unlock()
			}
			s.ServeHTTP(w, r)
		}))
		want := "the credentials go with each request"
		if scheme == "bearer" {
			s.RequireBearer("u", "hunter2")
			want = fmt.Sprintf("token of %q for repository:a:pull, valid for 5m0s", host)
		} else {
			s.RequireBasic("u", "hunter2")
		}
		steps, r := Examine(t.Context(), Options{Insecure: []string{host}, Keychain: &keychain{user: "u", password: "hunter2"}}, "", parse(t, host+"/a:latest"))
		if got := step(t, steps, stepLogin).Text; r.Err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", scheme, got, r.Err, want)
		}
		mu.Lock()
		sent := secrets
		mu.Unlock()
		if len(sent) < 2 {
			t.Fatalf("%s: no secret was sent", scheme)
		}
		for _, secret := range sent {
			if text := fmt.Sprintf("%+v", steps); strings.Contains(text, secret) {
				t.Errorf("%s: %q is in %s", scheme, secret, text)
			}
		}
	}
}

// lasting returns a certificate that signs itself and ends in d.
func lasting(t *testing.T, d time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry\n.test"}, DNSNames: []string{"good.test"},
		NotBefore: time.Now().Add(-100 * day), NotAfter: time.Now().Add(d), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestExamineCertificate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text, advice, err string
		left                    time.Duration
	}{
		{"long", "61 days left", "", "", 61*day + time.Hour},
		{"short", "3 days left", renewHint, "", 3*day + time.Hour},
		{"over", "expired 2 days ago", renewHint, "certificate has expired or is not valid yet", -2*day - time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New()
			reg.Push("a", "latest")
			srv := httptest.NewUnstartedServer(reg)
			c := lasting(t, tt.left)
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{c}}
			srv.StartTLS()
			t.Cleanup(srv.Close)
			addr := srv.Listener.Addr().String()
			host := "good.test:" + addr[strings.LastIndexByte(addr, ':')+1:]
			o := over(t, inside, Options{Allow: Hosts{host}, Keychain: &keychain{}})
			pool := x509.NewCertPool()
			leaf, err := x509.ParseCertificate(c.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			pool.AddCert(leaf)
			o.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}

			steps, _ := Examine(t.Context(), o, "", parse(t, host+"/a:latest"))
			got := step(t, steps, stepConnect)
			want := addr + ", certificate of \"CN=registry\\n.test\" by \"CN=registry\\n.test\", " + tt.text
			if tt.err == "" {
				want = strings.Replace(want, ", ", ", TLS 1.3, ", 1)
			}
			if got.Text != want || (tt.err == "" && got.Advice != tt.advice) {
				t.Errorf("connect: %q with advice %q, want %q with %q", got.Text, got.Advice, want, tt.advice)
			}
			if tt.err == "" && got.Err != nil || tt.err != "" && (got.Err == nil || !strings.HasSuffix(got.Err.Error(), tt.err)) {
				t.Errorf("connect failed with %v, want %q", got.Err, tt.err)
			}
		})
	}
}

func TestExamineClock(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		skew time.Duration
		want string
	}{
		{0, "within a minute of ours"},
		{-30 * time.Second, "within a minute of ours"},
		{2 * time.Hour, "ahead of ours"},
		{-2 * time.Hour, "behind ours"},
	} {
		s := registrytest.Start(t)
		all, _ := refs(t, s, 1)
		s.SetClock(tt.skew)
		steps, r := Examine(t.Context(), Options{Insecure: []string{s.Host}, Keychain: &keychain{}}, "", all[0])
		got := step(t, steps, stepClock)
		if wrong := tt.skew.Abs() > maxSkew; r.Err != nil || !strings.HasSuffix(got.Text, tt.want) || (got.Advice != "") != wrong {
			t.Errorf("skew %v: %q, advice %q, %v; want %q", tt.skew, got.Text, got.Advice, r.Err, tt.want)
		}
	}
}

// TestExamineAddresses: each address has its verdict, of the guard that the connection passed.
func TestExamineAddresses(t *testing.T) {
	t.Parallel()
	host, reg := secureAt(t, "two.test")
	reg.Push("a", "latest")
	o := over(t, names{"two.test": {"169.254.169.254", "127.0.0.1"}}, Options{Allow: Hosts{host}, Keychain: &keychain{}})
	steps, r := Examine(t.Context(), o, "", parse(t, host+"/a:latest"))
	want := "two.test is 127.0.0.1 (allowed), 169.254.169.254 (reserved address refused)"
	if got := step(t, steps, stepDNS).Text; r.Err != nil || got != want {
		t.Errorf("dns: %q, %v, want %q", got, r.Err, want)
	}
	steps, _ = Examine(t.Context(), over(t, inside, Options{Keychain: &keychain{}}), "", parse(t, "harbor.test/a:latest"))
	if got := step(t, steps, stepDNS); got.Text != "harbor.test is 10.0.0.5 (private address refused)" || got.Err == nil {
		t.Errorf("dns: %+v", got)
	}
	steps, _ = Examine(t.Context(), over(t, inside, Options{Keychain: &keychain{}}), "", parse(t, "nowhere.test/a:latest"))
	if got := step(t, steps, stepDNS); got.Err == nil || !strings.HasSuffix(got.Err.Error(), "no such host") {
		t.Errorf("dns: %+v", got)
	}
}

func TestExamineManifest(t *testing.T) {
	t.Parallel()
	s := registrytest.New()
	index := s.PushIndex("a", "latest")
	host := plain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("RateLimit-Limit", "100;w=21600")
		w.Header().Set("RateLimit-Remaining", "76;w=21600")
		s.ServeHTTP(w, r)
	}))
	steps, _ := Examine(t.Context(), Options{Insecure: []string{host}, Keychain: &keychain{}}, "", parse(t, host+"/a:latest"))
	want := "HEAD answers 200, " + index + `, an index of platforms, application/vnd.oci.image.index.v1+json, RateLimit-Limit "100;w=21600", RateLimit-Remaining "76;w=21600"`
	if got := step(t, steps, stepManifest).Text; got != want {
		t.Errorf("manifest: %q, want %q", got, want)
	}
}
