package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/migrate"
)

const migrateUsage = `[DIR...] [FLAGS]

Plans how the checkouts in DIR (default: the current directory) move from Argo CD Image Updater to digestlock, and changes
nothing without --write. It reads Applications and ApplicationSets with Image Updater's annotations, ImageUpdater resources,
.argocd-source-*.yaml and the digests that Image Updater wrote into kustomizations. Give several DIRs where Applications and
overlays are in different repositories. It asks nobody: neither a registry nor a cluster.

  plugin      the parameters that the Application gets in place of source.kustomize
  image       an image that follows its tag from now on
  seed        a digest that Image Updater wrote becomes a pin of digest-lock.yaml, so that the switch rolls nothing out
  gone        a setting that has no meaning any more, or is somewhere else now
  edit        a file that changes, comments and all other lines as they are
  delete      a file that Argo CD would refuse beside a plugin, or that is empty then
  left alone  what stays with Image Updater, and why: every strategy but digest, helm, several sources

An Application moves as a whole or not at all. Those that Image Updater does not touch, such as production on fixed tags, are
not touched here either.

Exit code 0: there is a plan, 1: a line says FAILED (the others are planned, and written, all the same), 2: wrong usage.`

// maxCheckouts bounds the arguments.
const maxCheckouts = 100

func migrateFrom(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock migrate", migrateUsage)
	format := flags.StringP("output", "o", "text", "text or json")
	write := flags.Bool("write", false, "change the files as planned, each one as a whole")
	dirs, err := flags.Parse(env, args, maxCheckouts)
	if err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return cli.Usage("see \"digestlock migrate --help\"", "--output: %q is neither text nor json", *format)
	}
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	plan, err := migrate.New(ctx, dirs, time.Now().UTC())
	if err != nil {
		return err
	}
	r := report{out: env.Stdout, quiet: *format == "json"}
	for _, f := range plan.Findings {
		switch {
		case f.Err != nil:
			r.fail(f.Of, f.Check, "", f.Err)
		case f.Warn:
			r.add(check{Of: f.Of, Check: f.Check, Status: isWarn, Text: f.Text, Fix: f.Fix})
		default:
			r.ok(f.Of, f.Check, "%s", f.Text)
		}
	}
	if *write {
		if err := apply(plan.Changes); err != nil {
			return err
		}
	}
	if !r.quiet {
		r.print("%s", afterwards(plan, *write))
	}
	return r.result()
}

// apply writes the changes, in their order. What it did not come to is planned again by the next run.
func apply(changes []migrate.Change) error {
	for _, c := range changes {
		err := error(nil)
		if c.Data != nil {
			err = replace(c.Path, c.Data)
		} else if err = os.Remove(c.Path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return fault.New(fault.Output, "let this user write there, and run again", "write %s: %w", c.Path, err)
		}
	}
	return nil
}

// afterwards says what is next.
func afterwards(plan *migrate.Plan, written bool) string {
	if len(plan.Changes) == 0 {
		return "nothing to change\n"
	}
	var b strings.Builder
	if written {
		b.WriteString("\nwrote:\n")
	} else {
		b.WriteString("\nfiles, which are as they were:\n")
	}
	for _, c := range plan.Changes {
		verb := "  write   "
		if c.Data == nil {
			verb = "  delete  "
		}
		b.WriteString(verb + shellQuote(c.Path) + "\n")
	}
	if !written {
		b.WriteString("next:   the same with --write, in a checkout without other changes\n")
	} else {
		b.WriteString("next:   git diff, digestlock explain --offline in an overlay, then one commit; the plugin has to be installed when it is pushed\n")
	}
	b.WriteString("back:   git revert that commit; if digest-lock.yaml is in conflict, delete it\n")
	return b.String()
}
