package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// world is everything around renders: a registry whose tags move and which goes away, the resolver's cache in front of
// it, and a branch of commits, each with the lock that the companion or a person left there. Registry and Git are
// models; cache, lock and render are the real ones.
type world struct {
	t       *testing.T
	rand    *rand.Rand
	images  []string
	digest  map[string]string          // where the registry's tags stand
	served  map[string]map[string]bool // every digest that a tag ever stood at
	down    bool
	mu      sync.Mutex // look-ups come from several goroutines
	asked   int        // look-ups at the registry
	cache   *cache.Cache
	commits []commit
	mode    Mode
	dir     string
	steps   []string
}

type commit struct {
	lock     *lock.Document
	rendered string // what the first render by the lock alone gave; "" before
}

const fixedImage = "ghcr.io/acme/fixed:v1.2.3"

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, rand: rand.New(rand.NewPCG(seed, 0)), digest: map[string]string{}, served: map[string]map[string]bool{},
		images: []string{"ghcr.io/acme/a:latest", "ghcr.io/acme/b:latest", "index.docker.io/library/nginx:latest"},
		mode:   Follow, dir: t.TempDir(), commits: []commit{{}},
	}
	w.cache = cache.New(w, cache.Options{})
	t.Cleanup(w.cache.Close)
	for _, i := range w.images {
		w.served[i] = map[string]bool{}
		w.push(i)
	}
	files := map[string]string{
		"kustomization.yaml": "resources: [pod.yaml]\n",
		"pod.yaml": "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n" +
			"  - {name: a, image: ghcr.io/acme/a}\n  - {name: b, image: ghcr.io/acme/b:latest}\n" +
			"  - {name: n, image: nginx}\n  - {name: f, image: " + fixedImage + "}\n",
	}
	for name, content := range files {
		w.write(name, content)
	}
	return w
}

func (w *world) write(name, content string) {
	w.t.Helper()
	file := filepath.Join(w.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		w.t.Fatal(err)
	}
}

// Resolve is the registry behind the cache.
func (w *world) Resolve(_ context.Context, _ string, refs []image.Ref) []image.Resolution {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]image.Resolution, len(refs))
	for i, r := range refs {
		w.asked++
		out[i] = image.Resolution{Ref: r, Digest: w.digest[r.String()]}
		if w.down {
			out[i] = image.Resolution{Ref: r, Err: fmt.Errorf("%w: down", image.ErrUnavailable)}
		}
	}
	return out
}

func (w *world) push(i string) {
	d := fmt.Sprintf("sha256:%016x%048x", w.rand.Uint64(), len(w.served[i]))
	w.digest[i], w.served[i][d] = d, true
}

func (w *world) pick() image.Ref {
	r, err := image.Parse(w.images[w.rand.IntN(len(w.images))])
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// step does one thing that happens in the life of a repository.
func (w *world) step() {
	switch w.rand.IntN(10) {
	case 0:
		i := w.pick().String()
		w.push(i)
		w.say("push %s", i)
	case 1:
		r := w.pick()
		w.cache.Flush(w.t.Context(), []image.Target{{Ref: r}})
		w.say("flush %s", r)
	case 2:
		w.down = !w.down
		w.say("outage: %v", w.down)
	case 3:
		w.companion()
	case 4: // a person reverts the branch to what an older commit had
		i := w.rand.IntN(len(w.commits))
		w.commits = append(w.commits, commit{lock: w.commits[i].lock})
		w.say("revert to the lock of commit %d", i)
	case 5: // somebody merges a lock that lost a pin
		l := w.tip().lock
		if l != nil && len(l.Pins) > 0 {
			i := w.rand.IntN(len(l.Pins))
			w.commits = append(w.commits, commit{lock: &lock.Document{Pins: slices.Delete(slices.Clone(l.Pins), i, i+1)}})
			w.say("drop a pin")
		}
	case 6:
		w.mode = []Mode{Follow, Live, Locked}[w.rand.IntN(3)]
		w.say("mode %s", w.mode)
	case 7:
		w.render(len(w.commits) - 1)
	case 8: // a rollback
		w.render(w.rand.IntN(len(w.commits)))
	case 9:
		w.hold()
	}
}

// hold is what a person does: keep a pin where it is, from everything or from where its tag stands, for good or not.
func (w *world) hold() {
	i := w.pick().String()
	p, ok := w.tip().lock.Find(i)
	if !ok {
		return
	}
	p.Hold = []*lock.Hold{nil, {}, {Rejected: w.digest[i]}}[w.rand.IntN(3)]
	if p.Hold != nil {
		p.Hold.Until = []time.Time{{}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)}[w.rand.IntN(3)]
	}
	w.commits = append(w.commits, commit{lock: w.tip().lock.With(p)})
	w.say("hold %s: %+v", i, p.Hold)
}

func (w *world) tip() commit { return w.commits[len(w.commits)-1] }

// companion commits what the resolver knows of all images, as a cycle does.
func (w *world) companion() {
	var seen []lock.Pin
	for _, i := range w.images {
		r, err := image.Parse(i)
		if err != nil {
			w.t.Fatal(err)
		}
		if res := w.cache.Resolve(w.t.Context(), "", []image.Ref{r})[0]; res.Err == nil {
			seen = append(seen, lock.Pin{Image: i, Digest: res.Digest, ResolvedAt: res.At.UTC().Truncate(time.Second)})
		}
	}
	before := w.tip().lock
	next := lock.Merge(before, seen)
	if len(lock.Diff(before, next)) > 0 {
		w.commits = append(w.commits, commit{lock: next})
	}
	for _, c := range lock.Diff(before, next) {
		if p, _ := before.Find(c.Image); p.Hold.Keeps(c.New, time.Now()) {
			w.fail("G3: %s moved to %s, held by %+v", c.Image, c.New, p.Hold)
		}
	}
	w.say("companion: %d commits", len(w.commits))
}

func (w *world) say(format string, args ...any) {
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

// resolver adapts the cache to what a render asks.
type resolver struct{ *cache.Cache }

func (r resolver) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	return r.Cache.Resolve(ctx, "", refs), nil
}

var imageField = regexp.MustCompile(`image: (\S+)`)

// render renders commit i and checks the guarantees.
func (w *world) render(i int) {
	c := &w.commits[i]
	w.say("render commit %d of %d, mode %s", i, len(w.commits), w.mode)
	revision := func(i int) string { return fmt.Sprintf("%040x", i+1) }
	w.write(".git/refs/remotes/origin/main", revision(len(w.commits)-1)+"\n")
	if err := os.RemoveAll(filepath.Join(w.dir, lock.FileName)); err != nil {
		w.t.Fatal(err)
	}
	complete := c.lock != nil && len(c.lock.Pins) == len(w.images)
	if c.lock != nil {
		w.write(lock.FileName, string(c.lock.Format()))
	}
	s := Defaults()
	s.Mode = w.mode
	before := w.asked
	got, err := Render{
		Dir: w.dir, Settings: s, Resolver: resolver{w.cache},
		Source: &lock.Source{Repository: "r", TargetRevision: "main", Revision: revision(i)},
	}.Generate(w.t.Context())
	out := string(got.Manifests)
	atTip := i == len(w.commits)-1
	byLock := complete && (w.mode != Live || !atTip)

	if err != nil {
		if out != "" {
			w.fail("G1: an error and output: %v\n%s", err, out)
		}
		if complete {
			w.fail("G4: the lock names everything, and the render fails: %v", err)
		}
		if !w.down && w.mode != Locked {
			w.fail("the registry is there, and the render fails: %v", err)
		}
		return
	}
	var fixed int
	names := map[string]string{"ghcr.io/acme/a:latest": w.images[0], "ghcr.io/acme/b:latest": w.images[1], "nginx:latest": w.images[2]}
	for _, m := range imageField.FindAllStringSubmatch(out, -1) {
		name, digest, _ := strings.Cut(m[1], "@")
		if name == fixedImage && digest == "" {
			fixed++
			continue
		}
		full := names[name]
		if !w.served[full][digest] {
			w.fail("G1: %s is not a digest that the registry ever served for %q", m[1], full)
		}
		if p, ok := c.lock.Find(full); ok && byLock && p.Digest != digest {
			w.fail("G2: the lock says %s, the render %s", p.Digest, digest)
		}
		if p, ok := c.lock.Find(full); ok && digest != p.Digest && p.Hold.Keeps(digest, time.Now()) {
			w.fail("G3: rendered %s, which %+v keeps out", digest, p.Hold)
		}
		delete(names, name)
	}
	if len(names) > 0 {
		w.fail("G1: not in the output: %v", names)
	}
	if fixed != 1 {
		w.fail("G6: the fixed tag is there %d times, want once:\n%s", fixed, out)
	}
	if w.asked != before && (byLock || w.mode == Locked) {
		w.fail("G6: %d look-ups for a render that its lock decides", w.asked-before)
	}
	if byLock {
		if c.rendered == "" {
			c.rendered = out
		}
		if out != c.rendered {
			w.fail("G2: this commit rendered\n%s\nbefore, and now\n%s", c.rendered, out)
		}
	}
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(format+"\nsteps:\n  %s", append(args, strings.Join(w.steps, "\n  "))...)
}

// TestGuarantees drives random histories and checks G1, G2, the holds of G3, G4 and G6 at every render. It is not parallel: kustomize
// is one build at a time per process.
func TestGuarantees(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			for range 80 {
				w.step()
			}
		})
	}
}
