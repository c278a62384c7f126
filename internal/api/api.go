// Package api is the resolver's HTTP interface: the messages, and the client that generate and the companion use.
//
//	POST /v1/resolve   ResolveRequest → ResolveResponse   unix socket, or TCP with a token
//	GET  /v1/pins      → PinsResponse                     TCP with a token
//	POST /flush        ?image=… → FlushResponse           either, with a token or one of a trusted OIDC issuer
//	POST /webhook/…    a registry's event → WebhookResponse   TCP, as the sender authenticates
package api

import (
	"errors"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// MaxBody bounds a request's body, in bytes.
const MaxBody = 16 << 20

// MaxImages bounds the images of one request, so that a render's ledger entry stays below lock.MaxSize. An overlay with more
// distinct mutable images than this is not one.
const MaxImages = 1500

// ResolveRequest asks for the digests of Images, with the credentials of the Source's project. With a Source that has a
// repository it is the report of a render as well: once all Images are resolved, the ledger keeps them together with
// Locked, what the lock had decided, as that source's pins.
type ResolveRequest struct {
	Source *lock.Source `json:"source,omitempty"`
	Images []string     `json:"images"` // full references, as image.Ref.String gives them
	Locked []lock.Pin   `json:"locked,omitempty"`
}

// ResolveResponse has one result per image of the request, in the same order.
type ResolveResponse struct {
	Results []Result `json:"results"`
}

// Result is the digest of one image, or the reason why there is none.
type Result struct {
	Image      string    `json:"image"`
	Digest     string    `json:"digest,omitempty"`
	ResolvedAt time.Time `json:"resolvedAt,omitzero"`
	Stale      bool      `json:"stale,omitempty"`
	Cached     bool      `json:"cached,omitempty"` // resolvers before it came never set it
	Error      *Problem  `json:"error,omitempty"`
}

// Problem is an error on the wire.
type Problem struct {
	Kind    string     `json:"kind,omitempty"` // "not_found", "unauthorized" or "unavailable"
	Code    fault.Code `json:"code,omitempty"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
}

// PinsResponse is the ledger: the pins of the last complete render of each source, sorted by source.
type PinsResponse struct {
	Sources []lock.Document `json:"sources"`
}

// FlushResponse says what a flush did, one entry for each reference that was flushed.
type FlushResponse struct {
	Flushed []Flushed `json:"flushed"`
}

// Flushed is one flushed reference: the digest remembered before (omitted when there was none), the one now, and the
// Applications whose last render has the reference, as "project/application", sorted.
type Flushed struct {
	Image        string   `json:"image"`
	Old          string   `json:"old,omitempty"`
	New          string   `json:"new,omitempty"`
	Applications []string `json:"applications,omitempty"`
	Error        *Problem `json:"error,omitempty"`
}

// WebhookResponse says what an event of a registry made stale.
type WebhookResponse struct {
	Images    []string `json:"images"`          // a repository without a tag stands for all its tags
	Refreshed int      `json:"refreshed"`       // references that were remembered, and are being asked for again
	Error     *Problem `json:"error,omitempty"` // what of the event was not understood
}

var kinds = []struct {
	name string
	err  error
}{
	{"not_found", image.ErrNotFound},
	{"unauthorized", image.ErrUnauthorized},
	{"unavailable", image.ErrUnavailable},
}

// ToResult puts a resolution on the wire.
func ToResult(r image.Resolution) Result {
	out := Result{Image: r.Ref.String(), Digest: r.Digest, ResolvedAt: r.At, Stale: r.Stale, Cached: r.Cached}
	if r.Err != nil {
		out.Digest, out.ResolvedAt, out.Error = "", time.Time{}, ToProblem(r.Err)
	}
	return out
}

// ToProblem puts an error on the wire; nil stays nil.
func ToProblem(err error) *Problem {
	if err == nil {
		return nil
	}
	p := &Problem{Code: fault.CodeOf(err), Message: err.Error(), Hint: fault.Hint(err)}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			p.Kind = k.name
		}
	}
	return p
}

// resolution is the way back from [ToResult]. An answer that is neither a digest nor an error is an error.
func (r Result) resolution(ref image.Ref) image.Resolution {
	out := image.Resolution{Ref: ref, Digest: r.Digest, At: r.ResolvedAt, Stale: r.Stale, Cached: r.Cached}
	switch {
	case r.Error != nil:
		out.Digest, out.Err = "", r.Error.Err()
	case !image.IsDigest(r.Digest):
		out.Digest, out.Err = "", errors.New("the resolver answered without a digest")
	}
	return out
}

// Err is the way back from [ToProblem].
func (p *Problem) Err() error {
	e := &problemError{text: p.Message}
	for _, k := range kinds {
		if k.name == p.Kind {
			e.is = k.err
		}
	}
	if p.Hint != "" || p.Code != "" {
		return &fault.Error{Err: e, Code: p.Code, Hint: p.Hint}
	}
	return e
}

// problemError is an error that came over the wire: its text is complete, and it still matches the sentinel.
type problemError struct {
	text string
	is   error
}

func (e *problemError) Error() string { return e.text }
func (e *problemError) Unwrap() error { return e.is }
