package remotebase

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/netaddr"
)

// maxBody bounds one answer, whoever reads it: for a repository the compressed commit, or the list of its refs.
const maxBody = 64 << 20

// door is the only way out: https to listed hosts at addresses that are meant for everybody. Each request passes it,
// after a redirect too. It takes no proxy, whose answer to what a name means nobody here could look at.
type door struct {
	hosts     map[string]bool // as hostOf returns them
	addresses map[netip.Addr]bool
	transport *http.Transport
	reachable func(netip.Addr) error
}

func newDoor() *door {
	d := &door{hosts: map[string]bool{}, addresses: map[netip.Addr]bool{}}
	d.reachable = d.public
	d.transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, Control: d.control}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		IdleConnTimeout:     5 * time.Second,
	}
	return d
}

var hostPattern = lazy.Regexp(`^(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(:[0-9]{1,5})?$`)

func (d *door) list(host string) error {
	host = strings.ToLower(host)
	u, err := url.Parse("https://" + host)
	if err != nil || !hostPattern().MatchString(host) {
		return fault.New(fault.Usage, "for example: --allow-remote github.com --allow-remote git.example.com:8443",
			"%q is not a host or host:port", host)
	}
	d.hosts[hostOf(u)] = true
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		d.addresses[a.Unmap()] = true
	}
	return nil
}

// hostOf returns the host and, unless it is that of https, the port.
func hostOf(u *url.URL) string { return strings.TrimSuffix(strings.ToLower(u.Host), ":443") }

func (d *door) lists(u *url.URL) bool { return d.hosts[hostOf(u)] }

// RoundTrip passes a request on if it may go out.
func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := d.check(req.URL); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	res, err := d.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	res.Body = &bounded{res.Body, maxBody}
	return res, nil
}

func (d *door) check(u *url.URL) error {
	switch {
	case u.Scheme != "https":
		return fault.New(fault.RemoteBase, "use https", "%s is refused", u.Scheme)
	case u.User != nil:
		return fault.New(fault.RemoteBase, userHint, "a user in the address")
	case !d.lists(u):
		return fault.New(fault.RemoteBase, "name the address that the server redirects to, if the operator allows its host with --allow-remote",
			"redirects to %q, which --allow-remote does not list", u.Host)
	}
	return nil
}

// control looks at the address that a host's name stands for, after DNS and before the connection.
func (d *door) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	return d.reachable(ap.Addr().Unmap().WithZone(""))
}

// public refuses the addresses of this machine, its links, its cloud's metadata and, unless they are listed, those of
// networks inside.
func (d *door) public(a netip.Addr) error {
	switch kind := netaddr.KindOf(a); {
	case kind == netaddr.Loopback, kind == netaddr.Reserved:
		return fault.New(fault.RemoteFetch, "use a host that others can reach", "its address is %v, which is never connected to", a)
	case kind == netaddr.Private && !d.addresses[a]:
		return fault.New(fault.RemoteFetch, "if that is meant, the operator lists the address beside its host: --allow-remote "+a.String(),
			"its address is %v, which is private", a)
	}
	return nil
}

var errBody = errors.New("the answer is too long")

// bounded fails where an answer is longer than it may be, instead of cutting it.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errBody
	}
	return n, err
}
