package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/plugin"
)

const (
	// defaultServer is where the manifests of this project put the resolver's socket.
	defaultServer = "unix:///run/digestlock/resolver.sock"

	// defaultTimeout keeps a margin below the 60 s that Argo CD gives a plugin by default, transfer of the repository
	// included, and after which it kills without a word (measured, v3.5.7).
	defaultTimeout = 45 * time.Second

	// gcPercent suits a process that lives for one render: measured over 900 real overlays, 400 took 53 s where the
	// default took 68 s; switching the collector off is slower from 100 objects on.
	gcPercent = 400
)

const generateUsage = `[DIR] [FLAGS]

Renders the kustomize overlay in DIR (default: the current directory) and prints its manifests, with the digest put to
every mutable image tag. Digests come from digest-lock.yaml in DIR; images that it does not have yet are resolved.
Nothing is printed unless everything is pinned. Exit code 1: it could not be done. 2: wrong usage.

In Argo CD the Application's plugin parameters have the names of the flags below and win over them, within
--allow-modes. On a laptop,
--server="" asks the registries directly, with your docker credentials.`

func generate(ctx context.Context, env cli.Env, args []string) error {
	debug.SetGCPercent(gcPercent)
	start := time.Now()
	settings := plugin.Defaults()
	flags := cli.NewFlags("digestlock generate", generateUsage)
	for _, p := range plugin.Parameters() {
		if p.Bool {
			flags.BoolFunc(p.Name, p.Tooltip, func(v string) error { return p.Set(&settings, v) })
			continue
		}
		flags.Func(p.Name, fmt.Sprintf("%s (default %s)", p.Tooltip, p.Default), func(v string) error { return p.Set(&settings, v) })
	}
	server := flags.String("server", defaultServer, "resolver: unix:///path or http(s)://host:port; empty asks the registries directly")
	tokenFile := flags.String("server-token-file", "", "file with the bearer token for a resolver over http")
	insecure := flags.StringSlice("insecure-registry", nil, "host[:port] that may be asked over plain http, with --server=\"\"")
	timeout := flags.Duration("timeout", defaultTimeout, "give up after this long; keep it below Argo CD's own limit of 60s")
	allowed := plugin.Modes()
	flags.Func("allow-modes", "operator's ceiling: `modes` that an Application may choose, comma separated (default locked,follow,live)",
		func(v string) (err error) {
			allowed, err = parseModes(v)
			return err
		})
	rest, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	dir := "."
	if len(rest) == 1 {
		dir = rest[0]
	}
	if err := settings.Read(env.Getenv("ARGOCD_APP_PARAMETERS")); err != nil {
		return err
	}
	if err := settings.Allow(allowed); err != nil {
		return err
	}
	resolver, err := newResolver(*server, *tokenFile, *insecure)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fault.New("see what took so long in front of this; --timeout must stay below Argo CD's own limit", "no result within --timeout=%v", *timeout))
	defer cancel()
	res, err := plugin.Render{Dir: dir, Settings: settings, Source: plugin.Source(env.Getenv), Resolver: resolver}.Generate(ctx)
	if err != nil {
		return err
	}
	if _, err := env.Stdout.Write(res.Manifests); err != nil {
		return fault.New("the reader of stdout went away, or its disk is full", "write manifests: %w", err)
	}
	_, _ = fmt.Fprintf(env.Stderr, "digestlock: %v in %v\n", res.Summary, time.Since(start).Round(time.Millisecond))
	return nil
}

func parseModes(list string) ([]plugin.Mode, error) {
	var modes []plugin.Mode
	for name := range strings.SplitSeq(list, ",") {
		if !slices.Contains(plugin.Modes(), plugin.Mode(name)) {
			return nil, fmt.Errorf("%q is not a mode", name)
		}
		modes = append(modes, plugin.Mode(name))
	}
	return modes, nil
}

func newResolver(server, tokenFile string, insecure []string) (plugin.Resolver, error) {
	if server == "" {
		return direct{registry.New(registry.Options{Insecure: insecure})}, nil
	}
	token, err := readToken(tokenFile)
	if err != nil {
		return nil, err
	}
	c, err := api.NewClient(server, token)
	if err != nil {
		return nil, cli.Usage("see \"digestlock generate --help\"", "--server: %w", err)
	}
	return c, nil
}

// direct asks the registries from this process. There is no ledger to report to.
type direct struct{ registry *registry.Client }

func (d direct) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	if ctx.Err() != nil {
		return nil, errors.Join(image.ErrUnavailable, context.Cause(ctx))
	}
	return d.registry.Resolve(ctx, refs), nil
}

// readToken returns the first token of a token file, "" without a file.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	tokens, err := daemon.Tokens(file)
	if err != nil {
		return "", fmt.Errorf("--server-token-file: %w", err)
	}
	return tokens[0], nil
}
