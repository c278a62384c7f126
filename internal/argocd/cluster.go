// Package argocd is what the companion has to do with Kubernetes: which Applications use the plugin and are permitted,
// which credentials Argo CD holds for their repositories, how to tell Argo CD and people that something changed, and
// who leads.
//
// It is the only importer of client-go. Argo CD's types are not imported, because they bring all of Argo CD: of an
// Application a handful of fields are read, and its rules for matching are written again, with tests that hold Argo
// CD's own code against the same tables.
//
// # What it may do
//
// manifests/companion/rbac.yaml grants exactly this, in Argo CD's namespace unless it says otherwise:
//
//	applications   get, list, watch, patch   patch: the refresh annotation and .operation; also in further namespaces
//	secrets        list, watch               RBAC cannot say "with this label": the role can read each secret of Argo
//	                                         CD's namespace. This package asks for those with the labels it uses.
//	appprojects    list, watch
//	configmaps     list, watch               argocd-ssh-known-hosts-cm, argocd-tls-certs-cm and argocd-cm, by name; of the
//	                                         last, globalProjects is kept
//	events         create, patch             also in further namespaces
//	leases         create                    RBAC cannot restrict that by name
//	leases         get, update               digestlock-companion, by name
package argocd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// component is our name in Kubernetes: of events' reporter, the lease and the user agent.
const component = "digestlock-companion"

const pingTimeout = 2 * time.Second

// Options say where Argo CD is and what of it to use.
type Options struct {
	Kubeconfig      string        // path; "" is the cluster that this process runs in
	Namespace       string        // Argo CD's own; "" is "argocd"
	Namespaces      []string      // further ones in which Applications are allowed, as Argo CD's application.namespaces: names, globs, /regular expressions/
	PluginName      string        // as source.plugin.name has it; "" is "digestlock"
	ReadCredentials bool          // use repository and repo-creds secrets where there are none for writing
	Lease           time.Duration // of Lead, in whole seconds: how long nobody else leads after the leader's last sign of life; 0 is 15 s
	Log             *slog.Logger  // nil logs nothing
}

// Cluster is one Argo CD. Its methods are safe for concurrent use. What it answers comes from memory and is empty
// before [Cluster.Synced]; the memory follows the cluster while [Cluster.Run] runs.
type Cluster struct {
	namespace       string
	allowed         globs
	plugin          string
	readCredentials bool
	lease           time.Duration
	log             *slog.Logger

	dynamic dynamic.Interface
	kube    kubernetes.Interface
	events  *record.EventCorrelator

	watches      []*watch
	applications []cache.Store // of records, one for each namespace that is watched, or one for all
	projects     cache.Store   // of records
	secrets      cache.Store
	configMaps   map[string]cache.Store // by name
	changed      chan struct{}
	election     atomic.Pointer[leaderelection.LeaderElector] // nil before Lead

	mu      sync.Mutex
	refused map[string]refusal // by namespace/name, what the log knows
	leftOut int                // sources of these
}

// Open connects to nothing yet; the error is about the configuration.
func Open(o Options) (*Cluster, error) {
	config, err := restConfig(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	return newCluster(o, dyn, kube)
}

func restConfig(kubeconfig string) (config *rest.Config, err error) {
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("read Kubernetes configuration: %w", err)
	}
	config.UserAgent = component
	config.QPS = -1 // the default of 5 a second would spread 500 refreshes over 100 s; the server has its own fair queues
	return config, nil
}

func newCluster(o Options, dyn dynamic.Interface, kube kubernetes.Interface) (*Cluster, error) {
	allowed, err := compile(o.Namespaces)
	if err != nil {
		return nil, fmt.Errorf("read namespaces of Applications: %w", err)
	}
	c := &Cluster{
		namespace:       cmp.Or(o.Namespace, "argocd"),
		allowed:         allowed,
		plugin:          cmp.Or(o.PluginName, "digestlock"),
		readCredentials: o.ReadCredentials,
		lease:           o.Lease,
		log:             o.Log,
		dynamic:         dyn,
		kube:            kube,
		events:          record.NewEventCorrelator(clock.RealClock{}),
		configMaps:      map[string]cache.Store{},
		changed:         make(chan struct{}, 1),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for _, ns := range c.watched(o.Namespaces) {
		store, err := c.watch("Applications", dynamicinformer.NewFilteredDynamicInformer(dyn, applications, ns, 0, nil, nil).Informer(), c.toRecord)
		if err != nil {
			return nil, err
		}
		c.applications = append(c.applications, store)
	}
	if c.projects, err = c.watch("AppProjects", dynamicinformer.NewFilteredDynamicInformer(dyn, projects, c.namespace, 0, nil, nil).Informer(), c.toProject); err != nil {
		return nil, err
	}
	if c.secrets, err = c.watch("Secrets", c.typed(func(l *metav1.ListOptions) {
		l.LabelSelector = secretLabel + " in (" + c.secretTypes() + ")"
	}).Core().V1().Secrets().Informer(), c.slimSecret); err != nil {
		return nil, err
	}
	for _, name := range []string{knownHostsMap, certificatesMap, settingsMap} {
		if c.configMaps[name], err = c.watch("ConfigMap "+name, c.typed(func(l *metav1.ListOptions) {
			l.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}).Core().V1().ConfigMaps().Informer(), slimConfigMap); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// watched returns the namespaces to watch Applications in: each by its name, so that a role in each is enough, unless
// a pattern wants all of them.
func (c *Cluster) watched(patterns []string) []string {
	namespaces := []string{c.namespace}
	for _, p := range patterns {
		if !isName(p) {
			return []string{metav1.NamespaceAll}
		}
		namespaces = append(namespaces, p)
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}

// typed makes informers of Argo CD's namespace.
func (c *Cluster) typed(tweak func(*metav1.ListOptions)) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(c.kube, 0, informers.WithNamespace(c.namespace), informers.WithTweakListOptions(tweak))
}

// watch is an informer, and why it has nothing to say.
type watch struct {
	what     string
	informer cache.SharedIndexInformer

	mu  sync.Mutex
	err error // the last of its failures
}

// ping says why the API server does not answer, which informers keep to themselves. It is for when ctx has ended.
func (c *Cluster) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
	defer cancel()
	return c.kube.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
}

func (w *watch) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// watch has an informer keep what slim makes of each object.
func (c *Cluster) watch(what string, informer cache.SharedIndexInformer, slim cache.TransformFunc) (cache.Store, error) {
	w := &watch{what: what, informer: informer}
	c.watches = append(c.watches, w)
	if err := errors.Join(informer.SetTransform(slim), informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		c.failed(w, err)
	})); err != nil {
		return nil, fmt.Errorf("watch %s: %w", what, err)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.compare(nil, obj) },
		UpdateFunc: c.compare,
		DeleteFunc: func(obj any) { c.compare(obj, nil) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", what, err)
	}
	return informer.GetStore(), nil
}

// failed tells of an error that the informer will try again after. A watch that has simply ended is none.
func (c *Cluster) failed(w *watch, err error) {
	if errors.Is(err, io.EOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	c.log.Warn("cannot read from Kubernetes, trying again", "what", w.what, "err", err)
}

// Run follows the cluster until ctx ends, and then returns nil. It may be called once. An API server that cannot be
// reached or refuses is asked again and again, with a warning each time; what was read before stays.
func (c *Cluster) Run(ctx context.Context) error {
	ctx = c.logged(ctx)
	var wg sync.WaitGroup
	for _, w := range c.watches {
		wg.Go(func() { w.informer.RunWithContext(ctx) })
	}
	wg.Wait()
	return nil
}

// Synced waits until everything was read once. When ctx ends before, the error says what was not, and why.
func (c *Cluster) Synced(ctx context.Context) error {
	for _, w := range c.watches {
		if cache.WaitForCacheSync(ctx.Done(), w.informer.HasSynced) {
			continue
		}
		err := w.lastError()
		if err == nil {
			err = cmp.Or(c.ping(ctx), context.Cause(ctx))
		}
		return fmt.Errorf("read %s from Kubernetes: %w", w.what, err)
	}
	return nil
}

// Changed says that an Application that uses the plugin came, went or has another source, or that what projects permit
// is not what it was. Signals that nobody took become one.
func (c *Cluster) Changed() <-chan struct{} { return c.changed }

// logged has client-go log to our logger.
func (c *Cluster) logged(ctx context.Context) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(c.log.Handler()))
}

// slimSecret keeps what is needed: of credentials that are not to be used, whose project and for which repository they
// are. The annotations may hold all values a second time, when kubectl applied them.
func (c *Cluster) slimSecret(obj any) (any, error) {
	s, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	slim := &corev1.Secret{ObjectMeta: slimMeta(s), Data: s.Data}
	if s.Labels[secretLabel] == forReading.repository && !c.readCredentials {
		slim.Data = map[string][]byte{"project": s.Data["project"], "url": s.Data["url"]}
	}
	return slim, nil
}

func slimConfigMap(obj any) (any, error) {
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return obj, nil
	}
	slim := &corev1.ConfigMap{ObjectMeta: slimMeta(m), Data: m.Data}
	if m.Name == settingsMap {
		slim.Data = map[string]string{globalProjectsKey: m.Data[globalProjectsKey]}
	}
	return slim, nil
}

// slimMeta keeps what informers and this package read.
func slimMeta(m metav1.Object) metav1.ObjectMeta {
	slim := metav1.ObjectMeta{Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(), ResourceVersion: m.GetResourceVersion()}
	if t, ok := m.GetLabels()[secretLabel]; ok {
		slim.Labels = map[string]string{secretLabel: t}
	}
	return slim
}
