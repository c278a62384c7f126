package door

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
)

const (
	// ProbeEvery is how long what a check of our own health came to is remembered: anybody may ask for it.
	ProbeEvery = 5 * time.Second
	// probeTimeout bounds one request to ourselves. A probe of Kubernetes gives up after a second by default, which fails
	// it just as well.
	probeTimeout = 2 * time.Second
)

// metrics are what the door measures. docs/metrics.md explains each.
type metrics struct {
	flushes  prometheus.Counter
	events   *prometheus.CounterVec
	requests *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		flushes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "digestlock_flushed_references_total", Help: "References flushed on request or by a webhook.",
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_webhook_events_total", Help: "Events that registries sent, by what they came to: flushed, ignored, refused or malformed.",
		}, []string{"sender", "outcome"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "digestlock_http_request_seconds",
			Help:    "Time that requests took, by route and class of status.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "status"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "digestlock_http_requests_in_flight", Help: "Requests that are being answered, the one for the metrics included.",
		}),
	}
	r.MustRegister(m.flushes, m.events, m.requests, m.inFlight)
	return m
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

// health adds the routes that tell how the program is. Neither tells anything that would have to be protected.
func (d *Door) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		more := d.o.Health()
		if err := d.loops.Run(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, "ok%s\n", more)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case d.draining.Load():
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
		case d.starting.Load() > 0:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		default:
			_, _ = fmt.Fprintln(w, "ready")
		}
	})
}

// Probe is a check that is made when asked for, but not often.
type Probe struct {
	Check func() error

	mu  sync.Mutex
	at  time.Time
	err error
}

// Run returns what the check comes to, or came to within the last seconds.
func (p *Probe) Run() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.at) >= ProbeEvery {
		p.err, p.at = p.Check(), time.Now()
	}
	return p.err
}

// accepting checks that every listener is served, by a request over each: a loop that accepts nothing lets clients
// connect all the same, and a socket that somebody removed is missed by nobody but them.
func (d *Door) accepting() error {
	if d.draining.Load() {
		return nil
	}
	for _, a := range d.addresses {
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
