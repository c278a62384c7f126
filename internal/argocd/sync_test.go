package argocd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
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
