package gitrepo

import (
	"errors"
	"net"
	"net/url"
	"testing"

	"github.com/digestlock/digestlock/internal/fault"
)

// TestProxyFor: which addresses go by the proxy. It looks inside because this machine, where tests run, never does.
func TestProxyFor(t *testing.T) {
	t.Parallel()
	const all = "http://proxy:3128"
	for _, tt := range []struct {
		proxy, noProxy, url, want string
	}{
		{all, "", "https://git.example.com/r", all},
		{all, "", "http://git.example.com/r", all},
		{"proxy:3128", "", "https://git.example.com/r", all},
		{"socks5://u:p@proxy", "", "https://git.example.com/r", "socks5://u:p@proxy"},
		{all, "example.com", "https://git.example.com/r", ""},
		{all, "git.example.com:8443", "https://git.example.com/r", all},
		{all, "git.example.com:8443", "https://git.example.com:8443/r", ""},
		{all, "other.example.com, 10.0.0.0/8", "https://10.1.2.3/r", ""},
		{all, "other.example.com", "https://git.example.com/r", all},
		{all, "*", "https://git.example.com/r", ""},
		{all, "", "https://127.0.0.1/r", ""},
	} {
		proxy, err := Auth{Proxy: tt.proxy, NoProxy: tt.noProxy}.proxyFor(httpsProxies)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		via, err := proxy(u)
		got := ""
		if via != nil {
			got = via.String()
		}
		if err != nil || got != tt.want {
			t.Errorf("proxy %s but for %q: %s goes by %q, want %q (%v)", tt.proxy, tt.noProxy, tt.url, got, tt.want, err)
		}
	}
}

// TestAlert: over a real connection the alert may lose against the connection's end.
func TestAlert(t *testing.T) {
	t.Parallel()
	r := &Remote{name: "https://git.example.com/r"}
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}
	err := r.explain(t.Context(), "read", &url.Error{Op: "Get", URL: "https://git.example.com/r", Err: alert})
	if got := fault.CodeOf(err); got != fault.GitCertificate {
		t.Errorf("%v has code %q", err, got)
	}
}

// TestSecretsAreForgotten: those that expire are not kept for ever, the fixed ones are.
func TestSecretsAreForgotten(t *testing.T) {
	t.Parallel()
	s := secrets{fixed: []string{"fixed"}}
	for i := range 10 * maxRecent {
		s.remember(string(rune('a'+i%26))+"-token", "twice")
	}
	for i := range 3 * maxRecent {
		s.remember(string(rune(0x4e00 + i)))
	}
	if len(s.recent) != maxRecent {
		t.Errorf("%d are kept, want %d", len(s.recent), maxRecent)
	}
	if got := s.redact("fixed, " + string(rune(0x4e00+3*maxRecent-1))); got != "***, ***" {
		t.Errorf("redacted to %q", got)
	}
}
