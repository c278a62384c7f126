package registry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count the requests that were really made, retries, pings and tokens included. The label registry is the
// host of the image, also for a request to the token server that it names.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_registry_requests_total",
			Help: "Requests to container registries by outcome.",
		}, []string{"registry", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "digestlock_registry_request_seconds",
			Help:    "Time to the response headers of requests to container registries.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"registry"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds)
	}
	return m
}

// observe counts a request; a nil response is a network failure.
func (m *metrics) observe(registry string, d time.Duration, resp *http.Response) {
	m.requests.WithLabelValues(registry, outcome(resp)).Inc()
	m.seconds.WithLabelValues(registry).Observe(d.Seconds())
}

func outcome(resp *http.Response) string {
	switch {
	case resp == nil:
		return "no_answer"
	case resp.StatusCode == http.StatusTooManyRequests:
		return "throttled"
	case resp.StatusCode == http.StatusNotFound:
		return "not_found"
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return "unauthorized"
	case resp.StatusCode >= 500:
		return "server_error"
	case resp.StatusCode >= 300:
		return "other"
	}
	return "ok"
}
