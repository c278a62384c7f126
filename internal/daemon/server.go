// Package daemon is the resolver as a server: the HTTP interface of package api in front of a cache, and the ledger of
// what was rendered.
package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// maxField bounds each text of a source. Repository URLs and paths are far shorter.
const maxField = 4096

// Resolver is the cache that the server stands in front of.
type Resolver interface {
	Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution
	Flush(ctx context.Context, targets []image.Target) []cache.Flushed
	Invalidate(targets []image.Target) []image.Ref
}

// Options are what a Server is made of.
type Options struct {
	Resolver Resolver
	Origins  cache.OriginReader          // where images come from; nil when nobody may ask
	Scope    func(project string) string // whose credentials a project's images are looked up with; nil is everybody's
	Ledger   *Ledger
	Renders  *cache.Blobs // what was rendered, for the plugin; nil when nothing is to be remembered
	Keys     door.Keys
	Log      *slog.Logger
	Metrics  *prometheus.Registry
}

// Server answers the resolver's HTTP interface. It is safe for concurrent use.
type Server struct {
	metrics
	o    Options
	door *door.Door
	disk door.Probe
}

// New returns a server that is not listening yet.
func New(o Options) *Server {
	s := &Server{metrics: newMetrics(o.Metrics), o: o}
	s.disk.Check = s.writable()
	s.door = door.New(door.Options{
		Name: "resolver", Command: "digestlock serve",
		Backend: backend{o.Resolver, o.Ledger}, Keys: o.Keys, Health: s.health, Log: o.Log, Metrics: o.Metrics,
	})
	s.observeLedger()
	s.observeRenders()
	return s
}

// backend is the cache and the ledger behind the door.
type backend struct {
	resolver Resolver
	ledger   *Ledger
}

// Flush implements [door.Backend].
func (b backend) Flush(ctx context.Context, targets []image.Target) door.Flushed {
	done := b.resolver.Flush(ctx, targets)
	images := make([]string, len(done))
	for i, f := range done {
		images[i] = f.Ref.String()
	}
	users := b.ledger.Applications(images)
	out := make([]api.Flushed, len(done))
	for i, f := range done {
		out[i] = api.Flushed{Image: images[i], Old: f.Old, New: f.Digest, Applications: users[images[i]], Error: api.ToProblem(f.Err)}
	}
	return door.Flushed{Images: out}
}

// Invalidate implements [door.Backend].
func (b backend) Invalidate(targets []image.Target) *int {
	return new(len(b.resolver.Invalidate(targets)))
}

// local serves the plugin, over a socket that only the pod's containers reach. A flush wants a token there too: the
// plugin's container, where other people's YAML is rendered, has none.
func (s *Server) local() *http.ServeMux {
	mux := s.door.Inside()
	mux.Handle("POST /v1/resolve", s.resolve())
	if s.o.Renders != nil {
		mux.Handle("GET /v1/renders/{key}", s.recall())
		mux.Handle("PUT /v1/renders/{key}", s.remember())
	}
	return mux
}

// remote serves the companion, CI and the cluster's probes, over TCP.
func (s *Server) remote() *http.ServeMux {
	mux := s.door.Outside()
	mux.Handle("POST /v1/resolve", s.door.Protected(s.resolve()))
	mux.Handle("GET /v1/pins", s.door.Protected(s.pins()))
	if s.o.Origins != nil {
		mux.Handle("POST /v1/origins", s.door.Protected(s.origins()))
	}
	mux.Handle("POST /v1/flush", s.door.Forwarded())
	mux.Handle("POST /v1/invalidate", s.door.ForwardedEvents())
	return mux
}

// Serve answers on both listeners, either of which may be nil, until ctx ends. It then finishes the requests under way
// and returns nil. It closes the listeners. It may be called once.
func (s *Server) Serve(ctx context.Context, socket, tcp net.Listener) error {
	return s.door.Serve(ctx, door.Entrance{Listener: socket, Mux: s.local()}, door.Entrance{Listener: tcp, Mux: s.remote()})
}

// oneVersion is the way out for a request that no program of ours sends.
const oneVersion = "use digestlock programs of one version; an overlay with more images than the limit has to be split"

func (s *Server) resolve() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.ResolveRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			s.door.Refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "request body: %w", err))
			return
		}
		refs, err := check(req)
		if err != nil {
			s.door.Refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "%w", err))
			return
		}
		ctx := r.Context()
		if req.Source != nil && req.Source.Repository == "" {
			ctx = image.Patient(ctx) // the companion asks for all there is; renders come first
		}
		results := s.o.Resolver.Resolve(ctx, s.sourceScope(req.Source), refs)
		s.answered(results)
		s.record(req, results)
		res := api.ResolveResponse{Results: make([]api.Result, len(results))}
		for i, x := range results {
			res.Results[i] = api.ToResult(x)
		}
		door.Answer(w, res)
	})
}

func (s *Server) sourceScope(source *lock.Source) string {
	if source == nil {
		return ""
	}
	return s.scope(source.Project)
}

func (s *Server) scope(project string) string {
	if s.o.Scope == nil {
		return ""
	}
	return s.o.Scope(project)
}

// check refuses what no render of ours sends, and returns the references to resolve.
func check(req api.ResolveRequest) ([]image.Ref, error) {
	if len(req.Images)+len(req.Locked) > api.MaxImages {
		return nil, fmt.Errorf("%d images, more than the %d of one request", len(req.Images)+len(req.Locked), api.MaxImages)
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
	}
	if req.Source != nil {
		for _, f := range append(fields(req.Source), req.Source.Revision, req.Source.Mode) {
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
	now := time.Now().UTC()
	pins := slices.Clone(req.Locked)
	for i, p := range pins {
		if p.ResolvedAt.After(now) {
			pins[i].ResolvedAt = now // a clock that jumped has left it in the lock, where it is the companion's to mend
		}
	}
	for _, r := range results {
		if r.Err != nil {
			return
		}
		pins = append(pins, lock.Pin{Image: r.Ref.String(), Digest: r.Digest, ResolvedAt: r.At.UTC()})
	}
	doc := lock.Merge(nil, pins) // sorted, without holds: those are the lock file's business
	doc.Source = req.Source
	doc.Source.RenderedAt = now.Truncate(time.Second)
	if err := s.o.Ledger.Record(*doc, len(results) == 0); err != nil {
		// The render is right and its pins are known until a restart; what suffers is that a restart forgets them.
		s.unsaved.Inc()
		s.o.Log.Error("pins not saved", "application", req.Source.Application, "error", err)
	}
}

func (s *Server) pins() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Read before the pins: what is recorded in between goes out under the old version, and once more under its own.
		tag := `"` + s.o.Ledger.Version() + `"`
		w.Header().Set("ETag", tag)
		if strings.Contains(r.Header.Get("If-None-Match"), tag) { // with its quotes it is part of no other; a proxy may have put W/ before it
			w.WriteHeader(http.StatusNotModified)
			return
		}
		docs := s.o.Ledger.Pins()
		door.Answer(w, api.PinsResponse{Sources: append([]lock.Document{}, docs...)})
	})
}
