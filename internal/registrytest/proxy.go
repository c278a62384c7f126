package registrytest

import (
	"io"
	"net"
	"sync"
	"time"
)

// Mode is what a [Proxy] does with a connection.
type Mode int

// The modes.
const (
	Pass    Mode = iota
	Reset        // ends it with a reset once the client has spoken
	Silence      // takes it and says nothing
	Drip         // passes it on, the answers byte by byte
)

// drip is the time between two bytes: an answer takes longer than any deadline.
const drip = 200 * time.Millisecond

// Proxy is a TCP proxy in front of a server that breaks connections on request.
type Proxy struct {
	Host   string // "127.0.0.1:port"
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex
	mode  Mode
	conns map[net.Conn]bool // nil once closed
}

// StartProxy passes connections on to a server, until the end of the test.
func StartProxy(t TB, target string) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	p := &Proxy{Host: l.Addr().String(), target: target, l: l, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// Set breaks all connections and treats the next ones as m says.
func (p *Proxy) Set(m Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	for c := range p.conns {
		c.Close()
	}
}

// Close breaks all connections and refuses the next ones. It may be called more than once.
func (p *Proxy) Close() {
	p.l.Close()
	p.Set(Pass)
	p.mu.Lock()
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

// keep remembers a connection and returns the mode for it, or false when there is none any more.
func (p *Proxy) keep(c net.Conn) (Mode, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return 0, false
	}
	p.conns[c] = true
	return p.mode, true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close()
}

func (p *Proxy) serve(client net.Conn) {
	defer p.forget(client)
	mode, ok := p.keep(client)
	switch {
	case !ok:
	case mode == Silence:
		io.Copy(io.Discard, client) //nolint:errcheck // until somebody closes it
	case mode == Reset:
		client.Read(make([]byte, 1)) //nolint:errcheck // whatever it is
		client.(*net.TCPConn).SetLinger(0)
	default:
		p.pass(client, mode)
	}
}

func (p *Proxy) pass(client net.Conn, mode Mode) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer p.forget(server)
	if _, ok := p.keep(server); !ok {
		return
	}
	p.wg.Go(func() {
		defer server.Close()
		io.Copy(server, client) //nolint:errcheck // either end may leave
	})
	var answers io.Reader = server
	if mode == Drip {
		answers = slow{server}
	}
	io.Copy(client, answers) //nolint:errcheck // either end may leave
}

// slow reads byte by byte, with breaks.
type slow struct{ io.Reader }

func (s slow) Read(b []byte) (int, error) {
	time.Sleep(drip)
	return s.Reader.Read(b[:1])
}
