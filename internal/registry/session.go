package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/digestlock/digestlock/internal/credentials"
)

// maxScopes bounds the repositories of one token: each adds some 120 bytes to it, and proxies commonly refuse a
// request whose headers exceed 8 KiB.
const maxScopes = 50

const maxRedirects = 3

// group is a set of repositories that share a session. Its fields are guarded by the host's lock.
type group struct {
	host   *host
	scope  string // whose credentials
	made   time.Time
	alone  bool     // one repository, with the credentials for just that one
	repos  []string // the scopes of the next session
	flight *flight  // the session, or the opening of it; nil after a failure
}

// flight is the opening of a session that all who need it wait for.
type flight struct {
	done    chan struct{} // closed when the rest is set
	session *session
	err     error
}

// session is a registry that has been talked to. It is never mended, only replaced.
type session struct {
	http   http.Client
	bearer bool     // limited to repos
	repos  []string // sorted
	opened time.Time
	hint   string // what to look at when the registry refuses the credentials
}

func (s *session) covers(repos []string) bool {
	return !s.bearer || !slices.ContainsFunc(repos, func(r string) bool { return !slices.Contains(s.repos, r) })
}

// session returns a session that covers repos, which are in the group, and that is not refused. Callers share the
// opening of it; one whose ctx ends leaves it to the others. A failure is not remembered.
func (g *group) session(ctx context.Context, repos []string, refused *session) (*session, error) {
	for {
		f := g.join(ctx, repos, refused)
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, g.host.netError(ctx, ctx.Err())
		}
		if f.err != nil {
			return nil, f.err
		}
		if f.session.covers(repos) {
			return f.session, nil
		}
	}
}

// join returns the group's flight when it serves, even if it has only just begun, and starts another when not.
func (g *group) join(ctx context.Context, repos []string, refused *session) *flight {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if f := g.flight; f != nil {
		select {
		case <-f.done:
			if f.session != refused && f.session.covers(repos) {
				return f
			}
		default:
			return f
		}
	}
	f := &flight{done: make(chan struct{})}
	g.flight = f
	scopes := append(slices.Clone(g.repos), repos...)
	// Nobody waits for this goroutine when every caller has left; its own deadline ends it.
	ctx = context.WithoutCancel(ctx)
	go func() {
		f.session, f.err = g.host.dial(ctx, g, scopes)
		g.land(f)
	}()
	return f
}

func (g *group) land(f *flight) {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if f.err != nil {
		g.flight = nil
	}
	close(f.done)
}

// old reports whether the group's session has served long enough, or the group without one waited for it. The caller
// holds the lock.
func (g *group) old() bool {
	if g.flight == nil {
		return time.Since(g.made) >= g.host.sessionAge
	}
	select {
	case <-g.flight.done:
		return time.Since(g.flight.session.opened) >= g.host.sessionAge
	default:
		return false
	}
}

// dial opens a session with freshly read credentials.
func (h *host) dial(ctx context.Context, g *group, repos []string) (*session, error) {
	ctx, cancel := h.deadline(ctx)
	defer cancel()
	opened := time.Now() // before the credentials are read
	slices.Sort(repos)
	repos = slices.Compact(repos)
	reg, err := h.registry()
	if err != nil {
		return nil, err
	}
	only := ""
	if g.alone {
		only = repos[0]
	}
	login, err := h.keychain.Find(ctx, g.scope, h.name, only)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	var scopes []string
	for _, repo := range repos {
		scopes = append(scopes, pullScope(repo))
	}
	w := &watch{next: h.wire}
	rt, err := transport.NewWithContext(ctx, reg, authenticator(login), w, scopes)
	if err != nil {
		told := h.sessionError(ctx, login.Hint, err, w.failure())
		if t, ok := errors.AsType[*transport.Error](err); ok && t.StatusCode == http.StatusUnauthorized && !login.Anonymous() {
			told = loginError{told}
		}
		return nil, told
	}
	w.open.Store(true)
	return &session{
		http:   http.Client{Transport: rt, CheckRedirect: checkRedirect},
		bearer: w.bearer.Load(),
		repos:  repos,
		opened: opened,
		hint:   login.Hint,
	}, nil
}

func authenticator(l credentials.Login) authn.Authenticator {
	if l.Anonymous() {
		return authn.Anonymous // the library compares
	}
	return authn.FromConfig(l.Auth)
}

// pullScope is what a token for a repository is asked for.
func pullScope(repo string) string { return "repository:" + repo + ":pull" }

// checkRedirect ends a circle. Where a redirect may lead is the guard's business, for the library follows some too.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refusal{errCircle, req.URL.Host}
	}
	return nil
}

func (h *host) registry() (name.Registry, error) {
	var opts []name.Option
	if h.scheme == "http" {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(h.name, opts...)
	if err != nil {
		return name.Registry{}, errNotHost(h.name)
	}
	return reg, nil
}

// worthAlone reports whether a session for one repository can do what the group's could not: it asks for fewer
// scopes, or it has other credentials. denial is what the group met, and s its session, nil when it got none.
func (h *host) worthAlone(ctx context.Context, l lookup, s *session, denial error) bool {
	if l.group.alone {
		return false
	}
	scopes := s == nil || (s.bearer && len(s.repos) > 1)
	if _, bad := errors.AsType[loginError](denial); scopes && !bad {
		return true
	}
	return h.ownCredentials(ctx, l.group.scope, l.ref.Repository)
}

// ownCredentials reports whether a scope has credentials for a repository that are not the registry's.
func (h *host) ownCredentials(ctx context.Context, scope, repo string) bool {
	login, err := h.keychain.Find(ctx, scope, h.name, repo)
	return err == nil && login.Own
}

// watch is the wire of one session: it sees what go-containerregistry does not tell. Once the session is open it
// hides challenges, because the library answers one to every request with a request for a token (20 references of an
// expired session are 20 tokens); we replace the session instead, once and with credentials read anew.
type watch struct {
	next   http.RoundTripper
	open   atomic.Bool
	bearer atomic.Bool
	failed atomic.Pointer[error]
}

func (w *watch) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(req)
	if err != nil {
		if !isRefusal(err) || req.Response != nil {
			w.failed.Store(&err)
		}
		return nil, err
	}
	if w.open.Load() {
		resp.Header.Del("WWW-Authenticate")
		return resp, nil
	}
	for _, c := range resp.Header.Values("WWW-Authenticate") {
		if len(c) >= 6 && strings.EqualFold(c[:6], "bearer") {
			w.bearer.Store(true)
		}
	}
	return resp, nil
}

// failure returns the last error of a request that had to be made. The library tries a second scheme by itself, http
// for local names and https for those in plain http, which the guard refuses, and returns both errors as one that
// cannot be taken apart.
func (w *watch) failure() error {
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return nil
}
