package companion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// silent never answers, for as long as anybody has patience.
type silent struct{}

func (silent) String() string { return "silent" }

func (silent) Pins(ctx context.Context) ([]lock.Document, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (silent) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, _ []image.Ref) ([]image.Resolution, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// prompt answers everything with one digest.
type prompt struct{ asked *sizes }

// sizes are how many images questions were about.
type sizes struct {
	mu  sync.Mutex
	all []int
}

func (s *sizes) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, n)
}

func (prompt) String() string { return "prompt" }

func (prompt) Pins(ctx context.Context) ([]lock.Document, error) {
	return []lock.Document{{Source: &lock.Source{Path: "app"}}}, ctx.Err()
}

func (p prompt) Resolve(ctx context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	p.asked.add(len(refs))
	var out []image.Resolution
	for _, r := range refs {
		out = append(out, image.Resolution{Ref: r, Digest: "sha256:" + strings.Repeat("1", 64), At: time.Now()})
	}
	return out, ctx.Err()
}

// TestSilentReplica: a resolver that hangs costs the others nothing, and is given up on after the first time.
func TestSilentReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked sizes
		all := []Replica{silent{}, prompt{&asked}, silent{}}
		c := New(Options{Replicas: func(context.Context) ([]Replica, error) { return all, nil }, Log: slog.New(slog.DiscardHandler)})
		begin := time.Now()
		alive, docs, problems := c.collect(t.Context())
		if len(alive) != 1 || len(docs) != 1 || len(problems) != 2 || time.Since(begin) != askTimeout {
			t.Errorf("collect = %v, %v, %v after %v, want the prompt one's after %v", alive, docs, problems, time.Since(begin), askTimeout)
		}
		if want := "no answer within 25s"; fmt.Sprint(problems[0]) != want {
			t.Errorf("problem %v, want %s", problems[0], want)
		}

		l := newSights(nil).newLooks(t.Context(), all, c.o.Log)
		begin = time.Now()
		if pins := l.at(t.Context(), map[look]bool{{"p", "ghcr.io/a/b:latest"}: true}); len(pins) != 1 {
			t.Errorf("pins %v, want the prompt one's", pins)
		}
		if pins := l.at(t.Context(), map[look]bool{{"p", "ghcr.io/a/b:latest"}: true, {"p", "ghcr.io/a/c:latest"}: true}); len(pins) != 2 {
			t.Errorf("pins %v, want the prompt one's", pins)
		}
		if len(l.problems) != 2 || time.Since(begin) != askTimeout || fmt.Sprint(asked.all) != "[1 1]" {
			t.Errorf("problems %v after %v, asked %v", l.problems, time.Since(begin), asked.all)
		}
	})
}

// TestGiveUp: when the caller's time is over, that is not held against the replicas.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newSights(nil).newLooks(t.Context(), []Replica{silent{}}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if pins := l.at(ctx, map[look]bool{{"p", "ghcr.io/a/b:latest"}: true}); len(pins)+len(l.problems)+len(l.failed) != 0 {
			t.Errorf("pins %v, problems %v, failed %v", pins, l.problems, l.failed)
		}
	})
}

// TestLargeQuestions: a question holds no more than a registry can be asked for while somebody waits.
func TestLargeQuestions(t *testing.T) {
	t.Parallel()
	var asked sizes
	l := newSights(nil).newLooks(t.Context(), []Replica{prompt{&asked}}, slog.New(slog.DiscardHandler))
	images := map[look]bool{}
	for i := range 250 {
		images[look{"p", fmt.Sprintf("ghcr.io/a/b%d:latest", i)}] = true
	}
	if pins := l.at(t.Context(), images); len(pins) != 250 || fmt.Sprint(slices.Sorted(slices.Values(asked.all))) != "[50 100 100]" {
		t.Errorf("%d pins, asked %v", len(pins), asked.all)
	}
}

// TestRun: problems are logged one a line, with their hints, and a cycle is done every interval until ctx ends.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		cycles := 0
		c := New(Options{
			Replicas: func(context.Context) ([]Replica, error) {
				cycles++
				return nil, fault.New(fault.ResolverUnavailable, "start one", "no resolver")
			},
			Log: slog.New(slog.NewTextHandler(&buf, nil)),
		})
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
		defer cancel()
		c.Run(ctx, time.Minute)
		if cycles != 3 || strings.Count(buf.String(), `level=ERROR msg="cycle incomplete" error="no resolver" code=resolver-unavailable hint="start one"`+"\n") != 3 {
			t.Errorf("%d cycles, want 3, each with its problem:\n%s", cycles, &buf)
		}
	})
}

func TestSum(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	one := fault.New(fault.ResolverUnavailable, "do this", "a: %w", cause)
	for _, tt := range []struct {
		all        []error
		want, hint string
	}{
		{[]error{one}, "a: cause", "do this"},
		{[]error{one, cause, one}, "3 problems: (1) a: cause; (2) cause; (3) a: cause", "do this"},
		{[]error{cause, one, fault.New(fault.ResolverUnavailable, "do that", "b: %w", cause)}, "3 problems: (1) cause; (2) a: cause; (3) b: cause", "(2) do this; (3) do that"},
		{[]error{cause, cause}, "2 problems: (1) cause; (2) cause", ""},
	} {
		err := sum(tt.all)
		if err.Error() != tt.want || fault.Hint(err) != tt.hint || !errors.Is(err, cause) {
			t.Errorf("sum = %q, hint %q, want %q, hint %q", err, fault.Hint(err), tt.want, tt.hint)
		}
	}
	if err := sum(nil); err != nil {
		t.Errorf("sum(nil) = %v", err)
	}
}
