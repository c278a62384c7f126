package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/plugin"
)

const doctorUsage = `[IMAGE... | DIR] [FLAGS]

Checks what a render needs, one line each: ok, warn or FAILED, with what to do. For each IMAGE, or each mutable image of
the overlay in DIR (default: the current directory), it asks the registry as the resolver does, and then the resolver
itself; at the end it renders the overlay. It records nothing, and no line holds a password or token.

Registries see the process that asks: run it in the resolver's container, with the resolver's own flags or variables, to
see its network, its credentials and its --state-dir. In the plugin's container, which has no credentials, the lines
about the resolver are those that count. On a laptop, --server="" leaves the resolver out. Exit code 1: something FAILED.`

// maxDoctorImages bounds the arguments: each image costs the registry three requests.
const maxDoctorImages = 100

func doctor(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock doctor", doctorUsage)
	o := overlayFlags(flags)
	format := flags.StringP("output", "o", "text", "text or json")
	stateDir := flags.String("state-dir", "", "the resolver's directory for its ledger, to check it too")
	tokenFile := flags.String("token-file", "", "the resolver's file with bearer tokens, to check it too")
	project := flags.String("project", plugin.Project(env.Getenv), "Argo CD project whose credentials to look with; see --credentials-dir")
	args, err := flags.Parse(env, args, maxDoctorImages)
	if err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return cli.Usage("see \"digestlock doctor --help\"", "--output: %q is neither text nor json", *format)
	}
	if o.offline {
		return cli.Usage("leave --offline out", "--offline: doctor is there to ask")
	}
	isOverlay := len(args) == 0 || len(args) == 1 && isDir(args[0])
	dir := args
	if !isOverlay {
		dir = nil
	}
	r, err := o.unresolved(env, dir)
	if err != nil {
		return err
	}
	keychain, err := newKeychain(o.credentials)
	if err != nil {
		return err
	}
	ctx, cancel := o.deadline(ctx)
	defer cancel()
	c := &checkup{report: report{out: env.Stdout, quiet: *format == "json"}, registries: *o.registries, scope: keychain.Scope(*project)}
	c.registries.Keychain = keychain
	if r.Project = *project; r.Project != "" {
		c.source = &lock.Source{Project: r.Project}
	}
	c.files(*stateDir, *tokenFile)
	c.resolver(ctx, o)
	if isOverlay {
		r.Resolver = c.asks
		c.overlay(ctx, r)
	} else {
		for _, arg := range args {
			c.image(ctx, arg)
		}
	}
	return c.result()
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// checkup is a report, and what is known while it is made.
type checkup struct {
	report
	registries registry.Options
	scope      string          // of credentials, for the registries
	source     *lock.Source    // the same for the resolver
	asks       plugin.Resolver // what renders ask; nil when it cannot be reached
	client     *api.Client     // the same when it is a resolver process, else nil
}

// failLookup is fail for the error of a lookup, which may leave code and hint to whoever tells people.
func (c *checkup) failLookup(of, name, found string, err error) {
	code, hint := plugin.Remedy(err)
	c.fail(of, name, found, &fault.Error{Err: err, Code: cmp.Or(fault.CodeOf(err), code), Hint: cmp.Or(fault.Hint(err), hint)})
}

// theResolver is what its checks are listed under.
const theResolver = "resolver"

// files checks what lies in the resolver's container.
func (c *checkup) files(stateDir, tokenFile string) {
	if tokenFile != "" {
		if tokens, err := api.Tokens(tokenFile); err != nil {
			c.fail(theResolver, "token-file", "", fault.New(fault.SecretFile, door.TokensHint, "--token-file: %w", err))
		} else {
			c.ok(theResolver, "token-file", "%s has %d", tokenFile, len(tokens))
		}
	}
	if stateDir != "" {
		if sources, err := daemon.CheckLedger(stateDir); err != nil {
			c.fail(theResolver, "state-dir", "", err)
		} else {
			c.ok(theResolver, "state-dir", "%s can be written, and its ledger read: sources=%d", stateDir, sources)
		}
	}
}

// resolver checks that renders can reach what they ask.
func (c *checkup) resolver(ctx context.Context, o *overlay) {
	found := socket(o.server)
	asks, err := o.resolver()
	if err == nil {
		_, err = asks.Resolve(ctx, nil, nil, nil)
	}
	if err != nil {
		c.fail(theResolver, "socket", found, err)
		return
	}
	c.asks = asks
	if client, ok := asks.(*api.Client); ok {
		c.client = client
		c.ok(theResolver, "socket", "%s answers%s", o.server, prefixed(", ", found))
	}
}

func prefixed(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// socket says who may use the resolver's socket, "" when there is none.
func socket(server string) string {
	path, ok := strings.CutPrefix(server, "unix://")
	if !ok {
		return ""
	}
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	owner := "?"
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprintf("%d:%d", s.Uid, s.Gid)
	}
	return fmt.Sprintf("%v of %s, for this process as %d:%d", info.Mode(), owner, os.Geteuid(), os.Getegid())
}

// overlay checks the images of an overlay, each against its lock, and that a render comes about.
func (c *checkup) overlay(ctx context.Context, r plugin.Render) {
	refs, locked, err := r.Images(ctx)
	if err != nil {
		c.fail(r.Dir, "overlay", "", err)
		return
	}
	pins := "no " + lock.FileName
	if locked != nil {
		pins = fmt.Sprintf("pins=%d in %s", len(locked.Pins), lock.FileName)
	}
	c.ok(r.Dir, "overlay", "images=%d, %s", len(refs), pins)
	for _, ref := range refs {
		found := c.lookup(ctx, ref)
		c.lock(locked, found)
		c.answer(ctx, found)
	}
	if r.Resolver == nil {
		return // which has been said
	}
	res, err := r.Generate(ctx)
	if err != nil {
		c.fail(r.Dir, "render", "", err)
		return
	}
	c.ok(r.Dir, "render", "%v", res.Summary)
}

// image checks an image that somebody named.
func (c *checkup) image(ctx context.Context, text string) {
	ref, err := image.Parse(text)
	if err != nil {
		c.fail(text, "reference", "", fault.New(fault.BadReference, "write it as HOST/REPOSITORY:TAG; a directory is checked as an overlay", "%w", err))
		return
	}
	if ref.Digest != "" {
		c.ok(text, "reference", "%s has a digest: a render keeps it and asks nobody", ref)
		return
	}
	c.answer(ctx, c.lookup(ctx, ref))
}

// lookup asks the registry.
func (c *checkup) lookup(ctx context.Context, ref image.Ref) image.Resolution {
	of := ref.String()
	c.ok(of, "reference", "%s of %s, tag %s", ref.Repository, ref.Registry, ref.Tag)
	steps, found := registry.Examine(ctx, c.registries, c.scope, ref)
	for _, s := range steps {
		switch {
		case s.Err != nil:
			c.failLookup(of, s.Name, s.Text, s.Err)
		case s.Advice != "":
			c.add(check{Of: of, Check: s.Name, Status: isWarn, Text: s.Text, Fix: s.Advice})
		default:
			c.ok(of, s.Name, "%s", s.Text)
		}
	}
	return found
}

// lock compares what the registry serves with what renders use.
func (c *checkup) lock(locked *lock.Document, found image.Resolution) {
	of := found.Ref.String()
	p, ok := locked.Find(of)
	warn := func(fix, format string, args ...any) {
		c.add(check{Of: of, Check: "lock", Status: isWarn, Text: fmt.Sprintf(format, args...), Fix: fix})
	}
	const followed = "none, if the companion runs: it commits that in its next cycle"
	switch {
	case !ok:
		warn(followed, "%s has no pin for it", lock.FileName)
	case found.Err == nil && p.Digest != found.Digest && p.Hold.Keeps(found.Digest, found.At):
		c.ok(of, "lock", "%s holds it at %s and keeps it from what the registry serves: %q", lock.FileName, p.Digest, p.Hold.Reason)
	case found.Err == nil && p.Digest != found.Digest:
		warn(followed, "%s has %s, which the registry served at %s", lock.FileName, p.Digest, stamp(p.ResolvedAt))
	case found.Err != nil:
		c.ok(of, "lock", "%s has %s, which the registry served at %s: a render in mode follow or locked needs no registry", lock.FileName, p.Digest, stamp(p.ResolvedAt))
	default:
		c.ok(of, "lock", "%s has the same digest", lock.FileName)
	}
}

// answer compares what the resolver process says with what the registry has just said.
func (c *checkup) answer(ctx context.Context, found image.Resolution) {
	if c.client == nil {
		return
	}
	of := found.Ref.String()
	results, err := c.client.Resolve(ctx, c.source, nil, []image.Ref{found.Ref})
	if err == nil {
		err = results[0].Err
	}
	if err != nil {
		c.failLookup(of, theResolver, "", err)
		return
	}
	r := results[0]
	text := fmt.Sprintf("answers %s, which the registry served at %s", r.Digest, stamp(r.At))
	flush := fmt.Sprintf("run digestlock flush %s, or wait for the resolver's --ttl", of)
	switch {
	case r.Stale:
		c.add(check{Of: of, Check: theResolver, Status: isWarn, Text: text + ": stale", Fix: flush + "; if it stays, run this in the resolver's container"})
	case found.Err == nil && r.Digest != found.Digest:
		c.add(check{Of: of, Check: theResolver, Status: isWarn, Text: text + ": not what it serves now", Fix: flush})
	default:
		c.ok(of, theResolver, "%s", text)
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
