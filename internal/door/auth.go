package door

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// caller is who may flush.
type caller struct {
	name string                // for the limits and the log
	may  func(image.Ref) error // what it may flush
	all  bool                  // it bears one of the program's own tokens, and may know everything
}

func everything(name string) caller {
	return caller{name: name, may: func(image.Ref) error { return nil }, all: true}
}

// refusal is why a request is not served, with the HTTP status that says so.
type refusal struct {
	status int
	error
}

func newRefusal(status int, code fault.Code, hint, format string, args ...any) *refusal {
	return &refusal{status, fault.New(code, hint, format, args...)}
}

// unavailable is an error for a client that can do nothing about what is wrong.
func (d *Door) unavailable(what string) error {
	return fault.New(fault.ResolverUnavailable, "try again; the "+d.o.Name+"'s log says why", "the %s cannot %s", d.o.Name, what)
}

// Protected lets a request through to next that bears one of the tokens in the token file.
func (d *Door) Protected(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, no := d.byToken(r); no != nil {
			d.deny(w, no)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (d *Door) deny(w http.ResponseWriter, no *refusal) {
	if no.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	d.Refuse(w, no.status, no.error)
}

// byToken returns the number of the line's token in the token file that the request bears.
func (d *Door) byToken(r *http.Request) (int, *refusal) {
	if d.o.Keys.TokenFile == "" {
		return 0, newRefusal(http.StatusForbidden, fault.ResolverToken, "start "+d.o.Command+" with --token-file", "no token is configured, this route is closed")
	}
	tokens, err := api.Tokens(d.o.Keys.TokenFile)
	if err != nil {
		d.o.Log.Error("token file not read", "error", err)
		return 0, &refusal{http.StatusServiceUnavailable, d.unavailable("read its token file")}
	}
	given := bearer(r)
	i := slices.IndexFunc(tokens, func(t string) bool { return equal(t, given) })
	if i < 0 {
		return 0, newRefusal(http.StatusUnauthorized, fault.ResolverToken,
			"send Authorization: Bearer and a token from the "+d.o.Name+"'s token file", "wrong or missing bearer token")
	}
	return i + 1, nil
}

// flusher returns who wants to flush: the bearer of a token in the token file, who may flush everything, or of one
// that a trusted issuer made, who may flush what the rules say.
func (d *Door) flusher(r *http.Request) (caller, *refusal) {
	n, no := d.byToken(r)
	if no == nil {
		return everything(fmt.Sprintf("token %d", n)), nil
	}
	if d.o.Keys.OIDC == nil {
		return caller{}, no
	}
	c, err := d.o.Keys.OIDC.Caller(r.Context(), bearer(r))
	switch {
	case err == nil:
		return caller{name: c.Name, may: c.May}, nil
	case errors.Is(err, access.ErrNotJWT) && d.o.Keys.TokenFile != "":
		return caller{}, no
	case errors.Is(err, access.ErrNotJWT):
		return caller{}, newRefusal(http.StatusUnauthorized, fault.ResolverToken,
			"send Authorization: Bearer and a token of an issuer in the "+d.o.Name+"'s --oidc-config", "wrong or missing bearer token")
	case errors.Is(err, access.ErrUnavailable):
		d.o.Log.Warn("token not checked", "error", err)
		return caller{}, &refusal{http.StatusServiceUnavailable, d.unavailable("check this token now")}
	case errors.Is(err, access.ErrForbidden):
		return caller{}, &refusal{http.StatusForbidden, err}
	}
	return caller{}, &refusal{http.StatusUnauthorized, err}
}

// bearer returns the request's bearer token, "" for none, which is nobody's.
func bearer(r *http.Request) string {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return token
}

// equal compares in a time that tells nothing about where, or whether in length, two tokens differ.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
