package shared

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/image"
)

const (
	older = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	newer = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// world is a Redis, and a registry that several resolvers ask.
type world struct {
	t       *testing.T
	process *exec.Cmd
	client  *redis.Client // the test's own

	mu     sync.Mutex
	digest string
	err    error
	asked  int
	gate   chan struct{} // what was asked is answered once it is closed
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server here: apt-get install redis-server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	w := &world{t: t, digest: older, gate: make(chan struct{})}
	close(w.gate)
	w.process = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	if err := w.process.Start(); err != nil {
		t.Fatal(err)
	}
	w.client = redis.NewClient(&redis.Options{Addr: l.Addr().String()})
	t.Cleanup(func() {
		_ = w.client.Close()
		_ = w.process.Process.Kill()
		_ = w.process.Wait()
	})
	for range 400 {
		if w.client.Ping(t.Context()).Err() == nil {
			return w
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("redis-server does not answer")
	return nil
}

// Resolve is the registry. The answer is what is true when it is asked.
func (w *world) Resolve(ctx context.Context, scope string, refs []image.Ref) []image.Resolution {
	w.mu.Lock()
	w.asked += len(refs)
	digest, err, gate := w.digest, w.err, w.gate
	w.mu.Unlock()
	select {
	case <-gate:
	case <-ctx.Done():
		digest, err = "", fmt.Errorf("%w: %w", image.ErrUnavailable, ctx.Err())
	}
	out := make([]image.Resolution, len(refs))
	for i, r := range refs {
		out[i] = image.Resolution{Ref: r, Digest: digest, Err: err, At: time.Now()}
		if err != nil {
			out[i].Digest = ""
		}
	}
	return out
}

// set says what the registry answers from now on.
func (w *world) set(digest string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.digest, w.err = digest, err
}

// hold keeps what is asked from now on waiting, until release.
func (w *world) hold() (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate := make(chan struct{})
	w.gate = gate
	return func() { close(gate) }
}

// pass answers what is asked from now on at once.
func (w *world) pass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate = make(chan struct{})
	close(w.gate)
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func (w *world) waitAsked(n int) {
	w.t.Helper()
	for range 400 {
		if w.count() >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("asked %d times, want %d", w.count(), n)
}

// join returns one more resolver, which hears no messages.
func (w *world) join(timeout time.Duration) *Resolver {
	r := New(w, Options{
		Redis: &redis.Options{Addr: w.client.Options().Addr}, Prefix: "test", TTL: time.Hour, NegativeTTL: time.Hour,
		Timeout: timeout, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	w.t.Cleanup(r.Close)
	return r
}

func ref(t *testing.T, s string) image.Ref {
	t.Helper()
	r, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const server = "ghcr.io/acme/server:latest"

func (w *world) want(r *Resolver, scope, digest string) {
	w.t.Helper()
	if got := r.Resolve(w.t.Context(), scope, []image.Ref{ref(w.t, server)})[0]; got.Digest != digest || got.Err != nil {
		w.t.Errorf("scope %q: %+v, want %s", scope, got, digest)
	}
}

func (w *world) wantAsked(n int) {
	w.t.Helper()
	if got := w.count(); got != n {
		w.t.Errorf("the registry was asked %d times, want %d", got, n)
	}
}

// wantCalls checks how many scripts were called since the statistics were reset.
func (w *world) wantCalls(n int) {
	w.t.Helper()
	stats := w.client.Info(w.t.Context(), "commandstats").Val()
	if !strings.Contains(stats, fmt.Sprintf("cmdstat_evalsha:calls=%d,", n)) {
		w.t.Errorf("want %d calls:\n%s", n, stats)
	}
}

func (w *world) target(every bool) []image.Target {
	return []image.Target{{Ref: ref(w.t, server), EveryTag: every}}
}

const patient = 10 * time.Second

func TestScopesShareNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	w.want(a, "team", older)
	w.set(newer, nil)
	w.want(b, "team", older)
	w.want(b, "", newer)
	w.want(a, "other", newer)
	w.wantAsked(3)
}

func TestRefusalIsShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	for n, tt := range []struct {
		err    error
		shared bool
	}{
		{fmt.Errorf("ghcr.io: %w (404)", image.ErrNotFound), true},
		{fmt.Errorf("ghcr.io: %w (401)", image.ErrUnauthorized), true},
		{fmt.Errorf("ghcr.io: %w (500)", image.ErrUnavailable), false},
	} {
		w.set("", tt.err)
		before := w.count()
		refs := []image.Ref{ref(t, fmt.Sprintf("ghcr.io/acme/gone-%d:latest", n))}
		for _, r := range []*Resolver{a, b} {
			got := r.Resolve(t.Context(), "", refs)[0]
			if got.Err == nil || got.Err.Error() != tt.err.Error() || !errors.Is(got.Err, errors.Unwrap(tt.err)) {
				t.Errorf("error %v, want %v", got.Err, tt.err)
			}
		}
		if asked := w.count() - before; (asked == 1) != tt.shared {
			t.Errorf("%v: asked %d times, shared should be %t", tt.err, asked, tt.shared)
		}
	}
}

// TestFlushWithoutMessage: what Redis has from before a flush counts for nobody, though no message tells of the flush. What
// was not flushed still counts.
func TestFlushWithoutMessage(t *testing.T) {
	t.Parallel()
	for _, every := range []bool{false, true} {
		w := newWorld(t)
		a, b := w.join(patient), w.join(patient)
		refs := []image.Ref{ref(t, server), ref(t, "ghcr.io/acme/server:v1"), ref(t, "ghcr.io/acme/worker:latest")}
		a.Resolve(t.Context(), "", refs)
		w.set(newer, nil)
		a.Forget(w.target(every))
		want := []string{newer, map[bool]string{true: newer, false: older}[every], older}
		for n, got := range b.Resolve(t.Context(), "", refs) {
			if got.Digest != want[n] || got.Err != nil {
				t.Errorf("flushed, every tag %t: %+v, want %s", every, got, want[n])
			}
		}
	}
}

// overtaken has b ask the registry, whose answer is held until release is called, and moves the tag meanwhile.
func (w *world) overtaken(b *Resolver) (release func(), done chan image.Resolution) {
	release, done = w.hold(), make(chan image.Resolution, 1)
	go func() { done <- b.Resolve(w.t.Context(), "", []image.Ref{ref(w.t, server)})[0] }()
	w.waitAsked(1)
	w.pass()
	w.set(newer, nil)
	return release, done
}

// TestFlushOvertakesLookup: what is being asked for when a flush comes is neither answered nor shared, though no message
// tells of the flush.
func TestFlushOvertakesLookup(t *testing.T) {
	t.Parallel()
	for _, every := range []bool{false, true} {
		w := newWorld(t)
		a, b := w.join(patient), w.join(patient)
		release, done := w.overtaken(b)
		a.Forget(w.target(every))
		w.client.ConfigResetStat(t.Context())
		w.want(a, "", newer)
		w.wantAsked(2)
		w.wantCalls(2) // at once: the old lease does not count
		release()
		if got := <-done; got.Digest != newer {
			t.Errorf("who asked before the flush of every tag %t: %s, want %s", every, got.Digest, newer)
		}
		w.want(b, "", newer)
		w.wantAsked(2)
	}
}

// TestGenerationLost: Redis forgets everything while a reference is asked for, a flush too if there was one.
func TestGenerationLost(t *testing.T) {
	t.Parallel()
	for _, flush := range []bool{false, true} {
		w := newWorld(t)
		a, b := w.join(patient), w.join(patient)
		release, done := w.overtaken(b)
		if flush {
			a.Forget(w.target(false))
		}
		w.client.FlushAll(t.Context())
		w.want(a, "", newer)
		release()
		if got := <-done; got.Digest != newer {
			t.Errorf("flushed %t: %s, want %s", flush, got.Digest, newer)
		}
		w.want(a, "", newer)
	}
}

// TestFlushWithoutRedis: a flush that Redis did not take counts for the replica that took it.
func TestFlushWithoutRedis(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join(200 * time.Millisecond)
	for a.health.metric() != 0 || w.count() == 0 { // on a busy machine
		w.client.FlushAll(t.Context())
		w.want(a, "", older)
	}
	w.signal(syscall.SIGSTOP)
	w.set(newer, nil)
	a.Forget(w.target(false))
	w.want(a, "", newer) // alone
	w.signal(syscall.SIGCONT)
	for range 400 {
		w.want(a, "", newer)
		if a.health.metric() == 0 {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.want(a, "", newer)
	if a.health.metric() != 0 {
		t.Error("Redis is not used again")
	}
}

func (w *world) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.process.Process.Signal(s); err != nil {
		w.t.Fatal(err)
	}
}

// TestLeaderFails: who waits for a resolver that fails asks itself.
func TestLeaderFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	release := w.hold()
	w.set("", fmt.Errorf("ghcr.io: %w (500)", image.ErrUnavailable))
	done := make(chan image.Resolution, 1)
	go func() { done <- a.Resolve(t.Context(), "", []image.Ref{ref(t, server)})[0] }()
	w.waitAsked(1)
	w.pass()
	w.set(newer, nil)
	time.AfterFunc(100*time.Millisecond, release)
	w.want(b, "", newer)
	if got := <-done; !errors.Is(got.Err, image.ErrUnavailable) {
		t.Errorf("the first one = %+v, want an error", got)
	}
	w.wantAsked(2)
	if w.client.Exists(t.Context(), a.keys("", []image.Ref{ref(t, server)})[1]).Val() != 0 {
		t.Error("a lease was not given back")
	}
}

// TestLeaderSilent: nobody waits for ever for another resolver, nor when it was killed.
func TestLeaderSilent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	release := w.hold()
	var wg sync.WaitGroup
	wg.Go(func() { a.Resolve(t.Context(), "", []image.Ref{ref(t, server)}) })
	w.waitAsked(1)
	w.pass()
	w.want(b, "", older)
	w.wantAsked(2)
	release()
	wg.Wait()
}

// TestRoundTrips: a batch costs as many calls as one reference.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join(patient)
	w.want(a, "", older) // the scripts are there
	var refs []image.Ref
	for i := range 500 {
		refs = append(refs, ref(t, fmt.Sprintf("ghcr.io/acme/app-%d:latest", i)))
	}
	for _, want := range []int{2, 1} { // ask, then remember; then only ask
		w.client.ConfigResetStat(t.Context())
		a.Resolve(t.Context(), "", refs)
		w.wantCalls(want)
	}
}

// TestForeignAnswer: what another program wrote is no digest. It is asked for again, and nothing else is.
func TestForeignAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	for _, field := range []string{"text", "kind", "at"} {
		w.set(older, nil)
		a.Forget(w.target(false))
		w.want(a, "", older)
		w.client.HSet(t.Context(), a.keys("", []image.Ref{ref(t, server)})[0], field, "latest")
		w.set(newer, nil)
		before := w.count()
		refs := []image.Ref{ref(t, "ghcr.io/acme/worker:latest"), ref(t, server)}
		if got := b.Resolve(t.Context(), "", refs)[1]; got.Digest != newer {
			t.Errorf("%s: %+v, want %s", field, got, newer)
		}
		w.want(a, "", newer)
		if asked, want := w.count()-before, map[bool]int{true: 2, false: 1}[field == "text"]; asked != want { // the worker once
			t.Errorf("%s: asked %d times, want %d", field, asked, want)
		}
		if a.health.metric() != 0 || b.health.metric() != 0 {
			t.Errorf("%s: Redis counts as down", field)
		}
	}
}

// TestFollow: a flush reaches another process's memory, and what is no flush does no harm.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.join(patient), w.join(patient)
	c := cache.New(b, cache.Options{TTL: time.Hour, Forget: b.Forget})
	defer c.Close()
	b.Follow(c.Drop)
	resolve := func() string { return c.Resolve(t.Context(), "", []image.Ref{ref(t, server)})[0].Digest }
	for _, every := range []bool{false, true} {
		w.set(older, nil)
		c.Flush(t.Context(), w.target(false))
		for range 400 {
			if w.client.PubSubNumSub(t.Context(), b.key("flushes")).Val()[b.key("flushes")] == 1 {
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
		for _, text := range []string{"", "flush", "{}", `{"images":["","../x"]}`} {
			w.client.Publish(t.Context(), b.key("flushes"), text)
		}
		w.set(newer, nil)
		if got := resolve(); got != older {
			t.Errorf("without a flush: %s, want %s", got, older)
		}
		a.Forget(w.target(every))
		for range 400 {
			if resolve() == newer {
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
		if got := resolve(); got != newer {
			t.Errorf("after a flush elsewhere, of every tag %t: %s, want %s", every, got, newer)
		}
	}
}

// TestGenerationOutlivesAnswer: with a long TTL too.
func TestGenerationOutlivesAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join(patient)
	a.o.TTL = 24 * time.Hour
	a.Forget(w.target(false))
	a.Forget(w.target(true))
	w.want(a, "", older)
	keys := a.keys("", []image.Ref{ref(t, server)})
	answer := w.client.PTTL(t.Context(), keys[0]).Val()
	for _, key := range keys[2:] {
		if got := w.client.PTTL(t.Context(), key).Val(); got <= answer {
			t.Errorf("%s ends after %v, its answer after %v", key, got, answer)
		}
	}
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"rediss://user@redis.example.com:6379/2":       true,
		"redis://127.0.0.1":                            true,
		"rediss://user:secret@redis.example.com":       false,
		"rediss://redis.example.com?skip_verify=true":  false,
		"https://redis.example.com":                    false,
		"redis.example.com:6379":                       false,
		"unix:///run/redis.sock":                       false,
		"rediss://user:secret@redis.example.com:\x7f0": false,
	} {
		_, err := ParseURL(text)
		if (err == nil) != ok || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseURL(%q) = %v", text, err)
		}
	}
}

// TestHealth: after a failure nobody calls for a while, then one does.
func TestHealth(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	h := health{log: slog.New(slog.NewTextHandler(&log, nil))}
	now := time.Now()
	step := func(after time.Duration, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := h.try(now, time.Second); got != want {
			t.Errorf("try = %t, want %t", got, want)
		}
	}
	step(0, true)
	step(0, true)
	h.report(now, errForeign)
	h.report(now, errForeign)
	step(pause-1, false)
	step(1, true)
	step(0, false) // while the other one tries
	h.report(now, errForeign)
	step(pause-1, false)
	step(1, true)
	h.report(now, nil)
	step(0, true)
	step(0, true)
	if lines := strings.Count(log.String(), "\n"); lines != 2 {
		t.Errorf("%d log lines, want one for each change:\n%s", lines, log.String())
	}
}
