package registry

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/time/rate"
)

const (
	defaultQPS = 50

	// maxPause bounds what a registry may ask for: its word must not silence it for ever.
	maxPause = time.Hour

	// maxJitter keeps those who were told the same from coming back as one.
	maxJitter = 250 * time.Millisecond
)

// newLimiter lets a large overlay's first render through at once.
func newLimiter(qps float64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(qps), max(1, int(2*qps)))
}

// pace holds requests to one registry back: to our own rate, and for as long as the registry has asked for.
type pace struct {
	host *host
	next http.RoundTripper
}

func (p pace) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := p.host.turn(req.Context()); err != nil {
		return nil, err
	}
	resp, err := p.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		p.host.pause(retryAfter(resp.Header))
	}
	return resp, err
}

// Why a request was not made: its time would come too late.
var (
	errThrottled = errors.New("throttled")          // the registry's word
	errPaced     = errors.New("more than our rate") // our own
)

// turn waits until a request may be made. A caller who cannot wait that long is told at once.
func (h *host) turn(ctx context.Context) error {
	if err := h.limit.Wait(ctx); err != nil {
		return cmp.Or(ctx.Err(), errPaced)
	}
	for until := h.paused(); time.Now().Before(until); until = h.paused() {
		if end, ok := ctx.Deadline(); ok && end.Before(until) {
			return errThrottled
		}
		select {
		case <-time.After(time.Until(until) + rand.N(maxJitter)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// pause keeps every request to the registry back for d. It shortens no other pause.
func (h *host) pause(d time.Duration) {
	until := time.Now().Add(min(d, maxPause))
	h.mu.Lock()
	defer h.mu.Unlock()
	if until.After(h.until) {
		h.until = until
	}
}

// paused returns until when the registry has asked for silence, which may be long ago.
func (h *host) paused() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until
}
