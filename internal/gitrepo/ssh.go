package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"github.com/digestlock/digestlock/internal/fault"
)

const knownHostsHint = "add the server's key to the known hosts, after comparing it with what the server's operator publishes"

// errHostKey refuses a server whose key is not the one that is known.
var errHostKey = errors.New("the server's host key is not the known one")

func (r *Remote) openSSH(u *url.URL, a Auth) error {
	user := u.User.Username()
	if user == "" {
		user = "git"
	}
	r.name = "ssh://" + user + "@" + u.Host + "/" + strings.TrimPrefix(u.Path, "/")
	if len(a.SSHKey) == 0 {
		return fault.New(fault.GitCredentials, "give a private key", "%s needs an SSH key", r.name)
	}
	signer, err := ssh.ParsePrivateKey(a.SSHKey)
	if err != nil { // the cause is not shown: it has seen the key
		return fault.New(fault.GitCredentials, "give a private key in PEM without a passphrase", "SSH key for %s cannot be used", r.name)
	}
	port := u.Port()
	if port == "" {
		port = "22"
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	verify, algorithms, err := a.hostKeys(addr)
	if err != nil {
		return err
	}
	dial, err := a.sshDial()
	if err != nil {
		return err
	}
	r.secrets.fixed = a.proxySecrets()
	// As git does: /~name/path is relative to a home directory.
	r.endpoint.Path = u.Path
	if strings.HasPrefix(u.Path, "/~") {
		r.endpoint.Path = u.Path[1:]
	}
	t := sshTransport{addr: addr, dialer: dial, config: ssh.ClientConfig{
		User:              user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   verify,
		HostKeyAlgorithms: algorithms,
	}}
	r.transport = func(known *names) transport.Transport { t := t; t.names = known; return t }
	r.bridge = t.bridgeSSH
	return nil
}

// hostKeys returns what decides whether the server at addr is the right one, and the kinds of key to ask it for.
func (a Auth) hostKeys(addr string) (ssh.HostKeyCallback, []string, error) {
	if a.Insecure {
		return ssh.InsecureIgnoreHostKey(), nil, nil
	}
	known, err := parseKnownHosts(a.KnownHosts)
	if err != nil {
		return nil, nil, err
	}
	algorithms := known.HostKeyAlgorithms(addr)
	if len(algorithms) == 0 {
		return nil, nil, fault.New(fault.GitHostKey, knownHostsHint, "SSH host key of %s is not known", addr)
	}
	return known.HostKeyCallback(), algorithms, nil
}

// parseKnownHosts parses known_hosts text. The parser reads files only, hence a file that lives for a moment.
func parseKnownHosts(text []byte) (*knownhosts.HostKeyDB, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, fault.New(fault.GitHostKey, knownHostsHint, "no known SSH hosts are given")
	}
	f, err := os.CreateTemp("", "known_hosts")
	if err != nil {
		return nil, fault.New(fault.GitHostKey, "mount a writable directory for temporary files", "keep known hosts: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("keep known hosts: %w", err)
	}
	db, err := knownhosts.NewDB(f.Name())
	if err != nil {
		text := strings.ReplaceAll(err.Error(), f.Name(), "line")
		return nil, fault.New(fault.GitHostKey, "use the format of OpenSSH's known_hosts", "parse known hosts: %s", text)
	}
	return db, nil
}

// sshTransport stands in for go-git's own, which cannot be cancelled while it shakes hands, and which obeys the
// ssh_config and the proxy variables of whoever runs it.
type sshTransport struct {
	addr   string
	dialer dialer
	config ssh.ClientConfig
	names  *names // of the repository
}

func (t sshTransport) NewUploadPackSession(ep *transport.Endpoint, _ transport.AuthMethod) (transport.UploadPackSession, error) {
	return t.session(transport.UploadPackServiceName, ep), nil
}

func (t sshTransport) NewReceivePackSession(ep *transport.Endpoint, _ transport.AuthMethod) (transport.ReceivePackSession, error) {
	return t.session(transport.ReceivePackServiceName, ep), nil
}

func (t sshTransport) session(service string, ep *transport.Endpoint) *sshSession {
	quoted := "'" + strings.NewReplacer(`'`, `'\''`, `!`, `'\!'`).Replace(ep.Path) + "'"
	return &sshSession{sshTransport: t, command: service + " " + quoted, receives: service == transport.ReceivePackServiceName}
}

// sshSession is one connection that runs one command. It dials at its first use, and ends when it is closed or the
// context of that first use does.
type sshSession struct {
	sshTransport
	command  string
	receives bool

	refs     *packp.AdvRefs
	client   *ssh.Client
	run      *ssh.Session
	stop     func() bool
	stdin    io.WriteCloser
	stdout   io.Reader
	stderr   tail
	verified bool // the host key was the right one
	spoken   bool // a request was sent
}

// sshRefusal is a handshake that failed after the server had proven who it is: it does not know us.
type sshRefusal struct{ err error }

func (e *sshRefusal) Error() string { return e.err.Error() }

// sshExit is a command that ended without an answer; its last words say why.
type sshExit struct{ words string }

func (e *sshExit) Error() string { return e.words }

func (s *sshSession) dial(ctx context.Context) error {
	conn, err := s.dialer(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	s.stop = context.AfterFunc(ctx, func() { conn.Close() })
	config := s.config
	config.HostKeyCallback = func(host string, remote net.Addr, key ssh.PublicKey) error {
		if err := s.config.HostKeyCallback(host, remote, key); err != nil {
			return fmt.Errorf("%w: %w", errHostKey, err)
		}
		s.verified = true
		return nil
	}
	c, channels, requests, err := ssh.NewClientConn(conn, s.addr, &config)
	if err != nil {
		s.stop()
		conn.Close()
		if _, network := errors.AsType[net.Error](err); s.verified && !network && !errors.Is(err, io.EOF) {
			return &sshRefusal{err}
		}
		return err
	}
	s.client = ssh.NewClient(c, channels, requests)
	return s.start()
}

func (s *sshSession) start() error {
	var err error
	if s.run, err = s.client.NewSession(); err != nil {
		return err
	}
	if s.stdin, err = s.run.StdinPipe(); err != nil {
		return err
	}
	if s.stdout, err = s.run.StdoutPipe(); err != nil {
		return err
	}
	s.run.Stderr = &s.stderr
	return s.run.Start(s.command)
}

func (s *sshSession) AdvertisedReferences() (*packp.AdvRefs, error) {
	return s.AdvertisedReferencesContext(context.Background())
}

func (s *sshSession) AdvertisedReferencesContext(ctx context.Context) (*packp.AdvRefs, error) {
	if s.refs != nil {
		return s.refs, nil
	}
	if err := s.dial(ctx); err != nil {
		return nil, err
	}
	refs := packp.NewAdvRefs()
	err := refs.Decode(s.names.listing(s.stdout))
	switch {
	case errors.Is(err, packp.ErrEmptyAdvRefs), err == nil && refs.IsEmpty():
		err = nil
		if !s.receives {
			err = transport.ErrEmptyRemoteRepository
		}
	case errors.Is(err, packp.ErrEmptyInput):
		s.spoken = true  // nobody listens any more
		_ = s.run.Wait() // its status adds nothing to what it wrote
		err = &sshExit{s.stderr.String()}
	}
	if err != nil {
		return nil, err
	}
	transport.FilterUnsupportedCapabilities(refs.Capabilities)
	s.refs = refs
	return refs, nil
}

// UploadPack expects AdvertisedReferencesContext to have been called.
func (s *sshSession) UploadPack(ctx context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if _, err := s.AdvertisedReferencesContext(ctx); err != nil {
		return nil, err
	}
	s.spoken = true
	err := errors.Join(
		req.UploadRequest.Encode(s.stdin),
		req.UploadHaves.Encode(s.stdin, true),
		pktline.NewEncoder(s.stdin).EncodeString("done\n"),
		s.stdin.Close(),
	)
	if err != nil {
		return nil, err
	}
	res := packp.NewUploadPackResponse(req)
	return res, res.Decode(io.NopCloser(s.stdout))
}

// ReceivePack expects AdvertisedReferencesContext to have been called.
func (s *sshSession) ReceivePack(ctx context.Context, req *packp.ReferenceUpdateRequest) (*packp.ReportStatus, error) {
	if _, err := s.AdvertisedReferencesContext(ctx); err != nil {
		return nil, err
	}
	s.spoken = true
	if err := errors.Join(req.Encode(s.stdin), s.stdin.Close()); err != nil {
		return nil, err
	}
	out := s.stdout
	if req.Capabilities.Supports(capability.Sideband64k) {
		demux := sideband.NewDemuxer(sideband.Sideband64k, out)
		demux.Progress = req.Progress
		out = demux
	}
	report := packp.NewReportStatus()
	if err := report.Decode(out); err != nil {
		return nil, err
	}
	return report, report.Error()
}

// Close says goodbye if nothing was asked, and returns when the connection's goroutines have ended.
func (s *sshSession) Close() error {
	if s.client == nil {
		return nil
	}
	if !s.spoken && s.stdin != nil {
		s.spoken = true
		_, _ = s.stdin.Write(pktline.FlushPkt) // only a courtesy
	}
	s.client.Close()
	_ = s.client.Wait() // reports the close that we asked for
	s.stop()
	return nil
}
