package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/internal/shared"
)

const serveUsage = `[FLAGS]

Runs the resolver: it looks tags up in their registries for "digestlock generate", remembers the answers, and keeps a
ledger of what was rendered for the companion. It runs in a container of its own beside the plugin, with the registry
credentials (DOCKER_CONFIG, --credentials-dir, --cloud-credentials) that the plugin must not have.

On the socket:  POST /v1/resolve, GET and PUT /v1/renders/…
On TCP:         GET /healthz /readyz /metrics, with a bearer token what is below /v1, for the companion, and with a secret of
                its sender's POST /webhook/SENDER, see docs/webhooks.md
On both:        POST /flush?image=registry.example.com/team/app:latest (repeatable; without tag: all tags), with a
                bearer token, or with a token of an issuer that --oidc-config trusts; see "digestlock flush --help"`

// negativeTTL is how long "not found" and "unauthorized" are remembered.
const negativeTTL = 10 * time.Second

func serve(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock serve", serveUsage)
	socket := flags.String("socket", strings.TrimPrefix(defaultServer, "unix://"), "unix socket for the plugin; empty for none")
	listen := flags.String("listen", ":8085", "TCP address for the companion, CI and probes; empty for none")
	readKeys := door.KeyFlags(flags)
	stateDir := flags.String("state-dir", "/var/lib/digestlock", "directory for the ledger")
	ttl := flags.Duration("ttl", time.Minute, "use an answer this long without asking the registry again")
	stale := flags.Duration("stale-if-error", 24*time.Hour, "use an answer this long when the registry cannot be asked; 0 is never")
	revalidate := flags.Duration("stale-while-revalidate", 0, "past --ttl, answer this long at once with the last digest, marked stale, while the registry is asked; 0 is never: whoever asks waits for the registry")
	window := flags.Duration("refresh-window", 2*time.Minute, "ask the registry shortly before --ttl ends for what was used within this time, so that nobody waits for it; 0 is never")
	size := flags.Int("cache-size", 10_000, "references to remember")
	renders := flags.Int("render-cache", 32, "MiB of renders to remember, so that an overlay which has not changed since is not built again; 0 is none")
	timeout := flags.Duration("lookup-timeout", 10*time.Second, "give a registry this long for one reference; 15s at most, because companions wait 25s for an answer, and it may take 10s longer")
	registries := registryFlags(flags)
	redis := redisFlags(flags)
	var where credentials.Options
	credentialsFlags(flags, &where)
	level := slog.LevelInfo
	flags.TextVar(&level, "log-level", level, "`level`: debug, info, warn or error")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	for name, bad := range map[string]bool{
		"ttl": *ttl <= 0, "cache-size": *size <= 0, "lookup-timeout": *timeout <= 0, "stale-if-error": *stale < 0,
		"stale-while-revalidate": *revalidate < 0, "refresh-window": *window < 0, "render-cache": *renders < 0,
	} {
		if bad {
			return cli.Usage("see \"digestlock serve --help\"", "--%s is out of range", name)
		}
	}
	if *stale == 0 {
		*stale = -1 // to the cache, 0 is the default
	}
	keychain, err := newKeychain(where)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(env.Stderr, &slog.HandlerOptions{Level: level}))
	keys, err := readKeys()
	if err != nil {
		return err
	}
	ledger, err := daemon.OpenLedger(*stateDir, log)
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	registries.Keychain, registries.Timeout, registries.Registerer = keychain, *timeout, metrics
	o := cache.Options{
		Size: *size, TTL: *ttl, NegativeTTL: negativeTTL, StaleIfError: *stale, Timeout: *timeout + 5*time.Second, Registerer: metrics,
		StaleWhileRevalidate: *revalidate, RefreshWindow: *window,
	}
	client := registry.New(*registries)
	var backend cache.Resolver = client
	together, err := redis.open(backend, o, log, metrics)
	if err != nil {
		return err
	}
	if together != nil {
		defer together.Close()
		backend, o.Forget = together, together.Forget
		o.Timeout += shared.MaxWait
	}
	lookups := cache.New(backend, o)
	defer lookups.Close()
	if together != nil {
		together.Follow(lookups.Drop)
	}
	unix, err := listenUnix(*socket)
	if err != nil {
		return err
	}
	var tcp net.Listener
	if *listen != "" {
		if tcp, err = net.Listen("tcp", *listen); err != nil {
			return fault.New(fault.Listen, "give --listen a free address", "%w", err)
		}
	}
	if unix == nil && tcp == nil {
		return cli.Usage("give --socket, --listen or both", "nothing to listen on")
	}
	var rendered *cache.Blobs
	if *renders > 0 {
		rendered = cache.NewBlobs(*renders << 20)
	}
	log.Info("serving", "version", buildVersion, "socket", *socket, "listen", address(tcp), "sources", ledger.Len())
	err = daemon.New(daemon.Options{
		Resolver: lookups, Origins: cache.NewOrigins(client), Scope: keychain.Scope, Ledger: ledger, Renders: rendered, Keys: keys, Log: log, Metrics: metrics,
	}).Serve(ctx, unix, tcp)
	log.Info("stopped")
	return err
}

func address(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// removeDead removes a socket that nobody listens on any more.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		err = errors.New("there is something else of that name")
	}
	if err != nil {
		return fault.New(fault.Listen, "give --socket a path of its own", "socket %s: %w", path, err)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fault.New(fault.Listen, "stop the other process, or give this one its own --socket", "socket %s: another resolver answers there", path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return nil // Listen says what is wrong
}

// listenUnix listens on a socket that the pod's user and group may use. A socket that a killed process left behind is
// replaced; one that answers is not.
func listenUnix(path string) (net.Listener, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fault.New(fault.Listen, "mount a volume there that the plugin's container mounts too", "socket: %w", err)
	}
	if err := removeDead(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.New(fault.Listen, "mount a volume there that this user may write", "%w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
