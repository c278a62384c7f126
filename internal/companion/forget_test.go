package companion

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestForget: a branch that nobody follows any more is forgotten after a day, and one that is followed is not.
func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked sizes
		c := New(Options{
			Replicas: func(context.Context) ([]Replica, error) { return []Replica{prompt{&asked}}, nil }, Log: slog.New(slog.DiscardHandler),
		})
		main := &target{repository: Repository{URL: "https://git.example.com/k8s"}, branch: "main"}
		kept := c.branch(main)
		c.branch(&target{repository: main.repository, branch: "preview"})
		time.Sleep(forgotten)
		c.branch(main)
		c.cycle(t.Context(), Quiet{}, nil)
		if len(c.branches) != 2 {
			t.Errorf("%d branches within a day, want 2", len(c.branches))
		}
		time.Sleep(time.Second)
		c.cycle(t.Context(), Quiet{}, nil)
		if len(c.branches) != 1 || c.branches[main.key()] != kept {
			t.Errorf("%d branches, want the one that is followed", len(c.branches))
		}
	})
}
