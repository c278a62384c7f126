// Command digestlock-companion commits what digestlock pinned. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

const usage = `[FLAGS]

Collects the pins of every resolver replica, asks where the tags stand now, and brings the digest-lock.yaml beside each
overlay up to date: one commit per repository and branch, and none when no digest changed. It writes to the given
repositories only, to branches only, and only that file, in directories that hold a kustomization.

Exit code with --once: 0 everything is up to date, 1 something could not be done (the rest was), 2 wrong usage.`

// buildVersion is set by the linker, see the Makefile.
var buildVersion = "devel"

func main() {
	cli.Main(cli.Program{Name: "digestlock-companion", Commands: []cli.Command{{Run: run}}})
}

func run(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock-companion", usage)
	once := flags.Bool("once", false, "do one cycle and exit, for a CronJob")
	interval := flags.Duration("interval", time.Minute, "time between cycles")
	resolver := flags.String("resolver", "", "resolver, http(s)://host:port; a host name with several addresses means all of them")
	tokenFile := flags.String("resolver-token-file", "", "file with the resolver's bearer token (the first, when it holds several)")
	repos := flags.StringArray("repo", nil, "repository to write to, URL or URL@branch (repeatable); renders of others are refused")
	name := flags.String("author-name", "digestlock", "author and committer of commits")
	email := flags.String("author-email", "digestlock@localhost", "e-mail address of the author")
	level := slog.LevelInfo
	flags.TextVar(&level, "log-level", level, "debug, info, warn or error")
	version := flags.Bool("version", false, "print the version and exit")
	var creds credentials
	flags.StringVar(&creds.username, "git-username", "", "user name for https, with --git-password-file")
	flags.StringVar(&creds.passwordFile, "git-password-file", "", "file with the password or access token for https")
	flags.StringVar(&creds.tokenFile, "git-token-file", "", "file with a token sent as Authorization: Bearer, instead of name and password")
	flags.StringVar(&creds.keyFile, "ssh-key-file", "", "file with the private key for ssh")
	flags.StringVar(&creds.knownHostsFile, "ssh-known-hosts-file", "", "known_hosts file; a server that is not in it is refused")
	flags.StringVar(&creds.caFile, "git-ca-file", "", "PEM bundle of authorities to trust for https beside the system's")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	if *version {
		_, err := fmt.Fprintf(env.Stdout, "digestlock-companion %s\n", buildVersion)
		return err
	}
	if *resolver == "" || len(*repos) == 0 {
		return cli.Usage("for example: --resolver http://digestlock-resolver:8085 --repo https://git.example.com/team/k8s.git",
			"--resolver and --repo are needed")
	}
	auth, err := creds.read()
	if err != nil {
		return err
	}
	repositories, err := open(*repos, auth)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(env.Stderr, &slog.HandlerOptions{Level: level}))
	c := companion.New(companion.Options{
		Replicas:     func(ctx context.Context) ([]companion.Replica, error) { return replicas(ctx, *resolver, *tokenFile) },
		Repositories: repositories,
		Author:       gitrepo.Signature{Name: *name, Email: *email},
		Log:          log,
	})
	if *once {
		commits, err := c.Once(ctx)
		log.Info("cycle done", "commits", len(commits), "complete", err == nil)
		return err
	}
	log.Info("running", "version", buildVersion, "interval", *interval, "repositories", len(repositories))
	c.Run(ctx, *interval)
	log.Info("stopped")
	return nil
}

// replicas returns a client for each address of the resolver. The token is read anew, so that it may be rotated.
func replicas(ctx context.Context, address, tokenFile string) ([]companion.Replica, error) {
	var token string
	if tokenFile != "" {
		tokens, err := secret(tokenFile)
		if err != nil {
			return nil, err
		}
		token, _, _ = strings.Cut(tokens, "\n")
	}
	clients, err := api.Replicas(ctx, address, strings.TrimSpace(token))
	if err != nil {
		return nil, err
	}
	out := make([]companion.Replica, len(clients))
	for i, c := range clients {
		out[i] = c
	}
	return out, nil
}

func open(specs []string, auth gitrepo.Auth) ([]companion.Repository, error) {
	var out []companion.Repository
	for _, spec := range specs {
		url, branch := splitBranch(spec)
		remote, err := gitrepo.Open(url, auth)
		if err != nil {
			return nil, fmt.Errorf("--repo: %w", err)
		}
		out = append(out, companion.Repository{Remote: remote, URL: url, Branch: branch})
	}
	return out, nil
}

// splitBranch cuts "@branch" off; an @ before the path is a user name's.
func splitBranch(spec string) (url, branch string) {
	i := strings.LastIndexByte(spec, '@')
	start := strings.IndexByte(strings.Replace(spec, "://", "   ", 1), '/')
	if colon := strings.IndexByte(spec, ':'); start < 0 || (!strings.Contains(spec, "://") && colon >= 0) {
		start = colon // git@host:path
	}
	if i < 0 || i < start {
		return spec, ""
	}
	return spec[:i], spec[i+1:]
}

type credentials struct {
	username, passwordFile, tokenFile, keyFile, knownHostsFile, caFile string
}

func (c credentials) read() (a gitrepo.Auth, err error) {
	a.Username = c.username
	var problems []error
	read := func(file string) string {
		if file == "" {
			return ""
		}
		s, err := secret(file)
		problems = append(problems, err)
		return s
	}
	a.Password = read(c.passwordFile)
	a.Token = read(c.tokenFile)
	a.SSHKey = []byte(read(c.keyFile))
	a.KnownHosts = []byte(read(c.knownHostsFile))
	a.CA = []byte(read(c.caFile))
	return a, errors.Join(problems...)
}

// secret reads a file without the line break that editors and kubectl leave at its end.
func secret(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fault.New("mount the secret there, readable for this user", "%w", err)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}
