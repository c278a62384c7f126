package main

import (
	"log/slog"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/shared"
)

// redisOptions say how replicas share answers; without a URL they do not.
type redisOptions struct {
	url, passwordFile, caFile, prefix string
	timeout                           time.Duration
}

func redisFlags(flags *cli.Flags) *redisOptions {
	o := &redisOptions{}
	flags.StringVar(&o.url, "redis-url", "", "rediss://[USER@]HOST[:PORT][/DATABASE] of a Redis for all replicas of the resolver, which then ask registries together once per --ttl; never Argo CD's own (docs/replicas.md)")
	flags.StringVar(&o.passwordFile, "redis-password-file", "", "file with the password of --redis-url, read again for each connection")
	flags.StringVar(&o.caFile, "redis-ca-file", "", "file with the certificates that vouch for --redis-url; default the system's")
	flags.StringVar(&o.prefix, "redis-prefix", "default", "keys in Redis begin with digestlock:PREFIX: ; one for all resolvers with the same registries and credentials")
	flags.DurationVar(&o.timeout, "redis-timeout", 250*time.Millisecond, "give Redis this long for one call; past it, registries are asked without it for 5 s")
	return o
}

// open returns a resolver in front of backend that shares its answers, or nil.
func (o redisOptions) open(backend cache.Resolver, c cache.Options, log *slog.Logger, metrics prometheus.Registerer) (*shared.Resolver, error) {
	if o.url == "" {
		return nil, nil
	}
	if !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(o.prefix) {
		return nil, cli.Usage("use small letters, digits and -", "--redis-prefix %q", o.prefix)
	}
	if o.timeout <= 0 {
		return nil, cli.Usage("see \"digestlock serve --help\"", "--redis-timeout is out of range")
	}
	at, err := shared.ParseURL(o.url)
	if err != nil {
		return nil, cli.Usage("for example rediss://redis.example.com:6379, with the password in --redis-password-file", "--redis-url: %w", err)
	}
	if o.passwordFile != "" {
		if err := shared.ReadPassword(at, o.passwordFile); err != nil {
			return nil, fault.New(fault.SecretFile, "put the password of --redis-url into the file", "--redis-password-file: %w", err)
		}
	}
	if o.caFile != "" {
		if at.TLSConfig == nil {
			return nil, cli.Usage("begin --redis-url with rediss://", "--redis-ca-file without TLS")
		}
		if err := shared.ReadCA(at, o.caFile); err != nil {
			return nil, fault.New(fault.SecretFile, "put the authority's certificate into the file, in PEM", "--redis-ca-file: %w", err)
		}
	}
	return shared.New(backend, shared.Options{
		Redis: at, Prefix: o.prefix, TTL: time.Duration(cache.DueFrom * float64(c.TTL)), NegativeTTL: c.NegativeTTL,
		Timeout: o.timeout, Log: log, Registerer: metrics,
	}), nil
}
