package argocd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/record/util"
)

// refreshAnnotation asks Argo CD to look again; it takes it away when it has.
const refreshAnnotation = "argocd.argoproj.io/refresh"

const maxEventMessage = 1024 // what the newer API for events takes

// Refresh asks Argo CD to compare the Application with its repository now; hard also forgets what it rendered before.
// It does not wait for that. Where Argo CD was asked before and is not done, it may be under way already and forget
// what it is asked meanwhile: then [Cluster.RefreshAgain] has to follow.
func (c *Cluster) Refresh(ctx context.Context, app Application, hard bool) (again bool, err error) {
	u, err := c.dynamic.Resource(applications).Namespace(app.Namespace).Get(ctx, app.AppName, metav1.GetOptions{})
	if err == nil {
		err = c.refresh(ctx, app, hard)
	}
	if err != nil {
		return false, fmt.Errorf("refresh Application %s: %w", app.Name, err)
	}
	return u.GetAnnotations()[refreshAnnotation] != "", nil
}

// RefreshAgain asks once more, as soon as Argo CD has done what it was asked before.
func (c *Cluster) RefreshAgain(ctx context.Context, app Application, hard bool) error {
	err := patiently(ctx, func(ctx context.Context) (done bool, busy, err error) {
		u, err := c.dynamic.Resource(applications).Namespace(app.Namespace).Get(ctx, app.AppName, metav1.GetOptions{})
		if err != nil || u.GetAnnotations()[refreshAnnotation] != "" {
			return false, errNotRefreshed, err
		}
		return true, nil, c.refresh(ctx, app, hard)
	})
	if err != nil {
		return fmt.Errorf("refresh Application %s again: %w", app.Name, err)
	}
	return nil
}

var errNotRefreshed = errors.New("its refresh is not done")

func (c *Cluster) refresh(ctx context.Context, app Application, hard bool) error {
	how := "normal"
	if hard {
		how = "hard"
	}
	return c.patch(ctx, app, map[string]any{"metadata": map[string]any{"annotations": map[string]any{refreshAnnotation: how}}})
}

// Sync has Argo CD sync an Application as its automated sync would, hooks and history included; Argo CD itself does
// not when only the rendered manifests changed. First it waits until a refresh that was asked for is done, because
// Argo CD would sync what it rendered before that, and until no other operation is in progress; when ctx ends before,
// the error says which of the two it waited for. An Application that is being deleted, or whose automated sync is
// off by now, is left alone; so is one that Argo CD has synced meanwhile, as it does once for each commit: a second
// sync would run its hooks twice.
func (c *Cluster) Sync(ctx context.Context, app Application) error {
	a := attempt{Cluster: c, app: app}
	if err := patiently(ctx, a.sync); err != nil {
		return fmt.Errorf("sync Application %s: %w", app.Name, err)
	}
	return nil
}

// patiently calls f until it is done or fails, or ctx ends; then the error is why f was busy last. Soon at first, and then
// after half as long again each time: a refresh takes as long as a render, an operation minutes, and hundreds may wait.
func patiently(ctx context.Context, f func(context.Context) (done bool, busy, err error)) error {
	patience := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Cap: 5 * time.Second, Steps: 20}
	var busy error
	err := patience.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		done, why, err := f(ctx)
		if why != nil {
			busy = why
		}
		return done, err
	})
	if err != nil && ctx.Err() != nil && busy != nil {
		return fmt.Errorf("%w: %w", busy, context.Cause(ctx))
	}
	return err
}

// attempt is one [Cluster.Sync] under way.
type attempt struct {
	*Cluster
	app    Application
	looks  int    // at the Application
	before string // when its last operation had begun at the first of them
	after  int    // looks since one of Argo CD's own has ended
}

// settling is how many looks Argo CD gets to see what its operation has done: it takes a part of a second.
const settling = 5

// sync starts the operation if it can. Busy is why it has to wait.
func (a *attempt) sync(ctx context.Context) (done bool, busy, err error) {
	u, err := a.dynamic.Resource(applications).Namespace(a.app.Namespace).Get(ctx, a.app.AppName, metav1.GetOptions{})
	if err != nil {
		return false, nil, err
	}
	last, synced := operated(u)
	if a.looks++; a.looks == 1 {
		a.before = last
	}
	s, err := specOf(u)
	switch {
	case err != nil:
		return false, nil, err
	case u.GetDeletionTimestamp() != nil || !s.SyncPolicy.automated():
		return true, nil, nil
	case u.GetAnnotations()[refreshAnnotation] != "":
		return false, errNotRefreshed, nil
	case operating(u):
		return false, errors.New("another operation is in progress"), nil
	case last != a.before && synced && inSync(u):
		a.log.Info("synced by Argo CD itself", "application", a.app.Name)
		return true, nil, nil
	case last != a.before && synced && a.after < settling:
		a.after++
		return false, errors.New("its own sync has not been compared"), nil
	}
	err = a.patch(ctx, a.app, map[string]any{
		"metadata":  map[string]any{"resourceVersion": u.GetResourceVersion()}, // refused when anything changed since
		"operation": operation(s),
	})
	if apierrors.IsConflict(err) {
		return false, errors.New("it changes all the time"), nil
	}
	return err == nil, nil, err
}

// operating reports whether an operation was asked for, or is on its way: Argo CD takes .operation away when it ends.
func operating(u *unstructured.Unstructured) bool {
	asked, _, _ := unstructured.NestedMap(u.Object, "operation")
	phase, _, _ := unstructured.NestedString(u.Object, "status", "operationState", "phase")
	return asked != nil || phase == "Running" || phase == "Terminating"
}

// operated returns when the last operation began, "" for none, and whether it has synced everything, with hooks and
// history: selfHeal names resources.
func operated(u *unstructured.Unstructured) (began string, all bool) {
	state, _, _ := unstructured.NestedMap(u.Object, "status", "operationState")
	began, _, _ = unstructured.NestedString(state, "startedAt")
	phase, _, _ := unstructured.NestedString(state, "phase")
	some, _, _ := unstructured.NestedSlice(state, "operation", "sync", "resources")
	return began, phase == "Succeeded" && len(some) == 0
}

func inSync(u *unstructured.Unstructured) bool {
	status, _, _ := unstructured.NestedString(u.Object, "status", "sync", "status")
	return status == "Synced"
}

// operation is what Argo CD's automated sync asks for. What to sync, and at which revision, is left to the Application:
// naming sources would override them.
func operation(s *spec) map[string]any {
	sync := map[string]any{}
	if s.SyncPolicy.Automated.Prune {
		sync["prune"] = true
	}
	if len(s.SyncPolicy.SyncOptions) > 0 {
		sync["syncOptions"] = s.SyncPolicy.SyncOptions
	}
	retry := s.SyncPolicy.Retry
	if retry == nil {
		retry = map[string]any{"limit": 5} // Argo CD's own
	}
	return map[string]any{
		"initiatedBy": map[string]any{"username": "digestlock", "automated": true}, // automated: sync windows count
		"retry":       retry,
		"sync":        sync,
	}
}

// patch merges into an Application.
func (c *Cluster) patch(ctx context.Context, app Application, change map[string]any) error {
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = c.dynamic.Resource(applications).Namespace(app.Namespace).Patch(ctx, app.AppName, types.MergePatchType, body, metav1.PatchOptions{FieldManager: component})
	return err
}

// Event tells people who look at the Application what happened. The reason is one word in upper camel case. The same
// event again counts up the first, many different ones of one reason become one, and an Application that has
// too many of all gets none for a while: client-go's rules. It is written when Event returns; an error is only logged,
// because nothing depends on an event.
func (c *Cluster) Event(ctx context.Context, app Application, warning bool, reason, message string) {
	result, err := c.events.EventCorrelate(c.event(app, warning, reason, message))
	if err == nil && !result.Skip {
		err = c.write(ctx, result.Event, result.Patch)
	}
	if err != nil {
		c.log.Warn("cannot write event", "application", app.Name, "reason", reason, "err", err)
	}
}

// write is what client-go's broadcaster does, in the foreground: that one has a queue, which a process that ends loses.
func (c *Cluster) write(ctx context.Context, e *corev1.Event, patch []byte) error {
	api := c.kube.CoreV1().Events(e.Namespace)
	var written *corev1.Event
	var err error
	if e.Count > 1 {
		written, err = api.Patch(ctx, e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if e.Count <= 1 || apierrors.IsNotFound(err) { // events are forgotten after an hour
		e.ResourceVersion = ""
		written, err = api.Create(ctx, e, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	c.events.UpdateState(written)
	return nil
}

func (c *Cluster) event(app Application, warning bool, reason, message string) *corev1.Event {
	now := metav1.Now()
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: util.GenerateEventName(app.AppName, now.UnixNano()), Namespace: app.Namespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: applications.GroupVersion().String(), Kind: "Application",
			Namespace: app.Namespace, Name: app.AppName, UID: c.uid(app),
		},
		Reason:         reason,
		Message:        strings.ToValidUTF8(message[:min(len(message), maxEventMessage)], ""),
		Source:         corev1.EventSource{Component: component},
		FirstTimestamp: now,
		LastTimestamp:  now,
		Count:          1,
		Type:           corev1.EventTypeNormal,
	}
	if warning {
		e.Type = corev1.EventTypeWarning
	}
	return e
}

// uid returns "" for an Application that is gone.
func (c *Cluster) uid(app Application) types.UID {
	for _, store := range c.applications {
		if obj, ok, err := store.GetByKey(app.Namespace + "/" + app.AppName); err == nil && ok {
			return obj.(*appRecord).UID
		}
	}
	return ""
}
