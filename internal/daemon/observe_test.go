package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/door"
)

func serverFor(t *testing.T, log *syncBuffer, change ...func(*Options)) *Server {
	t.Helper()
	c := cache.New(&registry{}, cache.Options{})
	t.Cleanup(c.Close)
	o := Options{
		Resolver: c, Ledger: openLedger(t, filepath.Join(t.TempDir(), "state")), Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewJSONHandler(log, nil)),
	}
	for _, f := range change {
		f(&o)
	}
	return New(o)
}

func ask(s *Server, path string) (status int, body string) {
	w := httptest.NewRecorder()
	s.remote().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// TestNotReadyWhileDraining: whoever asks gets 503 or, as soon as nothing is accepted any more, no connection, while the
// request under way is answered.
func TestNotReadyWhileDraining(t *testing.T) {
	t.Parallel()
	r := run(t)
	waitFor(t, func() bool { return status(r.address+"/readyz") == 200 })
	answer := sync.OnceFunc(func() { close(r.registry.slow) })
	t.Cleanup(answer)
	plugin := r.client(t, "unix://"+r.socket, "")
	answered := make(chan error, 1)
	go func() {
		_, err := plugin.Resolve(t.Context(), nil, nil, refs(t, "ghcr.io/slow"))
		answered <- err
	}()
	waitFor(t, func() bool { return r.registry.asked.Load() == 1 })
	r.stop()
	waitFor(t, func() bool { return status(r.address+"/readyz") != 200 })
	answer()
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-r.stopped; err != nil {
		t.Error(err)
	}
}

// TestHealthOfListeners: a socket that somebody removed, and one whose loop accepts nothing, are a reason to restart.
func TestHealthOfListeners(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, r *running){
		"served":  func(*testing.T, *running) {},
		"removed": func(t *testing.T, r *running) { remove(t, r.socket) },
		"accepts nothing": func(t *testing.T, r *running) {
			remove(t, r.socket)
			l, err := net.Listen("unix", r.socket) // connecting works
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t)
			waitFor(t, func() bool { return status(r.address+"/readyz") == 200 })
			spoil(t, r)
			want := map[bool]int{true: 200, false: 503}[name == "served"]
			if got := status(r.address + "/healthz"); got != want {
				t.Errorf("/healthz: %d, want %d", got, want)
			}
		})
	}
}

// TestHealthTakesTheLedger: a ledger that is stuck is noticed.
func TestHealthTakesTheLedger(t *testing.T) {
	t.Parallel()
	s := serverFor(t, &syncBuffer{})
	s.o.Ledger.mu.Lock()
	done := make(chan struct{})
	go func() {
		ask(s, "/healthz")
		close(done)
	}()
	select {
	case <-done:
		t.Error("/healthz answered without the ledger's lock")
	case <-time.After(100 * time.Millisecond): // long enough to answer; a machine too slow for it fails nothing
	}
	s.o.Ledger.mu.Unlock()
	<-done
}

// TestHealthOfStateDirectory: it is told, not a reason to restart, logged once for each change, and tried every few
// seconds at most.
func TestHealthOfStateDirectory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &syncBuffer{}
		s := serverFor(t, log)
		dir := s.o.Ledger.dir
		check := func(want string) {
			t.Helper()
			status, body := ask(s, "/healthz")
			if status != 200 || strings.TrimSpace(body) != want {
				t.Errorf("/healthz: %d %q, want %q", status, body, want)
			}
		}
		check("ok, 0 sources")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		check("ok, 0 sources") // not tried again so soon
		time.Sleep(door.ProbeEvery)
		check("ok, 0 sources, state directory not writable")
		time.Sleep(door.ProbeEvery)
		check("ok, 0 sources, state directory not writable")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(door.ProbeEvery)
		check("ok, 0 sources")
		if text := log.String(); strings.Count(text, "not writable") != 1 || strings.Count(text, "writable again") != 1 {
			t.Errorf("log:\n%s", text)
		}
	})
}

// TestRoutesAreFew: what clients make up gets no series of its own.
func TestRoutesAreFew(t *testing.T) {
	t.Parallel()
	r := run(t)
	for i := range 20 {
		status(fmt.Sprintf("%s/nowhere/%d", r.address, i))
		status(fmt.Sprintf("%s/webhook/%d", r.address, i))
	}
	text := get(t, r.address+"/metrics", 200)
	if !strings.Contains(text, `digestlock_http_request_seconds_count{route="other",status="4xx"} 40`) || strings.Contains(text, "nowhere") {
		t.Errorf("metrics:\n%s", text)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// status returns the status of a GET, 0 when there is no answer.
func status(url string) int {
	res, err := http.Get(url)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for range 400 {
		if done() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("waited in vain")
}
