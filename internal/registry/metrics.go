package registry

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// maxLabels bounds the registries that have metrics of their own: names come from images, and whoever can write an
// Application can invent some.
const maxLabels = 100

const otherRegistries = "other"

// metrics count the requests that were really made, retries, pings and tokens included, and the lookups that they were
// made for. The label registry is the host of the image, also for a request to the token server that it names.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	retries  *prometheus.CounterVec
	lookups  *prometheus.CounterVec
	quota    *prometheus.GaugeVec

	mu     sync.Mutex
	labels map[string]bool
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_registry_requests_total",
			Help: "Requests to container registries by outcome; a 429 is throttled.",
		}, []string{"registry", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "digestlock_registry_request_seconds",
			Help:    "Time to the response headers of requests to container registries.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"registry"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_registry_retries_total",
			Help: "Requests to container registries that repeated one which met a temporary failure.",
		}, []string{"registry"}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "digestlock_registry_lookups_total",
			Help: "Tags looked up in container registries by outcome; refused is a registry that --allow-registry does not list.",
		}, []string{"registry", "outcome"}),
		quota: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "digestlock_registry_quota_remaining",
			Help: "What a registry last said in its RateLimit-Remaining header, as Docker Hub does.",
		}, []string{"registry"}),
		labels: map[string]bool{},
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.retries, m.lookups, m.quota)
	}
	return m
}

// label returns the label of a registry: its host for the first so many.
func (m *metrics) label(host string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.labels[host] {
		if len(m.labels) >= maxLabels {
			return otherRegistries
		}
		m.labels[host] = true
	}
	return host
}

// observe counts a request; a nil response is a network failure.
func (m *metrics) observe(label string, d time.Duration, resp *http.Response) {
	m.requests.WithLabelValues(label, outcome(resp)).Inc()
	m.seconds.WithLabelValues(label).Observe(d.Seconds())
	if resp == nil || label == otherRegistries {
		return
	}
	said, _, _ := strings.Cut(resp.Header.Get("RateLimit-Remaining"), ";") // "98;w=21600"
	if left, err := strconv.ParseUint(said, 10, 32); err == nil {
		m.quota.WithLabelValues(label).Set(float64(left))
	}
}

// looked counts a lookup; h is nil for a registry that is not allowed.
func (m *metrics) looked(h *host, err error) {
	if h == nil {
		m.lookups.WithLabelValues(otherRegistries, "refused").Inc()
		return
	}
	said := "error"
	switch {
	case err == nil:
		said = "ok"
	case errors.Is(err, image.ErrNotFound):
		said = "not_found"
	case errors.Is(err, image.ErrUnauthorized):
		said = "unauthorized"
	case fault.CodeOf(err) == fault.RegistryCertificate:
		said = "certificate"
	case errors.Is(err, image.ErrUnavailable):
		said = "unavailable"
	}
	m.lookups.WithLabelValues(h.label, said).Inc()
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
