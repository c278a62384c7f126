package main

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/argocd"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
)

// kubeFlags say where Argo CD is, and what of it to use.
type kubeFlags struct {
	on     bool
	silent bool
	elect  bool
	// advertise is the address in the lease; "" to find it.
	advertise string
	o         argocd.Options
	mode      string // of Applications that name none
}

func (f *kubeFlags) register(flags *cli.Flags) {
	flags.BoolVar(&f.on, "kubernetes", false, "write for the Applications of an Argo CD, with its credentials")
	flags.StringVar(&f.o.Kubeconfig, "kubeconfig", "", "kubeconfig file of its cluster; empty for the cluster that this runs in")
	flags.StringVar(&f.o.Namespace, "namespace", "argocd", "Argo CD's namespace")
	flags.Func("application-namespaces", "further namespaces with Applications, names or `globs`, as Argo CD's application.namespaces (repeatable, or with commas)", func(v string) error {
		for ns := range strings.SplitSeq(v, ",") {
			if ns = strings.TrimSpace(ns); ns != "" {
				f.o.Namespaces = append(f.o.Namespaces, ns)
			}
		}
		return nil
	})
	flags.StringVar(&f.o.PluginName, "plugin-name", "digestlock", "the plugin's name in Applications")
	flags.BoolVar(&f.o.ReadCredentials, "read-credentials", false, "use secrets of type repository and repo-creds too, where Argo CD has none for writing")
	flags.StringVar(&f.mode, "default-mode", "follow", "mode of Applications that name none, as DIGESTLOCK_MODE of the plugin's container says")
	flags.BoolVar(&f.silent, "no-refresh", false, "do not ask Argo CD for a refresh after a commit")
	flags.BoolVar(&f.elect, "leader-elect", false, "let one of several companions work, the one that holds the lease digestlock-companion; the others pass on to it what comes to their --listen")
	flags.DurationVar(&f.o.Lease, "lease-duration", 15*time.Second, "with --leader-elect: how long after a leader's last sign of life another may take over; all companions need the same")
	flags.StringVar(&f.advertise, "advertise", "", "with --leader-elect: IP:port at which other companions reach this one's --listen; empty for the address in --listen, else the variable POD_IP, else that of the outbound interface")
}

// check returns what is wrong with the flags beside each other.
func (f *kubeFlags) check(once bool, listen string) error {
	switch {
	case !slices.Contains(companion.Modes(), f.mode):
		return cli.Usage("give one of "+strings.Join(companion.Modes(), ", ")+", as the plugin's container has it", "--default-mode: no mode is called %q", f.mode)
	case f.elect && once:
		return cli.Usage("leave it out: any number of companions may run, each commit is a compare-and-swap", "--leader-elect with --once")
	case f.elect && !f.on:
		return cli.Usage("give --kubernetes too, that is where the lease is; without it any number of companions may run, each commit is a compare-and-swap",
			"--leader-elect without --kubernetes")
	case f.o.Lease < time.Second || f.o.Lease%time.Second != 0:
		return cli.Usage("give whole seconds, as Kubernetes counts them", "--lease-duration=%v", f.o.Lease)
	case f.advertise != "" && (!f.elect || listen == ""):
		return cli.Usage("leave it out: it tells other companions where this one's --listen is", "--advertise without --leader-elect and --listen")
	}
	return nil
}

// open follows the cluster until stop is called. It returns nil without --kubernetes.
func (f *kubeFlags) open(ctx context.Context, log *slog.Logger, once bool) (a *argo, stop func(), err error) {
	if !f.on {
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
	leave := func() { // not stop, which is what the caller calls
		cancel()
		wg.Wait()
	}
	first, done := context.WithTimeout(ctx, syncTimeout)
	defer done()
	if err := cluster.Synced(first); err != nil {
		leave()
		return nil, nil, fault.New(fault.Kubernetes, "apply manifests/companion, and check --namespace and --application-namespaces", "%w", err)
	}
	a = &argo{Cluster: cluster, log: log, silent: f.silent, life: ctx, once: once}
	return a, func() {
		a.syncs.Wait()
		leave()
	}, nil
}

// identity is what this process calls itself in the lease, which is not what another that runs or ran calls itself. It
// ends with the address at which the others reach this one's door, where it has one.
func (f *kubeFlags) identity(env cli.Env, l net.Listener) (string, error) {
	if !f.elect {
		return "", nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	id := host + identitySeparator + rand.Text()
	if l == nil {
		return id, nil
	}
	address, err := advertised(f.advertise, env.Getenv("POD_IP"), l.Addr())
	return id + identitySeparator + address, err
}

// identitySeparator is in no host name and in no address.
const identitySeparator = "_"

// advertised returns the address of the flag, or else of the listener, with the pod's IP where it listens at all there are.
func advertised(flag, podIP string, listening net.Addr) (string, error) {
	const hint = "give --advertise the IP address and port at which other companions reach this one, such as 10.1.2.3:8086"
	if flag != "" {
		a, err := netip.ParseAddrPort(flag)
		if err != nil || a.Addr().IsUnspecified() || a.Port() == 0 {
			return "", cli.Usage(hint, "--advertise: %q is not the address and port of one companion", flag)
		}
		return flag, nil
	}
	a, err := netip.ParseAddrPort(listening.String())
	if err != nil {
		return "", err
	}
	ip := a.Addr()
	if ip.IsUnspecified() && podIP == "" {
		ip, err = outbound()
	} else if ip.IsUnspecified() {
		ip, err = netip.ParseAddr(podIP)
	}
	if err != nil {
		return "", cli.Usage(hint, "--leader-elect: this companion's own address: %w", err)
	}
	return netip.AddrPortFrom(ip, a.Port()).String(), nil
}

// outbound returns the address from which this machine reaches others. It asks the routing table alone: no packet is sent
// to these addresses, which documentation has for itself.
func outbound() (netip.Addr, error) {
	var problems []error
	for _, other := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", other)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		defer func() { _ = c.Close() }()
		a, err := netip.ParseAddrPort(c.LocalAddr().String())
		return a.Addr(), err
	}
	return netip.Addr{}, errors.Join(problems...)
}

// leader is [fanout.Options.Leader] for the process that calls itself identity; nil without an election.
func (f *kubeFlags) leader(a *argo, identity string) func() (address string, err error) {
	if !f.elect {
		return nil
	}
	return func() (string, error) {
		leads := a.Leader()
		if leads == identity {
			return "", nil
		}
		return addressIn(leads)
	}
}

// addressIn returns the address in an identity.
func addressIn(identity string) (string, error) {
	if identity == "" {
		return "", errors.New("no companion leads now")
	}
	address := identity[strings.LastIndex(identity, identitySeparator)+1:]
	if _, err := netip.ParseAddrPort(address); err != nil {
		return "", errors.New("the companion that leads has no --listen, or is of another version")
	}
	return address, nil
}

// lead calls run: at once, or whenever this process, which calls itself identity, holds the lease.
func (f *kubeFlags) lead(ctx context.Context, a *argo, identity string, run func(context.Context)) error {
	if !f.elect {
		run(ctx)
		return nil
	}
	return a.Lead(ctx, identity, func(ctx context.Context) {
		a.log.Info("leading", "identity", identity)
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
