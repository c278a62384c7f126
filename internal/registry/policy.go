package registry

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/netaddr"
)

// Hosts is a list of globs, in the syntax of [path.Match], for hosts with their port where the image's name has one.
// "docker.io" means Docker Hub.
type Hosts []string

var hostGlob = lazy.Regexp(`^[a-zA-Z0-9_.:*?\[\]^-]+$`)

// Check returns an error for the first pattern that can match no host.
func (l Hosts) Check() error {
	for _, p := range l {
		if !hostGlob().MatchString(p) {
			return fmt.Errorf("%s is not a host or a pattern for hosts, such as ghcr.io, *.example.com or localhost:5000", quote(p))
		}
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("host pattern %s: %w", quote(p), err)
		}
	}
	return nil
}

func (l Hosts) match(host string) bool {
	return slices.ContainsFunc(l, func(p string) bool {
		ok, _ := path.Match(p, strings.ToLower(host))
		return ok
	})
}

func (l Hosts) normalised() Hosts {
	var out Hosts
	for _, p := range l {
		if p = strings.ToLower(p); p == "docker.io" {
			p = image.DefaultRegistry
		}
		out = append(out, p)
	}
	return out
}

// knownRedirects are registries that answer a manifest with the address of another, as a matter of course.
var knownRedirects = []struct{ registry, target string }{
	{"registry.k8s.io", "*-docker.pkg.dev"},
}

// policy says whom a Client may talk to. Names come from images, realms and redirects, all of them foreign.
type policy struct {
	insecure map[string]bool // hosts as in a URL
	allow    Hosts           // registries; empty is all of them
	realms   Hosts           // token servers that may have any registry's credentials
	private  bool            // private addresses for everybody
	named    map[string]bool // host:port that the operator has written out, which may have them anyway
}

func newPolicy(o Options) policy {
	p := policy{
		insecure: map[string]bool{}, named: map[string]bool{},
		allow: o.Allow.normalised(), realms: o.AllowRealm.normalised(), private: o.AllowPrivate,
	}
	for _, h := range o.Insecure {
		p.insecure[strings.ToLower(h)] = true
		p.named[address(strings.ToLower(h), "80")] = true
	}
	for _, h := range slices.Concat(p.allow, p.realms) {
		p.named[address(h, "443")] = true // one with a wildcard is no host, and equals none
	}
	return p
}

// address is a host as the transport dials it.
func address(host, port string) string {
	if strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']') {
		return host
	}
	return strings.TrimSuffix(host, ":") + ":" + port
}

// registry reports whether images may come from a host.
func (p policy) registry(host string) bool {
	return len(p.allow) == 0 || p.allow.match(host) || p.insecure[host]
}

// realm reports whether a registry's token server may be on another host. One that is to get credentials has to belong
// to the registry as far as one can tell; for the others it is enough that the operator has not listed who may be asked.
func (p policy) realm(registry, host string, credentials bool) bool {
	if registry == host || p.realms.match(host) || sameSite(hostname(registry), hostname(host)) {
		return true
	}
	return !credentials && p.registry(host)
}

// redirect reports whether a registry may answer with the address of another host.
func (p policy) redirect(registry, host string) bool {
	if p.allow.match(host) {
		return true
	}
	for _, k := range knownRedirects {
		if k.registry == registry && (Hosts{k.target}).match(host) {
			return true
		}
	}
	return false
}

// storage reports whether a registry may answer with the address of another host for a blob, as most do: what comes from
// there is held against the digest that was asked for. Where registries are listed, such a host has to be, too.
func (p policy) storage(registry, host string) bool {
	return len(p.allow) == 0 || p.redirect(registry, host)
}

// sameSite reports whether two names were bought by one owner: gitlab.com and registry.gitlab.com are the same,
// a.github.io and b.github.io are not.
func sameSite(a, b string) bool {
	if a == b {
		return true
	}
	if isIP(a) || isIP(b) {
		return false
	}
	x, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil {
		return false
	}
	y, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && x == y
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func hostname(host string) string {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		return strings.Trim(host, "[]")
	}
	return name
}

// literal refuses an address in a request's URL. The dial guard does so too; but where a proxy connects, it sees only
// the proxy.
func (p policy) literal(req *http.Request) error {
	ip, err := netip.ParseAddr(req.URL.Hostname())
	if err != nil {
		return nil
	}
	port := "443"
	if req.URL.Scheme == "http" {
		port = "80"
	}
	return p.connect(address(strings.ToLower(req.URL.Host), port), ip)
}

// connect refuses an address that a connection to host, with its port, must not go to. It is asked after DNS and for
// every connection, so that neither a name, a redirect, a realm nor an answer that changes gets past it.
func (p policy) connect(host string, ip netip.Addr) error {
	switch kind := netaddr.KindOf(ip); {
	case kind == netaddr.Public, kind == netaddr.Private && p.private:
		return nil
	case (kind == netaddr.Private || kind == netaddr.Loopback) && p.named[host]:
		return nil
	case kind == netaddr.Private:
		return refusal{errPrivate, host}
	case kind == netaddr.Loopback:
		return refusal{errLoopback, host}
	}
	return refusal{errReserved, host}
}
