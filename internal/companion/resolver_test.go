package companion_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// registry answers everything but worker with one digest.
type registry struct {
	mu sync.Mutex
	n  int
}

func (r *registry) Resolve(_ context.Context, _ string, refs []image.Ref) []image.Resolution {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []image.Resolution
	for _, ref := range refs {
		if ref.String() == worker {
			out = append(out, image.Resolution{Ref: ref, Err: image.ErrNotFound})
			continue
		}
		out = append(out, image.Resolution{Ref: ref, Digest: digest(r.n), At: time.Now()})
	}
	return out
}

// TestRealResolver: render, commit, push and flush with the real client, server, ledger and cache.
func TestRealResolver(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay, "app/digest-lock.yaml": lockText(pin(worker, 9))})
	r := &registry{n: 1}
	c := cache.New(r, cache.Options{})
	t.Cleanup(c.Close)
	address := resolver(t, c)
	client, err := api.NewClient(address, "t0ken")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	ref, err := image.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Resolve(t.Context(), &lock.Source{
		Application: "app", Repository: f.repo.URL, TargetRevision: "main", Path: "app", Revision: "3f2c1ab", RenderedAt: time.Now(),
	}, []lock.Pin{pin(worker, 9)}, []image.Ref{ref}); err != nil {
		t.Fatal(err)
	}
	build := func(token string) *companion.Companion {
		return newCompanion(f.log, func(ctx context.Context) ([]companion.Replica, error) {
			client, err := api.NewClient(address, token)
			return []companion.Replica{client}, err
		}, companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL})
	}
	companion := build("t0ken")
	once(t, companion, 1)
	once(t, companion, 0)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 1, worker: 9})
	r.mu.Lock()
	r.n = 2
	r.mu.Unlock()
	once(t, companion, 0) // nobody has told the resolver yet
	c.Flush(t.Context(), []image.Target{{Ref: ref}})
	once(t, companion, 1)
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2, worker: 9})
	if !strings.Contains(f.log.String(), `image=`+worker+` error="not found"`) {
		t.Errorf("no warning about %s:\n%s", worker, f.log)
	}
	failing(t, build("wrong"), 0, "wrong or missing bearer token")
}

// resolver serves c until the test ends.
func resolver(t *testing.T, c *cache.Cache) (address string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ledger, err := daemon.OpenLedger(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := daemon.New(daemon.Options{Resolver: c, Ledger: ledger, Keys: door.Keys{TokenFile: tokenFile}, Log: log, Metrics: prometheus.NewRegistry()})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ctx, nil, l) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}
