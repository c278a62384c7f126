// Package door is the HTTP front door of both programs that have one, the resolver and the companion: who may flush what,
// webhooks, limits, health, and the server itself. What a flush does is behind it.
package door

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
)

// drainTime is how long requests under way may take to end once the server was told to stop. Kubernetes kills after 30 s
// by default.
const drainTime = 10 * time.Second

// Backend is what stands behind the door. It must be safe for concurrent use.
type Backend interface {
	// Flush forgets what is known of the targets, and asks for them again.
	Flush(ctx context.Context, targets []image.Target) Flushed
	// Invalidate forgets as Flush does and waits for nothing. It returns how many references were remembered, which are
	// asked for again; nil when that will be known later.
	Invalidate(targets []image.Target) *int
}

// Flushed is what a flush came to.
type Flushed struct {
	Images   []api.Flushed // what became of each reference
	Replicas []api.Replica // the resolvers that were asked; nil in a resolver
	Err      error         // why nothing was flushed anywhere
	Cycle    *Cycle        // what follows from it; nil in a resolver
}

// Cycle is the companion's work after a flush. The other fields may be read once Done is closed.
type Cycle struct {
	Done    chan struct{}
	Ended   bool // it was not given up
	Commits []Commit
	Err     error // what it could not do
}

// Commit is one commit that was pushed.
type Commit struct {
	Repository, Branch, Hash string
	Message                  string
}

// Options are what a Door is made of.
type Options struct {
	Name, Command string // of the program in what people read: "resolver", "digestlock serve"
	Backend       Backend
	Keys          Keys
	// Around wraps what answers flushes and webhooks at Outside, for a program whose work another process may do; nil for
	// nothing.
	Around  func(http.Handler) http.Handler
	Health  func() string // what /healthz adds to "ok"; it may take locks, to show that they can be taken
	Log     *slog.Logger
	Metrics *prometheus.Registry
}

// Door answers what people, CI systems and registries ask of a program. It is safe for concurrent use.
type Door struct {
	metrics
	o         Options
	starting  atomic.Int32 // listeners that are not served yet
	draining  atomic.Bool
	addresses []net.Addr // of the listeners
	loops     Probe
	pending   sync.WaitGroup // what later has begun
	ended     chan struct{}
	limits    *limits
	shared    shared
}

// New returns a door that does not listen yet.
func New(o Options) *Door {
	d := &Door{metrics: newMetrics(o.Metrics), o: o, ended: make(chan struct{}), limits: newLimits(), shared: shared{flush: o.Backend.Flush}}
	d.starting.Store(1) // until Serve knows better
	d.loops.Check = d.accepting
	return d
}

// Inside returns the routes for the containers of the pod, to add others to: flushes and health.
func (d *Door) Inside() *http.ServeMux { return d.routes(d.flush()) }

func (d *Door) routes(flush http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("POST /flush", flush)
	d.health(mux)
	return mux
}

// Outside returns the routes for the network, to add others to: those of Inside, webhooks and metrics.
func (d *Door) Outside() *http.ServeMux {
	flush, webhook := d.flush(), d.webhook()
	if d.o.Around != nil {
		flush, webhook = d.o.Around(flush), d.o.Around(webhook)
	}
	mux := d.routes(flush)
	mux.Handle("POST /webhook/{sender}", webhook)
	mux.Handle("POST /webhook/{sender}/{secret}", webhook)
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.o.Metrics, promhttp.HandlerOpts{}))
	return mux
}

// Entrance is a listener and what it serves.
type Entrance struct {
	net.Listener // nil for none
	Mux          *http.ServeMux
}

// Serve answers at all entrances until ctx ends. It then finishes the requests under way and what they have begun, and
// returns nil. It closes the listeners. It may be called once.
func (d *Door) Serve(ctx context.Context, entrances ...Entrance) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, e := range entrances {
		if e.Listener != nil {
			d.addresses = append(d.addresses, e.Addr())
		}
	}
	d.starting.Store(int32(len(d.addresses)))
	for _, e := range entrances {
		if e.Listener != nil {
			d.serve(gctx, g, e)
		}
	}
	err := g.Wait()
	close(d.ended)
	d.pending.Wait()
	d.shared.wait()
	return err
}

// serve answers at one entrance until ctx ends, in goroutines of g.
func (d *Door) serve(ctx context.Context, g *errgroup.Group, e Entrance) {
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(d.measured(e.Mux), api.MaxBody),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          newServerLog(d.o.Log),
	}
	g.Go(func() error {
		l := &begun{Listener: e.Listener, f: func() { d.starting.Add(-1) }}
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		d.draining.Store(true)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			return srv.Close()
		}
		return nil
	})
}

// Refuse answers with a problem. A client's mistake is the client's to log.
func (d *Door) Refuse(w http.ResponseWriter, status int, err error) {
	d.o.Log.Debug("request refused", "status", status, "error", err)
	answer(w, status, api.ToProblem(err))
}

// Answer answers with v as JSON.
func Answer(w http.ResponseWriter, v any) { answer(w, http.StatusOK, v) }

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone when this fails
}
