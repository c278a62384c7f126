package netaddr

import (
	"net/netip"
	"testing"
)

func TestKindOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Kind{
		"1.1.1.1": Public, "2606:4700::1111": Public, "64:ff9b::101:101": Public, "2002:101:101::": Public, "::ffff:1.1.1.1": Public,
		"10.0.0.1": Private, "172.16.0.1": Private, "172.31.255.255": Private, "192.168.0.1": Private, "100.64.0.1": Private,
		"fd12::1": Private, "64:ff9b::a00:1": Private, "::ffff:10.0.0.1": Private, "198.18.0.1": Private,
		"172.32.0.1": Public, "100.128.0.1": Public, "11.0.0.1": Public,
		"127.0.0.1": Loopback, "127.1.2.3": Loopback, "::1": Loopback, "::ffff:127.0.0.1": Loopback, "64:ff9b::7f00:1": Loopback,
		"2002:7f00:1::": Loopback, "::127.0.0.1": Loopback, "::ffff:0:127.0.0.1": Loopback,
		"0.0.0.0": Reserved, "::": Reserved, "0.1.2.3": Reserved, "169.254.169.254": Reserved, "169.254.170.2": Reserved,
		"fe80::1%eth0": Reserved, "fec0::1": Reserved, "224.0.0.1": Reserved, "255.255.255.255": Reserved, "240.0.0.1": Reserved, "ff02::1": Reserved,
		"fd00:ec2::254": Reserved, "fd00:ec2::23": Reserved, "fd20:ce::254": Reserved, "100.100.100.200": Reserved,
		"168.63.129.16": Reserved, "192.0.0.192": Reserved, "::ffff:169.254.169.254": Reserved, "64:ff9b::a9fe:a9fe": Reserved,
		"64:ff9b:1::a9fe:a9fe": Reserved, "2002:a9fe:a9fe::": Reserved, "::169.254.169.254": Reserved, "2001::1": Reserved,
	} {
		if got := KindOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("KindOf(%s) = %d, want %d", text, got, want)
		}
	}
}
