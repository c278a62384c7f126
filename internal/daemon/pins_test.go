package daemon

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/lock"
)

// TestPinsSentWhenNew: a ledger is sent to a client that does not have it, also after a restart, and to no other.
func TestPinsSentWhenNew(t *testing.T) {
	t.Parallel()
	r := run(t)
	var resolver atomic.Pointer[http.ServeMux]
	restart := func(l *Ledger) {
		resolver.Store(serverFor(t, &syncBuffer{}, func(o *Options) { o.Ledger, o.Keys.TokenFile = l, r.tokenFile }).remote())
	}
	var statuses []int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		answer := httptest.NewRecorder()
		resolver.Load().ServeHTTP(answer, req)
		statuses = append(statuses, answer.Code)
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	defer srv.Close()
	client := r.client(t, srv.URL, "one")
	other := t.TempDir()
	record(t, openLedger(t, other), rendered("two", "r1", d1))
	steps := []struct {
		name   string
		change func()
		status int
		want   []lock.Document
	}{
		{"the first", func() { record(t, r.ledger, rendered("one", "r1", d1)); restart(r.ledger) }, 200, []lock.Document{rendered("one", "r1", d1)}},
		{"nothing new", func() {}, 304, []lock.Document{rendered("one", "r1", d1)}},
		{"a render", func() { record(t, r.ledger, rendered("one", "r2", d2)) }, 200, []lock.Document{rendered("one", "r2", d2)}},
		{"nothing new", func() {}, 304, []lock.Document{rendered("one", "r2", d2)}},
		{"a restart with the same state", func() { restart(openLedger(t, r.ledger.dir)) }, 200, []lock.Document{rendered("one", "r2", d2)}},
		{"another state, as many renders since", func() { restart(openLedger(t, other)) }, 200, []lock.Document{rendered("two", "r1", d1)}},
	}
	for _, step := range steps {
		step.change()
		got, err := client.Pins(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: pins (-want +got):\n%s", step.name, diff)
		}
		if status := statuses[len(statuses)-1]; status != step.status {
			t.Errorf("%s: %d, want %d", step.name, status, step.status)
		}
	}
}

// TestPinsCondition: a proxy may have weakened the tag, or keep several; a part of it is none.
func TestPinsCondition(t *testing.T) {
	t.Parallel()
	r := run(t)
	tag := `"` + r.ledger.Version() + `"`
	for condition, status := range map[string]int{
		"": 200, tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, `"x"`: 200, `"` + r.ledger.Version() + `1"`: 200, r.ledger.Version(): 200,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.address+"/v1/pins", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer one")
		req.Header.Set("If-None-Match", condition)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != status || res.Header.Get("ETag") != tag {
			t.Errorf("If-None-Match: %s: %s with tag %s, want %d with %s", condition, res.Status, res.Header.Get("ETag"), status, tag)
		}
	}
	if res := get(t, r.address+"/v1/pins", 401); res == "" {
		t.Error("no reason without a token")
	}
}
