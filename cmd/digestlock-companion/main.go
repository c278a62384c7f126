// Command digestlock-companion commits what digestlock pinned. See README.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fanout"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

const usage = `[FLAGS]

Collects the pins of every resolver replica, asks where the tags stand now, and brings the digest-lock.yaml beside each
overlay up to date: one commit per repository and branch, and none when no digest changed. It writes only that file, in
directories that hold a kustomization, to branches only, and never again a digest that a person took back.

With --kubernetes it writes for the Applications that use the plugin, with the credentials for writing that Argo CD has
for their repositories, and asks Argo CD to look at once. Without, it writes to the repositories given by --repo.

Exit code with --once: 0 everything is up to date, 1 something could not be done (the rest was), 2 wrong usage.`

// buildVersion is set by the linker, see the Makefile.
var buildVersion = "devel"

func main() { cli.Main(program()) }

func program() cli.Program {
	return cli.Program{Name: "digestlock-companion", Commands: []cli.Command{{Run: run}}}
}

func run(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock-companion", usage)
	once := flags.Bool("once", false, "do one cycle and exit, for a CronJob")
	interval := flags.Duration("interval", time.Minute, "time between cycles")
	resolver := flags.String("resolver", "", "resolver, http(s)://host:port; a host name with several addresses means all of them")
	tokenFile := flags.String("resolver-token-file", "", "file with the resolver's bearer token (the first, when it holds several)")
	listen := flags.String("listen", "", "TCP address for CI, registries and probes, such as :8086; empty for none")
	readKeys := door.KeyFlags(flags)
	repos := flags.StringArray("repo", nil, "repository to write to, URL or URL@branch (repeatable), with the credentials of the flags below")
	var kube kubeFlags
	kube.register(flags)
	var commits commitFlags
	commits.register(flags)
	var forges forgeFlags
	forges.register(flags)
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
	flags.TextVar(&creds.binary, "git-binary", gitrepo.BinaryAuto, "when to run git, 2.29 or newer: auto, for repositories with SHA-256 object names alone; always, for a server that does not get on with this program's own transport; never")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	if *version {
		_, err := fmt.Fprintf(env.Stdout, "digestlock-companion %s\n", buildVersion)
		return err
	}
	if *resolver == "" || len(*repos) == 0 && !kube.on {
		return cli.Usage("for example: --resolver http://digestlock-resolver:8085 --kubernetes, or --repo https://git.example.com/team/k8s.git",
			"--resolver is needed, and --kubernetes or --repo")
	}
	if *interval <= 0 {
		return cli.Usage("give a time such as 60s", "--interval=%v is not a time between cycles", *interval)
	}
	if *once && *listen != "" {
		return cli.Usage("leave --listen out, or let the companion run without --once", "--listen: with --once nobody would have the time to ask")
	}
	if err := kube.check(*once, *listen); err != nil {
		return err
	}
	keys, err := readKeys()
	if err != nil {
		return err
	}
	if *listen == "" && !keys.None() {
		return cli.Usage("give --listen an address, such as :8086", "--token-file, --oidc-config and --webhook-secrets are for who comes to --listen")
	}
	if _, err := api.NewClient(*resolver, ""); err != nil {
		return cli.Usage("for example: --resolver http://digestlock-resolver:8085", "--resolver: %w", err)
	}
	if creds.binary == gitrepo.BinaryAlways {
		if err := gitrepo.FindGit(); err != nil {
			return fmt.Errorf("--git-binary: %w", err)
		}
	}
	auth, err := creds.read()
	if err != nil {
		return err
	}
	var options companion.Options
	if err := forges.parse(&options); err != nil {
		return err
	}
	repositories, err := open(*repos, auth, &forges)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(env.Stderr, &slog.HandlerOptions{Level: level}))
	r := resolvers{address: *resolver, tokenFile: *tokenFile}
	defer r.close()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	options.Replicas, options.Repositories = r.replicas, repositories
	options.Version, options.Log, options.Registerer = buildVersion, log, metrics
	if err := commits.apply(&options); err != nil {
		return err
	}
	cluster, stop, err := kube.open(ctx, log, *once)
	if err != nil {
		return err
	}
	defer stop()
	if cluster != nil {
		cluster.forges, cluster.binary = &forges, creds.binary
		options.Cluster, options.DefaultMode = cluster, kube.mode
	}
	c := companion.New(options)
	if *once {
		commits, err := c.Once(ctx)
		log.Info("cycle done", "commits", len(commits), "complete", err == nil)
		return err
	}
	l, err := listenTCP(*listen)
	if err != nil {
		return err
	}
	identity, err := kube.identity(env, l)
	if err != nil {
		return err
	}
	log.Info("running", "version", buildVersion, "interval", *interval, "repositories", len(repositories))
	g, gctx := errgroup.WithContext(ctx)
	if l != nil {
		front := fanout.New(fanout.Options{
			Replicas: r.dial, Loop: c, Leader: kube.leader(cluster, identity), Status: func() any { return c.Status() }, Keys: keys, Log: log, Metrics: metrics,
		})
		g.Go(func() error { return front.Serve(gctx, l) })
	}
	if cluster != nil {
		g.Go(func() error {
			cluster.follow(gctx, func() { c.Wake() })
			return nil
		})
	}
	g.Go(func() error {
		return kube.lead(gctx, cluster, identity, func(ctx context.Context) { c.Run(ctx, *interval) })
	})
	err = g.Wait()
	log.Info("stopped")
	return err
}

// listenTCP returns nil for the address "".
func listenTCP(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fault.New(fault.Listen, "give --listen a free address", "%w", err)
	}
	return l, nil
}

// resolvers are the clients of the last cycle.
type resolvers struct {
	address, tokenFile string
	clients            []*api.Client
}

// dial returns a client for each address of the resolver. The token is read anew, so that it may be rotated. It may be
// called concurrently.
func (r *resolvers) dial(ctx context.Context) ([]*api.Client, error) {
	token, err := api.Token(r.tokenFile)
	if err != nil {
		return nil, fault.New(fault.SecretFile, "mount the resolver's token file there, readable for this user", "--resolver-token-file: %w", err)
	}
	return api.Replicas(ctx, r.address, token)
}

// A resolver's client also says where images come from.
var _ companion.OriginReader = (*api.Client)(nil)

// replicas dials for the loop, in place of the clients that it returned before. What these know goes on to those of the same
// address, and is forgotten with a replica that is gone.
func (r *resolvers) replicas(ctx context.Context) ([]companion.Replica, error) {
	before := r.clients
	r.close()
	clients, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	r.clients = clients
	out := make([]companion.Replica, len(clients))
	for i, c := range clients {
		c.Inherit(before)
		out[i] = c
	}
	return out, nil
}

func (r *resolvers) close() {
	for _, c := range r.clients {
		c.Close()
	}
	r.clients = nil
}

func open(specs []string, auth gitrepo.Auth, forges *forgeFlags) ([]companion.Repository, error) {
	var out []companion.Repository
	var hosts []string
	for _, spec := range specs {
		repo, branch, restricted := splitBranch(spec)
		remote, err := gitrepo.Open(repo, auth)
		if err != nil {
			return nil, fmt.Errorf("--repo: %w", err)
		}
		if restricted && (branch == "" || branch == "HEAD") {
			return nil, cli.Usage("name a branch after the @, or leave it out to write to every branch that an Application follows",
				"--repo: no branch after %s@", remote)
		}
		ensure, err := forges.open(repo, forges.apiAuth(auth))
		if err != nil {
			return nil, fmt.Errorf("--repo: %s: %w", remote, err)
		}
		if u, err := url.Parse(repo); err == nil && u.Scheme == "https" {
			hosts = append(hosts, strings.ToLower(u.Host))
		}
		out = append(out, companion.Repository{Remote: remote, URL: repo, Branch: branch, Ensure: ensure})
	}
	slices.Sort(hosts)
	if hosts = slices.Compact(hosts); len(hosts) > 1 && (auth.Password != "" || auth.Token != "") {
		return nil, cli.Usage("run a companion for each host",
			"--repo: one password or token would be sent to several hosts: %s", strings.Join(hosts, ", "))
	}
	return out, nil
}

// splitBranch cuts "@branch" off, and says whether there was one; an @ before the path is a user name's.
func splitBranch(spec string) (url, branch string, restricted bool) {
	_, rest, ok := strings.Cut(spec, "://")
	start := strings.IndexByte(rest, '/')
	if !ok { // git@host:path
		rest, start = spec, strings.IndexByte(spec, ':')
	}
	i := strings.LastIndexByte(rest, '@')
	if start < 0 || i < start {
		return spec, "", false
	}
	i += len(spec) - len(rest)
	return spec[:i], strings.TrimPrefix(spec[i+1:], "refs/heads/"), true
}

type credentials struct {
	username, passwordFile, tokenFile, keyFile, knownHostsFile, caFile string
	binary                                                             gitrepo.Binary
}

func (c credentials) read() (gitrepo.Auth, error) {
	var problem error // the first; the next start shows the next
	read := func(flag, file string) string {
		if file == "" || problem != nil {
			return ""
		}
		var s string
		s, problem = secret(flag, file)
		return s
	}
	return gitrepo.Auth{
		Username:   c.username,
		Password:   read("git-password-file", c.passwordFile),
		Token:      read("git-token-file", c.tokenFile),
		SSHKey:     []byte(read("ssh-key-file", c.keyFile)),
		KnownHosts: []byte(read("ssh-known-hosts-file", c.knownHostsFile)),
		CA:         []byte(read("git-ca-file", c.caFile)),
		Binary:     c.binary,
	}, problem
}

// secret reads a file without the line break that editors and kubectl leave at its end.
func secret(flag, file string) (string, error) {
	data, err := os.ReadFile(file)
	s := strings.TrimRight(string(data), "\r\n")
	if err == nil && s == "" {
		err = fmt.Errorf("%s is empty", file)
	}
	if err != nil {
		return "", fault.New(fault.SecretFile, "mount the secret there, readable for this user", "--%s: %w", flag, err)
	}
	return s, nil
}
