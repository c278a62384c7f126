// Package remotebase fetches the bases and files that kustomizations name outside of their repository: over https,
// from hosts that the operator lists, within bounds, without credentials, and without a git binary.
package remotebase

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lazy"
)

const (
	// fetchTimeout bounds one base or file. The render's own deadline is 45 s.
	fetchTimeout = 20 * time.Second
	// maxFetches bounds what one render makes us ask others for.
	maxFetches = 100
	// maxClone bounds one commit in memory, and room all commits of a render on disk. Large public repositories with
	// manifests take a third of it.
	maxClone   = 128 << 20
	maxEntries = 50_000
)

// ErrNotListed: the operator does not list the host.
var ErrNotListed = errors.New("the host is not listed by --allow-remote")

// Client fetches for one render. It is not safe for concurrent use.
type Client struct {
	door    *door
	clones  map[string]Base // by repository and ref, with the path "."
	fetches int             // that are left
	room    gitrepo.Room
	timeout time.Duration
}

// New returns a client for the hosts, each "host" or "host:port" as in an https address; without a port it is 443. An
// entry that is an IP address also allows that address, where it is private, for the other hosts. With no hosts it
// returns nil.
func New(hosts []string) (*Client, error) {
	if len(hosts) == 0 {
		return nil, nil
	}
	d := newDoor()
	for _, h := range hosts {
		if err := d.list(h); err != nil {
			return nil, err
		}
	}
	return &Client{
		door: d, clones: map[string]Base{}, fetches: maxFetches, timeout: fetchTimeout,
		room: gitrepo.Room{Bytes: maxClone, Entries: maxEntries},
	}, nil
}

// Base is a directory of a repository at one commit, on this disk.
type Base struct {
	Repository, Ref string // as the entry names them
	Root, Path      string // where the repository is, and the base in it
}

// Base fetches what entry, of a kustomization's resources and the like, names in a Git repository, into a new directory
// below dir, an absolute path; a repository and ref that was fetched before it does not fetch again. Nothing in that
// directory can be trusted, links lead anywhere. It returns ErrNotListed for an entry that is not a Git base on a
// listed host. Its errors do not repeat the entry.
func (c *Client) Base(ctx context.Context, entry, dir string) (Base, error) {
	s, ok, err := parse(entry)
	if !ok || s.repo == nil || !c.door.lists(s.repo) {
		return Base{}, ErrNotListed
	}
	if err != nil {
		return Base{}, err
	}
	key := s.repo.String() + "?" + s.ref
	b, ok := c.clones[key]
	if !ok {
		b = Base{Repository: s.repo.String(), Ref: s.ref, Root: filepath.Join(dir, fmt.Sprintf("base-%d", len(c.clones)+1))}
		if err := c.clone(ctx, b); err != nil {
			return Base{}, failure(err)
		}
		c.clones[key] = b
	}
	b.Path = filepath.FromSlash(s.path)
	return b, nil
}

func (c *Client) clone(ctx context.Context, b Base) error {
	ctx, cancel, err := c.start(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	remote, err := gitrepo.OpenThrough(b.Repository, c.door)
	if err != nil {
		return err
	}
	tree, err := remote.ReadFixed(ctx, b.Ref, c.room.Bytes)
	if err != nil {
		return err
	}
	if err := os.Mkdir(b.Root, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(b.Root)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return tree.Unpack(ctx, root, &c.room)
}

// start counts a fetch and gives it its time.
func (c *Client) start(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if c.fetches--; c.fetches < 0 {
		return nil, nil, fault.New(fault.TooLarge, "copy the bases into this repository", "more than %d remote bases and files", maxFetches)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("no answer within %v", c.timeout))
	return ctx, cancel, nil
}

// maxRedirects is enough for a forge that sends a download to its storage.
const maxRedirects = 5

// File returns what is at an address, at most max bytes. It returns ErrNotListed for one on a host that is not listed,
// or that is no address. Its errors do not repeat the address.
func (c *Client) File(ctx context.Context, address string, max int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || !c.door.lists(u) {
		return nil, ErrNotListed
	}
	data, err := c.get(ctx, u, max)
	if err != nil {
		return nil, failure(err)
	}
	return data, nil
}

func (c *Client) get(ctx context.Context, u *url.URL, max int64) ([]byte, error) {
	ctx, cancel, err := c.start(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: c.door, CheckRedirect: follow}).Do(req)
	if err != nil {
		return nil, stopped(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fault.New(fault.RemoteFetch, "correct the address; what needs credentials cannot be fetched, and a Git base needs ?ref=",
			"the server answers %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, max+1))
	if err != nil || ctx.Err() != nil { // a server that we hang up on may still end its answer as if that were all
		return nil, stopped(ctx, err)
	}
	if int64(len(data)) > max {
		return nil, fault.New(fault.TooLarge, "split the file, or keep it out of the overlay", "larger than %d bytes", max)
	}
	return data, nil
}

// follow lets a redirect pass, which the door then looks at. Net/http would tell the next server where it came from,
// with the query that may hold a token.
func follow(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	if len(via) > maxRedirects {
		return fault.New(fault.RemoteFetch, "name the address that it ends at", "more than %d redirects", maxRedirects)
	}
	return nil
}

// stopped says whose patience ended, if that is what happened.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// addresses are those that the network's errors quote, tokens included.
var addresses = lazy.Regexp(`https?://[^\s"]*[^\s":]`)

// failure makes err one of a fetch, with a hint, without addresses.
func failure(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok { // it quotes the address
		err = wrapped.Err
	}
	hint, code := fault.Hint(err), fault.CodeOf(err)
	switch {
	case code == fault.GitAccess:
		hint = "correct the address; a base that needs credentials cannot be fetched, copy it into this repository"
	case code == fault.GitCertificate || isCertificate(err):
		hint = "let the host renew its certificate, or give the authority that signed it with SSL_CERT_FILE"
	case hint == "":
		hint = "check that the host can be reached from here, or copy the base into this repository"
	}
	if code != fault.RemoteBase && code != fault.TooLarge {
		code = fault.RemoteFetch
	}
	return fault.New(code, hint, "%s", strings.TrimSpace(addresses().ReplaceAllString(err.Error(), "it")))
}

func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}
