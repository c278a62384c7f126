package companion

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestWakeStorm: whatever the storm, there is a gap between cycles, and the first is at once.
func TestWakeStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cycles := 0
		c := New(Options{Log: slog.New(slog.DiscardHandler), Replicas: func(context.Context) ([]Replica, error) {
			cycles++
			return nil, errors.New("no resolver")
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx, time.Hour)
		synctest.Wait()
		time.Sleep(time.Minute)
		began := cycles
		c.Wake()
		synctest.Wait()
		if cycles != began+1 {
			t.Errorf("%d cycles at once after a quiet spell, want 1", cycles-began)
		}
		for range 10_000 {
			c.Wake()
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := cycles - began; n < 20 || n > 21 {
			t.Errorf("%d cycles in ten seconds, want one each half second", n)
		}
		asked := time.Now()
		if _, err := c.Sync(t.Context()); err == nil || time.Since(asked) > gap {
			t.Errorf("Sync = %v after %v, want an answer within %v", err, time.Since(asked), gap)
		}
		cancel()
		synctest.Wait()
	})
}
