package companion

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// move is one pin that a commit moves.
type move struct {
	lock.Change
	dir  string
	apps []string
}

// shortDigest is how many hex digits of a digest a subject shows, as many as docker shows of an image ID.
const shortDigest = 12

// message returns the commit message: what moved in the subject, and for each image its full reference, both digests,
// and where it is rendered.
func message(moves []move) string {
	slices.SortStableFunc(moves, func(a, b move) int {
		return strings.Compare(a.Image+" "+a.Old+" "+a.New+" "+a.dir, b.Image+" "+b.Old+" "+b.New+" "+b.dir)
	})
	var body strings.Builder
	var last lock.Change
	images := map[string]bool{}
	for _, m := range moves {
		images[m.Image] = true
		if m.Change != last {
			old := m.Old
			if old == "" {
				old = "(new)"
			}
			fmt.Fprintf(&body, "\n%s\n  %s → %s\n", m.Image, old, m.New)
			last = m.Change
		}
		apps := slices.Compact(slices.Sorted(slices.Values(m.apps)))
		fmt.Fprintf(&body, "  in %s for %s\n", oneLine(lockFile(m.dir)), oneLine(strings.Join(apps, ", ")))
	}
	subject := fmt.Sprintf("build: auto-update %d images", len(images))
	if len(images) == 1 {
		subject = fmt.Sprintf("build: auto-update %s to %s", shortName(moves[0].Image), short(moves[0].New))
	}
	return subject + "\n" + body.String()
}

// shortName returns the last two components of an image's repository: what a team calls it.
func shortName(full string) string {
	ref, err := image.Parse(full)
	if err != nil {
		return full
	}
	parts := strings.Split(ref.Repository, "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/")
}

func short(digest string) string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	return algorithm + ":" + hex[:min(shortDigest, len(hex))] + "…"
}

// oneLine keeps line breaks, and whatever else does not show as it is, out of a commit message: whoever renders names
// applications and paths.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
