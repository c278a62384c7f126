package argocd

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"k8s.io/client-go/kubernetes/fake"
)

// TestLeader: each of two sees who leads, and that nobody does any more.
func TestLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kube := fake.NewClientset()
		cluster := func() *Cluster { return &Cluster{namespace: "argocd", kube: kube, log: slog.New(slog.DiscardHandler)} }
		first, second := cluster(), cluster()
		if got := first.Leader(); got != "" {
			t.Errorf("Leader() = %q before Lead", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stop := make(chan struct{})
		go first.Lead(ctx, "first", func(context.Context) { <-stop })
		synctest.Wait()
		waiting, give := context.WithCancel(t.Context())
		go second.Lead(waiting, "second", func(context.Context) { t.Error("two lead") })
		synctest.Wait()
		if a, b := first.Leader(), second.Leader(); a != "first" || b != "first" {
			t.Errorf("Leader() = %q and %q, want first", a, b)
		}
		give()
		cancel()
		close(stop)
		synctest.Wait()
		if got := first.Leader(); got != "" {
			t.Errorf("Leader() = %q after it has given the lease up", got)
		}
	})
}
