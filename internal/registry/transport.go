package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	dialTimeout  = 5 * time.Second // and as long for the TLS handshake
	idleTimeout  = 90 * time.Second
	maxHeader    = 64 << 10
	maxBody      = maxManifest + 1 // one more than any reader here accepts
	maxTries     = 3
	maxRetryWait = 30 * time.Second // a registry that asks for more has failed for now
)

// newTransport returns a transport of our own: http.DefaultTransport never gives a silent server up, and the program
// disables it so that nothing can talk past the guard.
func newTransport(timeout time.Duration, concurrency int) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  2 * timeout, // the context's deadline comes first and has the better text
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    concurrency,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// guard is passed by every request to one registry and the token server it names. It forces the scheme, refuses to
// follow a redirect to another host, bounds bodies, and counts.
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
	start := time.Now()
	resp, err := g.next.RoundTrip(req)
	g.host.metrics.observe(g.host.name, time.Since(start), resp)
	if err != nil {
		return nil, err
	}
	resp.Body = limitedBody{io.LimitReader(resp.Body, maxBody), resp.Body}
	return resp, nil
}

// check refuses what the library would do by itself: it tries plain http for localhost and private addresses, and
// its clients follow redirects anywhere.
func (g guard) check(req *http.Request) error {
	if from := req.Response; from != nil && from.Request != nil && from.Request.URL.Host != req.URL.Host {
		return refusal{errRedirect, req.URL.Host}
	}
	switch http, listed := req.URL.Scheme == "http", g.host.insecure[req.URL.Host]; {
	case http && !listed:
		return refusal{errPlainHTTP, req.URL.Host}
	case !http && listed:
		return refusal{errListed, req.URL.Host}
	}
	return nil
}

// limitedBody reads as far as the first and closes the second.
type limitedBody struct {
	io.Reader
	io.Closer
}

// retry repeats a request that met a temporary failure. It is the only place that repeats anything for that reason:
// pings, token requests and lookups all pass it. The caller's context bounds it.
type retry struct{ next http.RoundTripper }

func (t retry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil { // the oauth flow's POST: neither repeatable nor frequent
		return t.next.RoundTrip(req)
	}
	var resp *http.Response
	var err error
	_, _ = backoff.Retry(req.Context(), func() (struct{}, error) {
		if resp != nil {
			resp.Body.Close()
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
	wait += rand.N(250 * time.Millisecond) // those who were told the same must not come back as one
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

// retryAfter returns how long a response asks to wait, in either of the header's two forms, or 0.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return time.Until(at)
	}
	return 0
}
