package door

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/digestlock/digestlock/internal/hook"
	"github.com/digestlock/digestlock/internal/image"
)

const (
	acrPush = `{"action":"push","target":{"repository":"a","tag":"latest"},"request":{"host":"acme.azurecr.io"}}`
	acrPing = `{"action":"ping"}`
)

// counting is a backend that only counts.
type counting struct{ invalidated atomic.Int32 }

func (c *counting) Flush(context.Context, []image.Target) Flushed { return Flushed{} }

func (c *counting) Invalidate(targets []image.Target) *int {
	c.invalidated.Add(1)
	return new(len(targets))
}

// doorFor returns a door that does not listen.
func doorFor(t *testing.T, b Backend) *Door {
	t.Helper()
	return New(Options{
		Backend: b, Health: func() string { return "" }, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
}

// TestWebhookRate: what makes images stale is limited, what is of no interest is not.
func TestWebhookRate(t *testing.T) {
	t.Parallel()
	d := doorFor(t, &counting{})
	limit := rate.NewLimiter(0, 2)
	for i, step := range []struct {
		body   string
		status int
	}{{acrPush, 202}, {acrPush, 202}, {acrPush, 429}, {acrPing, 200}} {
		w := httptest.NewRecorder()
		d.event(w, "acr", hook.Request{Body: []byte(step.body)}, limit)
		if w.Code != step.status {
			t.Errorf("event %d: %d, want %d", i, w.Code, step.status)
		}
	}
}

// TestGoogleUnchecked: without somebody who checks Google's tokens, none is good.
func TestGoogleUnchecked(t *testing.T) {
	t.Parallel()
	d := doorFor(t, &counting{})
	req := hook.Request{Header: http.Header{"Authorization": {"Bearer push@acme.iam.gserviceaccount.com"}}}
	if status, err := d.authenticate(t.Context(), "gar", req, []string{"push@acme.iam.gserviceaccount.com"}); status != http.StatusForbidden || err == nil {
		t.Errorf("authenticate = %d, %v, want 403", status, err)
	}
}

// TestWebhookBeforeTheTag: distribution tells of a push before the tag has moved. The digest of before the push must
// not stay for a whole TTL.
func TestWebhookBeforeTheTag(t *testing.T) {
	t.Parallel()
	body := `{"events":[{"action":"push","target":{"repository":"a","tag":"latest"},"request":{"host":"r.example.com"}}]}`
	for _, stopped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := &counting{}
			d := doorFor(t, b)
			d.event(httptest.NewRecorder(), "distribution", hook.Request{Body: []byte(body)}, rate.NewLimiter(0, 1))
			if n := b.invalidated.Load(); n != 1 {
				t.Errorf("forgotten %d times after the event, want once", n)
			}
			want := int32(2)
			if stopped {
				close(d.ended)
				want = 1
			}
			d.pending.Wait()
			if n := b.invalidated.Load(); n != want {
				t.Errorf("forgotten %d times when the tag had time to move (server stopped: %v), want %d", n, stopped, want)
			}
		})
	}
}

func TestCheckWebhookSecrets(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		file, lines, want string
	}{
		"good":        {"ghcr", "one\n", ""},
		"Kubernetes'": {"..data", "", ""},
		"typo":        {"github", "one\n", `no sender "github", only acr, `},
		"empty":       {"ghcr", "# later\n", "holds no token"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.lines), 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkWebhookSecrets(dir)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if err := checkWebhookSecrets("nowhere"); err == nil {
		t.Error("a directory that is not there is good")
	}
}
