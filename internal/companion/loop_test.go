package companion_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/companion"
)

// run starts the companion's loop for the length of the test.
func run(t *testing.T, c *companion.Companion, interval time.Duration) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx, interval)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// TestSync: a cycle that begins after the call is waited for, however long the interval.
func TestSync(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1))
	f.replica.sees(pin(server, 1))
	stop := run(t, f.Companion, time.Hour)
	if _, err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.replica.sees(pin(server, 2))
	commits, err := f.Sync(t.Context())
	if err != nil || len(commits) != 1 {
		t.Fatalf("Sync = %v, %v, want one commit", commits, err)
	}
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2})
	s := f.Status()
	if len(s.Branches) != 1 || len(s.Branches[0].Pins) != 1 || s.Branches[0].Tip != commits[0].Hash || s.Branches[0].LastCommit.Hash != commits[0].Hash {
		t.Fatalf("Status = %+v", s)
	}
	if p := s.Branches[0].Pins[0]; p.Digest != digest(2) || p.Tag != digest(2) || p.Drift || p.Held {
		t.Errorf("Status has pin %+v", p)
	}

	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no patience"))
	if _, err := f.Sync(over); err == nil || err.Error() != "no patience" {
		t.Errorf("Sync = %v, want the caller's own reason", err)
	}
	stop()
	if _, err := f.Sync(t.Context()); err == nil || err.Error() != "the companion stops" {
		t.Errorf("Sync = %v after the end", err)
	}
}

// TestQuietWindow: the first change is committed at once, what follows soon after goes into one commit more.
func TestQuietWindow(t *testing.T) {
	t.Parallel()
	f := start(t, map[string]string{"app/kustomization.yaml": overlay})
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Quiet = replicas(f.replica), companion.Quiet{Window: 5 * time.Second, Longest: time.Minute}
		o.Repositories = []companion.Repository{{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL}}
	}))
	f.replica.rendered(f.repo.URL, "main", "app", "app", pin(server, 1), pin(worker, 1))
	f.replica.sees(pin(server, 1), pin(worker, 1))
	run(t, f.Companion, time.Hour)
	sync := func() int {
		commits, err := f.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(commits)
	}
	commits := func() string { return f.repo.Git(t, "rev-list", "--count", "main") }
	for commits() == "1" { // the first cycle may be under way
		sync()
	}
	f.replica.sees(pin(server, 2))
	if n := sync(); n > 0 {
		t.Fatalf("%d commits within the window, want it to wait", n)
	}
	if s := f.Status().Branches[0]; s.Waits.IsZero() || !s.Pins[0].Drift {
		t.Errorf("Status = %+v, want it to wait, and a pin that drifts", s)
	}
	f.replica.sees(pin(worker, 3))
	sync()
	for commits() == "2" { // nobody wakes it
		time.Sleep(20 * time.Millisecond)
	}
	wantPins(t, f.repo, "main", "app", map[string]int{server: 2, worker: 3})
	if n := commits(); n != "3" {
		t.Errorf("%s commits, want 3: one for the first change, one for both that followed", n)
	}
}
