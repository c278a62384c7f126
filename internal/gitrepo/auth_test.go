package gitrepo_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

// proxy opens tunnels for user:s3cret only. As a proxy of a company would, it knows names that nobody else knows:
// each is this machine.
type proxy struct {
	url   string
	mu    sync.Mutex
	asked []string // what was to be reached
}

func (p *proxy) dial(addr string) (net.Conn, error) {
	p.mu.Lock()
	p.asked = append(p.asked, addr)
	p.mu.Unlock()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
}

// names returns the distinct hosts that were to be reached, and forgets them.
func (p *proxy) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, addr := range p.asked {
		host, _, _ := net.SplitHostPort(addr)
		if len(names) == 0 || names[len(names)-1] != host {
			names = append(names, host)
		}
	}
	p.asked = nil
	return names
}

// httpProxy is a proxy that takes CONNECT, over TLS or not.
func httpProxy(t *testing.T, scheme string) *proxy {
	t.Helper()
	p := &proxy{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:s3cret"))
		if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != want {
			http.Error(w, "not with "+r.Header.Get("Proxy-Authorization"), http.StatusProxyAuthRequired)
			return
		}
		out, err := p.dial(r.Host)
		if err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		in, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 Connected\r\n\r\n")
		join(in, buf, out)
	}))
	if scheme == "https" {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	p.url = strings.Replace(server.URL, "://", "://user:s3cret@", 1)
	return p
}

func join(in net.Conn, buffered io.Reader, out net.Conn) {
	go func() {
		_, _ = io.Copy(out, buffered)
		out.Close()
	}()
	_, _ = io.Copy(in, out)
	in.Close()
}

// socksProxy is a proxy after RFC 1928 and RFC 1929.
func socksProxy(t *testing.T, scheme string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	p := &proxy{url: scheme + "://user:s3cret@" + listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go p.socks(conn)
		}
	}()
	return p
}

func (p *proxy) socks(conn net.Conn) {
	r := bufio.NewReader(conn)
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(r, b) // zeros then, which are refused
		return b
	}
	read(int(read(2)[1])) // version, methods
	_, _ = conn.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	password := string(read(int(read(1)[0])))
	if user != "user" || password != "s3cret" {
		_, _ = conn.Write([]byte{1, 1})
		conn.Close()
		return
	}
	_, _ = conn.Write([]byte{1, 0})
	head := read(4)
	var host string
	switch head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	out, err := p.dial(net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(read(2)))))
	if err != nil {
		_, _ = conn.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		conn.Close()
		return
	}
	_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	join(conn, r, out)
}

// proxied is url with a name in it that only a proxy of this test can reach, and that httptest's certificate has.
func proxied(url string) string { return strings.Replace(url, "127.0.0.1", "example.com", 1) }

// TestProxy: everything goes through the proxy, by name, and nothing of its password shows.
func TestProxy(t *testing.T) {
	t.Parallel()
	for scheme, start := range map[string]func(*testing.T, string) *proxy{
		"http": httpProxy, "https": httpProxy, "socks5": socksProxy, "socks5h": socksProxy,
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			p := start(t, scheme)
			server := gittest.HTTPS(t, gittest.ClientCert())
			repo := server.Create(t, "repo.git", seed())
			a := server.Auth
			a.Proxy = p.url
			s := read(t, open(t, proxied(repo.URL), a), "")
			push(t, s, change("m", map[string]string{"README.md": "x"}))
			if got := p.names(); !cmp.Equal(got, []string{"example.com"}) {
				t.Errorf("the proxy was asked for %v", got)
			}

			a.Proxy = strings.Replace(p.url, "s3cret", "s3same", 1)
			_, err := open(t, proxied(repo.URL), a).Read(t.Context(), "")
			if strings.HasPrefix(scheme, "socks") {
				check(t, "wrong password", err, "username/password authentication failed", "check that the Git server is up")
			} else {
				check(t, "wrong password", err, "does not connect to example.com:", "check the proxy's user and password")
			}
		})
	}
}

func TestProxyDown(t *testing.T) {
	t.Parallel()
	a := gitrepo.Auth{Token: "s3cret", Proxy: "http://user:s3same@127.0.0.1:1"}
	_, err := open(t, "https://example.com/repo.git", a).Read(t.Context(), "")
	check(t, "https", err, "connection refused", "check that the Git server is up")
	a = gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, "example.com"), Proxy: "socks5://user:s3same@127.0.0.1:1"}
	_, err = open(t, "git@example.com:repo.git", a).Read(t.Context(), "")
	check(t, "ssh", err, "connection refused", "check that the Git server is up")
}

// TestProxyRepeats: a proxy of a plain http repository answers itself, and is careless.
func TestProxyRepeats(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent := r.Header.Get("Proxy-Authorization")
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(sent, "Basic "))
		http.Error(w, sent+" is "+string(plain), http.StatusForbidden)
	}))
	defer server.Close()
	_, err := open(t, "http://example.com/repo.git", gitrepo.Auth{Proxy: strings.Replace(server.URL, "://", "://robot:wrong%20horse@", 1)}).Read(t.Context(), "")
	check(t, "forbidden", err, "Basic *** is robot:***", "allow these credentials")
}

// TestSSHProxy: ssh goes by socks, and the host key is still that of the server's name.
func TestSSHProxy(t *testing.T) {
	t.Parallel()
	p := socksProxy(t, "socks5")
	server := gittest.SSH(t)
	repo := server.Create(t, "repo.git", seed())
	a := server.Auth
	a.Proxy, a.KnownHosts = p.url, []byte(proxied(string(a.KnownHosts)))
	s := read(t, open(t, proxied(repo.URL), a), "")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	if got := p.names(); !cmp.Equal(got, []string{"example.com"}) {
		t.Errorf("the proxy was asked for %v", got)
	}

	a.Proxy = strings.Replace(p.url, "s3cret", "s3same", 1)
	_, err := open(t, proxied(repo.URL), a).Read(t.Context(), "")
	check(t, "wrong password", err, "username/password authentication failed", "check that the Git server is up")
}

func TestClientCert(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t, gittest.ClientCert())
	repo := server.Create(t, "repo.git", seed())
	s := read(t, open(t, repo.URL, server.Auth), "")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	served := server.Requests()

	none, wrong := server.Auth, server.Auth
	none.ClientCert, none.ClientKey = nil, nil
	wrong.ClientCert, wrong.ClientKey = gittest.NewClientCert(t)
	for name, a := range map[string]gitrepo.Auth{"none": none, "wrong": wrong} {
		_, err := open(t, repo.URL, a).Read(t.Context(), "")
		noSecret(t, name, err)
		// What the client sees depends on who is faster: the alert, or a connection that is cut.
		if code := fault.CodeOf(err); code != fault.GitCertificate && code != fault.GitUnavailable {
			t.Errorf("%s: %v, code %q", name, err, code)
		}
	}
	if got := server.Requests(); got != served {
		t.Errorf("%d requests without the certificate", got-served)
	}
}

// TestInsecure: one repository whose certificate, or host key, nobody knows, and only that one.
func TestInsecure(t *testing.T) {
	t.Parallel()
	https := gittest.HTTPS(t)
	repo := https.Create(t, "repo.git", seed())
	a := https.Auth
	a.CA, a.Insecure = nil, true
	s := read(t, open(t, repo.URL, a), "")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	a.Insecure = false
	_, err := open(t, repo.URL, a).Read(t.Context(), "")
	check(t, "another", err, "certificate signed by unknown authority", "give the CA")

	overSSH := gittest.SSH(t)
	repo = overSSH.Create(t, "repo.git", seed())
	a = overSSH.Auth
	a.KnownHosts, a.Insecure = nil, true
	s = read(t, open(t, repo.URL, a), "")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	a.SSHKey = gittest.NewSSHKey(t)
	if _, err = open(t, repo.URL, a).Read(t.Context(), ""); !errors.Is(err, gitrepo.ErrAuth) {
		t.Errorf("wrong key: %v, want ErrAuth", err)
	}
}

// TestTokenSource: a password that changes with each look, and one look for each session.
func TestTokenSource(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	password := func(n int64) string { return fmt.Sprintf("s3cret-%d", n) }
	var listings atomic.Int64
	server := gittest.HTTPS(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "x-access-token" || pass != password(asked.Load()) {
				http.Error(w, "not with "+r.Header.Get("Authorization")+" "+pass, http.StatusUnauthorized)
				return
			}
			if strings.HasSuffix(r.URL.Path, "/info/refs") {
				listings.Add(1)
			}
			r.SetBasicAuth("robot", "correct horse")
			next.ServeHTTP(w, r)
		})
	}))
	repo := server.Create(t, "repo.git", seed())
	a := server.Auth
	a.Token = "s3same" // a source wins
	a.TokenSource = func(context.Context) (string, string, error) {
		return "x-access-token", password(asked.Add(1)), nil
	}
	r := open(t, repo.URL, a)
	s := read(t, r, "")
	if got := asked.Load(); got != 1 || listings.Load() != 1 {
		t.Errorf("one read asked %d times for %d listings, want 1 for 1", got, listings.Load())
	}
	readFiles(t, s, "README.md")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	if got := asked.Load(); got != 3 {
		t.Errorf("reading, fetching a file and pushing asked %d times, want 3", got)
	}

	a.TokenSource = func(context.Context) (string, string, error) { return "x-access-token", "s3cret", nil }
	_, err := open(t, repo.URL, a).Read(t.Context(), "")
	check(t, "expired", err, "access denied", "check the credentials")

	type key struct{}
	a.TokenSource = func(ctx context.Context) (string, string, error) {
		return "", "", fault.New(fault.GitCredentials, "install the app", "no token for %v", ctx.Value(key{}))
	}
	_, err = open(t, repo.URL, a).Read(context.WithValue(t.Context(), key{}, "us"), "")
	check(t, "none to be had", err, "read "+repo.URL+": no token for us", "install the app")
	if fault.CodeOf(err) != fault.GitCredentials {
		t.Errorf("code %q", fault.CodeOf(err))
	}
}

// TestRedirectsTakeNothingAlong: each way of proving who we are stays with the host that it was given for.
func TestRedirectsTakeNothingAlong(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	other := httptest.NewUnstartedServer(http.NotFoundHandler())
	other.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		connections.Add(1)
		return nil, nil
	}}
	other.StartTLS()
	defer other.Close()
	away := gittest.Wrap(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+r.URL.String(), http.StatusFound)
		})
	})
	server := gittest.HTTPS(t, gittest.ClientCert(), away)
	p := httpProxy(t, "http")
	for name, change := range map[string]func(*gitrepo.Auth){
		"client certificate": func(*gitrepo.Auth) {},
		"insecure":           func(a *gitrepo.Auth) { a.CA, a.Insecure = nil, true },
		"source": func(a *gitrepo.Auth) {
			a.TokenSource = func(context.Context) (string, string, error) { return "u", "s3cret", nil }
		},
		"proxy": func(a *gitrepo.Auth) { a.Proxy = p.url },
	} {
		a := server.Auth
		change(&a)
		url := server.URL("repo.git")
		if a.Proxy != "" {
			url = proxied(url)
		}
		_, err := open(t, url, a).Read(t.Context(), "")
		check(t, name, err, "the server redirects to another host", "use the address that the server redirects to")

		client, err := a.Client()
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Get(url)
		if err == nil {
			res.Body.Close()
			t.Errorf("%s: the client follows to another host", name)
		}
		client.CloseIdleConnections()
	}
	if got := connections.Load(); got != 0 {
		t.Errorf("%d connections to the other host", got)
	}
}

func TestAuthRefuses(t *testing.T) {
	t.Parallel()
	cert, key := gittest.NewClientCert(t)
	_, otherKey := gittest.NewClientCert(t)
	sshKey := gittest.NewSSHKey(t)
	source := func(context.Context) (string, string, error) { return "", "", nil }
	https, overSSH := "https://example.com/repo.git", "git@example.com:repo.git"
	alone := "use http://host:port"
	for _, tt := range []struct {
		name, url  string
		auth       gitrepo.Auth
		want, hint string
	}{
		{"certificate alone", https, gitrepo.Auth{ClientCert: cert}, "TLS client certificate cannot be used", "the private key that belongs to it"},
		{"key alone", https, gitrepo.Auth{ClientKey: key}, "TLS client certificate cannot be used", "the private key that belongs to it"},
		{"another key", https, gitrepo.Auth{ClientCert: cert, ClientKey: otherKey}, "TLS client certificate cannot be used", "the private key that belongs to it"},
		{"key is none", https, gitrepo.Auth{ClientCert: cert, ClientKey: []byte("s3cret")}, "TLS client certificate cannot be used", "the private key that belongs to it"},
		{"certificate over http", "http://example.com/r", gitrepo.Auth{ClientCert: cert, ClientKey: key}, "would travel unencrypted", "use https"},
		{"source over http", "http://example.com/r", gitrepo.Auth{TokenSource: source}, "would travel unencrypted", "use https"},
		{"insecure http", "http://example.com/r", gitrepo.Auth{Token: "s3cret", Insecure: true}, "would travel unencrypted", "use https"},
		{"proxy is none", https, gitrepo.Auth{Proxy: "http://user:s3cret@"}, "proxy is no URL", alone},
		{"proxy cannot be parsed", https, gitrepo.Auth{Proxy: "http://user:s3cret@a b"}, "proxy is no URL", alone},
		{"proxy has a path", https, gitrepo.Auth{Proxy: "http://user@proxy:1/s3cret"}, "proxy is no URL", alone},
		{"proxy of another kind", https, gitrepo.Auth{Proxy: "ftp://user:s3cret@proxy:1"}, `proxy proxy:1 has scheme "ftp"`, "http, https, socks5, socks5h"},
		{"ssh by an http proxy", overSSH, gitrepo.Auth{SSHKey: sshKey, Insecure: true, Proxy: "proxy:3128"}, `proxy proxy:3128 has scheme "http"`, "kinds: socks5, socks5h"},
		{"ssh without known hosts", overSSH, gitrepo.Auth{SSHKey: sshKey}, "no known SSH hosts", "add the server's key"},
	} {
		_, err := gitrepo.Open(tt.url, tt.auth)
		check(t, tt.name, err, tt.want, tt.hint)
	}
}
