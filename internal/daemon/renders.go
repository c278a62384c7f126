package daemon

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

var renderKey = lazy.Regexp(`^[0-9a-f]{64}$`)

// recall answers with what was remembered under a key, 204 for nothing.
func (s *Server) recall() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data := s.o.Renders.Get(r.PathValue("key"))
		if data == nil {
			s.recalled.WithLabelValues(absent).Inc()
			w.WriteHeader(http.StatusNoContent)
			return
		}
		s.recalled.WithLabelValues(found).Inc()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data) // who has gone needs no answer
	})
}

// remember keeps the body under a key.
func (s *Server) remember() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.PathValue("key")
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxBody))
		if err == nil && !renderKey().MatchString(key) {
			err = errors.New("the key is not 64 hex digits")
		}
		if err != nil {
			s.door.Refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "render: %w", err))
			return
		}
		s.o.Renders.Put(key, data)
		s.remembered.Inc()
		w.WriteHeader(http.StatusNoContent)
	})
}
