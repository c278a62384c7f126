package cache

import (
	"context"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/digestlock/digestlock/internal/image"
)

// maxOrigins is how many origins are remembered: more than one commit asks for.
const maxOrigins = 2000

// OriginReader reads where images come from, with the credentials of a scope. It returns one Origin per reference, in the
// same order. Each reference has a digest.
type OriginReader interface {
	Origins(ctx context.Context, scope string, refs []image.Ref) []image.Origin
}

// Origins is an OriginReader that remembers: what has a digest never changes. Errors are not remembered. It is safe for
// concurrent use.
type Origins struct {
	backend OriginReader
	known   *lru.Cache[key, image.Origin] // each scope has its own: one may not know what another may read
}

// NewOrigins returns an empty one in front of backend.
func NewOrigins(backend OriginReader) *Origins {
	known, err := lru.New[key, image.Origin](maxOrigins)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Origins{backend: backend, known: known}
}

// Origins implements [OriginReader]. The tags of refs do not matter.
func (o *Origins) Origins(ctx context.Context, scope string, refs []image.Ref) []image.Origin {
	origins := make([]image.Origin, len(refs))
	var missing []image.Ref
	var places []int
	for i, ref := range refs {
		var ok bool
		if origins[i], ok = o.known.Get(originKey(scope, ref)); !ok {
			missing, places = append(missing, ref), append(places, i)
		}
	}
	if len(missing) == 0 {
		return origins
	}
	for n, found := range o.backend.Origins(ctx, scope, missing) {
		origins[places[n]] = found
		if found.Err == nil {
			o.known.Add(originKey(scope, missing[n]), found)
		}
	}
	return origins
}

func originKey(scope string, ref image.Ref) key {
	ref.Tag = ""
	return key{scope, ref.String()}
}
