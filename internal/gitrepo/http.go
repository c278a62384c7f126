package gitrepo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/digestlock/digestlock/internal/fault"
)

// maxReason bounds the text that is read from an answer that refuses; go-git itself reads all of it.
const maxReason = 4 << 10

// errRedirect refuses to follow a server to another host.
var errRedirect = errors.New("the server redirects to another host")

func (r *Remote) openHTTP(u *url.URL, a Auth) error {
	if a.Username == "" {
		a.Username = u.User.Username()
	}
	t, err := a.httpTransport()
	if err != nil {
		return err
	}
	r.speakHTTP(u, t)
	r.login = a.login(&r.secrets)
	if u.Scheme == "http" && (r.login != nil || len(a.ClientKey) > 0) {
		return fault.New(fault.GitCredentials, "use https", "credentials for %s would travel unencrypted", r.name)
	}
	return nil
}

func (r *Remote) speakHTTP(u *url.URL, rt http.RoundTripper) {
	r.name = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	r.client = &http.Client{Transport: limited{rt}, CheckRedirect: sameHost}
	r.transport = func(known *names) transport.Transport {
		return githttp.NewClient(&http.Client{Transport: listings{limited{rt}, known}, CheckRedirect: sameHost})
	}
	r.bridge = r.bridgeHTTP
}

// rootCAs returns the system's roots and those in bundle; nil stands for the system's alone.
func rootCAs(bundle []byte) (*x509.CertPool, error) {
	if len(bundle) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // an image without system roots: the bundle is all there is
	}
	if !pool.AppendCertsFromPEM(bundle) {
		return nil, fault.New(fault.GitCertificate, "give PEM blocks of type CERTIFICATE", "CA bundle holds no certificate")
	}
	return pool, nil
}

// httpTransport is http.DefaultTransport's settings in a transport of our own, less patient with idle connections.
func (a Auth) httpTransport() (*http.Transport, error) {
	config, err := a.tlsConfig()
	if err != nil {
		return nil, err
	}
	proxy, err := a.proxyFor(httpsProxies)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: proxyRefusal,
		DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        30 * time.Second,
	}
	if proxy != nil {
		t.Proxy = func(req *http.Request) (*url.URL, error) { return proxy(req.URL) }
	}
	return t, nil
}

// tlsConfig returns whom we trust and how we show who we are.
func (a Auth) tlsConfig() (*tls.Config, error) {
	roots, err := rootCAs(a.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, InsecureSkipVerify: a.Insecure}
	if len(a.ClientCert) == 0 && len(a.ClientKey) == 0 {
		return config, nil
	}
	pair, err := tls.X509KeyPair(a.ClientCert, a.ClientKey)
	if err != nil { // the cause is not shown: it has seen the key
		return nil, fault.New(fault.GitCredentials, "give a PEM certificate and the private key that belongs to it, without a passphrase",
			"TLS client certificate cannot be used")
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// proxyRefusal explains a proxy that does not open the tunnel.
func proxyRefusal(_ context.Context, proxy *url.URL, req *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return fault.New(fault.GitUnavailable, "check the proxy's user and password, and that it lets this program reach the host",
		"proxy %s does not connect to %s: %d %s", proxy.Host, req.Host, res.StatusCode, http.StatusText(res.StatusCode))
}

// sameHost lets a redirect change the path, and http become https, on the host that we were sent to. go-git adds
// that only the listing of refs may be redirected at all.
func sameHost(req *http.Request, via []*http.Request) error {
	from, to := via[0].URL, req.URL
	upgraded := from.Scheme == "http" && to.Scheme == "https" && from.Hostname() == to.Hostname()
	if upgraded || from.Scheme == to.Scheme && from.Host == to.Host {
		return nil
	}
	return errRedirect
}

// limited bounds how much of an answer is read, whatever the server sends.
type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := l.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	limit := int64(maxReason)
	if res.StatusCode < 300 {
		limit = 2 * maxPack // fetch is exact about it
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, limit), res.Body}
	return res, nil
}
