package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/plugin"
)

const verifyUsage = `[DIR...] [FLAGS]

Checks the digest-lock.yaml of each overlay (default: the current directory), one line each: ok, warn or FAILED, with what to
do. For CI: it changes nothing, and asks nobody but with --fresh. Give it the parameters of the Application, as flags.

  lock       digest-lock.yaml can be read: no merge conflict, no unknown field, no image twice
  canonical  its bytes are those that digestlock writes, so that the next commit changes the lines that it has to and no others
  render     the overlay renders
  complete   each image with a mutable tag has its pin, so that a render of this commit asks nobody
  unused     a pin of what nothing renders any more: a warning
  hold       a hold that is over: a warning
  fresh      with --fresh: each pin is where its tag stands now, or a hold keeps it. In a repository with a companion that is a
             question of time, so that it suits a look before a release more than each pull request.

Exit code 0: nothing failed, 1: a line says FAILED, 2: wrong usage.`

// maxVerified bounds the arguments.
const maxVerified = 10_000

func verify(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock verify", verifyUsage)
	o := overlayFlags(flags)
	format := flags.StringP("output", "o", "text", "text or json")
	fresh := flags.Bool("fresh", false, "also ask where the tags stand now")
	strict := flags.Bool("strict", false, "let warnings fail too")
	dirs, err := flags.Parse(env, args, maxVerified)
	if err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return cli.Usage("see \"digestlock verify --help\"", "--output: %q is neither text nor json", *format)
	}
	if *fresh && o.offline {
		return cli.Usage("leave one of the two away", "--fresh asks where the tags stand, and --offline asks nobody")
	}
	o.offline = !*fresh
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	v := verification{report: report{out: env.Stdout, quiet: *format == "json"}, strict: *strict, now: time.Now()}
	for _, dir := range dirs {
		r, ctx, end, err := o.render(ctx, env, []string{dir})
		if err != nil {
			return err
		}
		if *fresh {
			r.Settings.Mode, r.Source = plugin.Live, nil // whatever the operator allows a render, and at any commit
		}
		v.overlay(ctx, dir, r)
		end()
	}
	return v.result()
}

// verification is a report about locks.
type verification struct {
	report
	strict bool
	now    time.Time
}

// overlay checks what is in one directory. Dir is its name for people.
func (v *verification) overlay(ctx context.Context, dir string, r plugin.Render) {
	if !v.lock(dir, r.Dir) {
		return
	}
	e, err := r.Explain(ctx)
	if err != nil {
		v.fail(dir, "render", "", err)
		return
	}
	images := byImage(e.Rows)
	v.ok(dir, "render", "images=%d", len(images))
	v.complete(dir, images)
	for _, p := range e.Unused {
		v.warn(dir, "unused", "take it out of "+lock.FileName, "%s: nothing renders it", p.Image)
	}
	if r.Settings.Mode == plugin.Live {
		v.fresh(dir, images)
	}
}

// lock checks the file, and reports whether it can be read.
func (v *verification) lock(of, dir string) bool {
	d, data, err := plugin.ReadLock(dir)
	if err != nil {
		v.fail(of, "lock", "", err)
		return false
	}
	if d == nil {
		v.ok(of, "lock", "no %s", lock.FileName)
		return true
	}
	v.ok(of, "lock", "pins=%d", len(d.Pins))
	if line, have, want := difference(data, d.Format()); line > 0 {
		v.add(check{
			Of: of, Check: "canonical", Status: isFailed, Text: fmt.Sprintf("%s:%d: %s", lock.FileName, line, differs(have, want)),
			Fix: "write it so, or restore the file from Git; digestlock hold, release and the companion write the whole file so",
		})
	} else {
		v.ok(of, "canonical", "as digestlock writes it")
	}
	for _, p := range d.Pins {
		if h := p.Hold; h != nil && !h.Until.IsZero() && !h.Until.After(v.now) {
			v.warn(of, "hold", "digestlock release "+p.Image+" "+shellQuote(of), "%s: its hold is over since %s", p.Image, stamp(h.Until))
		}
	}
	return true
}

// differs says how a line is not what it should be. The space around it would not show.
func differs(have, want string) string {
	have, want = strings.TrimSpace(have), strings.TrimSpace(want)
	if have == want {
		return fmt.Sprintf("%q has other spaces around it, or another end of line, than digestlock writes", have)
	}
	return fmt.Sprintf("%q, where digestlock writes %q", have, want)
}

// complete checks that the lock has all images.
func (v *verification) complete(dir string, images []plugin.Row) {
	missing := 0
	for _, i := range images {
		if i.Locked != "" {
			continue
		}
		missing++
		v.add(check{
			Of: dir, Check: "complete", Status: isFailed, Text: fmt.Sprintf("%s: %s has no pin for it (%s %s)", i.Image, lock.FileName, i.Object, i.Field),
			Code: fault.NotLocked, Fix: "render the overlay in mode follow, so that the companion adds the pin, or write it into " + lock.FileName,
		})
	}
	if missing == 0 {
		v.ok(dir, "complete", "each has its pin")
	}
}

// fresh checks where the tags stand, as the rows of a render in mode live say.
func (v *verification) fresh(dir string, images []plugin.Row) {
	for _, i := range images {
		switch {
		case i.Locked == "": // told already
		case i.Unasked != "":
			v.add(check{Of: dir, Check: "fresh", Status: isFailed, Text: i.Image + ": the registry cannot be asked: " + i.Unasked, Fix: "try again; digestlock doctor " + i.Image + " says what is wrong"})
		case i.Rejected != "":
			v.ok(dir, "fresh", "%s: held at %s, its tag stands at %s", i.Image, i.Digest, i.Rejected)
		case i.Digest != i.Locked:
			v.add(check{
				Of: dir, Check: "fresh", Status: isFailed, Text: fmt.Sprintf("%s: %s has %s, and its tag stands at %s", i.Image, lock.FileName, i.Locked, i.Digest),
				Fix: "none, if the companion runs: it commits that in its next cycle",
			})
		case i.DecidedBy == plugin.ByStale:
			v.warn(dir, "fresh", "try again", "%s: at %s, by an old answer of the resolver's", i.Image, i.Digest)
		default:
			v.ok(dir, "fresh", "%s: at %s", i.Image, i.Digest)
		}
	}
}

// warn adds a check that fails with --strict only.
func (v *verification) warn(of, name, fix, format string, args ...any) {
	status := isWarn
	if v.strict {
		status = isFailed
	}
	v.add(check{Of: of, Check: name, Status: status, Text: fmt.Sprintf(format, args...), Fix: fix})
}

// byImage returns the first row of each image that a render pins, sorted by image.
func byImage(rows []plugin.Row) []plugin.Row {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r plugin.Row) bool { return r.Skipped != "" })
	slices.SortStableFunc(rows, func(a, b plugin.Row) int { return strings.Compare(a.Image, b.Image) })
	return slices.CompactFunc(rows, func(a, b plugin.Row) bool { return a.Image == b.Image })
}

// difference returns the number of the first line in which two texts differ, and the line in each; 0 where none does.
func difference(have, want []byte) (line int, inHave, inWant string) {
	h, w := strings.SplitAfter(string(have), "\n"), strings.SplitAfter(string(want), "\n")
	at := func(lines []string, i int) string {
		return strings.Join(lines[min(i, len(lines)):min(i+1, len(lines))], "")
	}
	for i := range max(len(h), len(w)) {
		if a, b := at(h, i), at(w, i); a != b {
			return i + 1, a, b
		}
	}
	return 0, "", ""
}
