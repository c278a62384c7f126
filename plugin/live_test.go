package plugin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// TestLive: at the tip the registry decides, unless it cannot answer or the lock holds against its answer; at every
// other commit, and where the checkout does not say, the lock does.
func TestLive(t *testing.T) {
	const (
		revision = "1111111111111111111111111111111111111111"
		other    = "2222222222222222222222222222222222222222"
	)
	looked := time.Date(2026, 11, 22, 20, 57, 0, 0, time.UTC) // when the registry was asked
	locked, moved := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	tests := []struct {
		name string
		tip  string // "" for a checkout without .git
		hold *lock.Hold
		err  error
		want string
		by   Decider
	}{
		{"tip", revision, nil, nil, moved, ByResolver},
		{"older commit", other, nil, nil, locked, ByLock},
		{"unknown", "", nil, nil, locked, ByLock},
		{"registry down", revision, nil, image.ErrUnavailable, locked, ByLock},
		{"resolver down", revision, nil, errors.New("resolver"), locked, ByLock},
		{"held", revision, &lock.Hold{Rejected: moved}, nil, locked, ByHold},
		{"past the hold", revision, &lock.Hold{Rejected: digest}, nil, moved, ByResolver},
		{"held whatever comes", revision, &lock.Hold{}, nil, locked, ByHold},
		{"held for now", revision, &lock.Hold{Until: looked.Add(time.Second)}, nil, locked, ByHold},
		{"hold over", revision, &lock.Hold{Rejected: moved, Until: looked}, nil, moved, ByResolver},
	}
	for _, tt := range tests {
		files := map[string]string{
			"kustomization.yaml": "resources: [pod.yaml]\n",
			"pod.yaml":           strings.Split(pod, "  - image: ghcr.io/acme/b")[0],
			lock.FileName: string((&lock.Document{Pins: []lock.Pin{
				{Image: "ghcr.io/acme/a:latest", Digest: locked, ResolvedAt: time.Unix(0, 0).UTC(), Hold: tt.hold},
			}}).Format()),
		}
		dir := overlay(t, files)
		if tt.tip != "" {
			w := world{t: t, dir: dir}
			w.write(".git/refs/remotes/origin/main", tt.tip+"\n")
		}
		dry, recorded := false, "" // what a resolver's ledger says of the render
		r := resolverFunc(func(_ context.Context, source *lock.Source, pins []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
			if (source == nil) != dry {
				t.Errorf("%s: dry run %v, source %v", tt.name, dry, source)
			}
			if tt.name == "resolver down" {
				return nil, tt.err
			}
			for _, p := range pins {
				recorded = p.Digest
			}
			out := make([]image.Resolution, len(refs))
			for i, ref := range refs {
				out[i] = image.Resolution{Ref: ref, Digest: moved, Err: tt.err, At: looked}
				if tt.err == nil {
					recorded = moved
				}
			}
			return out, nil
		})
		s := Defaults()
		s.Mode = Live
		for _, dry = range []bool{false, true} {
			got, err := Render{
				Dir: dir, Settings: s, Source: &lock.Source{Repository: "r", TargetRevision: "main", Revision: revision}, Resolver: r, DryRun: dry,
			}.Generate(t.Context())
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if d := got.Decisions[0]; d.Digest != tt.want || d.By != tt.by || !strings.Contains(string(got.Manifests), "@"+tt.want) {
				t.Errorf("%s: decided %+v, want %s by %s", tt.name, d, tt.want, tt.by)
			}
			if !dry && recorded != tt.want && tt.name != "resolver down" {
				t.Errorf("%s: %s was rendered, and %q recorded", tt.name, tt.want, recorded)
			}
		}
	}
}
