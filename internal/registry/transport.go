package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	stepTimeout  = 5 * time.Second // for a connection, for its TLS, for the beginning of an answer
	idleTimeout  = 90 * time.Second
	maxHeader    = 64 << 10
	maxAnswer    = 64 << 10 // of a ping, a token or an error, in bytes
	maxTries     = 3
	maxRetryWait = 30 * time.Second // a registry that asks for more has failed for now
)

// newTransport returns a transport of our own: http.DefaultTransport never gives a silent server up, and connects to
// whatever address a name has.
func newTransport(d *dialer, step time.Duration, concurrency int) *http.Transport {
	return &http.Transport{
		Proxy:                  d.proxy,
		DialContext:            d.dial,
		TLSHandshakeTimeout:    step,
		ResponseHeaderTimeout:  step,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    concurrency,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// dialer opens every connection of a Client, and none to an address that the policy refuses. A proxy from the
// environment is the operator's, and may be anywhere; behind it the guard sees only literal addresses.
type dialer struct {
	net.Dialer
	policy  policy
	proxies sync.Map // host:port
}

func (d *dialer) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil {
		port := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		d.proxies.Store(address(u.Host, port), true)
	}
	return u, err
}

func (d *dialer) dial(ctx context.Context, network, host string) (net.Conn, error) {
	dialer := d.Dialer
	if _, ok := d.proxies.Load(host); !ok {
		dialer.Control = func(_, ip string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(ip)
			if err != nil {
				return refusal{errReserved, host}
			}
			return d.policy.connect(strings.ToLower(host), to.Addr())
		}
	}
	return dialer.DialContext(ctx, network, host)
}

// guard is passed by every request to one registry and the token server it names. It forces the scheme, checks where
// realms and redirects lead, and bounds bodies.
type guard struct {
	host *host
	next http.RoundTripper
}

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.check(req); err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", g.host.userAgent)
	if redirected(req) {
		req.Header.Del("Authorization")
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	limit := int64(maxAnswer)
	if from := first(req); (isManifest(from) || isBlob(from)) && resp.StatusCode == http.StatusOK {
		limit = maxManifest + 1 // who reads it says that it is too large
	}
	resp.Body = limitedBody{io.LimitReader(resp.Body, limit), resp.Body}
	return resp, nil
}

// check refuses what the library would do by itself: it tries plain http for localhost and private addresses, its
// clients follow redirects anywhere, and it sends credentials to any realm.
func (g guard) check(req *http.Request) error {
	host := strings.ToLower(req.URL.Host)
	if err := g.host.policy.literal(req); err != nil {
		return err
	}
	switch http, listed := req.URL.Scheme == "http", g.host.policy.insecure[host]; {
	case http && !listed:
		return refusal{errPlainHTTP, host}
	case !http && listed:
		return refusal{errListed, host}
	}
	secret := req.Header.Get("Authorization") != "" || req.Body != nil // the body of the oauth flow is a token
	switch {
	case redirected(req) && !g.follow(req.Response.Request, host):
		return refusal{errRedirect, host}
	case req.Response == nil && !g.host.policy.realm(g.host.name, host, secret):
		return refusal{errRealm, host}
	}
	return nil
}

// follow reports whether a redirect of from may lead to another host: not that of a ping or a token, and not a second
// one after the first has left the registry.
func (g guard) follow(from *http.Request, host string) bool {
	switch p := g.host.policy; {
	case from.URL.Host != g.host.name:
		return false
	case isBlob(from):
		return p.storage(g.host.name, host)
	default:
		return isManifest(from) && p.redirect(g.host.name, host)
	}
}

// first returns the request that redirects led to req from, req itself without any.
func first(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// redirected reports whether a request goes to another host than the one whose answer led to it.
func redirected(req *http.Request) bool {
	from := req.Response
	return from != nil && from.Request != nil && from.Request.URL.Host != req.URL.Host
}

func isManifest(req *http.Request) bool {
	return req.Body == nil && strings.Contains(req.URL.Path, "/manifests/")
}

func isBlob(req *http.Request) bool {
	return req.Body == nil && strings.Contains(req.URL.Path, "/blobs/")
}

// meter counts the requests that are really made.
type meter struct {
	host *host
	next http.RoundTripper
}

func (m meter) RoundTrip(req *http.Request) (*http.Response, error) {
	start := time.Now()
	resp, err := m.next.RoundTrip(req)
	m.host.metrics.observe(m.host.label, time.Since(start), resp)
	return resp, err
}

// limitedBody reads as far as the first and closes the second.
type limitedBody struct {
	io.Reader
	io.Closer
}

// retry repeats a request that met a temporary failure. It is the only place that repeats anything for that reason:
// pings, token requests and lookups all pass it. The caller's context bounds it.
type retry struct {
	host *host
	next http.RoundTripper
}

func (t retry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil { // the oauth flow's POST: neither repeatable nor frequent
		return t.next.RoundTrip(req)
	}
	var resp *http.Response
	var err error
	var tries int
	_, _ = backoff.Retry(req.Context(), func() (struct{}, error) {
		if resp != nil {
			resp.Body.Close()
		}
		if tries++; tries > 1 {
			t.host.metrics.retries.WithLabelValues(t.host.label).Inc()
		}
		resp, err = t.next.RoundTrip(req)
		return struct{}{}, again(req.Context(), resp, err)
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxTries(maxTries), backoff.WithMaxElapsedTime(0))
	return resp, err // the last answer says more than backoff's own error
}

func newBackOff() backoff.BackOff {
	b := backoff.NewExponentialBackOff() // jitters by half
	b.InitialInterval = 100 * time.Millisecond
	b.Multiplier = 3
	return b
}

var errTemporary = errors.New("temporary")

// again returns nil for an answer to keep and an error that tells backoff whether and when to try again.
func again(ctx context.Context, resp *http.Response, err error) error {
	switch {
	case err != nil && (ctx.Err() != nil || !temporary(err)):
		return backoff.Permanent(err)
	case err != nil:
		return err
	case !temporaryStatus(resp.StatusCode):
		return nil
	}
	wait := retryAfter(resp.Header)
	if wait <= 0 {
		return errTemporary
	}
	wait += rand.N(maxJitter) // those who were told the same must not come back as one
	if end, ok := ctx.Deadline(); wait > maxRetryWait || (ok && time.Until(end) < wait) {
		return backoff.Permanent(errTemporary)
	}
	return &backoff.RetryAfterError{Duration: wait}
}

func temporaryStatus(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// temporary reports whether the same request may work in a moment. A timeout is not such an error: it has cost the
// time of a retry already.
func temporary(err error) bool {
	for _, e := range []error{syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// retryAfter returns how long a response asks to wait, in either of the header's two forms, maxPause at most, or 0.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(v, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxPause/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if now, err := http.ParseTime(h.Get("Date")); err == nil {
		return min(at.Sub(now), maxPause) // by the registry's clock, which may be wrong
	}
	return min(time.Until(at), maxPause)
}
