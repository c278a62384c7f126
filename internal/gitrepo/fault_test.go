package gitrepo_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

// check asserts what a person sees, and that they see no secret.
func check(t *testing.T, what string, err error, want, hint string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	if !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), hint) || (hint == "") != (fault.Hint(err) == "") {
		t.Errorf("%s:\n got error %q\n got hint  %q\nwant error %q\nwant hint  %q", what, err, fault.Hint(err), want, hint)
	}
	noSecret(t, what, err)
}

// noSecret looks through the whole chain, which somebody may print.
func noSecret(t *testing.T, what string, err error) {
	t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte("robot:wrong horse"))
	for e := err; e != nil; e = errors.Unwrap(e) {
		for _, secret := range []string{"horse", "s3cret", "s3same", basic, "PRIVATE KEY"} {
			if strings.Contains(e.Error(), secret) {
				t.Errorf("%s: %q gives %q away", what, e, secret)
			}
		}
		if strings.ContainsAny(e.Error(), "\n\r\x1b") {
			t.Errorf("%s: %q has control characters", what, e)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	forms := "use https://host/path, ssh://git@host/path or git@host:path"
	for _, tt := range []struct {
		url        string
		auth       gitrepo.Auth
		want, hint string
	}{
		{"file:///srv/repo.git", gitrepo.Auth{}, `has scheme "file"`, forms},
		{"git://example.com/repo.git", gitrepo.Auth{}, `has scheme "git"`, forms},
		{"ext::sh -c true", gitrepo.Auth{}, `has scheme "ext"`, forms},
		{"/srv/repo.git", gitrepo.Auth{}, `has scheme ""`, forms},
		{"../repo.git", gitrepo.Auth{}, `has scheme ""`, forms},
		{"", gitrepo.Auth{}, `has scheme ""`, forms},
		{"https://", gitrepo.Auth{}, "needs a host and a path", forms},
		{"https://example.com", gitrepo.Auth{}, "needs a host and a path", forms},
		{"ssh:///repo.git", gitrepo.Auth{}, "needs a host and a path", forms},
		{"git@example.com:-upload-pack=x", gitrepo.Auth{}, "needs a host and a path", forms},
		{"https://robot:s3cret@example.com/repo.git", gitrepo.Auth{}, "contains a password", "move the password out of the URL"},
		{"ssh://git:s3cret@example.com/repo.git", gitrepo.Auth{}, "contains a password", "move the password out of the URL"},
		{"https://robot:s3cret@exa mple.com/%zz", gitrepo.Auth{}, "cannot be parsed", forms},
		{"https://example.com/repo.git?private_token=s3cret", gitrepo.Auth{}, "has a query", "remove what follows"},
		{"http://example.com/repo.git", gitrepo.Auth{Token: "s3cret"}, "would travel unencrypted", "use https"},
		{"http://example.com/repo.git", gitrepo.Auth{Username: "robot"}, "would travel unencrypted", "use https"},
		{"http://robot@example.com/repo.git", gitrepo.Auth{}, "would travel unencrypted", "use https"},
		{"https://example.com/repo.git", gitrepo.Auth{CA: []byte("nonsense")}, "CA bundle holds no certificate", "give PEM blocks"},
		{"git@example.com:repo.git", gitrepo.Auth{}, "ssh://git@example.com/repo.git needs an SSH key", "give a private key"},
		{"git@example.com:repo.git", gitrepo.Auth{SSHKey: []byte("s3cret")}, "SSH key for ssh://git@example.com/repo.git cannot be used", "without a passphrase"},
		{"git@example.com:repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t)}, "no known SSH hosts", "add the server's key"},
		{"git@example.com:repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: []byte("example.com nonsense\n")}, "parse known hosts: ", "use the format of OpenSSH"},
		{"git@example.com:repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, "example.org")}, "SSH host key of example.com:22 is not known", "add the server's key"},
		{"ssh://example.com:2222/repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, "example.com")}, "SSH host key of example.com:2222 is not known", "add the server's key"},
	} {
		r, err := gitrepo.Open(tt.url, tt.auth)
		check(t, tt.url, err, tt.want, tt.hint)
		if r != nil {
			t.Errorf("%s: a remote and an error", tt.url)
		}
	}
}

func hostLine(t *testing.T, host string) []byte {
	t.Helper()
	signer, err := ssh.ParsePrivateKey(gittest.NewSSHKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(knownhosts.Line([]string{host}, signer.PublicKey()) + "\n")
}

func TestOpenAccepts(t *testing.T) {
	t.Parallel()
	sshAuth := gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, "example.com")}
	for url, want := range map[string]string{
		"https://example.com/a/b.git":           "https://example.com/a/b.git",
		"https://org@dev.azure.com/org/_git/r":  "https://dev.azure.com/org/_git/r",
		"https://[::1]:8443/r/":                 "https://[::1]:8443/r/",
		"http://example.com/r":                  "http://example.com/r",
		"git@example.com:a/b.git":               "ssh://git@example.com/a/b.git",
		"example.com:a/b.git":                   "ssh://git@example.com/a/b.git",
		"ssh://example.com/a/b.git":             "ssh://git@example.com/a/b.git",
		"ssh://deploy@example.com:22/~me/b.git": "ssh://deploy@example.com:22/~me/b.git",
	} {
		auth := gitrepo.Auth{}
		if strings.HasPrefix(want, "ssh") {
			auth = sshAuth
		}
		if got := open(t, url, auth).String(); got != want {
			t.Errorf("Open(%q) = %s, want %s", url, got, want)
		}
	}
}

func TestAccessDenied(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	for name, a := range map[string]gitrepo.Auth{
		"password": {Username: "robot", Password: "wrong horse", CA: server.Auth.CA},
		"token":    {Token: "s3cret", CA: server.Auth.CA},
		"nothing":  {CA: server.Auth.CA},
	} {
		_, err := open(t, repo.URL, a).Read(t.Context(), "")
		check(t, name, err, "access denied", "check the credentials")
		if !errors.Is(err, gitrepo.ErrAuth) {
			t.Errorf("%s: %v, want ErrAuth", name, err)
		}
	}

	readOnly := server.Create(t, "read-only.git", seed())
	readOnly.Git(t, "config", "http.receivepack", "false")
	_, err := read(t, open(t, readOnly.URL, server.Auth), "").Push(t.Context(), change("m", map[string]string{"README.md": "x"}))
	check(t, "read only", err, "access denied", "allow these credentials to read and write")
	if !errors.Is(err, gitrepo.ErrAuth) {
		t.Errorf("read only: %v, want ErrAuth", err)
	}

	s := gittest.SSH(t)
	a := s.Auth
	a.SSHKey = gittest.NewSSHKey(t)
	_, err = open(t, s.Create(t, "repo.git", seed()).URL, a).Read(t.Context(), "")
	check(t, "ssh key", err, "access denied", "check the credentials")
	if !errors.Is(err, gitrepo.ErrAuth) {
		t.Errorf("ssh key: %v, want ErrAuth", err)
	}
}

func TestMissingRepository(t *testing.T) {
	t.Parallel()
	https, overSSH := gittest.HTTPS(t), gittest.SSH(t)
	_, err := open(t, https.URL("none.git"), https.Auth).Read(t.Context(), "")
	check(t, "https", err, "repository not found", "check the URL")
	_, err = open(t, overSSH.URL("none.git"), overSSH.Auth).Read(t.Context(), "")
	check(t, "ssh", err, "the server refused: fatal: '", "check the URL")
}

func TestBranches(t *testing.T) {
	t.Parallel()
	eachBackend(t, testBranches)
}

func testBranches(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	tip := repo.Commit(t, "team/feature", map[string]string{"README.md": "feature\n"})
	repo.Git(t, "tag", "-a", "-m", "x", "v1.0", "main")
	r := open(t, repo.URL, server.Auth)
	for _, branch := range []string{"team/feature", "refs/heads/team/feature"} {
		if s := read(t, r, branch); s.Commit() != tip || s.Branch() != "team/feature" {
			t.Errorf("Read(%q) = %s on %s", branch, s.Commit(), s.Branch())
		}
	}
	refused := func(r *gitrepo.Remote, branch, want, hint string) {
		t.Helper()
		_, err := r.Read(t.Context(), branch)
		check(t, branch, err, want, hint)
		if !errors.Is(err, gitrepo.ErrBranch) {
			t.Errorf("Read(%q): %v, want ErrBranch", branch, err)
		}
	}
	refused(r, "v1.0", `"v1.0" is a tag`, "target a branch")
	refused(r, "refs/tags/v1.0", `"refs/tags/v1.0" is a tag`, "target a branch")
	refused(r, tip, "is a commit", "target a branch")
	refused(r, "none", `branch "none"`, "create the branch")
	refused(open(t, server.Create(t, "empty.git", nil).URL, server.Auth), "", "the repository is empty", "push a first commit")
	refused(open(t, server.Create(t, "empty2.git", nil).URL, server.Auth), "main", "the repository is empty", "push a first commit")
	overSSH := gittest.SSH(t)
	refused(open(t, overSSH.Create(t, "empty.git", nil).URL, overSSH.Auth), "main", "the repository is empty", "push a first commit")

	repo.Git(t, "symbolic-ref", "HEAD", "refs/heads/unborn")
	refused(r, "HEAD", "HEAD of the repository names no branch", "name the branch to use")
	repo.Git(t, "update-ref", "--no-deref", "HEAD", tip)
	refused(r, "HEAD", "HEAD of the repository names no branch", "name the branch to use")
}

func TestSHA256(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t, gittest.SHA256())
	server.Auth.Binary = gitrepo.BinaryNever
	repo := server.Create(t, "repo.git", seed())
	_, err := open(t, repo.URL, server.Auth).Read(t.Context(), "main")
	check(t, "sha256", err, "the repository uses SHA-256 object names", "start digestlock-companion with --git-binary=auto")
}

func TestProtectedBranch(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *gittest.Server{
		"https": servers["https"], "ssh": servers["ssh"], "sha256": servers["sha256"], "sha256, ssh": servers["sha256, ssh"], "git, https": servers["git, https"],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			repo := server.Create(t, "repo.git", seed())
			repo.Hook(t, "pre-receive", `printf 'GH006: main is\nprotected \033[1m(ask https://u:s3cret@example.com/x)\n' >&2; exit 1`)
			s := read(t, open(t, repo.URL, server.Auth), "main")
			_, err := s.Push(t.Context(), change("m", map[string]string{"README.md": "x"}))
			check(t, "push", err, "branch main was rejected: pre-receive hook declined: GH006: main is protected [1m(ask https://example.com/x)", "allow the pusher")
			if errors.Is(err, gitrepo.ErrMoved) || errors.Is(err, gitrepo.ErrAuth) {
				t.Errorf("push: %v, want neither ErrMoved nor ErrAuth", err)
			}
			if got := repo.Git(t, "rev-parse", "main"); got != s.Commit() {
				t.Error("the branch moved")
			}
		})
	}
}

// TestMovedWhilePushing: the branch moves after the client has looked, so that only the server can notice.
func TestMovedWhilePushing(t *testing.T) {
	t.Parallel()
	eachBackend(t, testMovedWhilePushing)
}

func testMovedWhilePushing(t *testing.T, https starter) {
	server := https(t)
	repo := server.Create(t, "repo.git", seed())
	other := repo.Commit(t, "other", map[string]string{"README.md": "theirs\n"})
	repo.Hook(t, "pre-receive", `unset GIT_QUARANTINE_PATH; read old new ref; test "$new" = `+other+` || git update-ref refs/heads/main `+other)
	s := read(t, open(t, repo.URL, server.Auth), "main")
	if _, err := s.Push(t.Context(), change("m", map[string]string{"README.md": "x"})); !errors.Is(err, gitrepo.ErrMoved) {
		t.Errorf("Push: %v, want ErrMoved", err)
	}
	if got := repo.Git(t, "rev-parse", "main"); got != other {
		t.Error("the other's commit is gone")
	}
}

// TestAnswerLost: the push took place, and the connection broke before the server could say so.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	eachBackend(t, testAnswerLost)
}

func testAnswerLost(t *testing.T, https starter) {
	server := https(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(httptest.NewRecorder(), r)
			w.WriteHeader(http.StatusBadGateway)
		})
	}))
	repo := server.Create(t, "repo.git", seed())
	commit := push(t, read(t, open(t, repo.URL, server.Auth), ""), change("m", map[string]string{"README.md": "x"}))
	if got := repo.Git(t, "rev-parse", "main"); got != commit {
		t.Errorf("main = %s, want %s", got, commit)
	}
}

func TestServerTrouble(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/flood") {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
				return
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, strings.Repeat("come back later ", 1<<16))
		})
	}))
	_, err := open(t, server.URL("repo.git"), server.Auth).Read(t.Context(), "")
	check(t, "503", err, "status code: 503", "")
	_, err = open(t, server.URL("flood"), server.Auth).Read(t.Context(), "")
	check(t, "not Git", err, "read "+server.URL("flood")+": ", "")
	if len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestServerDown(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	_, err = open(t, "https://"+addr+"/repo.git", gitrepo.Auth{Token: "s3cret"}).Read(t.Context(), "")
	check(t, "https", err, "connection refused", "check that the Git server is up")
	_, err = open(t, "ssh://"+addr+"/repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, addr)}).Read(t.Context(), "")
	check(t, "ssh", err, "connection refused", "check that the Git server is up")
}

// TestSilentServer: each step of a conversation in which the server stops talking.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	eachBackend(t, testSilentServer)
}

func testSilentServer(t *testing.T, https starter) {
	var silent atomic.Value
	silent.Store("none")
	server := https(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.String(), silent.Load().(string)) {
				gittest.Silent().ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}))
	r := open(t, server.Create(t, "repo.git", seed()).URL, server.Auth)
	s := read(t, r, "")
	hangs := func(what string, do func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("no answer within 200ms"))
		defer cancel()
		start := time.Now()
		err := do(ctx)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s took %v", what, took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer within 200ms") {
			t.Errorf("%s: %v, want the deadline and its cause", what, err)
		}
	}
	readAgain := func(ctx context.Context) error { _, err := r.Read(ctx, ""); return err }
	silent.Store("info/refs")
	hangs("read", readAgain)
	silent.Store("/git-upload-pack")
	hangs("files", func(ctx context.Context) error { _, err := s.Files(ctx, []string{"README.md"}); return err })
	silent.Store("/git-receive-pack")
	hangs("push", func(ctx context.Context) error {
		_, err := s.Push(ctx, change("m", map[string]string{"README.md": "x"}))
		return err
	})

	// A server that accepts the connection and does not even shake hands.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	addr := listener.Addr().String()
	r = open(t, "https://"+addr+"/repo.git", gitrepo.Auth{})
	hangs("TLS handshake", readAgain)
	r = open(t, "ssh://"+addr+"/repo.git", gitrepo.Auth{SSHKey: gittest.NewSSHKey(t), KnownHosts: hostLine(t, addr)})
	hangs("ssh handshake", readAgain)

	// A command that says nothing once it runs.
	overSSH := gittest.SSH(t)
	repo := overSSH.Create(t, "repo.git", seed())
	repo.Hook(t, "pre-receive", "exec sleep 2")
	s = read(t, open(t, repo.URL, overSSH.Auth), "")
	hangs("ssh push", func(ctx context.Context) error {
		_, err := s.Push(ctx, change("m", map[string]string{"README.md": "x"}))
		return err
	})
}

func TestUntrustedServer(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	a := server.Auth
	a.CA = nil
	_, err := open(t, repo.URL, a).Read(t.Context(), "")
	check(t, "unknown CA", err, "x509: certificate signed by unknown authority", "give the CA")
	if server.Requests() != 0 {
		t.Error("something was sent")
	}

	overSSH := gittest.SSH(t)
	repo = overSSH.Create(t, "repo.git", seed())
	a = overSSH.Auth
	host, _, _ := strings.Cut(string(a.KnownHosts), " ")
	a.KnownHosts = hostLine(t, strings.Trim(strings.Replace(host, "]:", ":", 1), "["))
	_, err = open(t, repo.URL, a).Read(t.Context(), "")
	check(t, "changed host key", err, "host key has changed", "find out why before trusting it")
	if overSSH.Requests() != 0 {
		t.Error("something was sent")
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	var stranger atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stranger.Add(1) }))
	defer other.Close()
	server := gittest.HTTPS(t, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if rest, ok := strings.CutPrefix(r.URL.Path, "/old.git"); ok {
				http.Redirect(w, r, "/repo.git"+rest+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
			} else if strings.HasPrefix(r.URL.Path, "/away.git") {
				http.Redirect(w, r, strings.Replace(other.URL, "https://", "https://u:s3cret@", 1)+r.URL.String(), http.StatusFound)
			} else if strings.HasPrefix(r.URL.Path, "/plain.git") {
				http.Redirect(w, r, "http://"+r.Host+"/repo.git/info/refs", http.StatusFound)
			} else {
				next.ServeHTTP(w, r)
			}
		})
	}))
	server.Create(t, "repo.git", seed())
	_, err := open(t, server.URL("away.git"), server.Auth).Read(t.Context(), "")
	check(t, "away", err, "the server redirects to another host", "use the address that the server redirects to")
	_, err = open(t, server.URL("plain.git"), server.Auth).Read(t.Context(), "")
	check(t, "downgrade", err, `changes scheme from "https" to "http"`, "")
	if stranger.Load() != 0 {
		t.Error("the other host was asked")
	}

	s := read(t, open(t, server.URL("old.git"), server.Auth), "")
	if got := readFiles(t, s, "README.md"); got["README.md"] != "hello\n" {
		t.Errorf("through a redirect: %q", got)
	}
	push(t, s, change("m", map[string]string{"README.md": "x"}))
}

// TestEscapedPath: Azure DevOps has spaces in its paths.
func TestEscapedPath(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	server.Create(t, "My Project/a+b.git", seed())
	s := read(t, open(t, server.URL("My%20Project/a+b.git"), server.Auth), "")
	readFiles(t, s, "README.md")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
}

func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, err := open(t, server.URL+"/repo.git", gitrepo.Auth{}).Read(t.Context(), "")
	check(t, "http", err, "repository not found", "check the URL")
}
