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
// It does not wait for that.
func (c *Cluster) Refresh(ctx context.Context, app Application, hard bool) error {
	how := "normal"
	if hard {
		how = "hard"
	}
	if err := c.patch(ctx, app, map[string]any{"metadata": map[string]any{"annotations": map[string]any{refreshAnnotation: how}}}); err != nil {
		return fmt.Errorf("refresh Application %s: %w", app.Name, err)
	}
	return nil
}

// Sync has Argo CD sync an Application as its automated sync would, hooks and history included; Argo CD itself does
// not when only the rendered manifests changed. First it waits until a refresh that was asked for is done, because
// Argo CD would sync what it rendered before that, and until no other operation is in progress; when ctx ends before,
// the error says which of the two it waited for. An Application that is being deleted, or whose automated sync is
// off by now, is left alone.
func (c *Cluster) Sync(ctx context.Context, app Application) error {
	// Soon at first, and then after half as long again each time: a refresh takes as long as a render, an operation
	// minutes, and hundreds may wait.
	patience := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Cap: 5 * time.Second, Steps: 20}
	var busy error
	err := patience.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		done, why, err := c.trySync(ctx, app)
		if why != nil {
			busy = why
		}
		return done, err
	})
	if err != nil {
		if ctx.Err() != nil && busy != nil {
			err = fmt.Errorf("%w: %w", busy, context.Cause(ctx))
		}
		return fmt.Errorf("sync Application %s: %w", app.Name, err)
	}
	return nil
}

// trySync starts the operation if it can. Busy is why it has to wait.
func (c *Cluster) trySync(ctx context.Context, app Application) (done bool, busy, err error) {
	u, err := c.dynamic.Resource(applications).Namespace(app.Namespace).Get(ctx, app.AppName, metav1.GetOptions{})
	if err != nil {
		return false, nil, err
	}
	s, err := specOf(u)
	switch {
	case err != nil:
		return false, nil, err
	case u.GetDeletionTimestamp() != nil || !s.SyncPolicy.automated():
		return true, nil, nil
	case u.GetAnnotations()[refreshAnnotation] != "":
		return false, errors.New("its refresh is not done"), nil
	case operating(u):
		return false, errors.New("another operation is in progress"), nil
	}
	err = c.patch(ctx, app, map[string]any{
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
