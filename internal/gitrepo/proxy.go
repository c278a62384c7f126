package gitrepo

import (
	"context"
	"net"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"github.com/digestlock/digestlock/internal/fault"
)

var (
	httpsProxies = []string{"http", "https", "socks5", "socks5h"}
	sshProxies   = []string{"socks5", "socks5h"} // what Argo CD can do
)

// proxyURL returns a's proxy, which is of one of the schemes, or nil for none. Without a scheme it is an http proxy.
func (a Auth) proxyURL(schemes []string) (*url.URL, error) {
	if a.Proxy == "" {
		return nil, nil
	}
	raw := a.Proxy
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	// The cause would quote the password.
	if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.GitCredentials, "use http://host:port, https://host:port or socks5://host:port", "proxy is no URL with a host alone")
	}
	if !slices.Contains(schemes, u.Scheme) {
		return nil, fault.New(fault.GitCredentials, "use a proxy of one of these kinds: "+strings.Join(schemes, ", "),
			"proxy %s has scheme %q", u.Host, u.Scheme)
	}
	return u, nil
}

// proxyFor returns what decides about the proxy of a URL, or nil when a names none.
func (a Auth) proxyFor(schemes []string) (func(*url.URL) (*url.URL, error), error) {
	u, err := a.proxyURL(schemes)
	if u == nil {
		return nil, err
	}
	c := httpproxy.Config{HTTPProxy: u.String(), HTTPSProxy: u.String(), NoProxy: a.NoProxy}
	return c.ProxyFunc(), nil
}

// proxySecrets are what an error must not show of the proxy's URL.
func (a Auth) proxySecrets() []string {
	u, err := a.proxyURL(httpsProxies)
	if u == nil || err != nil || u.User == nil {
		return nil
	}
	password, _ := u.User.Password()
	return []string{password, basic(u.User.Username(), password)}
}

// dialer is net.Dialer's DialContext.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// sshDial returns how to reach an ssh server.
func (a Auth) sshDial() (dialer, error) {
	direct := &net.Dialer{}
	proxyFor, err := a.proxyFor(sshProxies)
	if proxyFor == nil {
		return direct.DialContext, err
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		via, err := proxyFor(&url.URL{Scheme: "https", Host: addr}) // no scheme of its own for ssh
		if err != nil {
			return nil, err
		}
		if via == nil {
			return direct.DialContext(ctx, network, addr)
		}
		d, err := proxy.FromURL(via, direct)
		if err != nil {
			return nil, err
		}
		return d.(proxy.ContextDialer).DialContext(ctx, network, addr) // as x/net says of what it returns
	}, nil
}
