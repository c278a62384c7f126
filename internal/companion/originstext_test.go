package companion

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/image"
)

func (silent) Origins(ctx context.Context, _ map[string][]image.Ref) (map[string]image.Origin, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestSilentOrigins: a commit waits for a resolver that hangs, once and not for long, and is made.
func TestSilentOrigins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		log := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))
		dir := map[string]*observation{"a": {sources: []source{{Application: Application{Project: "p"}}}}}
		u := updater{c: New(Options{Log: log}), target: &target{paths: dir}, looks: newSights(nil).newLooks(t.Context(), []Replica{prompt{}, silent{}}, log)}
		moves := []move{{image: "ghcr.io/a:latest", new: "sha256:" + strings.Repeat("1", 64), dir: "a"}}
		begin := time.Now()
		for range 2 {
			u.addOrigins(t.Context(), moves)
		}
		if took := time.Since(begin); took != originsTimeout || moves[0].source+moves[0].revision != "" {
			t.Errorf("%v after %v, want nothing after %v", moves, took, originsTimeout)
		}
		if !strings.Contains(buf.String(), `level=DEBUG msg="commit says nothing of sources" error="no answer within 3s"`) {
			t.Errorf("log %q", &buf)
		}
	})
}

// TestOriginText: what a builder writes cannot be more than one plain word in a message, and no secret.
func TestOriginText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"3f2c1ab": "3f2c1ab", "main@sha1-3f2c1ab": "main@sha1-3f2c1ab", "v1.2.3+build": "v1.2.3+build",
		"": "", "a b": "", "a\nb": "", "[skip": "", "***NO_CI***": "", "ghcr.io/acme/other:latest": "", "3f2с1ab": "",
		strings.Repeat("1", maxOriginText): strings.Repeat("1", maxOriginText), strings.Repeat("1", maxOriginText+1): "",
	} {
		if got := revisionText(in); got != want {
			t.Errorf("revisionText(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"https://github.com/acme/server":                            "https://github.com/acme/server",
		"https://dev.azure.com/a/My%20Project/_git/x?path=/y#L1":    "https://dev.azure.com/a/My%20Project/_git/x?path=/y#L1",
		"https://x-access-token:hunter2@github.com/acme/server.git": "https://github.com/acme/server.git",
		"git@github.com:acme/server.git":                            "git@github.com:acme/server.git",
		"ssh://git@github.com/acme/server":                          "ssh://github.com/acme/server",
		"user:hunter2@github.com/acme/server":                       "",
		"ghcr.io/acme/other:latest":                                 "",
		"https://x/,ghcr.io/acme/other:latest":                      "",
		"https://x/ ghcr.io/acme/other:latest":                      "",
		"https://x/\n\nSigned-off-by: root":                         "",
		"https://x/[skip":                                           "",
		"https://%zz/":                                              "",
		"https:///x":                                                "",
		"see the wiki":                                              "",
		"":                                                          "",
		"https://x/" + strings.Repeat("1", maxOriginText):           "",
	} {
		if got := sourceText(in); got != want {
			t.Errorf("sourceText(%q) = %q, want %q", in, got, want)
		}
	}
}
