package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// originsTime is how long registries may take to say where images come from. It is shorter than a companion waits, so
// that a silent registry does not take away what the others said.
const originsTime = 2500 * time.Millisecond

// origins answers with what can be read in time: a commit that waits for it is made without the rest.
func (s *Server) origins() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.OriginsRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			s.door.Refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "request body: %w", err))
			return
		}
		byProject, err := pinned(req)
		if err != nil {
			s.door.Refuse(w, http.StatusBadRequest, fault.New(fault.Request, oneVersion, "%w", err))
			return
		}
		ctx, cancel := context.WithTimeoutCause(r.Context(), originsTime, fmt.Errorf("no answer within %v", originsTime))
		defer cancel()
		door.Answer(w, api.OriginsResponse{Origins: s.readOrigins(ctx, byProject)})
	})
}

// pinned refuses what no companion of ours sends, and returns the references by project.
func pinned(req api.OriginsRequest) (map[string][]image.Ref, error) {
	byProject, n := map[string][]image.Ref{}, 0
	for project, images := range req.Images {
		if n += len(images); n > api.MaxImages {
			return nil, fmt.Errorf("more than the %d images of one request", api.MaxImages)
		}
		if len(project) > maxField {
			return nil, fmt.Errorf("project of %d bytes, more than %d", len(project), maxField)
		}
		for _, text := range images {
			ref, err := image.Parse(text)
			if err == nil && !image.IsDigest(ref.Digest) {
				err = fmt.Errorf("image %q has no sha256 digest", text)
			}
			if err == nil && ref.String() != text {
				err = fmt.Errorf("image %q is not a full reference", text)
			}
			if err != nil {
				return nil, err
			}
			byProject[project] = append(byProject[project], ref)
		}
	}
	return byProject, nil
}

// readOrigins asks for all projects at once.
func (s *Server) readOrigins(ctx context.Context, byProject map[string][]image.Ref) map[string]image.Origin {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		found = map[string]image.Origin{}
	)
	for project, refs := range byProject {
		wg.Go(func() {
			origins := s.o.Origins.Origins(ctx, s.scope(project), refs)
			mu.Lock()
			defer mu.Unlock()
			for i, o := range origins {
				if o.Err != nil {
					s.o.Log.Debug("origin not read", "image", refs[i].String(), "project", project, "error", o.Err)
					continue
				}
				found[refs[i].String()] = o
			}
		})
	}
	wg.Wait()
	return found
}
