package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// Step is one thing that a lookup needs, and how that went.
type Step struct {
	Name   string // "dns"
	Text   string // what was found; may be empty
	Advice string // what to do although it works, or ""
	Err    error  // that of the lookup, in the step that failed
}

// The steps, in the order of a lookup.
const (
	stepAllowed     = "allow-list"
	stepCredentials = "credentials"
	stepDNS         = "dns"
	stepConnect     = "connect"
	stepPing        = "ping"
	stepClock       = "clock"
	stepLogin       = "login"
	stepManifest    = "manifest"
)

const (
	maxSkew   = time.Minute         // between the registry's clock and ours
	renewTime = 14 * 24 * time.Hour // before a certificate ends

	day = 24 * time.Hour
)

// Examine looks up a tag with the credentials of a scope, by a client of its own, and tells what that took. There is no
// second way of looking up here: the steps are read off the requests of one Resolve, so that they fail exactly when that
// does, and the last of them has its error. No Text holds a secret; foreign strings in it are quoted.
func Examine(ctx context.Context, o Options, scope string, ref image.Ref) ([]Step, image.Resolution) {
	c := New(o)
	t := &tape{next: c.transport, names: map[string][]netip.Addr{}}
	k := &witness{Keychain: c.keychain}
	c.transport, c.keychain = t, k
	r := c.Resolve(ctx, scope, []image.Ref{ref})[0]
	return (&examination{host: c.host(ref.Registry), tape: t, witness: k, found: r}).steps(), r
}

// examination is a lookup that is over.
type examination struct {
	*host
	tape    *tape
	witness *witness
	found   image.Resolution
}

func (e *examination) steps() []Step {
	failed := e.failedAt()
	var steps []Step
	for _, s := range []struct {
		name string
		tell func() (text, advice string)
	}{
		{stepAllowed, e.allowed},
		{stepCredentials, e.credentials},
		{stepDNS, e.dns},
		{stepConnect, e.connect},
		{stepPing, e.ping},
		{stepClock, e.clock},
		{stepLogin, e.login},
		{stepManifest, e.manifest},
	} {
		text, advice := s.tell()
		if s.name == failed {
			return append(steps, Step{Name: s.name, Text: text, Err: e.found.Err})
		}
		steps = append(steps, Step{Name: s.name, Text: text, Advice: advice})
	}
	return steps
}

// failedAt returns the step that the lookup did not get past, "" when it got past all.
func (e *examination) failedAt() string {
	last := e.tape.last("")
	switch {
	case e.found.Err == nil:
		return ""
	case !e.policy.registry(e.name):
		return stepAllowed
	case fault.CodeOf(e.found.Err) == fault.RegistryCredentials:
		return stepCredentials
	case last == nil:
		return stepDNS // an address in the name, or no time at all
	case last.step == stepPing && last.answered():
		switch last.status {
		case http.StatusOK:
			return stepManifest // a request that was not even made
		case http.StatusUnauthorized:
			return stepLogin // the same
		}
		return stepPing
	case last.step != stepPing || last.connected:
		return last.step
	case last.resolving || isRefusal(last.err):
		return stepDNS
	}
	return stepConnect
}

func (e *examination) allowed() (text, advice string) {
	switch {
	case !e.policy.registry(e.name):
		return "", ""
	case e.policy.insecure[e.name]:
		return e.name + " is listed by --insecure-registry", ""
	case len(e.policy.allow) == 0:
		return "any registry: no --allow-registry is given", ""
	}
	return e.name + " is listed by --allow-registry", ""
}

// credentials tells where they are from that were found last.
func (e *examination) credentials() (text, advice string) {
	source, hint := e.witness.last()
	switch {
	case source != "":
		return source, ""
	case hint != "":
		return "none: asked anonymously; " + hint, ""
	}
	return "none: asked anonymously", ""
}

// dns tells the registry's addresses, each with the word of the guard that connections pass.
func (e *examination) dns() (text, advice string) {
	name := hostname(e.name)
	if p := e.proxy(); p != "" {
		return "left to the proxy " + quote(p), ""
	}
	addresses, verb := e.tape.addresses(name), " is "
	if ip, err := netip.ParseAddr(name); err == nil {
		addresses, verb = []netip.Addr{ip}, " needs none: "
	}
	if len(addresses) == 0 {
		return "", ""
	}
	port := "443"
	if e.scheme == "http" {
		port = "80"
	}
	var each []string
	for _, ip := range addresses {
		verdict := "allowed"
		if err := e.policy.connect(address(e.name, port), ip); err != nil {
			verdict = err.Error()
		}
		each = append(each, fmt.Sprintf("%s (%s)", ip, verdict))
	}
	return name + verb + strings.Join(each, ", "), ""
}

// proxy returns the host of the proxy that the environment names for the registry, or "".
func (e *examination) proxy() string {
	req, err := http.NewRequest(http.MethodGet, e.scheme+"://"+e.name, nil)
	if err != nil {
		return ""
	}
	if u, err := http.ProxyFromEnvironment(req); err == nil && u != nil {
		return u.Host // and not the password that may be before it
	}
	return ""
}

func (e *examination) connect() (text, advice string) {
	x := e.tape.last(stepPing)
	if x == nil {
		return "", ""
	}
	var parts []string
	if x.remote != "" {
		parts = append(parts, x.remote)
	}
	var leaf *x509.Certificate
	unverified, bad := errors.AsType[*tls.CertificateVerificationError](x.err)
	switch {
	case x.tls != nil && len(x.tls.PeerCertificates) > 0:
		leaf = x.tls.PeerCertificates[0]
		parts = append(parts, tls.VersionName(x.tls.Version))
	case bad && len(unverified.UnverifiedCertificates) > 0:
		leaf = unverified.UnverifiedCertificates[0]
	case x.answered() && x.scheme == "http":
		parts = append(parts, "plain http by --insecure-registry")
	}
	if leaf != nil {
		left := time.Until(leaf.NotAfter)
		parts = append(parts, fmt.Sprintf("certificate of %s by %s, %s", quote(owner(leaf)), quote(leaf.Issuer.String()), daysLeft(left)))
		if left < renewTime {
			advice = renewHint
		}
	}
	return strings.Join(parts, ", "), advice
}

// owner is whom a certificate is for. Many have a subject without any name.
func owner(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return s
	}
	return strings.Join(c.DNSNames, ", ")
}

func daysLeft(left time.Duration) string {
	if left < 0 {
		return fmt.Sprintf("expired %d days ago", -left/day)
	}
	return fmt.Sprintf("%d days left", left/day)
}

func (e *examination) ping() (text, advice string) {
	x := e.tape.last(stepPing)
	if x == nil || !x.answered() {
		return "", ""
	}
	text = fmt.Sprintf("GET /v2/ answers %d", x.status)
	if s := schemes(x.header); s != "" {
		text += ", wants " + s
	}
	return text, ""
}

// schemes are those of a challenge: its parameters may be anything.
func schemes(h http.Header) string {
	var all []string
	for _, c := range h.Values("WWW-Authenticate") {
		scheme, _, _ := strings.Cut(c, " ")
		all = append(all, quote(scheme))
	}
	return strings.Join(all, ", ")
}

func (e *examination) clock() (text, advice string) {
	x := e.tape.last(stepPing)
	if x == nil || !x.answered() {
		return "", ""
	}
	theirs, err := http.ParseTime(x.header.Get("Date"))
	if err != nil {
		return "the registry does not tell its time", ""
	}
	skew := theirs.Sub(x.at).Round(time.Second)
	if skew.Abs() <= maxSkew {
		return "the registry's is within a minute of ours", ""
	}
	word := "ahead of"
	if skew < 0 {
		word = "behind"
	}
	return fmt.Sprintf("the registry's is %v %s ours", skew.Abs(), word),
		"set the clock that is wrong, here or there: certificates and tokens are judged by it"
}

func (e *examination) login() (text, advice string) {
	if x := e.tape.last(stepLogin); x != nil {
		got := "token of %s for %s"
		if x.status != http.StatusOK {
			got = "asked %s for a token for %s"
		}
		text = fmt.Sprintf(got, quote(x.host), pullScope(e.found.Ref.Repository))
		if x.lifetime > 0 {
			text += fmt.Sprintf(", valid for %v", time.Duration(x.lifetime)*time.Second)
		}
		return text, ""
	}
	x := e.tape.last(stepPing)
	switch {
	case x == nil || !x.answered():
		return "", ""
	case x.status == http.StatusOK:
		return "not asked for", ""
	}
	return "the credentials go with each request", ""
}

func (e *examination) manifest() (text, advice string) {
	x := e.tape.last(stepManifest)
	if x == nil || !x.answered() {
		return "", ""
	}
	parts := []string{fmt.Sprintf("%s answers %d", x.method, x.status)}
	if e.found.Err == nil {
		parts = append(parts, e.found.Digest, mediaType(x.header.Get("Content-Type")))
	}
	for _, name := range []string{"RateLimit-Limit", "RateLimit-Remaining"} {
		if v := x.header.Get(name); v != "" {
			parts = append(parts, name+" "+quote(v))
		}
	}
	return strings.Join(parts, ", "), ""
}

func mediaType(s string) string {
	switch types.MediaType(s) {
	case types.OCIImageIndex, types.DockerManifestList:
		return "an index of platforms, " + s
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		return "one image, " + s
	}
	return quote(s)
}

// addresses returns what DNS said a name stands for, sorted.
func (t *tape) addresses(name string) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(slices.Values(t.names[name]), netip.Addr.Compare)
}

func toAddrs(in []net.IPAddr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap().WithZone(a.Zone))
		}
	}
	return out
}
