// Package api is the HTTP interface of resolver and companion: the messages, and the client of generate, flush and the
// companion.
//
//	POST /v1/resolve     ResolveRequest → ResolveResponse   resolver: unix socket, or TCP with a token
//	GET  /v1/renders/…   a render that was put there, or 204   resolver: unix socket
//	PUT  /v1/renders/…   a render to remember → 204            resolver: unix socket
//	GET  /v1/pins        → PinsResponse, or 304             resolver: TCP with a token
//	POST /v1/origins     OriginsRequest → OriginsResponse   resolver: TCP with a token
//	POST /v1/flush       ?image=… → FlushResponse           resolver: TCP with a token
//	POST /v1/invalidate  ?image=… → WebhookResponse         resolver: TCP with a token
//	GET  /v1/status      what the loop did and will do      companion: TCP with a token
//	POST /flush          ?image=… → FlushResponse           both, with a token or one of a trusted OIDC issuer
//	POST /webhook/…      a registry's event → WebhookResponse   both: TCP, as the sender authenticates
//
// What is below /v1 is for our own programs, and not limited: /v1/flush and /v1/invalidate are what a companion passes on,
// which has checked and limited who asks.
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

// StatusPath is where a companion says what it is doing.
const StatusPath = "/v1/status"

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

// OriginsRequest asks where images come from, by the project whose credentials may read them: full references, each with
// its tag and digest.
type OriginsRequest struct {
	Images map[string][]string `json:"images"`
}

// OriginsResponse has the origin of each reference that could be read in time, by reference. One that says nothing of its
// source has an empty one.
type OriginsResponse struct {
	Origins map[string]image.Origin `json:"origins"`
}

// FlushResponse says what a flush did, one entry for each reference that was flushed. The rest is a companion's.
type FlushResponse struct {
	Flushed  []Flushed `json:"flushed"`
	Replicas []Replica `json:"replicas,omitzero"` // the resolvers that were asked, sorted by address
	Commits  []Commit  `json:"commits,omitzero"`  // of the cycle that followed, not nil when it has ended
	Error    *Problem  `json:"error,omitempty"`   // what that cycle could not do, of these images or others
	Status   string    `json:"status,omitempty"`  // where to ask for the cycle when it has not ended: StatusPath, with 202
}

// Replica is one resolver behind a companion. Without an error it was flushed.
type Replica struct {
	Address string   `json:"address"`
	Error   *Problem `json:"error,omitempty"`
}

// Commit is one commit that a companion pushed.
type Commit struct {
	Repository string `json:"repository"`
	Branch     string `json:"branch"`
	Commit     string `json:"commit"`
	Subject    string `json:"subject"`
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
	Images    []string `json:"images"`              // a repository without a tag stands for all its tags
	Refreshed *int     `json:"refreshed,omitempty"` // references that were remembered, and are being asked for again; a companion answers before it knows
	Error     *Problem `json:"error,omitempty"`     // what of the event was not understood
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
