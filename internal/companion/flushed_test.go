package companion_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// slowFor is a replica that answers questions about one image only when it is let.
type slowFor struct {
	*replica
	image string
	let   chan struct{}
}

func (s slowFor) Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	for _, ref := range refs {
		if ref.String() == s.image {
			select {
			case <-s.let:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
	return s.replica.Resolve(ctx, source, locked, refs)
}

// TestFlushedFirst: a push that somebody tells of does not wait for looks at other images, nor for the cycle under way that
// does. What they bring later is committed without being asked for.
func TestFlushedFirst(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	slow := slowFor{f.replica, worker, make(chan struct{})}
	f.Companion = newCompanion(f.log, func(context.Context) ([]companion.Replica, error) { return []companion.Replica{slow}, nil },
		companion.Repository{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), pin(worker, 1))
	f.replica.sees(pin(server, 2), pin(worker, 2))
	run(t, f.Companion, time.Hour) // its first cycle waits
	target, err := image.ParseTarget(server)
	if err != nil {
		t.Fatal(err)
	}
	for n := 3; n < 5; n++ {
		f.replica.sees(pin(server, n))
		if _, err := f.Sync(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		wantPins(t, f.repo, "main", "app", map[string]int{server: n, worker: 1})
	}
	close(slow.let)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(show(t, f.repo, "main", "app/"+lock.FileName), worker+"\n    digest: "+digest(2)); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what the slow registry says is not committed")
		}
	}
	wantPins(t, f.repo, "main", "app", map[string]int{server: 4, worker: 2})
}
