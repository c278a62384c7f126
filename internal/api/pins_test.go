package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/lock"
)

// ledgerServer says what is in tag and documents, and notes each request's If-None-Match.
type ledgerServer struct {
	*httptest.Server
	tag, documents string
	conditions     []string
	unmodified     bool // answer 304, asked or not
}

func serveLedger(t *testing.T) *ledgerServer {
	s := &ledgerServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		condition := r.Header.Get("If-None-Match")
		s.conditions = append(s.conditions, condition)
		if s.tag != "" {
			w.Header().Set("ETag", s.tag)
		}
		if s.unmodified || s.tag != "" && condition == s.tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = fmt.Fprint(w, s.documents)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *ledgerServer) client(t *testing.T) *Client {
	t.Helper()
	c, err := NewClient(s.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func documents(app string) string {
	return `{"sources":[{"source":{"application":"` + app + `"},"pins":[{"image":"ghcr.io/acme/server:latest","digest":"` + digest +
		`","resolvedAt":"2026-11-22T20:57:00Z","hold":{"reason":"broken"}}]}]}`
}

func document(app string) []lock.Document {
	return []lock.Document{{
		Source: &lock.Source{Application: app},
		Pins: []lock.Pin{{
			Image: "ghcr.io/acme/server:latest", Digest: digest, ResolvedAt: time.Date(2026, 11, 22, 20, 57, 0, 0, time.UTC), Hold: &lock.Hold{Reason: "broken"},
		}},
	}}
}

// wantPins asks, holds the answer against want, and then does to it what a caller may do.
func wantPins(t *testing.T, c *Client, want []lock.Document) {
	t.Helper()
	got, err := c.Pins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
	for i := range got {
		got[i].Source.Application = "mine"
		got[i].Pins[0].Hold.Reason = "mine"
		got[i].Pins[0].Digest = "mine"
		got[i] = lock.Document{}
	}
}

// TestPinsSentOnce: a ledger is sent when it is new to the client, whatever callers did to what they got.
func TestPinsSentOnce(t *testing.T) {
	t.Parallel()
	s := serveLedger(t)
	c := s.client(t)
	s.tag, s.documents = `"a-1"`, documents("one")
	wantPins(t, c, document("one"))
	s.documents = "not sent"
	wantPins(t, c, document("one"))
	wantPins(t, c, document("one"))
	s.tag, s.documents = `"a-2"`, documents("two")
	wantPins(t, c, document("two"))
	s.tag, s.documents = "", documents("three") // a resolver that is too old to say
	wantPins(t, c, document("three"))
	wantPins(t, c, document("three"))
	want := []string{"", `"a-1"`, `"a-1"`, `"a-1"`, `"a-2"`, ""}
	if diff := cmp.Diff(want, s.conditions); diff != "" {
		t.Errorf("If-None-Match (-want +got):\n%s", diff)
	}
}

// TestPinsUnmodifiedUnasked: who knows nothing makes no ledger of a 304.
func TestPinsUnmodifiedUnasked(t *testing.T) {
	t.Parallel()
	s := serveLedger(t)
	s.unmodified = true
	if docs, err := s.client(t).Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "(304)") {
		t.Errorf("Pins = %+v, %v, want an error", docs, err)
	}
}

// TestInherit: what a client knows goes on to that of the same address, and to no other.
func TestInherit(t *testing.T) {
	t.Parallel()
	here, there := serveLedger(t), serveLedger(t)
	here.tag, here.documents = `"a-1"`, documents("one")
	there.tag, there.documents = `"a-1"`, documents("two")
	before := []*Client{here.client(t), there.client(t)}
	wantPins(t, before[0], document("one"))
	again, fresh := here.client(t), there.client(t)
	again.Inherit(before)
	fresh.Inherit(before[:1])
	wantPins(t, again, document("one"))
	wantPins(t, fresh, document("two"))
	if diff := cmp.Diff([][]string{{"", `"a-1"`}, {""}}, [][]string{here.conditions, there.conditions}); diff != "" {
		t.Errorf("If-None-Match (-want +got):\n%s", diff)
	}
}
