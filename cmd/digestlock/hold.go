package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/plugin"
)

const holdUsage = `IMAGE [DIR] --reason TEXT [FLAGS]

Keeps the pin of IMAGE in DIR/digest-lock.yaml (default: the current directory) where it is, or moves it to --digest first,
and writes there why. While the hold is in force, nothing takes the pin away: neither the companion nor mode live. It edits
the file in your checkout, asks nobody, and takes effect once you commit and push.

Without --rejected the pin stays whatever is pushed. With it only that digest is kept out: the next push is adopted and ends
the hold. With --until it is over by itself then. "digestlock release" takes it away.

IMAGE may be short, "server" or "backend/server:latest", where that means one pin of the lock.`

const releaseUsage = `IMAGE [DIR] [FLAGS]

Takes the hold of IMAGE out of DIR/digest-lock.yaml (default: the current directory), so that its pin follows its tag again.
The digest stays until the companion sees the tag elsewhere. It edits the file in your checkout, asks nobody, and takes
effect once you commit and push.

IMAGE may be short, "server" or "backend/server:latest", where that means one pin of the lock.`

const dryRunUsage = "say what would change, and leave the file as it is"

func hold(_ context.Context, env cli.Env, args []string) error {
	now := time.Now().UTC()
	var h lock.Hold
	flags := cli.NewFlags("digestlock hold", holdUsage)
	digest := flags.String("digest", "", "move the pin to this `digest`, and hold it there: a rollback of one image")
	flags.StringVar(&h.Rejected, "rejected", "", "keep the pin from this `digest` only; it follows its tag again with the next push")
	flags.StringVar(&h.Reason, "reason", "", "why, for those who find the hold later (required)")
	flags.Func("until", "`when` the hold is over: a day, which begins at midnight UTC (2026-12-01), an RFC 3339 time, or for how long (72h)",
		func(v string) (err error) {
			h.Until, err = parseUntil(v, now)
			return err
		})
	dryRun := flags.Bool("dry-run", false, dryRunUsage)
	args, err := flags.Parse(env, args, 2)
	if err != nil {
		return err
	}
	for _, f := range [][2]string{{"--digest", *digest}, {"--rejected", h.Rejected}} {
		if f[1] != "" && !image.IsDigest(f[1]) {
			return cli.Usage("it is sha256: and 64 lower-case hex digits; \"digestlock history\" lists those that ran", "%s: %q is not a digest", f[0], f[1])
		}
	}
	if strings.TrimSpace(h.Reason) == "" {
		return cli.Usage("for example: --reason \"the new build does not start\"", "no --reason: who finds the hold later has to know why it is there")
	}
	return edit(env, args, *dryRun, func(p lock.Pin) (lock.Pin, error) {
		if *digest != "" && *digest != p.Digest {
			p.Digest, p.ResolvedAt = *digest, now // so that no older look at the registry moves it
		}
		if p.Digest == h.Rejected {
			return p, cli.Usage("give --digest to move it to the one that is to run", "--rejected: %s is the digest that the hold would keep %s at", h.Rejected, p.Image)
		}
		p.Hold = &h
		return p, nil
	})
}

func release(_ context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock release", releaseUsage)
	dryRun := flags.Bool("dry-run", false, dryRunUsage)
	args, err := flags.Parse(env, args, 2)
	if err != nil {
		return err
	}
	return edit(env, args, *dryRun, func(p lock.Pin) (lock.Pin, error) {
		p.Hold = nil
		return p, nil
	})
}

// parseUntil reads when a hold is over, which has to come yet.
func parseUntil(v string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, v)
	if err != nil {
		t, err = time.Parse(time.RFC3339, v)
	}
	if d, notLong := time.ParseDuration(v); err != nil && notLong == nil {
		t, err = now.Add(d), nil
	}
	if err != nil {
		return t, fmt.Errorf("%q is no day (2026-12-01), no RFC 3339 time and no duration (72h)", v)
	}
	t = t.UTC().Truncate(time.Second)
	if !t.After(now) {
		return t, fmt.Errorf("%q is %s, which is over already", v, stamp(t))
	}
	return t, nil
}

// edit changes the pin that the arguments IMAGE [DIR] mean, and says what that did and what is next.
func edit(env cli.Env, args []string, dryRun bool, change func(lock.Pin) (lock.Pin, error)) error {
	if len(args) == 0 {
		return cli.Usage("for example: ghcr.io/acme/backend/server:latest, or server", "no image given")
	}
	dir := append(args[1:], ".")[0]
	file := filepath.Join(dir, lock.FileName)
	d, _, err := plugin.ReadLock(dir)
	if err != nil {
		return err
	}
	if d == nil {
		return fault.New(fault.NotLocked, "give the overlay's directory, and have its lock committed first: the companion does that", "there is no %s", file)
	}
	was, err := findPin(d, args[0], file)
	if err != nil {
		return err
	}
	now, err := change(was)
	if err != nil {
		return err
	}
	changed := d.With(now).Format()
	same := string(changed) == string(d.Format())
	if !same && !dryRun {
		if err := replace(file, changed); err != nil {
			return fault.New(fault.Output, "give a directory that this user may write", "write %s: %w", file, err)
		}
	}
	_, err = fmt.Fprint(env.Stdout, edited(was, now), next(file, now.Image, same, dryRun))
	return err
}

// edited says what happened to a pin.
func edited(was, now lock.Pin) string {
	var b strings.Builder
	b.WriteString(now.Image + "\n")
	if was.Digest == now.Digest {
		b.WriteString("  digest  " + now.Digest + ", as before\n")
	} else {
		b.WriteString("  digest  " + now.Digest + ", was " + was.Digest + "\n")
	}
	whole := func(digest string) string { return digest }
	before, after := holding(was.Hold, whole), holding(now.Hold, whole)
	b.WriteString("  hold    " + after)
	if before != after {
		b.WriteString("\n          was: " + before)
	}
	return b.String() + "\n"
}

func next(file, image string, same, dryRun bool) string {
	switch {
	case same:
		return file + " says so already: nothing to do\n"
	case dryRun:
		return "dry run: " + file + " is as it was\n"
	}
	return "wrote " + file + "\nnext:   git commit " + shellQuote(file) + " && git push\n"
}

// holding says in words what a hold does, with the digest as given.
func holding(h *lock.Hold, digest func(string) string) string {
	if h == nil {
		return "none, it follows its tag"
	}
	text := "stays there whatever its tag does"
	if h.Rejected != "" {
		text = "keeps out " + digest(h.Rejected)
	}
	if !h.Until.IsZero() {
		text += ", until " + stamp(h.Until)
	}
	return fault.Line(text + ": " + cmp.Or(h.Reason, "no reason given"))
}

// shellQuote returns s as a POSIX shell reads it back.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+@%", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 && !strings.HasPrefix(s, "-") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// findPin returns the one pin of d that arg means. File is for the error.
func findPin(d *lock.Document, arg, file string) (lock.Pin, error) {
	images := make([]string, len(d.Pins))
	for i, p := range d.Pins {
		images[i] = p.Image
	}
	name, err := meant(images, arg, file)
	if err != nil {
		return lock.Pin{}, err
	}
	p, _ := d.Find(name)
	return p, nil
}

// meant returns the one of the normalised images that arg means: all of it, or the last elements of its path, with or
// without its tag. Where is the place of the images, for the error.
func meant(images []string, arg, where string) (string, error) {
	if slices.Contains(images, arg) {
		return arg, nil
	}
	ref, err := image.Parse(arg)
	if err == nil && ref.Digest != "" {
		err = fmt.Errorf("image %q: a pin is of a tag, leave the digest away", arg)
	}
	if err != nil {
		return "", cli.Usage("for example: ghcr.io/acme/backend/server:latest, or server", "%w", err)
	}
	var found []string
	for _, i := range images {
		name := i[:strings.LastIndexByte(i, ':')]
		if i == ref.String() || strings.HasSuffix(i, "/"+arg) || name == arg || strings.HasSuffix(name, "/"+arg) {
			found = append(found, i)
		}
	}
	switch {
	case len(images) == 0:
		return "", fault.New(fault.NotLocked, "see whether this is the right directory", "%s has no pin at all", where)
	case len(found) == 0:
		return "", fault.New(fault.NotLocked, "name one of these: "+strings.Join(images, ", "), "%s has no pin of %q", where, arg)
	case len(found) > 1:
		return "", cli.Usage("name one of these: "+strings.Join(found, ", "), "%q means more than one pin of %s", arg, where)
	}
	return found[0], nil
}
