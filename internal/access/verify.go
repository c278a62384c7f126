package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/digestlock/digestlock/internal/fault"
)

// Why a token opens nothing. Any other error is about the token itself: it is forged, expired, of another issuer or for
// another audience.
var (
	// ErrNotJWT: the text is not a JSON Web Token, so that it may be something else.
	ErrNotJWT = errors.New("not a JSON Web Token")
	// ErrUnavailable: the token could not be checked now. Its error's text is for the log, not for the caller.
	ErrUnavailable = errors.New("token not checked")
	// ErrForbidden: the token is good, and no rule fits its claims.
	ErrForbidden = errors.New("forbidden")
)

const (
	// askTimeout bounds one request to an issuer, its body included; checkTimeout the check of a token, which takes up
	// to two of them.
	askTimeout   = 5 * time.Second
	checkTimeout = 12 * time.Second
	// maxAge is how long discovery and keys are used. go-oidc asks for keys that it does not know, and never forgets one
	// that the issuer withdrew (read, v3.21.0).
	maxAge = time.Hour
	// leeway is how far the clocks may differ at a token's end. go-oidc gives 5 minutes at its begin (nbf) and none at
	// its end; the one is taken from the other.
	leeway = time.Minute
	// askEvery and askBurst bound the requests to one issuer: a key id that it never heard of makes go-oidc ask for its
	// keys, and anybody may invent one.
	askEvery = 2 * time.Second
	askBurst = 10

	maxToken  = 16 << 10 // bytes; GitHub's are 2 KiB
	maxAnswer = 1 << 20  // bytes of an issuer's answer
)

// algorithms are those that an issuer can sign with and nobody else. "none" and the HS family, whose key would be the
// public one, are not among them; what the issuer's discovery says does not count.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// Issuer is somebody whose tokens count.
type Issuer struct {
	URL       string `yaml:"issuer"`    // https, exactly as the claim iss gives it
	Audience  string `yaml:"audience"`  // what the claim aud must contain
	CAFile    string `yaml:"caFile"`    // PEM bundle to trust for the issuer instead of the system's; "" is the system's
	TokenFile string `yaml:"tokenFile"` // bearer token for discovery and keys, which a Kubernetes API server wants; "" sends none
}

// Token is a token that was verified: signed by its issuer, for the right audience, and in its time.
type Token struct {
	Issuer, Subject string
	claims          map[string]any
}

// Claim returns the claim as text, and "" when the token lacks it or it is neither a text nor a boolean.
func (t Token) Claim(name string) string {
	switch v := t.claims[name].(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// Verifier checks tokens of OpenID Connect issuers. It asks an issuer when the first token of it comes, and remembers
// its keys for an hour; an issuer that cannot be asked fails its own tokens only. It is safe for concurrent use.
type Verifier struct{ issuers map[string]*provider }

// NewVerifier returns a verifier of the issuers' tokens. The error is about an issuer that is not well-formed or listed
// twice; nobody is asked yet.
func NewVerifier(issuers ...Issuer) (*Verifier, error) {
	v := &Verifier{issuers: map[string]*provider{}}
	for _, i := range issuers {
		if err := i.check(); err != nil {
			return nil, err
		}
		if v.issuers[i.URL] != nil {
			return nil, fmt.Errorf("issuer %s: listed twice", i.URL)
		}
		v.issuers[i.URL] = &provider{Issuer: i, asks: rate.NewLimiter(rate.Every(askEvery), askBurst)}
	}
	return v, nil
}

func (i Issuer) check() error {
	u, err := url.Parse(i.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("issuer %q: want https://host[/path]", i.URL)
	}
	if i.Audience == "" {
		return fmt.Errorf("issuer %s: no audience", i.URL)
	}
	return nil
}

// Verify returns the token in raw. The error wraps [ErrNotJWT] or [ErrUnavailable], or says with a hint what is wrong
// with the token, and never contains it.
func (v *Verifier) Verify(ctx context.Context, raw string) (Token, error) {
	issuer, err := issuerOf(raw)
	if err != nil {
		return Token{}, err
	}
	p, ok := v.issuers[issuer]
	if !ok {
		return Token{}, fault.New(fault.ResolverToken, "add the issuer to --oidc-config, or send a token of one that it lists",
			"token of issuer %q, whose tokens do not count here", issuer)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %v", checkTimeout))
	defer cancel()
	return p.verify(ctx, raw)
}

// Email returns the address that the token in raw stands for, if its issuer has verified that. Errors are those of
// [Verifier.Verify].
func (v *Verifier) Email(ctx context.Context, raw string) (string, error) {
	t, err := v.Verify(ctx, raw)
	if err != nil {
		return "", err
	}
	if t.Claim("email") == "" || t.Claim("email_verified") != "true" {
		return "", fault.New(fault.ResolverToken, "let the token carry the email address of a service account", "token without a verified email address")
	}
	return t.Claim("email"), nil
}

// issuerOf reads who a token says it is from. Nothing is verified yet.
func issuerOf(raw string) (string, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || len(raw) > maxToken {
		return "", ErrNotJWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", ErrNotJWT
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Issuer == "" {
		return "", ErrNotJWT
	}
	if claims.Issuer == "accounts.google.com" { // Google's alone, and go-oidc knows it
		return "https://accounts.google.com", nil
	}
	return claims.Issuer, nil
}

// provider is an issuer with what is known of it.
type provider struct {
	Issuer
	asks   *rate.Limiter
	flight singleflight.Group

	mu    sync.Mutex
	keys  oidc.KeySet
	until time.Time // when keys are too old
}

func (p *provider) verify(ctx context.Context, raw string) (Token, error) {
	keys, err := p.keySet(ctx)
	if err != nil {
		return Token{}, p.unavailable(err)
	}
	seen := &witness{KeySet: keys}
	t, err := oidc.NewVerifier(p.URL, seen, &oidc.Config{
		ClientID: p.Audience, SupportedSigningAlgs: algorithms,
		Now: func() time.Time { return time.Now().Add(-leeway) },
	}).Verify(ctx, raw)
	if seen.err != nil {
		return Token{}, p.unavailable(seen.err)
	}
	out := Token{Issuer: p.URL}
	if err == nil {
		out.Subject = t.Subject
		err = t.Claims(&out.claims)
	}
	if err != nil {
		return Token{}, fault.New(fault.ResolverToken, fmt.Sprintf("send a token of %s for audience %q that has not expired", p.URL, p.Audience),
			"token refused: %s", strings.TrimPrefix(brief(err), "oidc: "))
	}
	return out, nil
}

func (p *provider) unavailable(err error) error {
	return fmt.Errorf("%w: issuer %s: %s", ErrUnavailable, p.URL, brief(err))
}

// brief cuts what may quote an issuer's whole answer.
func brief(err error) string {
	const most = 500
	s := err.Error()
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// witness remembers that keys could not be fetched, which go-oidc's verifier tells in its text only.
type witness struct {
	oidc.KeySet
	err error
}

func (w *witness) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := w.KeySet.VerifySignature(ctx, jwt)
	if _, ok := errors.AsType[*url.Error](err); ok || ctx.Err() != nil {
		w.err = err
	}
	return payload, err
}

// keySet returns the issuer's keys, from discovery if need be, which callers share.
func (p *provider) keySet(ctx context.Context) (oidc.KeySet, error) {
	p.mu.Lock()
	keys, fresh := p.keys, time.Now().Before(p.until)
	p.mu.Unlock()
	if fresh {
		return keys, nil
	}
	select {
	case r := <-p.flight.DoChan("", p.discover):
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(oidc.KeySet), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// discover asks the issuer where its keys are. It is bounded by the client's timeout and not by a caller.
func (p *provider) discover() (any, error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	ctx := oidc.ClientContext(context.Background(), client)
	found, err := oidc.NewProvider(ctx, p.URL)
	if err != nil {
		return nil, err
	}
	var metadata struct {
		Keys string `json:"jwks_uri"`
	}
	if err := found.Claims(&metadata); err != nil {
		return nil, err
	}
	keys := oidc.NewRemoteKeySet(ctx, metadata.Keys)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys, p.until = keys, time.Now().Add(maxAge)
	return keys, nil
}

// client returns a client for this issuer alone.
func (p *provider) client() (*http.Client, error) {
	t := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DisableKeepAlives: true, // it is asked once an hour
	}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", p.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{
		Transport: &transport{next: t, asks: p.asks, tokenFile: p.TokenFile},
		Timeout:   askTimeout,
	}, nil
}

// transport bounds what an issuer is asked and what it may answer.
type transport struct {
	next      http.RoundTripper
	asks      *rate.Limiter
	tokenFile string
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, errors.New("not https")
	}
	if !t.asks.Allow() {
		return nil, errors.New("asked too often already")
	}
	if t.tokenFile != "" {
		token, err := os.ReadFile(t.tokenFile)
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// Here rather than in go-oidc, which quotes the whole answer, and before a redirect is followed.
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, errors.New("answer " + strconv.Itoa(res.StatusCode))
	}
	res.Body = http.MaxBytesReader(nil, res.Body, maxAnswer)
	return res, nil
}
