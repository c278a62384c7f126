package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// Client talks to one resolver. It is safe for concurrent use.
type Client struct {
	name  string // what people call it: the address they configured
	base  string
	token string
	http  *http.Client

	pins atomic.Pointer[pins] // the last ledger that it was sent; nil for none that has a tag
}

// maxAnswer bounds what a resolver may answer, in bytes: the ledger of some hundred thousand sources.
const maxAnswer = 256 << 20

// dialTimeout bounds the connection to a resolver, which is next door: another container of the pod, or the cluster.
const dialTimeout = 3 * time.Second

// NewClient returns a client of the resolver at address: "unix:///path/to/socket" or "http(s)://host:port". The token
// may be empty for a socket.
func NewClient(address, token string) (*Client, error) {
	return newClient(address, address, "", token)
}

// Replicas returns a client for each address that the host name in address resolves to: a headless Service names all
// replicas, and each has a ledger of its own.
func Replicas(ctx context.Context, address, token string) ([]*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		c, err := NewClient(address, token)
		return []*Client{c}, err
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		return nil, fault.New(fault.ResolverUnavailable, "give the name of the resolvers' headless Service", "resolver %s: %w", address, err)
	}
	slices.Sort(ips)
	clients := make([]*Client, len(ips))
	for i, ip := range ips {
		if clients[i], err = newClient(address+" ("+ip+")", address, ip, token); err != nil {
			return nil, err
		}
	}
	return clients, nil
}

// errAddress does not repeat the address: somebody may have put a password into it.
var errAddress = errors.New("the resolver's address is neither unix:///path nor http(s)://host:port")

// newClient connects to ip, where given, whatever the host in address resolves to.
func newClient(name, address, ip, token string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errAddress
	}
	base := strings.TrimSuffix(address, "/")
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, port, err := net.SplitHostPort(addr); err == nil && ip != "" {
			addr = net.JoinHostPort(ip, port)
		}
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, addr)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		base = "http://resolver"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", u.Path)
		}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil:
	default:
		return nil, errAddress
	}
	return &Client{name: name, base: base, token: token, http: &http.Client{
		// Who closed the client may still have a question waiting, and the connection of that is not to be left behind.
		Transport:     &http.Transport{DialContext: dial, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// String returns the address.
func (c *Client) String() string { return c.name }

// Resolve asks for the digests of refs, in the same order. Source and locked, where given, say whose credentials to use
// and are the report of a complete render, see [ResolveRequest]. The error is about the resolver itself; what happened to a reference is in
// its Resolution.
func (c *Client) Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	req := ResolveRequest{Source: source, Locked: locked, Images: make([]string, len(refs))}
	for i, r := range refs {
		req.Images[i] = r.String()
	}
	var res ResolveResponse
	if err := c.call(ctx, http.MethodPost, "/v1/resolve", req, &res); err != nil {
		return nil, err
	}
	if len(res.Results) != len(refs) {
		return nil, fmt.Errorf("resolver %s: %d answers to %d references", c.name, len(res.Results), len(refs))
	}
	out := make([]image.Resolution, len(refs))
	for i, r := range res.Results {
		if r.Image != req.Images[i] {
			return nil, fmt.Errorf("resolver %s: an answer for %q to the question for %s", c.name, r.Image, req.Images[i])
		}
		out[i] = r.resolution(refs[i])
	}
	return out, nil
}

// Recall returns what was remembered under key, 64 hex digits, and nil for nothing. It is not ok when the resolver remembers
// nothing, is too old to, or cannot be asked.
func (c *Client) Recall(ctx context.Context, key string) (data []byte, ok bool) {
	status, data, err := c.exchange(ctx, http.MethodGet, rendersPath+key, nil)
	switch {
	case err == nil && status == http.StatusOK:
		return data, true
	case err == nil && status == http.StatusNoContent:
		return nil, true
	}
	return nil, false
}

// Remember has the resolver remember data under key, unless that is too large. What comes of it is not the caller's business.
func (c *Client) Remember(ctx context.Context, key string, data []byte) {
	if len(data) > MaxBody {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+rendersPath+key, bytes.NewReader(data))
	if err != nil {
		return
	}
	if res, err := c.http.Do(req); err == nil {
		_ = res.Body.Close()
	}
}

const rendersPath = "/v1/renders/"

// Origins asks where images come from, by the project whose credentials may read them; each reference has a tag and a
// digest. It returns what could be read, by reference: nothing from a resolver that is too old to know.
func (c *Client) Origins(ctx context.Context, images map[string][]image.Ref) (map[string]image.Origin, error) {
	req := OriginsRequest{Images: map[string][]string{}}
	for project, refs := range images {
		for _, r := range refs {
			req.Images[project] = append(req.Images[project], r.String())
		}
	}
	status, data, err := c.exchange(ctx, http.MethodPost, "/v1/origins", req)
	if err != nil || status == http.StatusNotFound {
		return nil, err
	}
	var res OriginsResponse
	err = c.decode(status, data, &res)
	return res.Origins, err
}

// Flush makes a resolver, or all those of a companion, forget the images and ask for them again; one without a tag stands
// for all tags of its repository that a resolver remembers. A companion answers when it has committed, or nearly at once
// when that takes longer than it waits.
func (c *Client) Flush(ctx context.Context, images []string) (FlushResponse, error) {
	return c.flush(ctx, "/flush", images)
}

// Forward is Flush for a companion: the resolver does not limit how often.
func (c *Client) Forward(ctx context.Context, images []string) (FlushResponse, error) {
	return c.flush(ctx, "/v1/flush", images)
}

func (c *Client) flush(ctx context.Context, path string, images []string) (FlushResponse, error) {
	var res FlushResponse
	err := c.call(ctx, http.MethodPost, path+"?"+url.Values{"image": images}.Encode(), nil, &res)
	return res, err
}

// Invalidate makes the resolver forget the images, and ask again for those that it remembered, without waiting for that. It
// returns how many these are.
func (c *Client) Invalidate(ctx context.Context, images []string) (refreshed int, err error) {
	var res WebhookResponse
	if err := c.call(ctx, http.MethodPost, "/v1/invalidate?"+url.Values{"image": images}.Encode(), nil, &res); err != nil {
		return 0, err
	}
	if res.Refreshed == nil {
		return 0, fault.New(fault.ResolverUnavailable, wrongPeer, "resolver %s: an answer without a number", c.name)
	}
	return *res.Refreshed, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	status, data, err := c.exchange(ctx, method, path, in)
	if err != nil {
		return err
	}
	return c.decode(status, data, out)
}

// exchange makes a request and reads the answer, whatever its status.
func (c *Client) exchange(ctx context.Context, method, path string, in any) (status int, data []byte, err error) {
	var body io.Reader // none where there is nothing to say: a server that need not read sees at once that we are gone
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return 0, nil, err
	}
	res, data, err := c.send(req)
	if err != nil {
		return 0, nil, err
	}
	return res.StatusCode, data, nil
}

// send sends a request with the token and reads the answer, whatever its status. The body of what it returns is closed.
func (c *Client) send(req *http.Request) (*http.Response, []byte, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, nil, c.unreachable(req.Context(), err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, c.unreachable(req.Context(), err)
	}
	if len(data) > maxAnswer {
		return nil, nil, fault.New(fault.ResolverUnavailable, wrongPeer, "resolver %s: an answer of more than %d bytes", c.name, maxAnswer)
	}
	return res, data, nil
}

func (c *Client) decode(status int, data []byte, out any) error {
	if status != http.StatusOK && status != http.StatusAccepted {
		return c.refused(status, data)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fault.New(fault.ResolverUnavailable, wrongPeer, "resolver %s: %w", c.name, err)
	}
	return nil
}

// wrongPeer is the way out when something answers that is no resolver.
const wrongPeer = "check that the address is that of \"digestlock serve\", of the same version"

func (c *Client) unreachable(ctx context.Context, err error) error {
	hint := "check that \"digestlock serve\" runs and that both containers mount the socket's volume"
	if !strings.HasPrefix(c.name, "unix:") {
		hint = "check the address, that \"digestlock serve\" runs there, and that a NetworkPolicy lets this pod reach its port"
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, syscall.EACCES):
		hint = "run both containers as the same user: Argo CD's is 999"
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // without the placeholder URL of a socket
	}
	return fault.New(fault.ResolverUnavailable, hint, "resolver %s: %w: %w", c.name, image.ErrUnavailable, err)
}

// ErrNotNow is what an answer of 503 is: nobody could serve the request, as while one companion takes over from another.
// Match with [errors.Is].
var ErrNotNow = errors.New("not now")

// notNow is an ErrNotNow with the words of another error.
type notNow struct{ error }

func (e notNow) Unwrap() error        { return e.error }
func (e notNow) Is(target error) bool { return target == ErrNotNow }

func (c *Client) refused(status int, body []byte) error {
	var p Problem
	if json.Unmarshal(body, &p) != nil || p.Message == "" {
		p.Message = http.StatusText(status)
	}
	err := fault.New(cmp.Or(p.Code, fault.ResolverUnavailable), cmp.Or(p.Hint, wrongPeer), "resolver %s: %s (%d)", c.name, p.Message, status)
	if status == http.StatusServiceUnavailable {
		return notNow{err}
	}
	return err
}
