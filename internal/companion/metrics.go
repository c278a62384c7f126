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
	refused prometheus.Counter
	pins    *prometheus.GaugeVec
	leftOut *prometheus.GaugeVec
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
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_companion_refused_total",
			Help: "Sources refused, each once while it stays so: no Application has them, or the companion does not write to their repository or branch.",
		}),
		pins: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "digestlock_companion_pins",
			Help: "Pins of all locks as of the last cycle: current, behind the tag, or held back by a person.",
		}, []string{"state"}),
	}
	m.leftOut = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "digestlock_companion_sources_left_out",
		Help: "Sources that get no lock, as of the last cycle: their project is refused by Argo CD, or their target revision is no branch.",
	}, []string{"reason"})
	for _, state := range []string{current, behind, held} {
		m.pins.WithLabelValues(state)
	}
	for _, reason := range []string{byProject, byRevision} {
		m.leftOut.WithLabelValues(reason)
	}
	for _, outcome := range []string{complete, incomplete} {
		m.cycles.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	if r != nil {
		r.MustRegister(m.cycles, m.commits, m.last, m.refused, m.pins, m.leftOut)
	}
	return m
}

// The states of a pin.
const (
	current = "current"
	behind  = "behind"
	held    = "held"
)

// Why a source gets no lock.
const (
	byProject  = "project"
	byRevision = "revision"
)

// stand counts the pins.
func (m metrics) stand(branches []BranchStatus) {
	n := map[string]float64{}
	for _, b := range branches {
		for _, p := range b.Pins {
			n[p.state()]++
		}
	}
	for _, state := range []string{current, behind, held} {
		m.pins.WithLabelValues(state).Set(n[state])
	}
}

func (p PinStatus) state() string {
	switch {
	case p.Held:
		return held
	case p.Drift:
		return behind
	}
	return current
}

// ended counts a cycle.
func (m metrics) ended(o outcome) {
	m.commits.Add(float64(len(o.commits)))
	if len(o.problems) > 0 {
		m.cycles.WithLabelValues(incomplete).Inc()
		return
	}
	m.cycles.WithLabelValues(complete).Inc()
	m.last.Set(float64(time.Now().Unix()))
}
