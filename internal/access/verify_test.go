package access_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/fault"
)

type claims = accesstest.Claims

func listen(t *testing.T) (*accesstest.Issuer, access.Issuer) {
	t.Helper()
	i := accesstest.Listen()
	t.Cleanup(i.Close)
	ca, err := i.CAFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return i, access.Issuer{URL: i.URL, Audience: "digestlock", CAFile: ca}
}

func newVerifier(t *testing.T, issuers ...access.Issuer) *access.Verifier {
	t.Helper()
	v, err := access.NewVerifier(issuers...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ago(d time.Duration) int64 { return time.Now().Add(-d).Unix() }

func TestVerify(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	other, _ := listen(t)
	v := newVerifier(t, issuer)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(i.Payload(nil)) + "."
	good := strings.Split(i.Token(nil), ".")
	more := strings.Split(i.Token(claims{"sub": "somebody else"}), ".")
	tests := []struct{ name, token, want string }{
		{"good", i.Token(nil), ""},
		{"one audience of several", i.Token(claims{"aud": []string{"sigstore", "digestlock"}}), ""},
		{"expired within the leeway", i.Token(claims{"exp": ago(30 * time.Second)}), ""},
		{"from the near future", i.Token(claims{"nbf": ago(-2 * time.Minute)}), ""},
		{"expired", i.Token(claims{"exp": ago(2 * time.Minute)}), "token is expired"},
		{"without end", i.Token(claims{"exp": nil}), "token is expired"},
		{"from the far future", i.Token(claims{"nbf": ago(-10 * time.Minute)}), "before the nbf"},
		{"wrong audience", i.Token(claims{"aud": "sigstore"}), `expected audience "digestlock" got ["sigstore"]`},
		{"no audience", i.Token(claims{"aud": nil}), `expected audience "digestlock"`},
		{"unknown issuer", other.Token(nil), "whose tokens do not count here"},
		{"key of another issuer", other.Token(claims{"iss": i.URL}), "failed to verify id token signature"},
		{"alg none", none, `unexpected signature algorithm "none"`},
		{"alg HS256 with the public key", i.Sign(nil, jose.HS256, i.PublicKey(), i.KeyID()), `unexpected signature algorithm "HS256"`},
		{"other claims under a signature", good[0] + "." + more[1] + "." + good[2], "failed to verify id token signature"},
		{"no signature", good[0] + "." + good[1] + ".", "failed to verify id token signature"},
	}
	for _, tt := range tests {
		got, err := v.Verify(t.Context(), tt.token)
		if tt.want == "" {
			if err != nil || got.Issuer != i.URL || got.Subject != "tester" {
				t.Errorf("%s: Verify = %+v, %v", tt.name, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" || errors.Is(err, access.ErrUnavailable) {
			t.Errorf("%s: Verify = %v with hint %q, want %q", tt.name, err, fault.Hint(err), tt.want)
		}
		if err != nil && strings.Contains(err.Error(), tt.token) {
			t.Errorf("%s: the error has the token in it: %v", tt.name, err)
		}
	}
	if n := i.Asked("/.well-known/openid-configuration"); n != 1 {
		t.Errorf("discovery was asked %d times, want 1", n)
	}
}

func TestNotJWT(t *testing.T) {
	t.Parallel()
	_, issuer := listen(t)
	v := newVerifier(t, issuer)
	for _, token := range []string{"", "token", "a.b.c", "..", "e30.e30.e30", "a.b", strings.Repeat("a", 1<<20), "e30.eyJpc3MiOiJ4In0.e30." + "x"} {
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, access.ErrNotJWT) {
			t.Errorf("Verify(%.20q) = %v, want ErrNotJWT", token, err)
		}
	}
}

// TestRotatedKey: a new key counts at once, and whoever invents key ids cannot make us flood the issuer.
func TestRotatedKey(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	v := newVerifier(t, issuer)
	old := i.Token(nil)
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i.RotateTo(key, jose.RS256)
	if _, err := v.Verify(t.Context(), i.Token(nil)); err != nil {
		t.Errorf("token of the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old); err == nil {
		t.Error("token of a key that the issuer withdrew: accepted")
	}
	forger, _ := listen(t)
	var limited bool
	for range 50 {
		_, err := v.Verify(t.Context(), forger.Token(claims{"iss": i.URL}))
		if err == nil {
			t.Fatal("forged token: accepted")
		}
		limited = limited || errors.Is(err, access.ErrUnavailable)
	}
	if n := i.Asked("/keys"); n > 20 || !limited {
		t.Errorf("50 forged tokens made %d requests for keys (limited: %v), want at most 20", n, limited)
	}
	if _, err := v.Verify(t.Context(), i.Token(nil)); err != nil {
		t.Errorf("good token amid forged ones: %v", err)
	}
}

// TestIssuerDown: an issuer that fails, however it does, fails its own tokens only, and is asked again.
func TestIssuerDown(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "secret details", http.StatusInternalServerError)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "/moved", http.StatusFound)
				return
			}
			_, _ = fmt.Fprintf(w, `{"issuer":"https://%s","jwks_uri":"https://%[1]s/moved","keys":[]}`, r.Host)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "hello") },
		"reset":   func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"huge": func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"https://%s","jwks_uri":"https://%[1]s/keys","keys":[],"x":"%s"}`, r.Host, strings.Repeat("x", 2<<20))
		},
		"plain http for keys": func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"https://%s","jwks_uri":"http://%s/keys"}`, r.Host, r.Host)
		},
		"another issuer": func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"issuer":"https://example.com"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			down, d := listen(t)
			up, u := listen(t)
			v := newVerifier(t, d, u)
			down.Fail(failure)
			_, err := v.Verify(t.Context(), down.Token(nil))
			if !errors.Is(err, access.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
				t.Errorf("issuer down: %v, want ErrUnavailable", err)
			}
			if _, err := v.Verify(t.Context(), up.Token(nil)); err != nil {
				t.Errorf("the other issuer: %v", err)
			}
			down.Fail(nil)
			if name == "plain http for keys" {
				if !strings.Contains(err.Error(), "not https") {
					t.Errorf("%v, want that it is not https", err)
				}
				return // discovery went well, and counts for an hour
			}
			if _, err := v.Verify(t.Context(), down.Token(nil)); err != nil {
				t.Errorf("issuer up again: %v", err)
			}
		})
	}
}

// TestSilentIssuer: callers wait for an issuer together, and no longer than it may take.
func TestSilentIssuer(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	v := newVerifier(t, issuer)
	release := make(chan struct{})
	i.Fail(func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) }) // before the issuer's Close, which waits
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), i.Token(nil)); !errors.Is(err, access.ErrUnavailable) {
				t.Errorf("silent issuer: %v, want ErrUnavailable", err)
			}
		})
	}
	wg.Wait()
	if n := i.Asked("/.well-known/openid-configuration"); n != 1 {
		t.Errorf("discovery was asked %d times by 20 callers, want 1", n)
	}
	i.Fail(nil) // the request of before still hangs
	if _, err := v.Verify(t.Context(), i.Token(nil)); err != nil {
		t.Errorf("issuer that answers again: %v", err)
	}
}

// TestIssuerWantsToken: a Kubernetes API server shows discovery and keys to those who are logged in.
func TestIssuerWantsToken(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	i.Require("cluster-token")
	if _, err := newVerifier(t, issuer).Verify(t.Context(), i.Token(nil)); !errors.Is(err, access.ErrUnavailable) {
		t.Errorf("without a token: %v, want ErrUnavailable", err)
	}
	issuer.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(issuer.TokenFile, []byte("cluster-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newVerifier(t, issuer).Verify(t.Context(), i.Token(nil)); err != nil {
		t.Errorf("with a token: %v", err)
	}
}

// TestStrangerIssuer: without its authority's certificate an issuer is nobody.
func TestStrangerIssuer(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	issuer.CAFile = ""
	if _, err := newVerifier(t, issuer).Verify(t.Context(), i.Token(nil)); !errors.Is(err, access.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v, want ErrUnavailable", err)
	}
}

func TestNewVerifier(t *testing.T) {
	t.Parallel()
	good := access.Issuer{URL: "https://issuer.example.com", Audience: "x"}
	for name, issuers := range map[string][]access.Issuer{
		"plain http":  {{URL: "http://issuer.example.com", Audience: "x"}},
		"no host":     {{URL: "https:///x", Audience: "x"}},
		"password":    {{URL: "https://u:p@issuer.example.com", Audience: "x"}},
		"query":       {{URL: "https://issuer.example.com?x", Audience: "x"}},
		"no audience": {{URL: "https://issuer.example.com"}},
		"twice":       {good, good},
	} {
		if _, err := access.NewVerifier(issuers...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	token, err := newVerifier(t, issuer).Verify(t.Context(), i.Token(claims{
		"email": "ci@acme.iam.gserviceaccount.com", "email_verified": true, "number": 1, "list": []string{"a"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"email": "ci@acme.iam.gserviceaccount.com", "email_verified": "true", "number": "", "list": "", "none": "",
	} {
		if got := token.Claim(name); got != want {
			t.Errorf("Claim(%s) = %q, want %q", name, got, want)
		}
	}
}

// TestEmail: an address counts when the issuer has verified it, as Google does for service accounts.
func TestEmail(t *testing.T) {
	t.Parallel()
	i, issuer := listen(t)
	v := newVerifier(t, issuer)
	const address = "push@acme.iam.gserviceaccount.com"
	for _, tt := range []struct {
		claims claims
		want   string
	}{
		{claims{"email": address, "email_verified": true}, address},
		{claims{"email": address, "email_verified": false}, ""},
		{claims{"email": address}, ""},
		{claims{"email_verified": true}, ""},
		{claims{"email": address, "email_verified": true, "aud": "somebody-else"}, ""},
		{claims{"email": address, "email_verified": true, "exp": ago(time.Hour)}, ""},
	} {
		got, err := v.Email(t.Context(), i.Token(tt.claims))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Email(%v) = %q, %v, want %q", tt.claims, got, err, tt.want)
		}
	}
}
