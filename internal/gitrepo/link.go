package gitrepo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
)

// link is git's way to one service of one server, for one command. It leads through this process, which alone holds
// credentials and decides whom to trust. close ends it, waits for what runs on its behalf, and returns what went wrong
// beyond it.
type link struct {
	protocol, url string
	header        string   // for http, a secret: a file has it, and no command line
	file          *os.File // for fd: git's end of a socket, which git has as 3
	close         func() error
}

// bridgeHTTP is a relay on the loopback interface for those who know a random header.
func (r *Remote) bridgeHTTP(ctx context.Context, service string, s *Snapshot) (*link, error) {
	auth, err := r.authMethod(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return nil, err
	}
	y := &relay{client: r.client, base: s.endpoint.String(), service: service, secret: rand.Text(), snapshot: s}
	if auth != nil {
		y.auth = auth.(githttp.AuthMethod) // as login makes them for http
	}
	server := &http.Server{Handler: y, BaseContext: func(net.Listener) context.Context { return ctx }}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) }) // until it is closed
	return &link{
		protocol: "http", url: "http://" + l.Addr().String() + "/repository", header: relayHeader + ": " + y.secret,
		close: func() error {
			cancel()
			_ = server.Shutdown(context.WithoutCancel(ctx)) // whose requests have ended with ctx
			wg.Wait()
			y.mu.Lock()
			defer y.mu.Unlock()
			return y.failed
		},
	}, nil
}

const relayHeader = "Digestlock-Relay"

// relay forwards git's requests to one service, with our credentials, and git's own headers as far as they matter.
type relay struct {
	client                *http.Client
	auth                  githttp.AuthMethod
	base, service, secret string
	snapshot              *Snapshot

	mu     sync.Mutex
	failed error // the first
}

func (y *relay) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	if subtle.ConstantTimeCompare([]byte(in.Header.Get(relayHeader)), []byte(y.secret)) != 1 {
		http.NotFound(w, in)
		return
	}
	res, err := y.forward(in)
	if err != nil {
		y.fail(in, err)
		w.WriteHeader(http.StatusBadGateway) // never 401: git would look for credentials
		return
	}
	defer res.Body.Close()
	var body io.Reader = res.Body
	if in.Method == http.MethodGet {
		body = withHave(body, y.service, y.snapshot)
	}
	w.Header()["Content-Type"] = res.Header["Content-Type"]
	if _, err := io.Copy(flushing{w}, body); err != nil {
		y.fail(in, err)
		panic(http.ErrAbortHandler) // so that git does not take it for all
	}
}

func (y *relay) forward(in *http.Request) (*http.Response, error) {
	address := y.base + "/" + y.service
	if in.Method == http.MethodGet {
		address = y.base + "/info/refs?service=" + y.service
	}
	out, err := http.NewRequestWithContext(in.Context(), in.Method, address, in.Body)
	if err != nil {
		return nil, err
	}
	out.ContentLength = in.ContentLength
	for _, name := range []string{"Accept", "Content-Type", "Content-Encoding", "Git-Protocol", "User-Agent"} {
		out.Header[name] = in.Header[name]
	}
	if y.auth != nil {
		y.auth.SetAuth(out)
	}
	res, err := y.client.Do(out)
	if err != nil {
		return nil, err
	}
	if err := githttp.NewErr(res); err != nil {
		return nil, errors.Join(err, res.Body.Close())
	}
	return res, nil
}

func (y *relay) fail(in *http.Request, err error) {
	if in.Context().Err() != nil { // git has hung up
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.failed == nil {
		y.failed = err
	}
}

// flushing passes on at once what a server says while it works.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	_ = http.NewResponseController(f.ResponseWriter).Flush()
	return n, err
}

// withHave adds to a list of refs to push to that the server has the commit of s, wherever its branches are by now: git
// sends nothing that it reaches. Other lists stay as they are.
func withHave(r io.Reader, service string, s *Snapshot) io.Reader {
	if service != transport.ReceivePackServiceName || s.commit.IsZero() {
		return r
	}
	var head bytes.Buffer
	in, out := pktline.NewScanner(r), pktline.NewEncoder(&head)
	for in.Scan() {
		line := in.Bytes()
		if out.Encode(line) != nil {
			break
		}
		if bytes.IndexByte(line, 0) >= 0 {
			_ = out.Encodef("%s .have\n", s.names.hex(s.commit)) // into memory
			break
		}
	}
	return io.MultiReader(&head, r)
}

// bridgeSSH is a connection of our own, and a socket between it and git. It is no pair of pipes: git itself holds on to
// what its helper closes, and only a socket can be shut down all the same.
func (t sshTransport) bridgeSSH(ctx context.Context, service string, s *Snapshot) (*link, error) {
	session := t.session(service, &s.endpoint)
	if err := session.dial(ctx); err != nil {
		return nil, errors.Join(err, session.Close())
	}
	session.spoken = true // by git
	ours, gits, err := socketpair()
	if err != nil {
		return nil, errors.Join(err, session.Close())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ours.CloseWrite()
		_, _ = io.Copy(ours, io.LimitReader(withHave(session.stdout, service, s), 2*maxPack)) // git sees what is missing
	})
	wg.Go(func() {
		defer session.stdin.Close()
		_, _ = io.Copy(session.stdin, ours)
	})
	return &link{
		protocol: "fd", url: "fd::3", file: gits,
		close: func() error {
			err := session.Close()
			_, _ = ours.Close(), gits.Close() // which git's start has closed already
			wg.Wait()
			return err
		},
	}, nil
}
