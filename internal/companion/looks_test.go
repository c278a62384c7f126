package companion

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// scripted is a resolver that takes its time over some images, and says what it is told to.
type scripted struct {
	mu     sync.Mutex
	takes  map[string]time.Duration
	digest map[string]string // by reference; "" for what cannot be resolved
	at     map[string]time.Time
	asked  []string
}

func (*scripted) String() string                                    { return "scripted" }
func (*scripted) Pins(ctx context.Context) ([]lock.Document, error) { return nil, ctx.Err() }

func (s *scripted) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	s.mu.Lock()
	var takes time.Duration
	out := make([]image.Resolution, len(refs))
	for i, ref := range refs {
		name := ref.String()
		s.asked = append(s.asked, name)
		takes = max(takes, s.takes[name])
		out[i] = image.Resolution{Ref: ref, Digest: s.digest[name], At: s.at[name]}
		if out[i].At.IsZero() {
			out[i].At = time.Now()
		}
		if s.digest[name] == "" {
			out[i] = image.Resolution{Ref: ref, Err: image.ErrNotFound}
		}
	}
	s.mu.Unlock()
	select {
	case <-time.After(takes):
		return out, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// says sets what it answers about an image, and when it looked; the zero time is when it is asked.
func (s *scripted) says(image, digest string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digest[image], s.at[image] = digest, at
}

const (
	prompted = "ghcr.io/acme/prompt:latest"
	tardy    = "quay.io/acme/tardy:latest"
)

// begin begins a cycle about flushed images.
func begin(t *testing.T, s *sights, r Replica, images ...string) (l *looks, next chan struct{}) {
	t.Helper()
	l, next = s.newLooks(t.Context(), []Replica{r}, slog.New(slog.DiscardHandler)), make(chan struct{})
	about := flushed{}
	for _, i := range images {
		about[i] = true
	}
	l.hasten(&rings{flushed: about, next: next})
	return l, next
}

// sees returns the digests of a cycle's looks at both images, "-" for none, and how long they took.
func sees(t *testing.T, l *looks) string {
	t.Helper()
	began := time.Now()
	pins := l.at(t.Context(), map[look]bool{{"p", prompted}: true, {"p", tardy}: true})
	var all []string
	for _, image := range []string{prompted, tardy} {
		digest := "-"
		if p, ok := pins[look{"p", image}]; ok {
			digest = p.Digest
		}
		all = append(all, digest)
	}
	return fmt.Sprintf("%s after %v", strings.Join(all, " "), time.Since(began))
}

// TestPatience: a cycle waits so long for a registry that is slow, and what it says then wakes the next, which asks no more.
func TestPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var woken atomic.Int32
		s := newSights(func() { woken.Add(1) })
		r := &scripted{
			takes: map[string]time.Duration{tardy: 10 * time.Second}, digest: map[string]string{prompted: "a1", tardy: "b1"}, at: map[string]time.Time{},
		}
		expect := func(what, want string, l *looks) {
			t.Helper()
			if got := sees(t, l); got != want {
				t.Errorf("%s sees %s, want %s", what, got, want)
			}
			s.keep()
		}
		l, _ := begin(t, s, r)
		expect("the first cycle", "a1 - after 2s", l)
		l, _ = begin(t, s, r, prompted)
		r.says(prompted, "a2", time.Time{})
		expect("one about the other image", "a2 - after 250ms", l)
		l, _ = begin(t, s, r, tardy)
		expect("one about the slow image", "a2 b1 after 10s", l)
		if asked := slices.Sorted(slices.Values(r.asked)); !slices.Equal(asked, []string{prompted, prompted, prompted, tardy, tardy}) {
			t.Errorf("asked for %q, want the slow one by the first cycle, and by the one that a flush came before", asked)
		}
		if n := woken.Load(); n != 1 {
			t.Errorf("woken %d times, want by the first answer", n)
		}

		r.says(tardy, "b2", time.Time{})
		l, next := begin(t, s, r)
		time.AfterFunc(time.Second, func() { close(next) })
		expect("a cycle while somebody waits for the next", "a2 b1 after 1.25s", l)
		time.Sleep(20 * time.Second)
		if n := woken.Load(); n != 2 {
			t.Errorf("woken %d times, want also by the news", n)
		}
		l, _ = begin(t, s, r)
		expect("one that the news has woken", "a2 b2 after 2s", l)
		time.Sleep(20 * time.Second)
		if n := woken.Load(); n != 2 {
			t.Errorf("woken %d times, want by no answer that is no news", n)
		}
		s.questions.Wait()
	})
}

// TestSights: what is known is the newest look, until the image cannot be resolved or nobody wants it.
func TestSights(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSights(nil)
		noon := time.Now()
		r := &scripted{digest: map[string]string{prompted: "a1", tardy: "b1"}, at: map[string]time.Time{prompted: noon, tardy: noon}}
		for _, step := range []struct {
			what string
			do   func()
			want string
		}{
			{"at first", func() {}, "a1 b1 after 0s"},
			{"older looks", func() { r.says(prompted, "a0", noon.Add(-time.Minute)) }, "a1 b1 after 0s"},
			{"a look from the future", func() { r.says(tardy, "b2", noon.Add(time.Hour)) }, "a1 - after 0s"},
			{"newer looks", func() { r.says(prompted, "a0", noon.Add(time.Minute)); r.says(tardy, "b2", noon.Add(time.Minute)) }, "a0 b2 after 0s"},
			{"a refusal that an answer has overtaken", func() { r.says(prompted, "", noon) }, "a0 b2 after 0s"},
			{"a refusal", func() { time.Sleep(2 * time.Minute) }, "- b2 after 0s"},
		} {
			step.do()
			l, _ := begin(t, s, r)
			if got := sees(t, l); got != step.want {
				t.Errorf("%s: %s, want %s", step.what, got, step.want)
			}
			s.keep()
		}
		l, _ := begin(t, s, r)
		l.at(t.Context(), map[look]bool{{"q", tardy}: true})
		s.keep()
		if p := l.stands([]string{"p"}, tardy); p.Digest != "" || len(s.newest) != 1 {
			t.Errorf("%v is known of what nobody wants, %d in all", p, len(s.newest))
		}
	})
}

// TestMissing: an image that cannot be resolved is told of once while that stays so and it is wanted.
func TestMissing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		s := newSights(nil)
		r := &scripted{digest: map[string]string{}, at: map[string]time.Time{}}
		cycle := func(images ...string) {
			l := s.newLooks(t.Context(), []Replica{r}, slog.New(slog.NewTextHandler(&buf, nil)))
			wanted := map[look]bool{}
			for _, i := range images {
				wanted[look{"p", i}] = true
			}
			l.at(t.Context(), wanted)
			s.keep()
			time.Sleep(time.Minute)
		}
		want := func(what string, n int) {
			t.Helper()
			if got := strings.Count(buf.String(), "image not resolved, its pin stays"); got != n {
				t.Errorf("%s: %d lines, want %d:\n%s", what, got, n, &buf)
			}
		}
		for range 3 {
			cycle(prompted, tardy)
		}
		want("two images in three cycles", 2)
		r.says(prompted, "a1", time.Time{})
		cycle(prompted, tardy)
		r.says(prompted, "", time.Time{})
		cycle(prompted, tardy)
		want("one was there meanwhile", 3)
		cycle(prompted)
		cycle(prompted, tardy)
		want("the other was not wanted meanwhile", 4)
	})
}

// TestCovers: a flush names an image, or all tags of a repository.
func TestCovers(t *testing.T) {
	t.Parallel()
	f := flushed{}
	for _, s := range []string{"ghcr.io/acme/server:v1", "localhost:5000/acme/worker"} {
		target, err := image.ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		f[target.String()] = true
	}
	for reference, want := range map[string]bool{
		"ghcr.io/acme/server:v1": true, "ghcr.io/acme/server:v2": false, "ghcr.io/acme/server": false, "ghcr.io/acme/server-a:v1": false,
		"localhost:5000/acme/worker:latest": true, "localhost:5000/acme/worker:v1": true, "localhost:5000/acme/workers:v1": false,
	} {
		if got := f.covers(reference); got != want {
			t.Errorf("covers(%q) = %v", reference, got)
		}
	}
}
