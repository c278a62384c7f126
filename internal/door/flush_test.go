package door

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
)

func parse(t *testing.T, texts ...string) []image.Target {
	t.Helper()
	out := make([]image.Target, len(texts))
	for i, text := range texts {
		var err error
		if out[i], err = image.ParseTarget(text); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestLimits(t *testing.T) {
	t.Parallel()
	l := newLimits()
	now := time.Now()
	take := func(name string, n int, want time.Duration) {
		t.Helper()
		if got := l.take(name, n, now); got != want {
			t.Errorf("take(%s, %d) = %v, want %v", name, n, got, want)
		}
	}
	take("a", callerBurst, 0)
	take("a", 1, time.Second/callerRate)
	take("a", 1, time.Second/callerRate) // a refusal costs nothing
	now = now.Add(time.Second / callerRate)
	take("a", 1, 0)
	take("b", callerBurst+100, 0) // more than there ever is
	take("c", callerBurst, 0)
	take("d", callerBurst, 0)
	const left = totalBurst - 4*callerBurst - 100 + totalRate/callerRate - 1
	take("e", callerBurst, (callerBurst-left)*time.Second/totalRate) // all together
	now = now.Add(time.Hour)
	take("e", callerBurst, 0)
	for i := range 5000 {
		l.take(fmt.Sprint(i), 1, now.Add(time.Duration(i)*time.Minute))
	}
	if n := len(l.callers); n > 1001 {
		t.Errorf("%d callers remembered long after they came", n)
	}
}

// TestSharedFlush: flushes that come while one is under way share one more, which begins after the last of them came.
func TestSharedFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var pushed, asked atomic.Int32 // what the registry has, and how often it was asked
		pushed.Store(1)
		s := shared{flush: func(ctx context.Context, targets []image.Target) Flushed {
			asked.Add(1)
			digest := fmt.Sprint(pushed.Load())
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				t.Error("a flush ended with the one who asked first")
			}
			return Flushed{Images: []api.Flushed{{Image: targets[0].String(), New: digest}}}
		}}
		targets := parse(t, "ghcr.io/acme/server:latest")
		var wg sync.WaitGroup
		flush := func(ctx context.Context, want string) {
			targets := targets
			wg.Go(func() {
				switch got, err := s.Flush(ctx, targets); {
				case want == "" && err == nil:
					t.Error("a flush whose caller is gone: no error")
				case want != "" && (err != nil || got.Images[0].New != want):
					t.Errorf("flush = %+v, %v, want %s", got, err, want)
				}
			})
		}
		impatient, cancel := context.WithCancel(t.Context())
		flush(impatient, "")
		time.Sleep(time.Second / 4)
		cancel()
		flush(t.Context(), "2")
		time.Sleep(time.Second / 4)
		pushed.Store(2)
		for range 100 {
			flush(t.Context(), "2")
		}
		wg.Wait()
		s.wait()
		if asked.Load() != 2 {
			t.Errorf("102 flushes asked %d times, want 2", asked.Load())
		}
		flush(t.Context(), "2")
		time.Sleep(time.Second / 4)
		flush(t.Context(), "2")
		targets = parse(t, "ghcr.io/acme/server") // is another flush than that of the tag latest
		flush(t.Context(), "2")
		wg.Wait()
		if asked.Load() != 5 || len(s.next) != 0 || len(s.running) != 0 {
			t.Errorf("asked %d times, want 5; left behind: %v %v", asked.Load(), s.next, s.running)
		}
	})
}
