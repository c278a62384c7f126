package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/plugin"
)

const explainUsage = `[DIR] [FLAGS]

Says for each image reference of the overlay in DIR (default: the current directory) which digest a render gives it and
where that comes from, or why it is left as it is. It decides as "digestlock generate" does with the same flags, and
records nothing. Exit code 1: a render would fail, and the table says where.`

// shownDigest is how much of a digest the table shows; -o json has all of it.
const shownDigest = len("sha256:") + 12

func explain(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock explain", explainUsage)
	o := overlayFlags(flags)
	format := flags.StringP("output", "o", "table", "table or json")
	args, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	if *format != "table" && *format != "json" {
		return cli.Usage("see \"digestlock explain --help\"", "--output: %q is neither table nor json", *format)
	}
	r, ctx, cancel, err := o.render(ctx, env, args)
	if err != nil {
		return err
	}
	defer cancel()
	e, err := r.Explain(ctx)
	if err != nil {
		return err
	}
	if err := show(env.Stdout, e, *format, time.Now()); err != nil {
		return err
	}
	if e.Failed() {
		return fault.New(fault.WouldFail, "the rows with an error say why", "a render of this overlay would fail")
	}
	return nil
}

func show(w io.Writer, e plugin.Explanation, format string, now time.Time) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(e)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "IMAGE\tDIGEST\tDECIDED BY\tAGE\tOBJECT\tFIELD")
	for _, r := range e.Rows {
		digest, by, age := r.Digest, string(r.DecidedBy), ""
		if len(digest) > shownDigest {
			digest = digest[:shownDigest]
		}
		if r.ResolvedAt != nil {
			age = max(0, now.Sub(*r.ResolvedAt)).Round(time.Second).String()
		}
		by = cmp.Or(by, r.Skipped, "error: "+r.Error)
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", line(r.Value), digest, line(by), age, line(r.Object), line(r.Field))
	}
	for _, warning := range e.Warnings {
		_, _ = fmt.Fprintf(t, "warning: %s\n", line(warning))
	}
	return t.Flush()
}

// line keeps what came from an overlay on its line and in its column.
func line(s string) string { return cmp.Or(strings.Join(strings.Fields(s), " "), "-") }
