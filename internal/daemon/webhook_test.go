package daemon

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// syncBuffer is a log that a test reads while a server writes it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// googleEmail takes "token of EMAIL" for a good token.
func googleEmail(_ context.Context, token string) (string, error) {
	email, ok := strings.CutPrefix(token, "token-of-")
	if !ok {
		return "", errors.New("bad token")
	}
	return email, nil
}

// secret configures a sender.
func (r *running) secret(t *testing.T, sender, lines string) {
	t.Helper()
	if err := os.MkdirAll(r.secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.secrets, sender), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
}

// send posts an event and returns the status and what was answered.
func (r *running) send(t *testing.T, path, header, value, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != "" {
		req.Header.Set(header, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

const (
	acrPush   = `{"action":"push","target":{"repository":"a","tag":"latest"},"request":{"host":"acme.azurecr.io"}}`
	acrPing   = `{"action":"ping"}`
	quayPush  = `{"docker_url":"quay.io/a/b","updated_tags":["latest","main"]}`
	nexusPush = `{"action":"CREATED","component":{"format":"docker","name":"a","version":"latest"}}`
	garPush   = `{"message":{"data":"eyJhY3Rpb24iOiJJTlNFUlQiLCJ0YWciOiJnY3IuaW8vYS9iOmxhdGVzdCJ9"}}` // gcr.io/a/b:latest
	badEvents = `{"events":[{"action":"push","target":{"repository":"../a","tag":"latest"},"request":{"host":"r.example.com"}}]}`
)

func signed(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, sender := range []string{"acr", "quay", "ghcr", "nexus", "distribution"} {
		r.secret(t, sender, "# for "+sender+"\ncorrect-horse\nbattery-staple\n")
	}
	r.secret(t, "gcr", "push@acme.iam.gserviceaccount.com\n")
	r.secret(t, "zot", "")
	ping := `{"zen":"x"}`
	tests := map[string]struct {
		path, header, value, body string
		status                    int
		answer                    string
	}{
		"push":               {"/webhook/acr", "Authorization", "Bearer correct-horse", acrPush, 202, `{"images":["acme.azurecr.io/a:latest"],"refreshed":0}`},
		"second secret":      {"/webhook/acr?registry=r.example.com", "Authorization", "battery-staple", acrPush, 202, `{"images":["r.example.com/a:latest"],"refreshed":0}`},
		"ping":               {"/webhook/acr", "Authorization", "Bearer correct-horse", acrPing, 200, `{"images":[],"refreshed":0}`},
		"wrong secret":       {"/webhook/acr", "Authorization", "Bearer correct", acrPush, 401, "wrong or missing secret"},
		"no secret":          {"/webhook/acr", "", "", acrPush, 401, "docs/webhooks.md says where"},
		"path":               {"/webhook/quay/correct-horse", "", "", quayPush, 202, `{"images":["quay.io/a/b:latest","quay.io/a/b:main"],"refreshed":0}`},
		"wrong path":         {"/webhook/quay/wrong", "", "", quayPush, 401, "wrong or missing secret"},
		"no path":            {"/webhook/quay", "", "", quayPush, 401, "wrong or missing secret"},
		"path, other sender": {"/webhook/acr/correct-horse", "", "", acrPush, 401, "wrong or missing secret"},
		"signature":          {"/webhook/ghcr", "X-Hub-Signature-256", signed("battery-staple", ping), ping, 200, `{"images":[],"refreshed":0}`},
		"wrong signature":    {"/webhook/ghcr", "X-Hub-Signature-256", signed("wrong", ping), ping, 401, "wrong or missing secret"},
		"Google":             {"/webhook/gcr", "Authorization", "Bearer token-of-push@acme.iam.gserviceaccount.com", garPush, 202, `{"images":["gcr.io/a/b:latest"],"refreshed":0}`},
		"Google, other":      {"/webhook/gcr", "Authorization", "Bearer token-of-eve@example.com", garPush, 401, "is no service account that may send this"},
		"Google, nobody":     {"/webhook/gcr", "Authorization", "Bearer token-of-", garPush, 401, "nobody"},
		"Google, forged":     {"/webhook/gcr", "Authorization", "Bearer x", garPush, 401, "bad token"},
		"closed":             {"/webhook/gar", "Authorization", "Bearer token-of-push@acme.iam.gserviceaccount.com", garPush, 403, "--webhook-secrets"},
		"empty file":         {"/webhook/zot", "Authorization", "Bearer ", "{}", 503, "cannot read the secrets"},
		"unknown sender":     {"/webhook/..%2ftoken", "Authorization", "Bearer one", "{}", 404, "acr, artifactory, distribution"},
		"not JSON":           {"/webhook/acr", "Authorization", "Bearer correct-horse", "{", 400, "unexpected end of JSON input"},
		"too large":          {"/webhook/acr", "Authorization", "Bearer correct-horse", strings.Repeat(" ", 1<<20+1), 413, "too large"},
		"no signature, host": {"/webhook/nexus", "Authorization", "Bearer correct-horse", nexusPush, 401, "wrong or missing secret"},
		"bad, sender queues": {"/webhook/distribution", "Authorization", "Bearer correct-horse", badEvents, 200, "is not a repository path component"},
	}
	for name, tt := range tests {
		status, text := r.send(t, tt.path, tt.header, tt.value, tt.body)
		if status != tt.status || !strings.Contains(text, tt.answer) {
			t.Errorf("%s: %d %s, want %d and %s", name, status, text, tt.status, tt.answer)
		}
	}
	if n := r.registry.asked.Load(); n != 0 {
		t.Errorf("events about images that nobody uses caused %d look-ups", n)
	}
	found := regexp.MustCompile(`(?m)^digestlock_webhook_events_total.*$`).FindAllString(get(t, r.address+"/metrics", 200), -1)
	slices.Sort(found)
	want := []string{
		`digestlock_webhook_events_total{outcome="flushed",sender="acr"} 2`,
		`digestlock_webhook_events_total{outcome="flushed",sender="gcr"} 1`,
		`digestlock_webhook_events_total{outcome="flushed",sender="quay"} 1`,
		`digestlock_webhook_events_total{outcome="ignored",sender="acr"} 1`,
		`digestlock_webhook_events_total{outcome="ignored",sender="ghcr"} 1`,
		`digestlock_webhook_events_total{outcome="malformed",sender="acr"} 2`,
		`digestlock_webhook_events_total{outcome="malformed",sender="distribution"} 1`,
		`digestlock_webhook_events_total{outcome="refused",sender="acr"} 3`,
		`digestlock_webhook_events_total{outcome="refused",sender="gar"} 1`,
		`digestlock_webhook_events_total{outcome="refused",sender="gcr"} 3`,
		`digestlock_webhook_events_total{outcome="refused",sender="ghcr"} 1`,
		`digestlock_webhook_events_total{outcome="refused",sender="nexus"} 1`,
		`digestlock_webhook_events_total{outcome="refused",sender="quay"} 2`,
		`digestlock_webhook_events_total{outcome="refused",sender="zot"} 1`,
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("metric (-want +got):\n%s", diff)
	}
	for _, secret := range []string{"correct-horse", "battery-staple", "/wrong"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, r.log)
		}
	}
	if !strings.Contains(r.log.String(), `"msg":"webhook","sender":"quay","images":2,"refreshed":0`) {
		t.Errorf("no line for an event in the log:\n%s", r.log)
	}
}

// TestWebhookRefreshes: an image in use is asked for again while the sender has its answer already, and no render gets
// the old digest any more.
func TestWebhookRefreshes(t *testing.T) {
	t.Parallel()
	r := run(t)
	r.secret(t, "acr", "one\n")
	event := `{"action":"push","target":{"repository":"slow","tag":"latest"},"request":{"host":"acme.azurecr.io"}}`
	plugin := r.client(t, "unix://"+r.socket, "")
	resolved := make(chan error, 1)
	go func() {
		res, err := plugin.Resolve(context.Background(), nil, nil, refs(t, "acme.azurecr.io/slow"))
		if err == nil && res[0].Digest != d1 {
			err = fmt.Errorf("got %+v", res[0])
		}
		resolved <- err
	}()
	for r.registry.asked.Load() == 0 {
		time.Sleep(time.Millisecond) // the look-up is on its way
	}
	if status, text := r.send(t, "/webhook/acr", "Authorization", "one", event); status != 202 || !strings.Contains(text, `"refreshed":1`) {
		t.Errorf("event = %d %s, want 202 with the registry silent", status, text)
	}
	for r.registry.asked.Load() != 2 {
		time.Sleep(time.Millisecond)
	}
	close(r.registry.slow)
	if err := <-resolved; err != nil {
		t.Error(err)
	}
}

// TestWebhookSecretsRotate: a secret counts from the moment it is in the file until it is not.
func TestWebhookSecretsRotate(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, step := range []struct {
		lines    string
		old, new int
	}{{"old\n", 202, 401}, {"new\nold\n", 202, 202}, {"new\n", 401, 202}} {
		r.secret(t, "acr", step.lines)
		for secret, want := range map[string]int{"old": step.old, "new": step.new} {
			if status, _ := r.send(t, "/webhook/acr", "Authorization", secret, acrPush); status != want {
				t.Errorf("file %q, secret %s: %d, want %d", step.lines, secret, status, want)
			}
		}
	}
}
