package gitrepo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"unicode"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// maxWords bounds what is quoted of a server's own words.
const maxWords = 500

// ours are the errors whose text was written here, and may be shown and wrapped as they are.
var ours = []error{ErrMoved, ErrNoChange, ErrNotRegular, ErrBranch, errTooLarge}

// explain turns what went wrong while doing something into an error for people. Errors from the network are quoted,
// redacted, and not wrapped, so that no secret hides further down the chain.
func (r *Remote) explain(ctx context.Context, doing string, err error) error {
	doing += " " + r.name
	if ctx.Err() != nil {
		return stopped(ctx, doing)
	}
	for _, known := range ours {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
	err = unwrapped(err)
	words := r.clean(err.Error())
	_, refused := errors.AsType[*sshRefusal](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	exit, exited := errors.AsType[*sshExit](err)
	f, own := errors.AsType[*fault.Error](err)
	switch {
	case refused, errors.Is(err, transport.ErrAuthenticationRequired):
		return fault.New(fault.GitAccess, "check the credentials of this repository", "%s: %w: %s", doing, ErrAuth, words)
	case errors.Is(err, transport.ErrAuthorizationFailed):
		return fault.New(fault.GitAccess, "allow these credentials to read and write the repository", "%s: %w: %s", doing, ErrAuth, words)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return fault.New(fault.GitAccess, "check the URL, and that the credentials may see the repository", "%s: repository not found", doing)
	case exited:
		return fault.New(fault.GitAccess, "check the URL, and that the key may see the repository", "%s: the server refused: %s", doing, r.clean(exit.words))
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return fault.New(fault.GitBranch, "push a first commit", "%s: the repository is empty: %w", doing, ErrBranch)
	case errors.Is(err, errFormat):
		return fault.New(fault.GitBinary, "start digestlock-companion with --git-binary=auto; elsewhere, use a repository with SHA-1 object names", "%s: %w", doing, errFormat)
	case errors.Is(err, errRedirect):
		return fault.New(fault.GitURL, "use the address that the server redirects to", "%s: %w", doing, errRedirect)
	case errors.Is(err, errHostKey):
		return hostKeyFault(doing, err)
	case own: // of a transport too, inside of a network error
		return fault.New(f.Code, f.Hint, "%s: %s", doing, words)
	case untrusted:
		return fault.New(fault.GitCertificate, "give the CA that signed the server's certificate", "%s: %s", doing, words)
	case isAlert(err):
		return fault.New(fault.GitCertificate, "give the TLS client certificate that the server asks for", "%s: %s", doing, words)
	case isDown(err):
		return fault.New(fault.GitUnavailable, "check that the Git server is up and can be reached from here", "%s: %s", doing, words)
	}
	return fmt.Errorf("%s: %s", doing, words)
}

// stopped says why the caller's, or our own, patience ended.
func stopped(ctx context.Context, doing string) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return fmt.Errorf("%s: %w: %w", doing, ctx.Err(), cause)
	}
	return fmt.Errorf("%s: %w", doing, ctx.Err())
}

func hostKeyFault(doing string, err error) error {
	if knownhosts.IsHostKeyChanged(err) {
		return fault.New(fault.GitHostKey, "find out why before trusting it: the server has a new key, or somebody is in between",
			"%s: the server's host key has changed", doing)
	}
	return fault.New(fault.GitHostKey, knownHostsHint, "%s: %w", doing, errHostKey)
}

// unwrapped opens the wrappers of go-git's that hide their cause from errors.As.
func unwrapped(err error) error {
	if e, ok := errors.AsType[*plumbing.UnexpectedError](err); ok {
		return unwrapped(e.Err)
	}
	if e, ok := errors.AsType[*plumbing.PermanentError](err); ok {
		return unwrapped(e.Err)
	}
	return err
}

// isDown is about the network below: a *url.Error would be a net.Error too, whatever it holds.
func isDown(err error) bool {
	_, op := errors.AsType[*net.OpError](err)
	_, dns := errors.AsType[*net.DNSError](err)
	return op || dns
}

// isAlert is about a TLS server that refuses us, most often for want of a client certificate.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" // how crypto/tls names an alert of the other side
}

var userinfo = lazy.Regexp(`(://)[^/@\s]+@`)

// clean makes foreign words fit to show: one line, of bounded length, without a secret of ours or a URL's user.
func (r *Remote) clean(words string) string {
	words = r.secrets.redact(words)
	words = userinfo().ReplaceAllString(words, "$1")
	words = strings.Join(strings.FieldsFunc(words, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }), " ")
	words = strings.ToValidUTF8(words, "")
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + " …"
	}
	return words
}

// tail keeps the last words that a server wrote beside its answer. It is safe for concurrent use.
type tail struct {
	mu    sync.Mutex
	words []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.words = append(t.words, p...)
	if over := len(t.words) - maxReason; over > 0 {
		t.words = append(t.words[:0], t.words[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.words)
}
