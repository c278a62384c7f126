package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lazy"
)

var (
	errPlainHTTP = errors.New("plain http refused")
	errListed    = errors.New("https refused")
	errCircle    = errors.New("too many redirects")
	errRedirect  = errors.New("redirect to another host refused")
	errRealm     = errors.New("token server of another domain refused")
	errPrivate   = errors.New("private address refused")
	errLoopback  = errors.New("loopback address refused")
	errReserved  = errors.New("reserved address refused")
)

const renewHint = "renew the registry's certificate"

// refusal is a request that the guard did not make.
type refusal struct {
	err  error
	host string
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func isRefusal(err error) bool {
	_, ok := errors.AsType[refusal](err)
	return ok
}

// loginError is a token server's word that the credentials are wrong, and not that they do not reach far enough:
// trying them again for each repository would lock the account.
type loginError struct{ error }

func (e loginError) Unwrap() error { return e.error }

func denied(err error) bool { return errors.Is(err, image.ErrUnauthorized) }

// statusError is the error for a manifest's status. hint says what to look at when credentials are refused; code is the
// registry's own word for it, where it has said one.
func (h *host) statusError(status int, hint, code string) error {
	said := strconv.Itoa(status)
	if code != "" {
		said += " " + code
	}
	switch {
	case status == http.StatusNotFound:
		return fmt.Errorf("%s: %w (%s)", h.name, image.ErrNotFound, said)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fault.New(fault.RegistryUnauthorized, hint, "%s: %w (%s)", h.name, image.ErrUnauthorized, said)
	case status == http.StatusTooManyRequests:
		if until := h.paused(); time.Now().Before(until) {
			return h.throttled(said + ", throttled until " + until.UTC().Format("15:04:05 MST"))
		}
		return h.throttled(said + ", throttled")
	case status >= 500:
		return fmt.Errorf("%s: %w (%s)", h.name, image.ErrUnavailable, said)
	}
	return fmt.Errorf("%s: unexpected answer (%s)", h.name, said)
}

func (h *host) throttled(said string) error {
	return fault.New(fault.RegistryUnavailable, "log in to "+h.name+" for a higher limit, or wait", "%s: %w (%s)", h.name, image.ErrUnavailable, said)
}

// codePattern is what an error code looks like; anything else in its place is not repeated.
var codePattern = lazy.Regexp(`^[A-Z_]+$`)

const maxCode = 40

// code returns the registry's code in an error of the library, or "".
func code(err error) string {
	t, ok := errors.AsType[*transport.Error](err)
	if !ok || len(t.Errors) == 0 {
		return ""
	}
	code := string(t.Errors[0].Code)
	if len(code) > maxCode || !codePattern().MatchString(code) {
		return ""
	}
	return code
}

// sessionError is the error for a session that did not open: err is the library's, and failure that of the last
// request which got no answer, if one did not.
func (h *host) sessionError(ctx context.Context, hint string, err, failure error) error {
	t, ok := errors.AsType[*transport.Error](err)
	switch {
	case ok && t.StatusCode == http.StatusNotFound:
		return fault.New(fault.ImageNotFound, "check the registry in the image's name", "%s: is not a registry (404)", h.name)
	case ok:
		return h.statusError(t.StatusCode, hint, code(err))
	case failure != nil || ctx.Err() != nil:
		return h.netError(ctx, cmp.Or(failure, err))
	case isRefusal(err):
		return h.netError(ctx, err)
	}
	// The library's text may hold the token server's whole answer.
	return fault.New(fault.RegistryRefused, "check that the registry speaks the distribution protocol; its token server must be public or its own host",
		"%s: login is not understood or names a token server that is not allowed", h.name)
}

// netError is the error for a request without an answer. The texts are our own: those of net/http hold URLs.
func (h *host) netError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return h.ended(ctx)
	}
	var (
		refused  refusal
		dns      *net.DNSError
		errno    syscall.Errno
		timeout  net.Error
		record   tls.RecordHeaderError // what http.Client makes ErrSchemeMismatch of
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &refused):
		return h.refused(refused)
	case errors.Is(err, errThrottled):
		return h.statusError(http.StatusTooManyRequests, "", "")
	case errors.Is(err, errPaced):
		return fault.New(fault.RegistryUnavailable, "raise --registry-qps, if the registry can take it",
			"%s: %w: %g requests a second are not enough", h.name, image.ErrUnavailable, h.qps)
	case errors.As(err, &unknown):
		return fault.New(fault.RegistryCertificate, "give the authority's certificate with SSL_CERT_FILE or SSL_CERT_DIR",
			"%s: certificate is signed by an unknown authority", h.name)
	case errors.As(err, &hostname):
		return fault.New(fault.RegistryCertificate, "ask for the registry by the name in its certificate", "%s: certificate is for another host", h.name)
	case errors.As(err, &invalid):
		if invalid.Reason != x509.Expired {
			return fault.New(fault.RegistryCertificate, renewHint, "%s: certificate is not valid", h.name)
		}
		return fault.New(fault.RegistryCertificate, renewHint+"; if it is in order, mend this machine's clock",
			"%s: certificate has expired or is not valid yet", h.name)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return h.plainHTTP("answers in plain http only", h.name)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fault.New(fault.RegistryUnavailable, "check the registry in the image's name, and the DNS here", "%s: %w: no such host", h.name, image.ErrUnavailable)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: %w: DNS does not answer", h.name, image.ErrUnavailable)
	case errors.As(err, &errno):
		return fmt.Errorf("%s: %w: %w", h.name, image.ErrUnavailable, errno)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w: connection closed", h.name, image.ErrUnavailable)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s: %w: %w", h.name, image.ErrUnavailable, silence(h.step))
	}
	return fmt.Errorf("%s: %w: request failed", h.name, image.ErrUnavailable)
}

// ended is the error for a context that ended: by our deadline, by the caller's, or because the caller has left.
func (h *host) ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(cause, errSilence) {
		return fmt.Errorf("%s: %w", h.name, cause)
	}
	return fmt.Errorf("%s: %w: %w", h.name, image.ErrUnavailable, cause)
}

func (h *host) refused(r refusal) error {
	switch r.err {
	case errPlainHTTP:
		return h.plainHTTP("plain http to "+quote(r.host)+" refused", r.host)
	case errListed:
		return fault.New(fault.RegistryRefused, "take "+cut(r.host)+" from --insecure-registry", "%s: https to %s refused", h.name, quote(r.host))
	case errCircle:
		return fault.New(fault.RegistryRefused, "name the image by the registry that it is redirected to", "%s: too many redirects", h.name)
	case errRealm:
		return fault.New(fault.RegistryNotAllowed, fmt.Sprintf("start the resolver with --allow-realm %s, if that host may have the credentials for %s", cut(r.host), h.name),
			"%s: token server %s, of another domain, refused", h.name, quote(r.host))
	case errPrivate:
		return fault.New(fault.RegistryNotAllowed, fmt.Sprintf("start the resolver with --allow-private-registries, or with a list of --allow-registry that has %s in full", bare(r.host)),
			"%s: %shas a private address, refused", h.name, h.other(r.host))
	case errLoopback:
		return fault.New(fault.RegistryNotAllowed, fmt.Sprintf("name %s in full with --allow-registry, or with --insecure-registry for plain http, if you mean this machine", bare(r.host)),
			"%s: %shas a loopback address, refused", h.name, h.other(r.host))
	case errReserved:
		return fault.New(fault.RegistryNotAllowed, "correct the registry in the image's name, or its DNS: no image comes from link-local, multicast and metadata addresses",
			"%s: %shas a reserved address, refused", h.name, h.other(r.host))
	}
	return fault.New(fault.RegistryRefused, fmt.Sprintf("name the image at %[1]s instead, or give lists of --allow-registry that have %[1]s", cut(r.host)),
		"%s: redirect to another host, %s, refused", h.name, quote(r.host))
}

func (h *host) plainHTTP(what, insecure string) error {
	return fault.New(fault.RegistryRefused, fmt.Sprintf("serve it over https, or allow plain http with --insecure-registry %s", cut(insecure)),
		"%s: %s", h.name, what)
}

// other is a host that a text about this one has to name, with a space, or "".
func (h *host) other(address string) string {
	if bare(address) == bare(h.name) {
		return ""
	}
	return quote(bare(address)) + " "
}

// bare is a host as an image's name has it.
func bare(address string) string { return cut(strings.TrimSuffix(address, ":443")) }

func errNotAllowed(host string) error {
	return fault.New(fault.RegistryNotAllowed, "start the resolver with --allow-registry "+cut(host)+" too, if images may come from there",
		"%s: not in the list of --allow-registry", cut(host))
}

func errNotHost(host string) error { return fmt.Errorf("%s: not a registry host", quote(host)) }

// maxForeign bounds a string from outside in an error.
const maxForeign = 120

func quote(s string) string { return strconv.Quote(cut(s)) }

func cut(s string) string {
	if len(s) > maxForeign {
		return s[:maxForeign] + "…"
	}
	return s
}
