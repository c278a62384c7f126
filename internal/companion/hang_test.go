package companion_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

// TestHangingServer: a Git server that answers nobody keeps no commit from another one.
func TestHangingServer(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a"})
	var asked atomic.Int32
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-r.Context().Done()
	}))
	t.Cleanup(hanging.Close)
	for i := range 40 {
		url := fmt.Sprintf("%s/%02d.git", hanging.URL, i)
		c.open[url] = open(t, url, gitrepo.Auth{})
		c.apps = append(c.apps, companion.Application{Name: fmt.Sprint("hangs-", i), Project: "default", Path: "a", Repository: url})
	}
	f.replica.rendered(f.repo.URL, "", "a", "one", pin(server, 1))
	f.replica.sees(pin(server, 1))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Once(ctx) // what hangs is cut short below
	}()
	// The first of them are given up after 30 s, and would make room.
	for deadline := time.Now().Add(20 * time.Second); f.repo.Git(t, "rev-list", "--count", "main") != "2"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("no commit while the other server hangs")
			break
		}
	}
	cancel()
	<-done
	if n := asked.Load(); n > 8 {
		t.Errorf("%d requests at once to the server that hangs, want 8 at most", n)
	}
}
