// Package accesstest is an OpenID Connect issuer for tests: discovery and keys over https, and tokens as a CI system
// makes them.
package accesstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Claims are a token's claims beside those that [Issuer.Token] sets, or instead of them; nil removes one.
type Claims map[string]any

// Issuer is an issuer with one signing key at a time. It is safe for concurrent use.
type Issuer struct {
	URL string

	server *httptest.Server

	mu    sync.Mutex
	key   crypto.Signer
	alg   jose.SignatureAlgorithm
	keyID string
	known jose.JSONWebKeySet // what the issuer publishes
	fault http.HandlerFunc
	wants string // the Authorization that it wants, "" for none
	asked map[string]int
}

// Listen starts an issuer on the loopback interface. Close it in the end.
func Listen() *Issuer {
	i := &Issuer{asked: map[string]int{}}
	i.Rotate()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", i.keys)
	i.server = httptest.NewTLSServer(i.watch(mux))
	i.URL = i.server.URL
	return i
}

// Close stops the issuer.
func (i *Issuer) Close() { i.server.Close() }

// CAFile writes the certificate to trust into dir and returns the file.
func (i *Issuer) CAFile(dir string) (string, error) {
	file := filepath.Join(dir, "issuer-ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw})
	return file, os.WriteFile(file, data, 0o600)
}

// Rotate replaces the signing key. Keys of before are not published any more.
func (i *Issuer) Rotate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system has no randomness
	}
	i.RotateTo(key, jose.ES256)
}

// RotateTo is Rotate with a key of the caller's.
func (i *Issuer) RotateTo(key crypto.Signer, alg jose.SignatureAlgorithm) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.alg = key, alg
	i.keyID = "key-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	i.known = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: i.keyID, Algorithm: string(alg), Use: "sig"}}}
}

// Fail makes the issuer answer with f; nil ends that.
func (i *Issuer) Fail(f http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = f
}

// Asked returns how often a path was asked for.
func (i *Issuer) Asked(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// Require makes the issuer answer only to those who bear the token.
func (i *Issuer) Require(token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.wants = "Bearer " + token
}

// KeyID returns the id of the signing key.
func (i *Issuer) KeyID() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keyID
}

// PublicKey returns the public key as PEM: what a forger has.
func (i *Issuer) PublicKey() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		panic(err) // a key of ours
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Token returns a token for audience "digestlock" that is good for five minutes.
func (i *Issuer) Token(claims Claims) string {
	i.mu.Lock()
	key, alg, id := i.key, i.alg, i.keyID
	i.mu.Unlock()
	return i.Sign(claims, alg, key, id)
}

// Sign is Token with another algorithm, key and key id.
func (i *Issuer) Sign(claims Claims, alg jose.SignatureAlgorithm, key any, keyID string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: keyID}}, nil)
	if err != nil {
		panic(fmt.Sprintf("sign: %v", err)) // a test that asks for nonsense
	}
	jws, err := signer.Sign(i.Payload(claims))
	if err != nil {
		panic(fmt.Sprintf("sign: %v", err))
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		panic(fmt.Sprintf("sign: %v", err))
	}
	return token
}

// Payload returns the claims of a token as JSON.
func (i *Issuer) Payload(claims Claims) []byte {
	now := time.Now()
	all := Claims{"iss": i.URL, "aud": "digestlock", "sub": "tester", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	data, err := json.Marshal(all)
	if err != nil {
		panic(err) // a test that asks for nonsense
	}
	return data
}

func (i *Issuer) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked[r.URL.Path]++
		fault, wants := i.fault, i.wants
		i.mu.Unlock()
		switch {
		case fault != nil:
			fault(w, r)
		case wants != "" && r.Header.Get("Authorization") != wants:
			http.Error(w, "who are you?", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/keys",
		// Not what it has: what an issuer says of its algorithms does not count.
		"id_token_signing_alg_values_supported": []string{"HS256", "none"},
	})
}

func (i *Issuer) keys(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	answer(w, i.known)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
