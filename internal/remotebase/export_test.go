package remotebase

import (
	"crypto/x509"
	"net/netip"
	"time"
)

// Reach makes c connect to addresses that are refused otherwise, and trust ca.
func (c *Client) Reach(ca []byte) {
	c.door.reachable = func(netip.Addr) error { return nil }
	c.Trust(ca)
}

// Trust makes c trust ca alone.
func (c *Client) Trust(ca []byte) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c.door.transport.TLSClientConfig.RootCAs = pool
}

// MaxBody is the most that one answer may weigh.
const MaxBody = maxBody

// Shrink leaves c that much.
func (c *Client) Shrink(bytes int64, entries, fetches int, timeout time.Duration) {
	c.room.Bytes, c.room.Entries, c.fetches, c.timeout = bytes, entries, fetches, timeout
}
