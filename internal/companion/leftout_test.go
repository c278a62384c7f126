package companion_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/digestlock/digestlock/internal/companion"
)

// TestLeftOut: who gets no lock is counted, as of the last cycle.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay},
		companion.Application{Name: "one", Path: "a"}, companion.Application{Name: "two", Path: "a", TargetRevision: "v1"},
		companion.Application{Name: "three", Path: "a", TargetRevision: "v1"})
	f.repo.Git(t, "tag", "v1", "main")
	metrics := prometheus.NewRegistry()
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Cluster, o.Registerer = replicas(f.replica), c, metrics
	}))
	want := func(project, revision string) {
		t.Helper()
		once(t, f.Companion, 0)
		const name = "digestlock_companion_sources_left_out"
		if err := testutil.GatherAndCompare(metrics, strings.NewReader("# HELP "+name+
			" Sources that get no lock, as of the last cycle: their project is refused by Argo CD, or their target revision is no branch.\n# TYPE "+name+" gauge\n"+
			name+`{reason="project"} `+project+"\n"+name+`{reason="revision"} `+revision+"\n"), name); err != nil {
			t.Error(err)
		}
	}
	c.left = 3
	want("3", "2")
	c.left, c.apps = 0, c.apps[:1]
	want("0", "0")
}
