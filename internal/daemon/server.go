// Package daemon is the resolver as a server: the HTTP interface of package api in front of a cache, and the ledger of
// what was rendered.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	// maxImages bounds one request, so that its ledger entry stays below lock.MaxSize. An overlay with more distinct
	// mutable images than this is not one.
	maxImages = 1500
	// maxSkew is how far two clocks may differ. A pin from the future would never move again.
	maxSkew = 5 * time.Minute
	// maxField bounds each text of a source. Repository URLs and paths are far shorter.
	maxField = 4096
	// drainTime is how long requests under way may take to end once the server was told to stop. Kubernetes kills
	// after 30 s by default.
	drainTime = 10 * time.Second
)

// Resolver is the cache that the server stands in front of.
type Resolver interface {
	Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution
	Flush(ctx context.Context, targets []cache.Target) []cache.Flushed
	Invalidate(targets []cache.Target) []image.Ref
}

// Options are what a Server is made of.
type Options struct {
	Resolver  Resolver
	Scope     func(project string) string // whose credentials a project's images are looked up with; nil is everybody's
	Ledger    *Ledger
	TokenFile string       // one bearer token a line, read again for each request; "" closes the protected routes
	OIDC      *access.File // whose tokens open /flush as well; nil for nobody's
	Log       *slog.Logger
	Metrics   *prometheus.Registry

	// WebhookSecrets is a directory with a file for each sender of webhooks, named like it, with one secret a line, read
	// again for each event. "" or a file that is not there closes the route.
	WebhookSecrets string
	// GoogleEmail returns the verified email address of whom an identity token of Google's stands for. It checks issuer
	// and audience. nil closes the routes whose senders bear one; their secrets are the addresses that may send.
	GoogleEmail func(ctx context.Context, token string) (string, error)
}

// Server answers the resolver's HTTP interface. It is safe for concurrent use.
type Server struct {
	metrics
	o         Options
	starting  atomic.Int32 // listeners that are not served yet
	draining  atomic.Bool
	addresses []net.Addr // of the listeners
	disk      probe
	loops     probe
	pending   sync.WaitGroup // what later has begun
	ended     chan struct{}
	limits    *limits
	shared    shared
}

// New returns a server that is not listening yet.
func New(o Options) *Server {
	s := &Server{
		metrics: newMetrics(o.Metrics), o: o, ended: make(chan struct{}), limits: newLimits(), shared: shared{flush: o.Resolver.Flush},
	}
	s.starting.Store(1) // until Serve knows better
	s.disk.check, s.loops.check = s.writable(), s.accepting
	s.observeLedger()
	return s
}

// local serves the plugin, over a socket that only the pod's containers reach. A flush wants a token there too: the
// plugin's container, where other people's YAML is rendered, has none.
func (s *Server) local() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/resolve", s.resolve())
	mux.Handle("POST /flush", s.flush())
	s.open(mux)
	return mux
}

// remote serves the companion, CI and the cluster's probes, over TCP.
func (s *Server) remote() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/resolve", s.protected(s.resolve()))
	mux.Handle("GET /v1/pins", s.protected(s.pins()))
	mux.Handle("POST /flush", s.flush())
	webhook := s.webhook()
	mux.Handle("POST /webhook/{sender}", webhook)
	mux.Handle("POST /webhook/{sender}/{secret}", webhook)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.o.Metrics, promhttp.HandlerOpts{}))
	s.open(mux)
	return mux
}

// Serve answers on both listeners, either of which may be nil, until ctx ends. It then finishes the requests under way
// and returns nil. It closes the listeners. It may be called once.
func (s *Server) Serve(ctx context.Context, socket, tcp net.Listener) error {
	g, gctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, mux *http.ServeMux) {
		if l == nil {
			return
		}
		l = &begun{Listener: l, f: func() { s.starting.Add(-1) }}
		srv := &http.Server{
			Handler:           http.MaxBytesHandler(s.measured(mux), api.MaxBody),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       30 * time.Second,
			WriteTimeout:      2 * time.Minute,
			IdleTimeout:       2 * time.Minute,
			ErrorLog:          newServerLog(s.o.Log),
		}
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			<-gctx.Done()
			s.draining.Store(true)
			drain, cancel := context.WithTimeout(context.WithoutCancel(gctx), drainTime)
			defer cancel()
			if err := srv.Shutdown(drain); err != nil {
				return srv.Close()
			}
			return nil
		})
	}
	for _, l := range []net.Listener{socket, tcp} {
		if l != nil {
			s.addresses = append(s.addresses, l.Addr())
		}
	}
	s.starting.Store(int32(len(s.addresses)))
	serve(socket, s.local())
	serve(tcp, s.remote())
	err := g.Wait()
	close(s.ended)
	s.pending.Wait()
	s.shared.wait()
	return err
}

// oneVersion is the way out for a request that no program of ours sends.
const oneVersion = "use digestlock programs of one version; an overlay with more images than the limit has to be split"

func (s *Server) resolve() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.ResolveRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			s.refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "request body: %w", err))
			return
		}
		refs, err := check(req)
		if err != nil {
			s.refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "%w", err))
			return
		}
		results := s.o.Resolver.Resolve(r.Context(), s.scope(req.Source), refs)
		s.answered(results)
		s.record(req, results)
		res := api.ResolveResponse{Results: make([]api.Result, len(results))}
		for i, x := range results {
			res.Results[i] = api.ToResult(x)
		}
		answer(w, res)
	})
}

func (s *Server) scope(source *lock.Source) string {
	if source == nil || s.o.Scope == nil {
		return ""
	}
	return s.o.Scope(source.Project)
}

// check refuses what no render of ours sends, and returns the references to resolve.
func check(req api.ResolveRequest) ([]image.Ref, error) {
	if len(req.Images)+len(req.Locked) > maxImages {
		return nil, fmt.Errorf("%d images, more than the %d of one request", len(req.Images)+len(req.Locked), maxImages)
	}
	refs := make([]image.Ref, len(req.Images))
	for i, text := range req.Images {
		ref, err := image.ParseFull(text)
		if err != nil {
			return nil, err
		}
		refs[i] = ref
	}
	for _, p := range req.Locked {
		if err := p.Check(); err != nil {
			return nil, err
		}
		if p.ResolvedAt.After(time.Now().Add(maxSkew)) {
			return nil, fmt.Errorf("image %s: resolvedAt %v lies in the future", p.Image, p.ResolvedAt)
		}
	}
	if req.Source != nil {
		for _, f := range append(fields(req.Source), req.Source.Revision) {
			if len(f) > maxField {
				return nil, fmt.Errorf("source field of %d bytes, more than %d", len(f), maxField)
			}
		}
	}
	return refs, nil
}

// record keeps the pins of a complete render. A source without a repository names a project and no render. A render with an image that could not be resolved is not complete, and
// the one before it stays.
func (s *Server) record(req api.ResolveRequest, results []image.Resolution) {
	if req.Source == nil || req.Source.Repository == "" {
		return
	}
	pins := slices.Clone(req.Locked)
	for _, r := range results {
		if r.Err != nil {
			return
		}
		pins = append(pins, lock.Pin{Image: r.Ref.String(), Digest: r.Digest, ResolvedAt: r.At.UTC()})
	}
	doc := lock.Merge(nil, pins) // sorted, without holds: those are the lock file's business
	doc.Source = req.Source
	doc.Source.RenderedAt = time.Now().UTC().Truncate(time.Second)
	if err := s.o.Ledger.Record(*doc); err != nil {
		// The render is right and its pins are known until a restart; what suffers is that a restart forgets them.
		s.unsaved.Inc()
		s.o.Log.Error("pins not saved", "application", req.Source.Application, "error", err)
	}
}

func (s *Server) pins() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		docs := s.o.Ledger.Pins()
		answer(w, api.PinsResponse{Sources: append([]lock.Document{}, docs...)})
	})
}

// refuse answers with a problem. A client's mistake is the client's to log.
func (s *Server) refuse(w http.ResponseWriter, status int, err error) {
	s.o.Log.Debug("request refused", "status", status, "error", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.ToProblem(err))
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone when this fails
}
