package gittest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// SSH starts an ssh server that runs git-upload-pack and git-receive-pack for one client key. It has an ECDSA and an
// Ed25519 host key, of which only the second is in Auth.KnownHosts: the usual state of affairs, and one that clients
// get wrong. It stops with the test.
func SSH(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := newServer(t, options)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	clientKey, hostKey := ed25519Key(t), ed25519Key(t)
	client, host := signer(t, clientKey), signer(t, hostKey)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), client.PublicKey().Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	config.AddHostKey(signer(t, ecdsaKey))
	config.AddHostKey(host)

	addr := listener.Addr().String()
	s.base = "ssh://git@" + addr + "/"
	s.Auth.KnownHosts = []byte(knownhosts.Line([]string{addr}, host.PublicKey()) + "\n")
	s.Auth.SSHKey = pemKey(t, clientKey)

	git, env := gitBinary(t), append(environ(), "HOME="+t.TempDir())
	d := &sshd{config: config, run: func(service, path string) *exec.Cmd {
		s.requests.Add(1)
		cmd := exec.Command(git, service, filepath.Join(s.root, filepath.Clean("/"+path)))
		cmd.Env = env
		return cmd
	}}
	d.wg.Go(func() { d.accept(listener) })
	t.Cleanup(func() {
		listener.Close()
		d.wg.Wait()
	})
	return s
}

// NewSSHKey returns a private key, PEM, that no server knows.
func NewSSHKey(t testing.TB) []byte {
	t.Helper()
	return pemKey(t, ed25519Key(t))
}

func ed25519Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signer(t testing.TB, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pemKey(t testing.TB, key ed25519.PrivateKey) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// sshd serves connections until its listener closes and its clients hang up.
type sshd struct {
	config *ssh.ServerConfig
	run    func(service, path string) *exec.Cmd
	wg     sync.WaitGroup
}

func (d *sshd) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.serve(conn) })
	}
}

func (d *sshd) serve(conn net.Conn) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, d.config)
	if err != nil {
		return
	}
	d.wg.Go(func() { ssh.DiscardRequests(requests) })
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.session(channel, requests) })
	}
}

var command = regexp.MustCompile(`^git-(upload-pack|receive-pack) '([^']*)'$`)

func (d *sshd) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for req := range requests {
		var exec struct{ Command string }
		if req.Type != "exec" || ssh.Unmarshal(req.Payload, &exec) != nil {
			_ = req.Reply(false, nil)
			continue
		}
		m := command.FindStringSubmatch(exec.Command)
		_ = req.Reply(m != nil, nil)
		if m == nil {
			return
		}
		d.wg.Go(func() { ssh.DiscardRequests(requests) })
		status := exit(channel, d.run(m[1], m[2]))
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
		return
	}
}

func exit(channel ssh.Channel, cmd *exec.Cmd) uint32 {
	stdin, err := cmd.StdinPipe() // not cmd.Stdin: Wait would wait for a client that says nothing more
	if err != nil {
		return 1
	}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	if err := cmd.Start(); err != nil {
		return 1
	}
	go copyIn(stdin, channel) // ends with the channel, which the caller closes
	if cmd.Wait() != nil {
		return uint32(max(cmd.ProcessState.ExitCode(), 1))
	}
	return 0
}

func copyIn(stdin io.WriteCloser, channel ssh.Channel) {
	defer stdin.Close()
	_, _ = io.Copy(stdin, channel)
}
