package gitrepo

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// scpLike matches git@host:path, the short form of an ssh address, but not git's helper::address.
var scpLike = lazy.Regexp(`^(?:([^@/:\s]+)@)?([^@/:\s\[\]]+|\[[0-9a-fA-F:.]+\]):([^\s:].*)$`)

const formsHint = "use https://host/path, ssh://git@host/path or git@host:path"

// Open prepares access to the repository at rawURL without talking to it. It accepts https, ssh (ssh://host/path and
// git@host:path), and plain http when no credentials are given. A password inside the URL is refused: URLs end up in
// logs. A user name inside an https URL serves when a has none.
func Open(rawURL string, a Auth) (*Remote, error) {
	u, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	r := newRemote(u)
	r.binary = a.Binary
	open := r.openHTTP
	if u.Scheme == "ssh" {
		open = r.openSSH
	}
	if err := open(u, a); err != nil {
		return nil, err
	}
	return r, nil
}

// OpenThrough is Open for an https repository that is read without credentials, by way of rt alone.
func OpenThrough(rawURL string, rt http.RoundTripper) (*Remote, error) {
	u, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "https" || u.User != nil {
		return nil, fault.New(fault.GitURL, "use https://host/path", "repository URL on %s is not plain https", u.Host)
	}
	r := newRemote(u)
	r.binary = BinaryNever
	r.speakHTTP(u, rt)
	return r, nil
}

func newRemote(u *url.URL) *Remote {
	r := &Remote{
		last: map[plumbing.ReferenceName]reading{},
		endpoint: transport.Endpoint{
			Protocol: u.Scheme,
			Host:     strings.TrimSuffix(u.Host, ":"+u.Port()),
			Path:     strings.TrimRight(u.EscapedPath(), "/"),
		},
	}
	r.endpoint.Port, _ = strconv.Atoi(u.Port()) // url.Parse admits digits only; 0 is the scheme's own port
	return r
}

// parse returns rawURL with one of the three schemes, a host, a path, and no password.
func parse(rawURL string) (*url.URL, error) {
	if m := scpLike().FindStringSubmatch(rawURL); m != nil && !strings.Contains(rawURL, "://") {
		u := &url.URL{Scheme: "ssh", Host: m[2], Path: m[3], User: url.User(m[1])}
		return u, checkURL(u)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fault.New(fault.GitURL, formsHint, "repository URL cannot be parsed") // the cause quotes the URL, password and all
	}
	return u, checkURL(u)
}

func checkURL(u *url.URL) error {
	switch u.Scheme {
	case "https", "http", "ssh":
	default:
		return fault.New(fault.GitURL, formsHint, "repository URL has scheme %q", u.Scheme)
	}
	if _, has := u.User.Password(); has {
		return fault.New(fault.GitURL, "move the password out of the URL into the repository's credentials",
			"repository URL on %s contains a password", u.Host)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return fault.New(fault.GitURL, "remove what follows ? or # from the URL", "repository URL on %s has a query or a fragment", u.Host)
	}
	// A path that starts with a dash would be an option to the command on the other side of an ssh connection.
	if u.Hostname() == "" || strings.Trim(u.Path, "/") == "" || strings.HasPrefix(u.Path, "-") {
		return fault.New(fault.GitURL, formsHint, "repository URL needs a host and a path")
	}
	return nil
}
