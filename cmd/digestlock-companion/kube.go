package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"sync"

	"github.com/digestlock/digestlock/internal/argocd"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
)

// kubeFlags say where Argo CD is, and what of it to use.
type kubeFlags struct {
	on     bool
	silent bool
	elect  bool
	o      argocd.Options
}

func (f *kubeFlags) register(flags *cli.Flags) {
	flags.BoolVar(&f.on, "kubernetes", false, "write for the Applications of an Argo CD, with its credentials")
	flags.StringVar(&f.o.Kubeconfig, "kubeconfig", "", "kubeconfig file of its cluster; empty for the cluster that this runs in")
	flags.StringVar(&f.o.Namespace, "namespace", "argocd", "Argo CD's namespace")
	flags.StringArrayVar(&f.o.Namespaces, "application-namespaces", nil, "further namespaces with Applications, a name or a glob, as Argo CD's application.namespaces (repeatable)")
	flags.StringVar(&f.o.PluginName, "plugin-name", "digestlock", "the plugin's name in Applications")
	flags.BoolVar(&f.o.ReadCredentials, "read-credentials", false, "use secrets of type repository and repo-creds too, where Argo CD has none for writing")
	flags.BoolVar(&f.silent, "no-refresh", false, "do not ask Argo CD for a refresh after a commit")
	flags.BoolVar(&f.elect, "leader-elect", false, "let one of several companions work, the one that holds the lease digestlock-companion")
}

// open follows the cluster until stop is called. It returns nil without --kubernetes.
func (f *kubeFlags) open(ctx context.Context, log *slog.Logger) (a *argo, stop func(), err error) {
	if !f.on {
		if f.elect {
			return nil, nil, cli.Usage("give --kubernetes too, that is where the lease is; without it any number of companions may run, each commit is a compare-and-swap",
				"--leader-elect without --kubernetes")
		}
		return nil, func() {}, nil
	}
	f.o.Log = log
	cluster, err := argocd.Open(f.o)
	if err != nil {
		return nil, nil, fault.New(fault.Kubernetes, "run in a pod with a service account, or give --kubeconfig", "%w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = cluster.Run(ctx) })
	stop = func() {
		cancel()
		wg.Wait()
	}
	first, done := context.WithTimeout(ctx, syncTimeout)
	defer done()
	if err := cluster.Synced(first); err != nil {
		stop()
		return nil, nil, fault.New(fault.Kubernetes, "apply manifests/companion, and check --namespace and --application-namespaces", "%w", err)
	}
	a = &argo{Cluster: cluster, log: log, silent: f.silent, life: ctx}
	return a, func() {
		a.syncs.Wait()
		stop()
	}, nil
}

// lead calls run: at once, or whenever this process holds the lease.
func (f *kubeFlags) lead(ctx context.Context, a *argo, run func(context.Context)) error {
	if !f.elect {
		run(ctx)
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	return a.Lead(ctx, host+"_"+rand.Text(), func(ctx context.Context) {
		a.log.Info("leading")
		run(ctx)
	})
}

// follow calls changed when an Application came, went or changed its source, until ctx ends.
func (a *argo) follow(ctx context.Context, changed func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.Changed():
			changed()
		}
	}
}
