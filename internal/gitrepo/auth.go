package gitrepo

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
)

// Auth is how to prove who we are, whom we trust, and which way leads there. The zero value is anonymous https.
type Auth struct {
	Username, Password string // https: basic authentication
	Token              string // https: bearer token; wins over Username and Password

	// TokenSource is for https too, and for credentials that expire: it is asked once for each session with the server,
	// of which a call on a Remote opens a few, with that call's context, and wins over the fixed ones. It must be safe
	// for concurrent use.
	TokenSource func(ctx context.Context) (username, password string, err error)

	SSHKey     []byte // ssh: private key, PEM, without a passphrase
	KnownHosts []byte // ssh: known_hosts text; required, except with Insecure
	CA         []byte // https: PEM bundle, trusted in addition to the system's roots

	ClientCert, ClientKey []byte // https: PEM, shown to a server, or an https proxy, that asks for a certificate

	// Proxy is the URL of the proxy to use: http, https, socks5 or socks5h for https, one of the last two for ssh. "" is
	// what the environment says for https, and none for ssh. NoProxy lists what is reached without it, as
	// golang.org/x/net/http/httpproxy reads it; this machine always is.
	Proxy, NoProxy string

	// Binary says when git, the program, is used. "" is BinaryAuto.
	Binary Binary

	// Insecure lets any server, and any https proxy, pass for the right one: neither certificates nor host keys are
	// verified. It is for Argo CD's setting of that name.
	Insecure bool
}

// Client returns a client for other addresses of the same operator, such as the API of the forge: it trusts whom a
// trusts, shows a's client certificate, goes by a's proxy, and follows no redirect to another host. It sends no
// password, token or key.
func (a Auth) Client() (*http.Client, error) {
	t, err := a.httpTransport()
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: t, CheckRedirect: sameHost}, nil
}

// login returns what the next session proves itself with.
type login func(context.Context) (transport.AuthMethod, error)

// login tells s about every secret that a session will use. It returns nil for nothing to prove.
func (a Auth) login(s *secrets) login {
	s.fixed = append(a.proxySecrets(), a.Token, a.Password, basic(a.Username, a.Password))
	var fixed transport.AuthMethod
	switch {
	case a.TokenSource != nil:
		return func(ctx context.Context) (transport.AuthMethod, error) {
			username, password, err := a.TokenSource(ctx)
			if err != nil {
				return nil, err
			}
			s.remember(password, basic(username, password))
			return &githttp.BasicAuth{Username: username, Password: password}, nil
		}
	case a.Token != "":
		fixed = &githttp.TokenAuth{Token: a.Token}
	case a.Username != "" || a.Password != "":
		fixed = &githttp.BasicAuth{Username: a.Username, Password: a.Password}
	default:
		return nil
	}
	return func(context.Context) (transport.AuthMethod, error) { return fixed, nil }
}

func (r *Remote) uploadPack(ctx context.Context, ep *transport.Endpoint, known *names) (transport.UploadPackSession, error) {
	auth, err := r.authMethod(ctx)
	if err != nil {
		return nil, err
	}
	return r.transport(known).NewUploadPackSession(ep, auth)
}

func (r *Remote) receivePack(ctx context.Context, ep *transport.Endpoint, known *names) (transport.ReceivePackSession, error) {
	auth, err := r.authMethod(ctx)
	if err != nil {
		return nil, err
	}
	return r.transport(known).NewReceivePackSession(ep, auth)
}

func (r *Remote) authMethod(ctx context.Context) (transport.AuthMethod, error) {
	if r.login == nil {
		return nil, nil
	}
	return r.login(ctx)
}

// basic is how a user name and a password travel, and how a careless server repeats them.
func basic(username, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(username + ":" + password))
}

// maxRecent is how many secrets that expire are kept in mind: those of the sessions that may still be under way.
const maxRecent = 32

// secrets are what no error may show. It is safe for concurrent use once fixed is set.
type secrets struct {
	fixed []string

	mu     sync.Mutex
	recent []string
}

func (s *secrets) remember(words ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range words {
		if !slices.Contains(s.recent, w) {
			s.recent = append(s.recent, w)
		}
	}
	s.recent = slices.Delete(s.recent, 0, max(0, len(s.recent)-maxRecent))
}

func (s *secrets) redact(words string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range slices.Concat(s.fixed, s.recent) {
		if secret != "" {
			words = strings.ReplaceAll(words, secret, "***")
		}
	}
	return words
}
