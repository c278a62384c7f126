package companion_test

import (
	"strconv"
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

// TestRefusedOnce: what is refused is logged and counted once while it stays, and again when it comes back.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	f, c := inCluster(t, map[string]string{"a/kustomization.yaml": overlay}, companion.Application{Name: "one", Path: "a"})
	metrics := prometheus.NewRegistry()
	f.Companion = companion.New(options(f.log, func(o *companion.Options) {
		o.Replicas, o.Cluster, o.Registerer = replicas(f.replica), c, metrics
		o.Repositories = []companion.Repository{{Remote: open(t, f.repo.URL, f.server.Auth), URL: f.repo.URL, Branch: "main"}}
	}))
	f.repo.Git(t, "branch", "dev", "main")
	c.apps = append(c.apps, companion.Application{Name: "dev", Path: "a", TargetRevision: "dev", Project: "default", Repository: f.repo.URL})
	want := func(lines int) {
		t.Helper()
		for range 3 {
			once(t, f.Companion, 0)
		}
		if got := strings.Count(f.log.String(), "render refused"); got != lines {
			t.Errorf("%d lines, want %d:\n%s", got, lines, f.log)
		}
		const name = "digestlock_companion_refused_total"
		if err := testutil.GatherAndCompare(metrics, strings.NewReader("# HELP "+name+
			" Sources refused, each once while it stays so: no Application has them, or the companion does not write to their repository or branch.\n# TYPE "+
			name+" counter\n"+name+" "+strconv.Itoa(lines)+"\n"), name); err != nil {
			t.Error(err)
		}
	}
	want(1) // dev
	f.replica.rendered(f.repo.URL, "", "preview", "gone", pin(server, 1))
	want(2)
	f.replica.docs = nil
	want(2)
	f.replica.rendered(f.repo.URL, "", "preview", "gone", pin(server, 1))
	want(3)
	f.repo.Git(t, "symbolic-ref", "HEAD", "refs/heads/dev")
	want(4) // the branch of one
}
