package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/history"
	"github.com/digestlock/digestlock/internal/lock"
)

const historyUsage = `[DIR] [FLAGS]

Says what each commit did to DIR/digest-lock.yaml (default: the current directory), newest first, from the checkout that DIR
is in, with git and without a network. What is not committed is not shown.

CHANGE is added, moved, reverted (to a digest that was deployed before), dropped, held, released, known (there when the history of a
shallow clone begins) or unreadable (a lock that a person broke). BY is the companion, or the author of the commit.

It follows the branch itself, as "git log --first-parent": what a pull request brought is shown at its merge, with who
merged it. A file that was moved begins anew.

With -o json: an object with "cutOff", whether the clone is shallow, and "events", each with "commit" (hash, when, author,
email, subject, companion: its version, merge), "kind" (as CHANGE), "image", "old" and "new" (digests), "undoes" (the commit
whose digest was taken away), "hold" (rejected, reason, until) and "error". What does not apply is left out.`

func showHistory(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock history", historyUsage)
	image := flags.String("image", "", "show one `image` only; it may be short, as \"server\"")
	commits := flags.IntP("number", "n", 0, "show the newest `N` commits only; 0 means all")
	format := flags.StringP("output", "o", "table", "table or json")
	args, err := flags.Parse(env, args, 1)
	if err != nil {
		return err
	}
	switch {
	case *format != "table" && *format != "json":
		return cli.Usage("see \"digestlock history --help\"", "--output: %q is neither table nor json", *format)
	case *commits < 0:
		return cli.Usage("0 means all", "--number: %d is less than none", *commits)
	}
	dir := append(args, ".")[0]
	h, err := history.Read(ctx, dir, env.Getenv)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, lock.FileName)
	if *image != "" {
		if h.Events, err = ofImage(h.Events, *image, "the history of "+file); err != nil {
			return err
		}
	}
	h.Events = newest(h.Events, *commits)
	if *format == "json" {
		enc := json.NewEncoder(env.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(h)
	} else {
		err = historyTable(env.Stdout, h, file)
	}
	if err != nil {
		return fault.New(fault.Output, "the reader of stdout went away, or its disk is full", "write history: %w", err)
	}
	return nil
}

// ofImage returns the events of the one image that arg means, and the commits that cannot be read.
func ofImage(events []history.Event, arg, where string) ([]history.Event, error) {
	var images []string
	for _, e := range events {
		if e.Image != "" {
			images = append(images, e.Image)
		}
	}
	slices.Sort(images)
	name, err := meant(slices.Compact(images), arg, where)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(events, func(e history.Event) bool { return e.Image != name && e.Kind != history.Unreadable }), nil
}

// newest returns the events of the first n commits, of all for 0.
func newest(events []history.Event, n int) []history.Event {
	seen := 0
	for i, e := range events {
		if i == 0 || e.Commit != events[i-1].Commit {
			seen++
		}
		if n > 0 && seen > n {
			return events[:i]
		}
	}
	return events
}

func historyTable(w io.Writer, h history.History, file string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(h.Events) == 0 {
		_, _ = fmt.Fprintf(t, "no commit has changed %s\n", file)
	} else {
		_, _ = fmt.Fprintln(t, "WHEN\tCOMMIT\tBY\tIMAGE\tCHANGE\tDETAIL\tSUBJECT")
	}
	for _, e := range h.Events {
		c := e.Commit
		by := c.Author
		switch {
		case c.Companion != "":
			by = "companion"
		case c.Merge:
			by += " (merge)"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", stamp(c.When), shortHash(c.Hash), cell(by), cell(e.Image), e.Kind, cell(detail(e)), cell(c.Subject))
	}
	if h.CutOff {
		_, _ = fmt.Fprintln(t, "warning: this clone is shallow, and older commits are not in it: git fetch --unshallow")
	}
	return t.Flush()
}

func detail(e history.Event) string {
	switch e.Kind {
	case history.Moved:
		return short(e.Old) + " → " + short(e.New)
	case history.Reverted:
		return short(e.Old) + " → " + short(e.New) + ", undoes " + shortHash(e.Undoes)
	case history.Dropped:
		return short(e.Old)
	case history.Held:
		return holding(e.Hold, short)
	case history.Released:
		return "was: " + holding(e.Hold, short)
	case history.Unreadable:
		return e.Error
	default:
		return short(e.New)
	}
}

// shortHash is a commit as tables show it.
func shortHash(hash string) string { return hash[:min(10, len(hash))] }

// cell keeps what anybody may have written in its column, and away from the terminal.
func cell(s string) string { return cmp.Or(strings.TrimSpace(fault.Line(s)), "-") }
