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

	// firstPause is how long a registry is left alone that throttles without saying how long. It doubles up to lastPause while
	// that goes on.
	firstPause = 2 * time.Second
	lastPause  = time.Minute

	// maxJitter keeps those who were told the same from coming back as one.
	maxJitter = 250 * time.Millisecond
)

// newLimiter lets a large overlay's first render through at once.
func newLimiter(qps float64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(qps), max(1, int(2*qps)))
}

// pace holds requests to one registry back: to our own rate, and for as long as the registry asks for when it throttles
// us, or for a guess where it does not say.
type pace struct {
	host *host
	next http.RoundTripper
}

func (p pace) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := p.host.turn(req.Context()); err != nil {
		return nil, err
	}
	resp, err := p.next.RoundTrip(req)
	switch {
	case err != nil:
	case resp.StatusCode == http.StatusTooManyRequests:
		p.host.throttle(retryAfter(resp.Header))
	case resp.StatusCode < http.StatusInternalServerError:
		p.host.served()
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
		wait := time.Until(until) + rand.N(maxJitter)
		if end, ok := ctx.Deadline(); ok && time.Until(end) < wait {
			return errThrottled
		}
		select {
		case <-time.After(wait):
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

// throttle pauses for d, or where the registry has not said how long, for a time of our own. Answers to requests that were
// under way when a pause began are one word, not several.
func (h *host) throttle(d time.Duration) {
	if d <= 0 {
		h.mu.Lock()
		if time.Now().After(h.until) {
			h.guess = min(max(firstPause, 2*h.guess), lastPause)
			d = h.guess
		}
		h.mu.Unlock()
	}
	h.pause(d)
}

// served notes that the registry does not throttle any more.
func (h *host) served() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guess = 0
}

// paused returns until when the registry has asked for silence, which may be long ago.
func (h *host) paused() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until
}
