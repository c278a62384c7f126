package argocd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// TestSyncIsPatient: who waits for a refresh asks soon, and then less and less often.
func TestSyncIsPatient(t *testing.T) {
	t.Parallel()
	app := application(t, "argocd", "web", oneSource+"syncPolicy: {automated: {}}")
	app.SetAnnotations(map[string]string{refreshAnnotation: "hard"})
	f := fakeAPI(app)
	c, err := newCluster(Options{}, f.dynamic, f.kube)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ask := func(d time.Duration) int {
			f.dynamic.ClearActions()
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			if err := c.Sync(ctx, Application{Name: "web", AppName: "web", Namespace: "argocd"}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Sync() = %v, want it to wait", err)
			}
			return len(f.dynamic.Actions())
		}
		if n := ask(time.Second); n < 3 {
			t.Errorf("asked %d times in the first second, want 3 at least", n)
		}
		if n := ask(2 * time.Minute); n > 40 || n < 25 {
			t.Errorf("asked %d times in two minutes, want each 5 s in the end", n)
		}
	})
}

// TestSyncOnce: what Argo CD has synced by itself, because the commit was new to it, is not synced again. What it has not,
// or in part, or before it was asked to look, is.
func TestSyncOnce(t *testing.T) {
	t.Parallel()
	const full, part = "{sync: {revision: main}}", "{sync: {resources: [{kind: Deployment, name: server}]}}"
	tests := []struct {
		name          string
		before, after string // status, when the refresh is asked for and when it is done
		status        string // of the sync
		want          bool   // an operation
	}{
		{"by Argo CD", "{phase: Succeeded, startedAt: t1}", "{phase: Succeeded, startedAt: t2, operation: " + full + "}", "Synced", false},
		{"by Argo CD, the first time", "{}", "{phase: Succeeded, startedAt: t2, operation: " + full + "}", "Synced", false},
		{"by nobody", "{phase: Succeeded, startedAt: t1, operation: " + full + "}", "{phase: Succeeded, startedAt: t1, operation: " + full + "}", "OutOfSync", true},
		{"before that", "{phase: Succeeded, startedAt: t1, operation: " + full + "}", "{phase: Succeeded, startedAt: t1, operation: " + full + "}", "Synced", true},
		{"by selfHeal", "{phase: Succeeded, startedAt: t1}", "{phase: Succeeded, startedAt: t2, operation: " + part + "}", "Synced", true},
		{"in vain", "{phase: Succeeded, startedAt: t1}", "{phase: Failed, startedAt: t2, operation: " + full + "}", "OutOfSync", true},
		{"something older", "{phase: Running, startedAt: t1}", "{phase: Succeeded, startedAt: t2, operation: " + full + "}", "OutOfSync", true},
	}
	for _, tt := range tests {
		state := func(operation, sync string) map[string]any {
			var status map[string]any
			if err := yaml.Unmarshal([]byte("{operationState: "+operation+", sync: {status: "+sync+"}}"), &status); err != nil {
				t.Fatal(err)
			}
			return status
		}
		app := application(t, "argocd", "web", oneSource+"syncPolicy: {automated: {}}")
		app.SetAnnotations(map[string]string{refreshAnnotation: "hard"})
		app.Object["status"] = state(tt.before, "Synced")
		f := fakeAPI(app)
		c, err := newCluster(Options{}, f.dynamic, f.kube)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			apps := f.dynamic.Resource(applications).Namespace("argocd")
			go func() {
				time.Sleep(time.Second)
				done := app.DeepCopy()
				done.SetAnnotations(nil)
				done.Object["status"] = state(tt.after, tt.status)
				if _, err := apps.Update(t.Context(), done, metav1.UpdateOptions{}); err != nil {
					t.Error(err)
				}
			}()
			if err := c.Sync(t.Context(), Application{Name: "web", AppName: "web", Namespace: "argocd"}); err != nil {
				t.Errorf("%s: Sync() = %v", tt.name, err)
			}
			u, err := apps.Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, got := u.Object["operation"]; got != tt.want {
				t.Errorf("%s: an operation was asked for: %v, want %v", tt.name, got, tt.want)
			}
		})
	}
}

// TestRefreshAgain: what Argo CD is asked while it looks is asked again when it has, for it forgets the annotation then.
func TestRefreshAgain(t *testing.T) {
	t.Parallel()
	app := application(t, "argocd", "web", oneSource)
	app.SetAnnotations(map[string]string{refreshAnnotation: "normal"})
	f := fakeAPI(app)
	c, err := newCluster(Options{}, f.dynamic, f.kube)
	if err != nil {
		t.Fatal(err)
	}
	web := Application{Name: "web", AppName: "web", Namespace: "argocd"}
	apps := f.dynamic.Resource(applications).Namespace("argocd")
	annotation := func() string {
		u, err := apps.Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return u.GetAnnotations()[refreshAnnotation]
	}
	look := func() {
		if _, err := apps.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"metadata": {"annotations": null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		if again, err := c.Refresh(t.Context(), web, true); !again || err != nil {
			t.Errorf("Refresh() = %v, %v while Argo CD looks, want to be asked again", again, err)
		}
		done := make(chan error)
		go func() { done <- c.RefreshAgain(t.Context(), web, true) }()
		time.Sleep(10 * time.Second)
		look() // it began before Refresh
		if err := <-done; err != nil || annotation() != "hard" {
			t.Errorf("RefreshAgain() = %v and annotates %q, want hard", err, annotation())
		}
		look()
		if again, err := c.Refresh(t.Context(), web, false); again || err != nil || annotation() != "normal" {
			t.Errorf("Refresh() = %v, %v with nothing under way, and annotates %q", again, err, annotation())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.RefreshAgain(ctx, web, false); !errors.Is(err, errNotRefreshed) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RefreshAgain() = %v when Argo CD does not look, want both reasons", err)
		}
	})
}
