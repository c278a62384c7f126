package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// corpus is how many overlays must render the same with both programs, of those that are generated.
const (
	corpus    = 300
	generated = 450
)

// eachOverlay calls f for every generated overlay.
func eachOverlay(t *testing.T, f func(t *testing.T, g *generator, overlay string)) {
	t.Helper()
	dir := t.TempDir()
	t.Run("overlays", func(t *testing.T) {
		for seed := range uint64(generated) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				g := newGenerator(t, seed, dir)
				f(t, g, g.overlay())
				if t.Failed() {
					t.Log(g.tree())
				}
			})
		}
	})
}

// TestBytes renders generated overlays with "kustomize build" of the same version and with "digestlock generate". With
// nothing to pin the bytes are equal; with everything in the lock, only the lines of mutable images differ, and by their
// digest alone. What the one refuses the other refuses.
func TestBytes(t *testing.T) {
	kustomize := buildKustomize(t, linked)
	var rendered, pinned atomic.Int64
	eachOverlay(t, func(t *testing.T, g *generator, overlay string) {
		want, wantErr := output(t, kustomize, "build", overlay)
		got, err := unpinned(t, overlay)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("digestlock: %v; kustomize: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		rendered.Add(1)
		if !bytes.Equal(got, want) {
			t.Fatalf("bytes differ\n--- kustomize\n%s\n--- digestlock\n%s", want, got)
		}
		g.lock(overlay)
		got, err = output(t, filepath.Join(binDir, "digestlock"), "generate", "--mode=locked", overlay)
		if err != nil {
			t.Fatalf("with a lock: %v", err)
		}
		pinned.Add(int64(onlyImagesDiffer(t, string(want), string(got))))
	})
	t.Logf("%d overlays rendered alike, %d refused alike, %d references pinned", rendered.Load(), generated-rendered.Load(), pinned.Load())
	if rendered.Load() < corpus || pinned.Load() < corpus {
		t.Error("too few of them: the generator is wrong")
	}
}

// unpinned renders the overlay with digestlock, with nothing to pin.
func unpinned(t *testing.T, overlay string) ([]byte, error) {
	t.Helper()
	return output(t, filepath.Join(binDir, "digestlock"), "generate", "--server=", "--tags=none-of-them", overlay)
}

// pinnedLine is the line of a mutable image that got its digest.
var pinnedLine = regexp.MustCompile(`^( *(?:- )?(?:image|reference): "?ghcr\.io/acme/app[0-9])(?::latest)?("?)$`)

// onlyImagesDiffer returns how many lines differ.
func onlyImagesDiffer(t *testing.T, plain, locked string) (n int) {
	t.Helper()
	a, b := strings.Split(plain, "\n"), strings.Split(locked, "\n")
	if len(a) != len(b) {
		t.Errorf("%d lines without, %d with pins", len(a), len(b))
		return 0
	}
	for i := range a {
		m := pinnedLine.FindStringSubmatch(a[i])
		switch {
		case a[i] == b[i] && m == nil:
		case m == nil:
			t.Errorf("a line that is no image differs:\n%s\n%s", a[i], b[i])
		case b[i] != m[1]+":latest@"+lockedDigest+m[2]:
			t.Errorf("%q became %q", a[i], b[i])
		default:
			n++
		}
	}
	return n
}

func output(t *testing.T, program string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, nil
}
