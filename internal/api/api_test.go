package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func refs(t *testing.T) []image.Ref {
	t.Helper()
	r, err := image.Parse("ghcr.io/acme/server")
	if err != nil {
		t.Fatal(err)
	}
	return []image.Ref{r}
}

// TestForeignAnswers: a resolver that answers something else than was asked gets an error, never a digest.
func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, answer, want string }{
		{"no JSON", "hello", "invalid character"},
		{"no answer", `{}`, "0 answers to 1 references"},
		{"two answers", `{"results":[{},{}]}`, "2 answers to 1 references"},
		{"another image", `{"results":[{"image":"ghcr.io/evil:latest","digest":"` + digest + `"}]}`, `an answer for "ghcr.io/evil:latest"`},
	}
	for _, tt := range tests {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, tt.answer) }))
		defer s.Close()
		c, err := NewClient(s.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := c.Resolve(t.Context(), nil, nil, refs(t)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v, want %q in the error", tt.name, got, err, tt.want)
		}
	}
	for name, answer := range map[string]Result{"no digest": {}, "not a digest": {Digest: "latest"}} {
		if got := answer.resolution(refs(t)[0]); got.Err == nil || got.Digest != "" {
			t.Errorf("%s: %+v, want an error", name, got)
		}
	}
}

// TestErrorsSurviveTheWire: text, hint, code and kind of an error are on the other side what they were on this one.
func TestErrorsSurviveTheWire(t *testing.T) {
	t.Parallel()
	for _, sentinel := range []error{image.ErrNotFound, image.ErrUnauthorized, image.ErrUnavailable} {
		in := image.Resolution{Ref: refs(t)[0], Err: fault.New(fault.RegistryRefused, "do this", "ghcr.io: %w (4xx)", sentinel)}
		out := ToResult(in).resolution(in.Ref)
		if !errors.Is(out.Err, sentinel) || fault.Hint(out.Err) != "do this" || fault.CodeOf(out.Err) != fault.RegistryRefused || out.Err.Error() != in.Err.Error() {
			t.Errorf("%v came back as %v with hint %q", in.Err, out.Err, fault.Hint(out.Err))
		}
	}
	in := image.Resolution{Ref: refs(t)[0], Digest: digest, At: time.Now(), Stale: true, Cached: true}
	if diff := cmp.Diff(in, ToResult(in).resolution(in.Ref)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{
		"unix:///run/s": true, "http://resolver:8085": true, "https://resolver": true,
		"": false, "resolver:8085": false, "unix://run/s": false, "ftp://x": false, "http://": false, "http://u:hunter2@h": false, "://hunter2": false,
	} {
		_, err := NewClient(address, "")
		if (err == nil) != ok {
			t.Errorf("NewClient(%q) = %v, want ok = %v", address, err, ok)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("NewClient(%q) repeats a secret: %v", address, err)
		}
	}
}

// TestReplicas: a name stands for all its addresses, and each client talks to its own.
func TestReplicas(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" || !strings.HasPrefix(r.Host, "localhost:") {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_, _ = fmt.Fprint(w, `{"sources":[]}`)
	}))
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	clients, err := Replicas(t.Context(), "http://localhost:"+port, "secret")
	if err != nil {
		t.Fatal(err)
	}
	var answered int
	for _, c := range clients {
		if _, err := c.Pins(t.Context()); err == nil {
			answered++
		} else if !strings.Contains(err.Error(), "::1") { // the server listens on IPv4 only
			t.Error(err)
		}
		c.Close()
	}
	if answered != 1 {
		t.Errorf("%d of %d clients answered, want 1", answered, len(clients))
	}
	if _, err := Replicas(t.Context(), "http://resolver.invalid:8085", ""); err == nil || fault.Hint(err) == "" {
		t.Errorf("unknown name: %v", err)
	}
}

// TestSilentResolver: the caller's deadline ends the call, and its reason is in the error.
func TestSilentResolver(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer s.Close()
	defer close(release)
	c, err := NewClient(s.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("no result within 20ms"))
	defer cancel()
	if _, err := c.Resolve(ctx, nil, nil, refs(t)); !errors.Is(err, image.ErrUnavailable) || !strings.Contains(err.Error(), "no result within 20ms") {
		t.Errorf("silent resolver: %v", err)
	}
}

// TestUnreachable: the way out depends on how the resolver is reached.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"unix:///nowhere/resolver.sock": "mount the socket's volume", "http://127.0.0.1:1": "NetworkPolicy",
	} {
		c, err := NewClient(address, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Pins(t.Context()); !errors.Is(err, image.ErrUnavailable) || !strings.Contains(fault.Hint(err), want) {
			t.Errorf("%s: %v with hint %q, want %q in it", address, err, fault.Hint(err), want)
		}
		c.Close()
	}
}
