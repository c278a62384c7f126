package image

import (
	"errors"
	"time"
)

// Why a lookup gave no digest. Everything that resolves wraps one of these, so that a caller may branch with
// [errors.Is] whatever answered: a registry, the cache, or the resolver over its socket.
var (
	// ErrNotFound: the registry says that the repository or the tag does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the registry wants other credentials than the ones it was shown.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnavailable: no answer, or a temporary one. Asking again later may work.
	ErrUnavailable = errors.New("unavailable")
)

// Resolution is the answer to "which digest does this tag stand for".
type Resolution struct {
	Ref    Ref
	Digest string    // "sha256:…"; "" exactly when Err is set
	At     time.Time // when the registry was asked: the digest is no older than this
	Stale  bool      // the last known answer, older than it should be: the registry cannot be asked, or is being asked
	Cached bool      // from memory: the registry was not asked for this answer
	Err    error     // wraps ErrNotFound, ErrUnauthorized or ErrUnavailable, without repeating the reference
}

// Origin is what an image says of the source that it was built from, by the OCI annotations or labels of that name. It is
// its builder's word, and foreign text.
type Origin struct {
	Revision string `json:"revision,omitempty"` // org.opencontainers.image.revision; "" when the image does not say
	Source   string `json:"source,omitempty"`   // org.opencontainers.image.source
	Err      error  `json:"-"`                  // why it could not be read; the rest is empty then
}
