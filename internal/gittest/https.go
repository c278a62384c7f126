package gittest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"testing"
	"time"
)

// HTTPS starts git http-backend behind TLS and authentication. It stops with the test.
func HTTPS(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := newServer(t, options)
	if s.Auth.Token == "" {
		s.Auth.Username, s.Auth.Password = "robot", "correct horse"
	}
	backend := &cgi.Handler{
		Path: gitBinary(t),
		Args: []string{"http-backend"},
		Env: append(environ(), "HOME="+t.TempDir(),
			"GIT_PROJECT_ROOT="+s.root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=robot"),
		Stderr: io.Discard,
		Logger: log.New(io.Discard, "", 0),
	}
	handler := s.authenticated(backend)
	if s.wrap != nil {
		handler = s.wrap(handler)
	}
	server := httptest.NewUnstartedServer(s.counted(handler))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if s.wantCert {
		server.TLS = s.clientCert(t)
	}
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections() // a handler that is told to stay silent must not keep the test from ending
		server.Close()
	})
	s.base = server.URL + "/"
	s.Auth.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return s
}

// clientCert makes a certificate for Auth and returns the configuration of a server that wants it.
func (s *Server) clientCert(t testing.TB) *tls.Config {
	t.Helper()
	s.Auth.ClientCert, s.Auth.ClientKey = NewClientCert(t)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(s.Auth.ClientCert)
	return &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted}
}

// NewClientCert returns a certificate that signs itself, and its key, both PEM.
func NewClientCert(t testing.TB) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "robot"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		next.ServeHTTP(w, r)
	})
}

func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := r.Clone(r.Context())
		want.Header = http.Header{}
		want.SetBasicAuth(s.Auth.Username, s.Auth.Password)
		if s.Auth.Token != "" {
			want.Header.Set("Authorization", "Bearer "+s.Auth.Token)
		}
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want.Header.Get("Authorization"))) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			// As careless servers do: errors must not pass this on.
			http.Error(w, "not with "+r.Header.Get("Authorization"), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// withoutShallow renames the capability in listings, keeping its length because of the pkt-lines around it.
func withoutShallow(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(bytes.ReplaceAll(rec.Body.Bytes(), []byte(" shallow "), []byte(" swallow ")))
	})
}

// Silent is a handler that accepts requests and never answers, for as long as the client has patience.
func Silent() http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // net/http watches for the client's end only after the body's
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute): // a net below a test that has gone wrong
		}
	})
}
