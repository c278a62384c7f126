package companion

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestSlots: a server that hangs holds its own slots, whatever other repositories it has, and four of them hold all.
func TestSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlots()
		hang := make(chan struct{})
		var wg sync.WaitGroup
		start := func(repo string, f func()) {
			wg.Go(func() { eachAt(s.of(repo), make([]struct{}, 20), func(int, struct{}) { f() }) })
		}
		var hanging, prompt atomic.Int32
		stuck := func() {
			hanging.Add(1)
			<-hang
		}
		start("https://a.example.com/one.git", stuck)
		start("https://robot@A.example.com:443/two", stuck)
		synctest.Wait()
		start("https://b.example.com/one.git", func() { prompt.Add(1) })
		synctest.Wait()
		if hanging.Load() != parallel || prompt.Load() != 20 {
			t.Errorf("%d hang and %d are done, want %d and 20", hanging.Load(), prompt.Load(), parallel)
		}
		for _, repo := range []string{"git@c.example.com:one", "ssh://deploy@d.example.com/one", "https://e.example.com/one", "https://f.example.com/one"} {
			start(repo, stuck)
		}
		synctest.Wait()
		if hanging.Load() != everywhere {
			t.Errorf("%d hang, want %d", hanging.Load(), everywhere)
		}
		close(hang)
		wg.Wait()
	})
}

// slow answers after ten seconds, and counts.
type slow struct{ asked, now, most *atomic.Int32 }

func (slow) String() string                                    { return "slow" }
func (slow) Pins(ctx context.Context) ([]lock.Document, error) { return nil, ctx.Err() }
func newSlow() slow                                            { return slow{new(atomic.Int32), new(atomic.Int32), new(atomic.Int32)} }

func (s slow) look(ctx context.Context, l *looks, img string) int {
	return len(l.at(ctx, map[look]bool{{"p", img}: true}))
}

func (s slow) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	s.asked.Add(int32(len(refs)))
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	defer s.now.Add(-1)
	select {
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return prompt{&sizes{}}.Resolve(ctx, nil, nil, refs)
}

// TestLooksTogether: branches ask at once, within a bound, and once for what several want.
func TestLooksTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlow()
		l := newSights(nil).newLooks(t.Context(), []Replica{s}, slog.New(slog.DiscardHandler))
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 16 {
			for range 2 {
				wg.Go(func() {
					if n := s.look(t.Context(), l, "ghcr.io/a/b:v"+string(rune('a'+i))); n != 1 {
						t.Errorf("%d looks, want 1", n)
					}
				})
			}
		}
		wg.Wait()
		if s.asked.Load() != 16 || s.most.Load() != maxQuestions || time.Since(begin) != 40*time.Second {
			t.Errorf("asked for %d, %d at once, for %v; want 16, 4 and 40s", s.asked.Load(), s.most.Load(), time.Since(begin))
		}
	})
}

// TestManyRegistries: questions about invented registries have a bound too.
func TestManyRegistries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlow()
		l := newSights(nil).newLooks(t.Context(), []Replica{s}, slog.New(slog.DiscardHandler))
		wanted := map[look]bool{}
		for i := range 100 {
			wanted[look{"p", fmt.Sprintf("r%d.example.com/a:latest", i)}] = true
		}
		if n := len(l.at(t.Context(), wanted)); n != 100 || s.most.Load() != maxAtOnce {
			t.Errorf("%d looks, %d at once, want 100 and %d", n, s.most.Load(), maxAtOnce)
		}
		if l.keep(); len(l.turns) != 0 {
			t.Errorf("the turns of %d registries are remembered", len(l.turns))
		}
	})
}

// TestLooksCutShort: who waits for an answer that somebody else asked for, and did not wait for, asks.
func TestLooksCutShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlow()
		l := newSights(nil).newLooks(t.Context(), []Replica{s}, slog.New(slog.DiscardHandler))
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if n := s.look(ctx, l, nginxRef); n != 0 {
				t.Errorf("%d looks after a second, want none", n)
			}
		})
		synctest.Wait()
		if n := s.look(t.Context(), l, nginxRef); n != 1 || len(l.problems) != 0 {
			t.Errorf("%d looks, problems %v, want 1 and none", n, l.problems)
		}
		wg.Wait()
	})
}

const nginxRef = "index.docker.io/library/nginx:latest"
