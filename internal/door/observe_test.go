package door

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestReady: ready is who serves all of its listeners and was not told to stop.
func TestReady(t *testing.T) {
	t.Parallel()
	d := doorFor(t, &counting{})
	for _, step := range []struct {
		name   string
		do     func()
		status int
	}{
		{"not serving", func() {}, 503},
		{"one of two serves", func() { d.starting.Store(2); d.starting.Add(-1) }, 503},
		{"both serve", func() { d.starting.Add(-1) }, 200},
		{"told to stop", func() { d.draining.Store(true) }, 503},
	} {
		step.do()
		w := httptest.NewRecorder()
		d.Inside().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if w.Code != step.status {
			t.Errorf("%s: %d %q, want %d", step.name, w.Code, w.Body, step.status)
		}
	}
}

// TestServerLog: what net/http says about clients is for the curious, a panic of ours is for somebody to act on.
func TestServerLog(t *testing.T) {
	t.Parallel()
	log := &strings.Builder{}
	l := newServerLog(slog.New(slog.NewJSONHandler(log, nil)))
	l.Printf("http: TLS handshake error from %s", "10.0.0.1:1")
	l.Printf("http: panic serving %s: oops", "10.0.0.1:1")
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `"level":"ERROR","msg":"handler panicked","error":"http: panic serving 10.0.0.1:1: oops"`) {
		t.Errorf("log:\n%s", text)
	}
}
