package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const hookSecret = "battery-staple"

// startHooked starts a resolver at addr that takes webhooks of sender and asks a registry again only because of them.
func startHooked(t *testing.T, registry *registryServer, addr, sender string) *stack {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e") // t.TempDir would make the socket path too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &stack{registry: registry, tokenFile: filepath.Join(dir, "token")}
	writeFile(t, s.tokenFile, "s3cret\n")
	writeFile(t, filepath.Join(dir, "secrets", sender), hookSecret+"\n")
	s.startResolver(t, dir, addr, "--ttl", "1h", "--webhook-secrets", filepath.Join(dir, "secrets"))
	return s
}

// TestDistributionWebhook: a real registry tells of a push, and the resolver has the new digest.
func TestDistributionWebhook(t *testing.T) {
	addr := freeAddr()
	registry := startRegistry(t, fmt.Sprintf(`
notifications:
  endpoints:
    - name: digestlock
      url: http://%s/webhook/distribution
      headers: {Authorization: [Bearer %s]}
      timeout: 5s
      threshold: 5
      backoff: 100ms
    - name: stranger
      url: http://%[1]s/webhook/distribution
      headers: {Authorization: [Bearer wrong]}
      timeout: 5s
      threshold: 5
      backoff: 1h
`, addr, hookSecret))
	s := startHooked(t, registry, addr, "distribution")
	image := registry.image("acme/server:latest")

	old := registry.push(t, "acme/server:latest")
	s.waitEvents(t, "distribution", "flushed", 1)
	if got := s.resolve(t, image); got != old {
		t.Fatalf("resolved %s, want %s", got, old)
	}
	current := registry.push(t, "acme/server:latest")
	s.waitEvents(t, "distribution", "flushed", 2)
	// The event comes before the tag has moved, so that the first look may still see the old digest.
	for deadline := time.Now().Add(startTimeout); s.resolve(t, image) != current; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after the webhook %s, want %s", s.resolve(t, image), current)
		}
	}
	s.waitEvents(t, "distribution", "ignored", 1) // layers and the manifests of the index
	s.waitEvents(t, "distribution", "refused", 1) // the stranger's
	if n := s.events(t, "distribution", "malformed"); n != 0 {
		t.Errorf("%d events were not understood", n)
	}
}

// TestGiteaWebhook: a real Gitea signs what it tells of a push and of a deletion.
func TestGiteaWebhook(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Gitea")
	}
	gitea := startGitea(t)
	addr := freeAddr()
	s := startHooked(t, &registryServer{addr: gitea.addr}, addr, "gitea")
	gitea.call(t, http.MethodPost, "/user/hooks", map[string]any{
		"type": "gitea", "active": true, "events": []string{"package"},
		"config": map[string]string{"url": "http://" + addr + "/webhook/gitea", "content_type": "json", "secret": hookSecret},
	})
	image := gitea.addr + "/acme/server:latest"

	old := pushImage(t, image, remote.WithAuth(gitea.auth()))
	s.waitEvents(t, "gitea", "flushed", 1)
	if got := s.resolve(t, image); got != old {
		t.Fatalf("resolved %s, want %s", got, old)
	}
	current := pushImage(t, image, remote.WithAuth(gitea.auth()))
	s.waitEvents(t, "gitea", "flushed", 2)
	if got := s.resolve(t, image); got != current {
		t.Errorf("after the webhook %s, want %s", got, current)
	}
	gitea.call(t, http.MethodDelete, "/packages/acme/container/server/latest", nil)
	s.waitEvents(t, "gitea", "flushed", 3)
	if got := s.resolve(t, image); got != "not_found" {
		t.Errorf("after the deletion %s, want not_found", got)
	}
	s.waitEvents(t, "gitea", "ignored", 1) // the manifests of the index
	for _, outcome := range []string{"malformed", "refused"} {
		if n := s.events(t, "gitea", outcome); n != 0 {
			t.Errorf("%d events were %s", n, outcome)
		}
	}
}

// resolve asks the resolver for the digest of a full reference; it returns the kind of problem if there is none.
func (s *stack) resolve(t *testing.T, image string) string {
	t.Helper()
	status, body := s.call(t, http.MethodPost, "/v1/resolve", `{"images":["`+image+`"]}`, "s3cret")
	var answer struct {
		Results []struct {
			Digest string
			Error  struct{ Kind string }
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || len(answer.Results) != 1 {
		t.Fatalf("resolve %s: %d %s", image, status, body)
	}
	return answer.Results[0].Digest + answer.Results[0].Error.Kind
}

// events returns how many webhooks of a sender had an outcome.
func (s *stack) events(t *testing.T, sender, outcome string) int {
	t.Helper()
	_, body := s.call(t, http.MethodGet, "/metrics", "", "")
	_, rest, found := strings.Cut(body, fmt.Sprintf("digestlock_webhook_events_total{outcome=%q,sender=%q} ", outcome, sender))
	var n int
	if _, err := fmt.Sscan(rest, &n); found && err != nil {
		t.Fatal(err)
	}
	return n
}

// waitEvents waits until n webhooks of a sender had an outcome.
func (s *stack) waitEvents(t *testing.T, sender, outcome string, n int) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); s.events(t, sender, outcome) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_, body := s.call(t, http.MethodGet, "/metrics", "", "")
			t.Fatalf("fewer than %d events of %s were %s:\n%s", n, sender, outcome, body)
		}
	}
}
