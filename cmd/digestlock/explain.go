package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/plugin"
)

const explainUsage = `[DIR|-] [FLAGS]

Says for each image reference of the overlay in DIR (default: the current directory), or of the manifests on stdin, which
digest a render gives it and where that comes from, or why it is left as it is. It decides as "digestlock generate" does
with the same flags, and records nothing. Exit code 1: a render would fail, and the table says where.

DECIDED BY is lock (digest-lock.yaml), hold (the lock, because its hold keeps it from where the tag stands), registry
(asked now), cache (the resolver asked within its TTL) or stale (the resolver's last answer, older than its TTL: the registry
cannot be asked, or is being asked).

With --diff it asks where all tags stand now, in any mode, and prints the references of the manifests that would change if
digest-lock.yaml followed: "-" as they are rendered with it, "+" as they would be. An image that it lacks, one that a hold
keeps and one that nothing renders any more are told as well. Exit code 0 with and without changes; nothing is written.`

// shownDigest is how much of a digest the table shows; -o json has all of it.
const shownDigest = len("sha256:") + 12

func explain(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock explain", explainUsage)
	o := overlayFlags(flags)
	format := flags.StringP("format", "o", "table", "table or json")
	diff := flags.Bool("diff", false, "print what would change if "+lock.FileName+" followed the tags")
	args, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	if *format != "table" && *format != "json" {
		return cli.Usage("see \"digestlock explain --help\"", "--format: %q is neither table nor json", *format)
	}
	if *diff && o.offline {
		return cli.Usage("leave one of the two away", "--diff asks where the tags stand, and --offline asks nobody")
	}
	r, ctx, end, err := o.render(ctx, env, args)
	if err != nil {
		return err
	}
	defer end()
	if *diff {
		r.Settings.Mode, r.Source = plugin.Live, nil // whatever the operator allows a render, and at any commit
	}
	e, err := r.Explain(ctx)
	if err != nil {
		return err
	}
	end()
	if err := show(env, e, *format, *diff); err != nil {
		return err
	}
	if e.Failed() {
		return fault.New(fault.WouldFail, "the rows with an error say why", "a render of this overlay would fail")
	}
	return nil
}

func show(env cli.Env, e plugin.Explanation, format string, diff bool) error {
	if format == "json" {
		enc := json.NewEncoder(env.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(e)
	}
	lines := table(e, time.Now())
	if diff {
		lines = changes(e)
	}
	for _, warning := range e.Warnings {
		lines = append(lines, coloured{"warning: " + line(warning), cli.Yellow})
	}
	var b strings.Builder
	colours := env.Colours(env.Stdout)
	for _, l := range lines {
		if colours {
			l.text = l.colour.Paint(l.text)
		}
		b.WriteString(l.text + "\n")
	}
	_, err := env.Stdout.Write([]byte(b.String()))
	return err
}

// coloured is a line and its colour, where there are any.
type coloured struct {
	text   string
	colour cli.Colour
}

func table(e plugin.Explanation, now time.Time) []coloured {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
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
	_ = t.Flush() // into memory
	lines := []coloured{}
	for i, text := range strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n") {
		l := coloured{text: text}
		switch {
		case i > 0 && e.Rows[i-1].Error != "":
			l.colour = cli.Red
		case i > 0 && e.Rows[i-1].DecidedBy == plugin.ByStale:
			l.colour = cli.Yellow
		}
		lines = append(lines, l)
	}
	return lines
}

// changes lists what an advance of the lock changes, in the form of a unified diff of the references.
func changes(e plugin.Explanation) []coloured {
	var lines []coloured
	hunk := func(where, note string, references ...string) {
		lines = append(lines, coloured{"@@ " + line(where) + " @@ " + line(note), cli.Cyan})
		for _, r := range references {
			l := coloured{text: r[:1] + line(r[1:])}
			switch r[0] {
			case '-':
				l.colour = cli.Red
			case '+':
				l.colour = cli.Green
			}
			lines = append(lines, l)
		}
	}
	for _, r := range e.Rows {
		name := strings.TrimSuffix(r.Rendered, r.Digest)
		switch where := r.Object + " " + r.Field; {
		case r.Error != "":
			hunk(where, "error: "+r.Error, " "+r.Value)
		case r.Rejected != "":
			hunk(where, "held, the tag stands at "+r.Rejected, " "+r.Rendered)
		case r.Digest != "" && r.Locked == "":
			hunk(where, "new", "-"+r.Value, "+"+r.Rendered)
		case r.Digest != r.Locked:
			hunk(where, "moved", "-"+name+r.Locked, "+"+r.Rendered)
		}
	}
	for _, p := range e.Unused {
		hunk(lock.FileName, "nothing renders it", " "+p.Image+"@"+p.Digest)
	}
	if len(lines) > 0 {
		lines = append([]coloured{{"--- rendered with " + lock.FileName, ""}, {"+++ rendered with what the tags stand for now", ""}}, lines...)
	}
	return lines
}

// line keeps what came from an overlay on its line and in its column.
func line(s string) string { return cmp.Or(strings.Join(strings.Fields(s), " "), "-") }
