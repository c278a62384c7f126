package companion

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What a cycle came to, in the metric.
const (
	complete   = "complete"
	incomplete = "incomplete"
)

// metrics are what the companion measures. docs/metrics.md explains each.
type metrics struct {
	cycles  *prometheus.CounterVec
	commits prometheus.Counter
	last    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		cycles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_companion_cycles_total",
			Help: "Cycles that ended: complete, or incomplete when something could not be done.",
		}, []string{"outcome"}),
		commits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_companion_commits_total", Help: "Commits pushed.",
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "digestlock_companion_last_complete_timestamp_seconds", Help: "When the last complete cycle ended; 0 before the first.",
		}),
	}
	for _, outcome := range []string{complete, incomplete} {
		m.cycles.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	if r != nil {
		r.MustRegister(m.cycles, m.commits, m.last)
	}
	return m
}

// ended counts a cycle.
func (m metrics) ended(commits []Commit, problems []error) {
	m.commits.Add(float64(len(commits)))
	if len(problems) > 0 {
		m.cycles.WithLabelValues(incomplete).Inc()
		return
	}
	m.cycles.WithLabelValues(complete).Inc()
	m.last.Set(float64(time.Now().Unix()))
}
