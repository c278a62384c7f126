package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/plugin"
)

// gcPercent suits a process that lives for one render: measured over 900 real overlays, 400 took 53 s where the
// default took 68 s; switching the collector off is slower from 100 objects on.
const gcPercent = 400

const generateUsage = `[DIR] [FLAGS]

Renders the kustomize overlay in DIR (default: the current directory) and prints its manifests, with the digest put to
every mutable image tag. Digests come from digest-lock.yaml in DIR; images that it does not have yet are resolved.
Nothing is printed unless everything is pinned. Exit code 1: it could not be done. 2: wrong usage.

In Argo CD the Application's plugin parameters have the names of the flags below and win over them, within
--allow-modes. On a laptop, --server="" asks the registries directly, with your docker credentials.`

func generate(ctx context.Context, env cli.Env, args []string) error {
	debug.SetGCPercent(gcPercent)
	start := time.Now()
	flags := cli.NewFlags("digestlock generate", generateUsage)
	o := overlayFlags(flags)
	args, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	r, ctx, cancel, err := o.render(ctx, env, args)
	if err != nil {
		return err
	}
	defer cancel()
	r.Source = plugin.Source(env.Getenv)
	res, err := r.Generate(ctx)
	if err != nil {
		return err
	}
	if _, err := env.Stdout.Write(res.Manifests); err != nil {
		return fault.New(fault.Output, "the reader of stdout went away, or its disk is full", "write manifests: %w", err)
	}
	_, _ = fmt.Fprintf(env.Stderr, "digestlock: %v in %v\n", res.Summary, time.Since(start).Round(time.Millisecond))
	return nil
}
