package argocd

import (
	"cmp"
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseDuration is Kubernetes' own figure, and so are its parts below, 10 s and 2 s: another leads 15 to 24 s after a
// leader died, because client-go adds up to 1.2 to each retry period, and one passes until the last renewal was seen and
// one until the lease is tried for. A leader that cannot reach the API server stops 5 s before the lease may be taken.
const leaseDuration = 15 * time.Second

// Lead calls run whenever the process that calls itself identity holds the lease, as one of all that share the Argo
// CD. The context of run ends when the lease is lost, and Lead waits for run before it tries again. It returns nil
// when ctx has ended or run returns before it has to; the lease is given up then, but not before run has returned, so
// that there are never two. The error is about identity.
func (c *Cluster) Lead(ctx context.Context, identity string, run func(ctx context.Context)) error {
	for ctx.Err() == nil {
		done, err := c.lead(ctx, identity, run)
		if done || err != nil {
			return err
		}
		c.log.Warn("lost the lease", "identity", identity)
	}
	return nil
}

// lead is done unless the lease was lost.
func (c *Cluster) lead(ctx context.Context, identity string, run func(ctx context.Context)) (done bool, err error) {
	led := make(chan context.Context, 1)
	elector, err := c.elector(identity, func(leading context.Context) { led <- leading })
	if err != nil {
		return false, fmt.Errorf("lead as %q: %w", identity, err)
	}
	c.election.Store(elector)
	// The election outlives ctx until run has returned: it gives the lease up as soon as its own context ends.
	election, stop := context.WithCancel(context.WithoutCancel(c.logged(ctx)))
	waiting := context.AfterFunc(ctx, stop)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(election)
	}()
	defer func() {
		stop()
		<-ended
	}()
	select {
	case <-ended:
		return false, nil
	case leading := <-led:
		if !waiting() {
			return true, nil // ctx ended in this instant
		}
		leading, cancel := context.WithCancel(leading)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		run(leading)
		return leading.Err() == nil, nil
	}
}

// Leader returns the identity of the process that holds the lease, as [Cluster.Lead] last saw it, which must be under way: a
// change is seen within seconds, and one that was killed counts until another takes over. It is "" when nobody holds it.
func (c *Cluster) Leader() string {
	if e := c.election.Load(); e != nil {
		return e.GetLeader()
	}
	return ""
}

func (c *Cluster) elector(identity string, started func(leading context.Context)) (*leaderelection.LeaderElector, error) {
	lease := cmp.Or(c.lease, leaseDuration)
	return leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: c.namespace, Name: component},
			Client:     c.kube.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   lease,
		RenewDeadline:   lease * 10 / 15,
		RetryPeriod:     lease * 2 / 15,
		ReleaseOnCancel: true,
		Callbacks:       leaderelection.LeaderCallbacks{OnStartedLeading: started, OnStoppedLeading: func() {}},
	})
}
