package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
)

// gcPercent suits a process that lives for one render: measured over 900 real overlays, 400 took 53 s where the
// default took 68 s; switching the collector off is slower from 100 objects on.
const gcPercent = 400

const generateUsage = `[DIR|-] [FLAGS]

Renders the kustomize overlay in DIR (default: the current directory) and prints its manifests, with the digest put to
every mutable image tag. Digests come from digest-lock.yaml in DIR; images that it does not have yet are resolved.
Nothing is printed unless everything is pinned. Exit code 1: it could not be done. 2: wrong usage.

With - it pins the manifests on stdin, which Helm, jsonnet or another plugin rendered, and digest-lock.yaml is the one in
the current directory. Of what it read, only the image references change: comments, quotes, anchors, order and line ends
stay. Let a failure in front of the pipe end all of it, or half a stream is pinned as if it were whole:
  bash -o pipefail -c 'helm template web ./chart | digestlock generate -'

In Argo CD the Application's plugin parameters have the names of the flags below and win over them, within
--allow-modes. On a laptop, --server="" asks the registries directly, with your docker credentials.`

func generate(ctx context.Context, env cli.Env, args []string) error {
	debug.SetGCPercent(gcPercent)
	start := time.Now()
	flags := cli.NewFlags("digestlock generate", generateUsage)
	o := overlayFlags(flags)
	output := flags.StringP("output", "o", stdout, "`file` to replace as a whole once everything is pinned; - is stdout")
	dryRun := flags.Bool("dry-run", false, "render, pin and print, and leave no trace: the resolver records nothing, so that nothing is committed, and --output is not written")
	args, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	r, ctx, end, err := o.render(ctx, env, args)
	if err != nil {
		return err
	}
	defer end()
	if c, ok := r.Resolver.(*api.Client); ok && strings.HasPrefix(o.server, "unix:") {
		r.Renders, r.Program = c, fingerprint() // over a network it would not be faster
	}
	if *dryRun {
		r.DryRun, *output = true, stdout
	}
	res, err := r.Generate(ctx)
	if err != nil {
		return err
	}
	end()
	if err := write(env, *output, res.Manifests); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(env.Stderr, "digestlock: %v in %v\n", res.Summary, time.Since(start).Round(time.Millisecond))
	return nil
}

// fingerprint tells this program from any other that may render for the same resolver: development builds share a version.
func fingerprint() string {
	name, err := os.Executable()
	if err != nil {
		return buildVersion
	}
	info, err := os.Stat(name)
	if err != nil {
		return buildVersion
	}
	return fmt.Sprint(buildVersion, info.Size(), info.ModTime().UnixNano())
}
