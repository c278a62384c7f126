package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestFlushAgain: a 503 is asked again until there is another answer or no time left, and no other failure is.
func TestFlushAgain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status, times int // how often that is answered, before 200
		timeout       time.Duration
		asked         int // at least
		want          string
	}{
		"leads at last":  {status: 503, times: 2, timeout: time.Minute, asked: 3},
		"never leads":    {status: 503, times: 1000, timeout: time.Second, asked: 2, want: "no companion leads now (503)"},
		"another answer": {status: 500, times: 1000, timeout: time.Minute, asked: 1, want: "no companion leads now (500)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if int(asked.Add(1)) <= tt.times {
					w.WriteHeader(tt.status)
					_, _ = w.Write([]byte(`{"message": "no companion leads now"}`))
					return
				}
				_, _ = w.Write([]byte(`{"flushed": [{"image": "ghcr.io/acme/server:latest"}]}`))
			}))
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
			defer cancel()
			got, err := flushAll(ctx, []string{s.URL}, "", []string{"ghcr.io/acme/server:latest"})
			if err != nil || len(got) != 1 {
				t.Fatalf("flushAll() = %v, %v", got, err)
			}
			switch e := got[0].Error; {
			case tt.want == "" && (e != nil || len(got[0].Images) != 1):
				t.Errorf("flushed %v, error %v", got[0].Images, e)
			case tt.want != "" && (e == nil || !strings.HasSuffix(e.Message, tt.want)):
				t.Errorf("error %v, want %s", e, tt.want)
			}
			if n := int(asked.Load()); n < tt.asked || tt.status != 503 && n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
		})
	}
}
