// Package gittest runs real Git servers for tests: the git binary behind https and ssh, in this process.
//
// Git is kept away from the configuration of whoever runs the tests. The package needs git on the PATH and fails the
// test without it.
package gittest

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/digestlock/digestlock/internal/gitrepo"
)

// Server serves the bare repositories below one directory. Auth opens all of them.
type Server struct {
	Auth gitrepo.Auth

	base     string // what URL puts before a repository's name
	root     string
	settings []string
	wrap     func(http.Handler) http.Handler
	wantCert bool
	format   string // of object names
	requests atomic.Int64
}

// An Option makes a server different from a forge of today, which offers everything.
type Option func(*Server)

// Config has git config set, as "key=value", in each repository that is created.
func Config(setting string) Option {
	return func(s *Server) { s.settings = append(s.settings, setting) }
}

// NoFilter makes a server that cannot leave file contents out.
func NoFilter() Option { return Config("uploadpack.allowFilter=false") }

// NoWant makes a server that hands out only what its refs point to.
func NoWant() Option { return Config("uploadpack.allowAnySHA1InWant=false") }

// NoShallow makes an https server that does not offer shallow fetches.
func NoShallow() Option { return Wrap(withoutShallow) }

// SHA256 makes repositories with SHA-256 object names.
func SHA256() Option {
	return func(s *Server) { s.format = "sha256" }
}

// ByGit has Auth say that git, the program, fetches and pushes whatever the repository.
func ByGit() Option {
	return func(s *Server) { s.Auth.Binary = gitrepo.BinaryAlways }
}

// Bearer makes an https server that wants the token instead of a user name and a password.
func Bearer(token string) Option {
	return func(s *Server) { s.Auth.Token = token }
}

// ClientCert makes an https server that lets nobody in without the TLS client certificate of its Auth.
func ClientCert() Option {
	return func(s *Server) { s.wantCert = true }
}

// Wrap puts a handler in front of an https server, and in front of its authentication.
func Wrap(wrap func(http.Handler) http.Handler) Option {
	return func(s *Server) { s.wrap = wrap }
}

func newServer(t testing.TB, options []Option) *Server {
	t.Helper()
	gitBinary(t)
	s := &Server{root: t.TempDir(), format: "sha1", settings: []string{
		"http.receivepack=true",
		"uploadpack.allowFilter=true",
		"uploadpack.allowAnySHA1InWant=true",
	}}
	for _, option := range options {
		option(s)
	}
	return s
}

// URL returns the address of the repository name, which need not exist.
func (s *Server) URL(name string) string { return s.base + name }

// SHA256 reports whether the repositories have SHA-256 object names.
func (s *Server) SHA256() bool { return s.format == "sha256" }

// Requests returns how many https requests, or ssh commands, were made so far.
func (s *Server) Requests() int { return int(s.requests.Load()) }

// Create makes the bare repository name with one commit of files on branch main, or empty for nil files.
func (s *Server) Create(t testing.TB, name string, files map[string]string) *Repo {
	t.Helper()
	r := &Repo{Dir: filepath.Join(s.root, name), URL: s.URL(name)}
	run(t, "", "", "init", "--quiet", "--bare", "--initial-branch=main", "--object-format="+s.format, r.Dir)
	for _, setting := range s.settings {
		key, value, _ := strings.Cut(setting, "=")
		r.Git(t, "config", key, value)
	}
	if files != nil {
		r.Commit(t, "main", files)
	}
	return r
}

// Repo is a bare repository on a Server.
type Repo struct{ Dir, URL string }

// Git runs git in the repository and returns its output, trimmed.
func (r *Repo) Git(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, r.Dir, "", args...)
}

// Commit commits files on branch as a person would, from a clone, and returns the commit's hash. The branch is made
// when it does not exist. An empty content deletes the file.
func (r *Repo) Commit(t testing.TB, branch string, files map[string]string) string {
	t.Helper()
	w := r.Clone(t, branch)
	for name, content := range files {
		w.Write(t, name, content)
	}
	return w.Push(t, branch)
}

// Clone checks branch out, for commits that Commit cannot make.
func (r *Repo) Clone(t testing.TB, branch string) *Clone {
	t.Helper()
	c := &Clone{Dir: t.TempDir()}
	if r.Git(t, "for-each-ref") != "" {
		run(t, "", "", "clone", "--quiet", "--no-checkout", r.Dir, c.Dir)
	} else { // a clone of nothing has SHA-1 names, whatever it is a clone of
		run(t, "", "", "init", "--quiet", "--object-format="+r.Git(t, "rev-parse", "--show-object-format"), c.Dir)
		c.Git(t, "remote", "add", "origin", r.Dir)
	}
	if r.Git(t, "for-each-ref", "refs/heads/"+branch) == "" {
		c.Git(t, "checkout", "--quiet", "--orphan", branch)
		return c
	}
	c.Git(t, "checkout", "--quiet", branch)
	return c
}

// Hook installs a shell script as one of the repository's hooks.
func (r *Repo) Hook(t testing.TB, name, script string) {
	t.Helper()
	path := filepath.Join(r.Dir, "hooks", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// Clone is somebody's working copy.
type Clone struct{ Dir string }

// Git runs git in the working copy and returns its output, trimmed.
func (c *Clone) Git(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, c.Dir, "", args...)
}

// Write writes a file, or deletes it when content is empty.
func (c *Clone) Write(t testing.TB, name, content string) {
	t.Helper()
	path := filepath.Join(c.Dir, filepath.FromSlash(name))
	if content == "" {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Push commits everything, pushes it to branch, by force, and returns the commit's hash.
func (c *Clone) Push(t testing.TB, branch string) string {
	t.Helper()
	c.Git(t, "add", "--all")
	c.Git(t, "commit", "--quiet", "--allow-empty", "--message", "a person's change")
	c.Git(t, "push", "--quiet", "--force", "origin", "HEAD:refs/heads/"+branch)
	return c.Git(t, "rev-parse", "HEAD")
}

// Git runs the git binary in dir, as a person without any configuration would, and returns its output, trimmed. ca is
// the PEM bundle to trust, or "".
func Git(t testing.TB, dir, ca string, args ...string) string {
	t.Helper()
	return run(t, dir, ca, args...)
}

func run(t testing.TB, dir, ca string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), gitBinary(t), args...)
	cmd.Dir = dir
	cmd.Env = append(environ(), "HOME="+t.TempDir())
	if ca != "" {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, []byte(ca), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "GIT_SSL_CAINFO="+path)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// environ is an environment in which nothing but the repository configures git.
func environ() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"LC_ALL=C",
		"GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=A Person", "GIT_AUTHOR_EMAIL=person@example.com",
		"GIT_COMMITTER_NAME=A Person", "GIT_COMMITTER_EMAIL=person@example.com",
	}
}

func gitBinary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("git")
	if err != nil {
		t.Fatalf("these tests talk to real Git: install git (%v)", err)
	}
	return path
}
