package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/internal/remotebase"
	"github.com/digestlock/digestlock/plugin"
)

const (
	// defaultServer is where the manifests of this project put the resolver's socket.
	defaultServer = "unix:///run/digestlock/resolver.sock"

	// defaultTimeout keeps a margin below the 60 s that Argo CD gives a plugin by default, transfer of the repository
	// included, and after which it kills without a word (measured, v3.5.7).
	defaultTimeout = 45 * time.Second
)

// overlay is what the commands have in common that look at one: its settings, and who resolves for it.
type overlay struct {
	settings          plugin.Settings
	allowed           []plugin.Mode
	server, tokenFile string
	registries        *registry.Options // for asking them directly
	credentials       credentials.Options
	timeout           time.Duration
	enableHelm        bool
	helm              string
	offline           bool
	remote            []string
}

// overlayFlags adds the flags of an overlay.
func overlayFlags(flags *cli.Flags) *overlay {
	o := &overlay{settings: plugin.Defaults(), allowed: plugin.Modes()}
	for _, p := range plugin.Parameters() {
		if p.Bool {
			flags.BoolFunc(p.Name, p.Tooltip, func(v string) error { return p.Set(&o.settings, v) })
			continue
		}
		usage := p.Tooltip
		if p.Default != "" {
			usage += " (default " + p.Default + ")"
		}
		flags.Func(p.Name, usage, func(v string) error { return p.Set(&o.settings, v) })
	}
	flags.Func("allow-modes", "operator's ceiling: `modes` that an Application may choose, comma separated (default locked,follow,live)",
		func(v string) (err error) {
			o.allowed, err = parseModes(v)
			return err
		})
	flags.StringVar(&o.server, "server", defaultServer, "resolver: unix:///path or http(s)://host:port; empty asks the registries directly")
	flags.StringVar(&o.tokenFile, "server-token-file", "", "file with the bearer token for a resolver over http")
	o.registries = registryFlags(flags)
	flags.BoolVar(&o.enableHelm, "enable-helm", false, "operator's permission to inflate helm charts that are in the repository; helm runs with the rights of this process")
	flags.StringVar(&o.helm, "helm-command", "/usr/local/bin/helm", "absolute path of the helm binary, with --enable-helm")
	flags.BoolVar(&o.offline, "offline", false, "ask neither resolver nor registry: "+lock.FileName+" decides, in any mode, and an image that it lacks is an error")
	credentialsFlags(flags, &o.credentials)
	flags.StringSliceVar(&o.remote, "allow-remote", nil, "operator's list: `host[:port]` that kustomizations may name https files and Git bases on, with ?ref=TAG (repeatable)")
	flags.DurationVar(&o.timeout, "timeout", defaultTimeout, "give up after this long; keep it below Argo CD's own limit of 60s")
	return o
}

// render returns the render that the flags, the arguments and the Application's parameters ask for, and its context. Who
// calls it calls end before printing anything.
func (o *overlay) render(ctx context.Context, env cli.Env, args []string) (r plugin.Render, _ context.Context, end func(), err error) {
	if r, err = o.unresolved(env, args); err != nil {
		return r, nil, nil, err
	}
	r.Source = plugin.Source(env.Getenv)
	if o.offline {
		r.Settings.Mode = plugin.Locked
	} else if r.Resolver, err = o.resolver(); err != nil {
		return r, nil, nil, err
	}
	ctx, cancel := o.deadline(ctx)
	progress := env.Progress("digestlock")
	r.Progress = progress.Say
	return r, ctx, func() {
		progress.Done()
		cancel()
	}, nil
}

// unresolved returns the render without a resolver, and without a source to report.
func (o *overlay) unresolved(env cli.Env, args []string) (plugin.Render, error) {
	r := plugin.Render{Dir: ".", Settings: o.settings, Project: plugin.Project(env.Getenv)}
	switch {
	case len(args) == 1 && args[0] == "-":
		r.Manifests = env.Stdin
	case len(args) == 1:
		r.Dir = args[0]
	}
	if err := r.Settings.Read(env.Getenv("ARGOCD_APP_PARAMETERS")); err != nil {
		return r, err
	}
	if err := r.Settings.Allow(o.allowed); err != nil {
		return r, err
	}
	remote, err := remotebase.New(o.remote)
	if err != nil {
		return r, cli.Usage(fault.Hint(err), "--allow-remote: %w", err)
	}
	r.Settings.Build.Remote = remote
	if o.enableHelm && !filepath.IsAbs(o.helm) {
		return r, cli.Usage("give the path that the image has helm at", "--helm-command: %q is not an absolute path", o.helm)
	}
	if !o.enableHelm {
		o.helm = ""
	}
	r.Settings = r.Settings.Surround(env.Getenv, o.helm)
	return r, nil
}

func (o *overlay) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, o.timeout, fault.New(fault.Deadline,
		"see what took so long in front of this; --timeout must stay below Argo CD's own limit", "no result within --timeout=%v", o.timeout))
}

func (o *overlay) resolver() (plugin.Resolver, error) {
	if o.server == "" {
		keychain, err := newKeychain(o.credentials)
		if err != nil {
			return nil, err
		}
		o.registries.Keychain = keychain
		return direct{registry.New(*o.registries), keychain}, nil
	}
	token, err := api.Token(o.tokenFile)
	if err != nil {
		return nil, fault.New(fault.SecretFile, "give a file with the resolver's token", "--server-token-file: %w", err)
	}
	c, err := api.NewClient(o.server, token)
	if err != nil {
		return nil, cli.Usage("for example: unix:///run/digestlock/resolver.sock", "--server: %w", err)
	}
	return c, nil
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

// direct asks the registries from this process. There is no ledger to report to.
type direct struct {
	registry *registry.Client
	keychain *credentials.Keychain
}

func (d direct) Resolve(ctx context.Context, source *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	if ctx.Err() != nil {
		return nil, errors.Join(image.ErrUnavailable, context.Cause(ctx))
	}
	scope := ""
	if source != nil {
		scope = d.keychain.Scope(source.Project)
	}
	return d.registry.Resolve(ctx, scope, refs), nil
}
