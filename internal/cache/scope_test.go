package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
)

// tenants is a registry whose images only some scopes may read, and which notes who asked.
type tenants struct {
	mu     sync.Mutex
	reads  map[string]bool // by scope
	digest string
	asked  []string
}

func (r *tenants) Resolve(_ context.Context, scope string, refs []image.Ref) []image.Resolution {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]image.Resolution, len(refs))
	for i, ref := range refs {
		r.asked = append(r.asked, scope+" "+ref.String())
		out[i] = image.Resolution{Ref: ref, Digest: r.digest}
		if !r.reads[scope] {
			out[i] = image.Resolution{Ref: ref, Err: fmt.Errorf("%w for %q", image.ErrUnauthorized, scope)}
		}
	}
	return out
}

// TestScopes: an answer is for the scope that asked, in either order, with and without a stale one at hand.
func TestScopes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &tenants{reads: map[string]bool{"a": true}, digest: old}
		c := New(r, Options{})
		defer c.Close()
		ask := func(scope string) image.Resolution {
			return c.Resolve(t.Context(), scope, []image.Ref{ref(t, server)})[0]
		}
		for range 2 {
			if got := ask("a"); got.Digest != old {
				t.Errorf("scope that may = %+v, want a digest", got)
			}
			for _, scope := range []string{"", "b"} {
				if got := ask(scope); !errors.Is(got.Err, image.ErrUnauthorized) || got.Digest != "" {
					t.Errorf("scope %q that may not = %+v, want unauthorized", scope, got)
				}
			}
		}
		if want := []string{"a " + server, " " + server, "b " + server}; !cmp.Equal(r.asked, want) {
			t.Errorf("asked %q, want each scope once", r.asked)
		}
	})
}

// TestFlushOfScopes: a flush forgets in every scope, asks again in those that knew the reference, and answers with one
// line for it, of a scope that may read it.
func TestFlushOfScopes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &tenants{reads: map[string]bool{"a": true, "b": true}, digest: old}
		c := New(r, Options{})
		defer c.Close()
		latest, main := ref(t, server), ref(t, "ghcr.io/acme/server:main")
		c.Resolve(t.Context(), "", []image.Ref{latest})
		c.Resolve(t.Context(), "b", []image.Ref{latest})
		c.Resolve(t.Context(), "a", []image.Ref{latest, main})
		r.asked, r.digest = nil, cur

		got := c.Flush(t.Context(), []image.Target{{Ref: latest, EveryTag: true}})
		var lines []string
		for _, f := range got {
			lines = append(lines, fmt.Sprint(f.Ref, " ", f.Old == old, f.Digest == cur, f.Err == nil))
		}
		want := []string{server + " true true true", "ghcr.io/acme/server:main true true true"}
		if !cmp.Equal(lines, want) {
			t.Errorf("flushed %q, want %q", lines, want)
		}
		if len(r.asked) != 4 { // latest in three scopes, main in one
			t.Errorf("asked %q, want each scope that knew it", r.asked)
		}
		for _, scope := range []string{"a", "b"} {
			if got := c.Resolve(t.Context(), scope, []image.Ref{latest})[0]; got.Digest != cur {
				t.Errorf("scope %q after the flush = %+v, want the new digest", scope, got)
			}
		}
		r.reads = nil
		if got := c.Flush(t.Context(), []image.Target{{Ref: main}}); len(got) != 1 || !errors.Is(got[0].Err, image.ErrUnauthorized) || got[0].Digest != "" {
			t.Errorf("flush that no scope may answer = %+v, want unauthorized", got)
		}
		unknown := ref(t, "ghcr.io/acme/unknown")
		r.reads = map[string]bool{"": true}
		if got := c.Flush(t.Context(), []image.Target{{Ref: unknown}}); len(got) != 1 || got[0].Digest != cur || got[0].Old != "" {
			t.Errorf("flush of what nobody asked for = %+v, want everybody's look", got)
		}
	})
}
