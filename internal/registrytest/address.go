package registrytest

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// FreeAddress returns an address of the loopback interface where nobody listens, for a server that is started there later, or
// again. Its port is none that a system gives to connections, or to listeners on port 0, so that nobody takes it meanwhile:
// those are from 32768 on, or 49152.
func FreeAddress() string {
	for {
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(10_000))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return address
		}
	}
}
