package cache

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
)

// origins answers with the scope and the reference that it is asked for.
type origins struct {
	asked []string
	err   error
}

func (o *origins) Origins(_ context.Context, scope string, refs []image.Ref) []image.Origin {
	var out []image.Origin
	for _, r := range refs {
		o.asked = append(o.asked, scope+" "+r.String())
		out = append(out, image.Origin{Revision: scope, Source: r.Repository, Err: o.err})
	}
	return out
}

// TestOrigins: each image is asked about once a scope, by its digest, and again after an error.
func TestOrigins(t *testing.T) {
	t.Parallel()
	const digest = "@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	a, b, c := pinned(t, "ghcr.io/a:latest"+digest), pinned(t, "ghcr.io/b:latest"+digest), pinned(t, "ghcr.io/c:latest"+digest)
	backend := &origins{}
	o := NewOrigins(backend)
	ask := func(scope string, refs ...image.Ref) []image.Origin { return o.Origins(t.Context(), scope, refs) }
	ask("x", b)
	a.Tag = "v1"
	got := ask("x", a, b, c)
	want := []image.Origin{{Revision: "x", Source: "a"}, {Revision: "x", Source: "b"}, {Revision: "x", Source: "c"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
	a.Tag = "latest"
	ask("x", c, a, b)
	ask("y", a)
	backend.err = errors.New("silent")
	ask("z", a)
	ask("z", a)
	wantAsked := []string{
		"x ghcr.io/b:latest" + digest, "x ghcr.io/a:v1" + digest, "x ghcr.io/c:latest" + digest,
		"y ghcr.io/a:latest" + digest, "z ghcr.io/a:latest" + digest, "z ghcr.io/a:latest" + digest,
	}
	if diff := cmp.Diff(wantAsked, backend.asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}

func pinned(t *testing.T, s string) image.Ref {
	t.Helper()
	r, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
