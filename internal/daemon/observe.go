package daemon

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/image"
)

// metrics are what the server measures. docs/metrics.md explains each.
type metrics struct {
	answers    *prometheus.CounterVec
	unsaved    prometheus.Counter
	recalled   *prometheus.CounterVec
	remembered prometheus.Counter
}

// What a reference was answered with, and whether a render was remembered, in the metrics.
const (
	fresh  = "fresh"
	stale  = "stale"
	failed = "failed"
	found  = "found"
	absent = "absent"
)

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_resolved_references_total",
			Help: "References answered to renders and companions: fresh, stale (the last known digest) or failed.",
		}, []string{"outcome"}),
		unsaved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_ledger_write_failures_total", Help: "Renders whose pins could not be kept on disk.",
		}),
		recalled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_renders_recalled_total", Help: "Renders that asked for what was rendered before, by whether there was anything: found or absent.",
		}, []string{"outcome"}),
		remembered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_renders_remembered_total", Help: "Renders that were built and are remembered, in place of what was found where that was another.",
		}),
	}
	for _, outcome := range []string{found, absent} {
		m.recalled.WithLabelValues(outcome)
	}
	for _, outcome := range []string{fresh, stale, failed} {
		m.answers.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	r.MustRegister(m.answers, m.unsaved, m.recalled, m.remembered)
	return m
}

// observeLedger adds what the ledger knows of itself.
func (s *Server) observeLedger() {
	s.o.Metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "digestlock_ledger_sources", Help: "Sources whose last render is remembered.",
		}, func() float64 { return float64(s.o.Ledger.Len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "digestlock_ledger_writable", Help: "Whether the state directory can be written, 1 or 0; tried at most every 5 s.",
		}, func() float64 {
			if s.disk.Run() != nil {
				return 0
			}
			return 1
		}),
	)
}

// observeRenders adds what is remembered of renders.
func (s *Server) observeRenders() {
	s.o.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "digestlock_renders_bytes", Help: "Memory that remembered renders take.",
	}, func() float64 {
		if s.o.Renders == nil {
			return 0
		}
		return float64(s.o.Renders.Size())
	}))
}

// answered counts what a request for references came to.
func (m metrics) answered(results []image.Resolution) {
	for _, r := range results {
		switch {
		case r.Err != nil:
			m.answers.WithLabelValues(failed).Inc()
		case r.Stale:
			m.answers.WithLabelValues(stale).Inc()
		default:
			m.answers.WithLabelValues(fresh).Inc()
		}
	}
}

// health takes the ledger's lock, and tells of the state directory. That it cannot be written is no reason to restart: that
// would lose the pins that are in memory only, and the resolver does not start on a full disk.
func (s *Server) health() string {
	text := fmt.Sprintf(", %d sources", s.o.Ledger.Len())
	if s.disk.Run() != nil {
		text += ", state directory not writable"
	}
	return text
}

// writable checks the state directory, and logs when that comes to something new.
func (s *Server) writable() func() error {
	var before error
	return func() error {
		err := s.o.Ledger.Probe()
		switch {
		case err != nil && before == nil:
			s.o.Log.Error("state directory not writable", "error", err)
		case err == nil && before != nil:
			s.o.Log.Info("state directory writable again")
		}
		before = err
		return err
	}
}
