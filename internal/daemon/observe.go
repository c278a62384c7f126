package daemon

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/image"
)

const (
	// probeEvery is how long what a check of our own health came to is remembered: anybody may ask for it.
	probeEvery = 5 * time.Second
	// probeTimeout bounds one request to ourselves. A probe of Kubernetes gives up after a second by default, which fails
	// it just as well.
	probeTimeout = 2 * time.Second
)

// metrics are what the server measures. docs/metrics.md explains each.
type metrics struct {
	answers  *prometheus.CounterVec
	flushes  prometheus.Counter
	events   *prometheus.CounterVec
	unsaved  prometheus.Counter
	requests *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// What a reference was answered with, in the metric.
const (
	fresh  = "fresh"
	stale  = "stale"
	failed = "failed"
)

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_resolved_references_total",
			Help: "References answered to renders and companions: fresh, stale (the last known digest) or failed.",
		}, []string{"outcome"}),
		flushes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_flushed_references_total", Help: "References flushed on request or by a webhook.",
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_webhook_events_total", Help: "Events that registries sent, by what they came to: flushed, ignored, refused or malformed.",
		}, []string{"sender", "outcome"}),
		unsaved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_ledger_write_failures_total", Help: "Renders whose pins could not be kept on disk.",
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "digestlock_http_request_seconds",
			Help:    "Time that requests to the resolver took, by route and class of status.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "status"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "digestlock_http_requests_in_flight", Help: "Requests to the resolver that are being answered, the one for the metrics included.",
		}),
	}
	for _, outcome := range []string{fresh, stale, failed} {
		m.answers.WithLabelValues(outcome) // a rate needs a series that begins at 0
	}
	r.MustRegister(m.answers, m.flushes, m.events, m.unsaved, m.requests, m.inFlight)
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
			if s.disk.run() != nil {
				return 0
			}
			return 1
		}),
	)
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

// measured measures the requests to mux, which tells the route: paths are the client's, and there may be any number.
func (m metrics) measured(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.inFlight.Inc()
		defer m.inFlight.Dec()
		start, sw := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		mux.ServeHTTP(sw, r)
		route := "other"
		if _, path, ok := strings.Cut(r.Pattern, " "); ok {
			route = path
		}
		m.requests.WithLabelValues(route, fmt.Sprintf("%dxx", sw.status/100)).Observe(time.Since(start).Seconds())
	})
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// open adds the routes that tell how the server is. Neither tells anything that would have to be protected.
func (s *Server) open(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		sources := s.o.Ledger.Len() // takes the ledger's lock
		if err := s.loops.run(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		disk := ""
		if s.disk.run() != nil {
			// Still 200: a restart would lose the pins that are in memory only, and not start on a full disk.
			disk = ", state directory not writable"
		}
		_, _ = fmt.Fprintf(w, "ok, %d sources%s\n", sources, disk)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case s.draining.Load():
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
		case s.starting.Load() > 0:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		default:
			_, _ = fmt.Fprintln(w, "ready")
		}
	})
}

// probe is a check that is made when asked for, but not often.
type probe struct {
	check func() error

	mu  sync.Mutex
	at  time.Time
	err error
}

// run returns what the check comes to, or came to within the last seconds.
func (p *probe) run() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.at) >= probeEvery {
		p.err, p.at = p.check(), time.Now()
	}
	return p.err
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

// accepting checks that every listener is served, by a request over each: a loop that accepts nothing lets clients
// connect all the same, and a socket that somebody removed is missed by nobody but them.
func (s *Server) accepting() error {
	if s.draining.Load() {
		return nil
	}
	for _, a := range s.addresses {
		client := http.Client{
			Timeout: probeTimeout,
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, a.Network(), a.String())
				},
			},
		}
		res, err := client.Get("http://self/readyz")
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", a, err)
		}
		_ = res.Body.Close()
	}
	return nil
}

// begun calls a function when its server begins to accept.
type begun struct {
	net.Listener
	once sync.Once
	f    func()
}

func (l *begun) Accept() (net.Conn, error) {
	l.once.Do(l.f)
	return l.Listener.Accept()
}

// serverLog takes what net/http has to say, which is about clients, unless one of our handlers panicked.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(p []byte) (int, error) {
	text := strings.TrimSpace(string(p))
	if strings.HasPrefix(text, "http: panic") {
		l.log.Error("handler panicked", "error", text)
	} else {
		l.log.Debug("connection failed", "error", text)
	}
	return len(p), nil
}

func newServerLog(l *slog.Logger) *log.Logger { return log.New(serverLog{l}, "", 0) }
