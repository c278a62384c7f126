// Package netaddr tells addresses that a stranger's name may lead to from those that it must not. Whoever connects where
// a manifest says asks it after DNS, for each connection, so that neither a name, a redirect nor an answer that changes
// gets past.
package netaddr

import (
	"net/netip"
	"slices"
)

// Kind is what an address is for.
type Kind int

// The kinds.
const (
	Public   Kind = iota
	Private       // of somebody's own network
	Loopback      // this machine, or this pod
	Reserved      // nobody's server: link-local, multicast, metadata of clouds
)

// reservedRanges are refused whatever the flags say. Some lie inside of ranges that are not.
var reservedRanges = prefixes(
	"0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", // "this" network, link-local, multicast and above
	"192.0.0.0/24", "168.63.129.16/32", "100.100.100.200/32", // metadata of Oracle, Azure, Alibaba
	"::/128", "fe80::/10", "fec0::/10", "ff00::/8",
	"fd00:ec2::/32", "fd20:ce::/32", // metadata of Amazon, Google
	"64:ff9b:1::/48", "2001::/32", // local NAT64 and Teredo hide an IPv4 address that cannot be told
)

var privateRanges = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7",
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// embeddings are the IPv6 ranges that stand for an IPv4 address, and the byte where that begins.
var embeddings = []struct {
	netip.Prefix
	at int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // IPv4-translated
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible
}

// KindOf returns what ip is for. An IPv6 address that stands for one of IPv4 is of that one's kind.
func KindOf(ip netip.Addr) Kind {
	ip = ip.Unmap().WithZone("")
	in := func(ranges []netip.Prefix) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	switch {
	case ip.IsLoopback():
		return Loopback
	case in(reservedRanges):
		return Reserved
	case in(privateRanges):
		return Private
	}
	for _, e := range embeddings {
		if e.Contains(ip) {
			b := ip.As16()
			return KindOf(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
		}
	}
	return Public
}
