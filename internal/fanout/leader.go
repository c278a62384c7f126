package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
)

// passedOn is the header of a request that one companion passed on to another, which does not pass it on again: for some
// seconds after a change, each of two may take the other for the leader.
const passedOn = "Digestlock-Passed-On"

// leaderTimeout bounds the leader's answer: a flush waits at most for one of the same images that is under way, for the
// replicas and for the cycle. The door breaks an answer off later than that.
const leaderTimeout = 90 * time.Second

// dialTimeout bounds the connection to the leader, which is in the same cluster, or gone.
const dialTimeout = 3 * time.Second

// led has next answer where this companion leads. Where another does, that one gets the request as it is, to say who may.
func (s *Server) led(next http.Handler) http.Handler {
	if s.o.Leader == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		address, err := s.o.Leader()
		switch {
		case err != nil:
			s.unavailable(w, err)
		case address == "":
			next.ServeHTTP(w, r)
		case r.Header.Get(passedOn) != "":
			s.unavailable(w, errors.New("the companion that leads is changing"))
		default:
			s.passTo(address, w, r)
		}
	})
}

func (s *Server) unavailable(w http.ResponseWriter, err error) {
	w.Header().Set("Retry-After", "5")
	s.door.Refuse(w, http.StatusServiceUnavailable, fault.New(fault.ResolverUnavailable,
		"try again in some seconds: where the leader has ended, another companion takes over", "%w", err))
}

// passTo lets the leader at the address answer.
func (s *Server) passTo(address string, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.patience, fmt.Errorf("no answer within %v", s.patience))
	defer cancel()
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: address})
			p.Out.URL.RawQuery = p.In.URL.RawQuery // whatever is wrong with it
			p.Out.Host = p.In.Host
			p.Out.Header.Set(passedOn, "true")
		},
		// No proxy of the environment's, and no connection that the leader may be about to close: an event cannot be sent twice.
		Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, DisableKeepAlives: true,
		},
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug), // an answer that breaks off, or has nobody to read it
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
				s.door.Refuse(w, http.StatusRequestEntityTooLarge, tooLarge)
				return
			}
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			s.o.Log.Warn("request not passed on to the leader", "leader", address, "error", err)
			s.unavailable(w, errors.New("the companion that leads does not answer"))
		},
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}
