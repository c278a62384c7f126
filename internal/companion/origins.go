package companion

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/image"
)

// OriginReader is a Replica that can also say where images come from, by the project whose credentials may read them. The
// references have a tag and a digest. What it cannot say is not in the answer.
type OriginReader interface {
	Origins(ctx context.Context, images map[string][]image.Ref) (map[string]image.Origin, error)
}

const (
	// originsTimeout is how long a commit waits at most for what its message could say of the new images.
	originsTimeout = 3 * time.Second
	// maxOriginText bounds what a message has of it, in bytes.
	maxOriginText = 256
)

// addOrigins sets the origin of each move to a new digest, where it can be had in time. One replica is asked, once for
// all attempts at a commit.
func (u *updater) addOrigins(ctx context.Context, moves []move) {
	if u.origins == nil {
		u.origins = u.readOrigins(ctx, moves)
	}
	for i, m := range moves {
		o := u.origins[m.image+"@"+m.new]
		moves[i].revision, moves[i].source = revisionText(o.Revision), sourceText(o.Source)
	}
}

// readOrigins returns what the first replica says that can be asked, and never nil.
func (u *updater) readOrigins(ctx context.Context, moves []move) map[string]image.Origin {
	none := map[string]image.Origin{}
	wanted := u.newImages(moves)
	reader := u.looks.originReader()
	if reader == nil || len(wanted) == 0 {
		return none
	}
	ctx, cancel := within(ctx, originsTimeout)
	defer cancel()
	found, err := reader.Origins(ctx, wanted)
	if err != nil {
		u.c.o.Log.Debug("commit says nothing of sources", "error", err)
	}
	if found == nil {
		return none
	}
	return found
}

// newImages returns the digests that the moves adopt, by a project that may read them, at most as many as fit a request.
func (u *updater) newImages(moves []move) map[string][]image.Ref {
	wanted, seen := map[string][]image.Ref{}, map[string]bool{}
	for _, m := range moves {
		name := m.image + "@" + m.new
		ref, err := image.Parse(name)
		if m.new == m.old || m.new == "" || err != nil || seen[name] || len(seen) == maxAsk {
			continue
		}
		seen[name] = true
		project := u.looks.who(u.target.paths[m.dir].projects(), m.image, m.new)
		wanted[project] = append(wanted[project], ref)
	}
	return wanted
}

// What a message may have of an origin is one word of these characters: a builder's text can add no line, no "[skip ci]",
// and no reference of an image, by which callers with an OIDC token are shown commits.
const (
	letters       = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	revisionChars = letters + "._/+@-"
	sourceChars   = letters + "-._~:/?#@&+=%"
)

func only(s, chars string) bool {
	return len(s) <= maxOriginText && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(chars, r) })
}

// revisionText returns a commit, or what else a revision is called, and "" for any other text.
func revisionText(s string) string {
	if !only(s, revisionChars) {
		return ""
	}
	return s
}

// sourceText returns a URL without user and password, or an address as in user@host:path, and "" for any other text.
func sourceText(s string) string {
	if !only(s, sourceChars) {
		return ""
	}
	if !strings.Contains(s, "://") {
		if strings.Count(s, "@") != 1 || strings.Count(s, ":") != 1 || strings.Index(s, ":") < strings.Index(s, "@") {
			return "" // "a:b@c" may be a password
		}
		return s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return ""
	}
	u.User = nil
	if s = u.String(); !only(s, sourceChars) {
		return ""
	}
	return s
}

// originReader returns the first replica that answers and can say where images come from, or nil.
func (l *looks) originReader() OriginReader {
	for i, alive := range l.alive() {
		if r, ok := l.replicas[i].(OriginReader); ok && alive {
			return r
		}
	}
	return nil
}

// who returns the first of the projects that sees the tag of an image at a digest, or else the first of them.
func (l *looks) who(projects []string, image, digest string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(projects, func(p string) bool { return l.newest[look{p, image}].Digest == digest })
	if len(projects) == 0 {
		return ""
	}
	return projects[max(i, 0)]
}
