package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/credentials"
)

// witness is a keychain that remembers where credentials were found, and not what they are.
type witness struct {
	Keychain
	mu           sync.Mutex
	source, hint string
}

func (w *witness) Find(ctx context.Context, scope, registry, repository string) (credentials.Login, error) {
	login, err := w.Keychain.Find(ctx, scope, registry, repository)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.source, w.hint = login.Source, login.Hint
	}
	return login, err
}

func (w *witness) last() (source, hint string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.source, w.hint
}

// tape is a transport that records the requests which are really made, below the guard. It keeps no request header and
// no body, which are where the secrets are.
type tape struct {
	next http.RoundTripper

	mu        sync.Mutex
	exchanges []*exchange
	names     map[string][]netip.Addr // what DNS said
}

// exchange is one request and its answer. Its fields are guarded by the tape's lock.
type exchange struct {
	step, method, scheme, host string

	resolving bool   // DNS was asked and gave no address
	remote    string // address of the last TCP connection that came about
	connected bool   // TLS included

	err      error
	status   int // 0 without an answer
	header   http.Header
	tls      *tls.ConnectionState
	at       time.Time // of the answer
	lifetime int       // of a token, in seconds; 0 when it is not said
}

func (x *exchange) answered() bool { return x.status != 0 }

// last returns the last exchange of a step, "" for any, or nil.
func (t *tape) last(step string) *exchange {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.exchanges) - 1; i >= 0; i-- {
		if x := *t.exchanges[i]; step == "" || x.step == step {
			return &x // a copy: its request may be under way
		}
	}
	return nil
}

func (t *tape) RoundTrip(req *http.Request) (*http.Response, error) {
	x := &exchange{step: stepLogin, method: req.Method, scheme: req.URL.Scheme, host: req.URL.Host}
	switch {
	case isManifest(req):
		x.step = stepManifest
	case req.Method == http.MethodGet && req.URL.Path == "/v2/":
		x.step = stepPing
	}
	t.mu.Lock()
	t.exchanges = append(t.exchanges, x)
	t.mu.Unlock()
	resp, err := t.next.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), t.trace(x))))
	lifetime := 0
	if err == nil && x.step == stepLogin && resp.StatusCode == http.StatusOK {
		lifetime = tokenLifetime(resp)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x.err, x.at, x.lifetime = err, time.Now(), lifetime
	if err == nil {
		x.status, x.header, x.tls = resp.StatusCode, resp.Header.Clone(), resp.TLS
	}
	return resp, err
}

// trace fills in how the connection came about.
func (t *tape) trace(x *exchange) *httptrace.ClientTrace {
	locked := func(f func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		f()
	}
	var name string
	return &httptrace.ClientTrace{
		DNSStart: func(i httptrace.DNSStartInfo) { locked(func() { name, x.resolving = i.Host, true }) },
		DNSDone: func(i httptrace.DNSDoneInfo) {
			locked(func() {
				if i.Err == nil {
					t.names[name], x.resolving = toAddrs(i.Addrs), false
				}
			})
		},
		ConnectDone: func(_, addr string, err error) {
			locked(func() {
				if err == nil {
					x.remote = addr
				}
			})
		},
		GotConn: func(i httptrace.GotConnInfo) {
			locked(func() { x.connected, x.remote = true, i.Conn.RemoteAddr().String() })
		},
	}
}

// tokenLifetime reads how long a token is good for, and puts the body back.
func tokenLifetime(resp *http.Response) int {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // whoever reads it next meets the error too
	resp.Body = limitedBody{io.MultiReader(bytes.NewReader(data), resp.Body), resp.Body}
	var token struct {
		ExpiresIn int `json:"expires_in"`
	}
	if json.Unmarshal(data, &token) != nil {
		return 0
	}
	return token.ExpiresIn
}
