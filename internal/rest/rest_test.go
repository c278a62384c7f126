package rest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/rest"
)

func token(context.Context) (string, error) { return "t0ken", nil }

func client(t *testing.T, server *httptest.Server) *rest.Client {
	t.Helper()
	c, err := rest.New(server.URL+"/api/", token, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server
}

func check(t *testing.T, what string, err error, code fault.Code, want, hint string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	if fault.CodeOf(err) != code || !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), hint) {
		t.Errorf("%s:\n got %q [%s]\nhint %q\nwant %q [%s]\nhint %q", what, err, fault.CodeOf(err), fault.Hint(err), want, code, hint)
	}
	if strings.Contains(err.Error(), "t0ken") || len(err.Error()) > 1000 {
		t.Errorf("%s: %q gives the token away, or is too long", what, err)
	}
}

func TestCall(t *testing.T) {
	t.Parallel()
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, `{"saw": %q}`, strings.Join([]string{
			r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), string(body),
		}, " "))
	})
	for _, tt := range []struct {
		method string
		in     any
		want   string
	}{
		{"GET", nil, "GET /api/a%2Fb q=1 Bearer t0ken  "},
		{"POST", map[string]string{"k": "v"}, `POST /api/a%2Fb q=1 Bearer t0ken application/json {"k":"v"}`},
	} {
		var got struct{ Saw string }
		if err := client(t, server).Call(t.Context(), tt.method, "/a%2Fb?q=1", tt.in, &got); err != nil || got.Saw != tt.want {
			t.Errorf("%s: %q, want %q (%v)", tt.method, got.Saw, tt.want, err)
		}
	}
}

// TestTries: what may be repeated is, while the API is down, and nothing else.
func TestTries(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method string
		status int
		down   int64 // how many answers are not 200
		tries  int64
		ok     bool
	}{
		{"GET", 200, 0, 1, true},
		{"GET", 503, 2, 3, true},
		{"PATCH", 502, 1, 2, true},
		{"PUT", 500, 9, 3, false},
		{"POST", 503, 1, 1, false},
		{"GET", 404, 9, 1, false},
		{"GET", 429, 9, 1, false},
		{"GET", -1, 2, 3, true}, // the connection breaks
		{"POST", -1, 1, 1, false},
	} {
		t.Run(fmt.Sprint(tt.method, tt.status), func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int64
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if string(body) != `"in"` {
					t.Errorf("try %d has the body %q", tries.Load(), body)
				}
				if tries.Add(1) > tt.down {
					_, _ = io.WriteString(w, "{}")
					return
				}
				if tt.status < 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(tt.status)
			})
			err := client(t, server).Call(t.Context(), tt.method, "/x", "in", &struct{}{})
			if (err == nil) != tt.ok || tries.Load() != tt.tries {
				t.Errorf("%d tries, %v; want %d", tries.Load(), err, tt.tries)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status       int
		header, body string
		code         fault.Code
		want, hint   string
	}{
		{401, "", `{"message":"Bad credentials t0ken"}`, fault.GitAccess, "GET %/api/x: 401 Unauthorized: Bad credentials ***", "check that the token is right"},
		{403, "", `{"message":"Resource not accessible by integration","documentation_url":"https://x"}`, fault.GitAccess, "403 Forbidden: Resource not accessible by integration", "let the token read and write"},
		{403, "", `{"error":"insufficient_scope","error_description":"needs more","scope":"api"}`, fault.GitAccess, "403 Forbidden: insufficient_scope, needs more", "let the token"},
		{404, "", "<html>not here</html>", fault.GitAccess, "/api/x: 404 Not Found", "check the repository's URL"},
		{409, "", `{"message":["Another open merge request already exists for this source branch: !1"]}`, fault.GitRefused, "409 Conflict: Another open", "satisfy the rule"},
		{400, "", `{"message":{"title":["is too long","is odd"]}}`, fault.GitRefused, "400 Bad Request: title is too long, title is odd", "satisfy the rule"},
		{422, "", `{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom","message":"No commits between main and x"}]}`, fault.GitRefused, "Validation Failed, No commits between main and x", "satisfy the rule"},
		{422, "", `{"message":"Validation Failed","errors":[{"resource":"PullRequest","field":"head","code":"invalid"}]}`, fault.GitRefused, "Validation Failed, code invalid, field head, resource PullRequest", "satisfy the rule"},
		{429, "RateLimit-Reset: 1900000000", `{"message":{"error":"too many"}}`, fault.RateLimited, "rate limited until 2030-03-17T17:46:40Z: 429 Too Many Requests: too many", "wait until then"},
		{403, "X-RateLimit-Reset: 1900000000\nX-RateLimit-Remaining: 0", `{"message":"API rate limit exceeded"}`, fault.RateLimited, "rate limited until 2030-03-17T17:46:40Z", "wait until then"},
		{403, "Retry-After: Sun, 17 Mar 2030 17:46:40 GMT", `{"message":"You have exceeded a secondary rate limit"}`, fault.RateLimited, "rate limited until 2030-03-17T17:46:40Z", "wait until then"},
		{403, "X-RateLimit-Reset: 1900000000\nX-RateLimit-Remaining: 4999", `{}`, fault.GitAccess, "403 Forbidden", "let the token"},
		{200, "", "<html>sign in</html>", fault.GitURL, "the answer is not the JSON of this API", "check the address"},
		{200, "", string(bytes.Repeat([]byte("["), 17<<20)), fault.TooLarge, "the answer is larger than 16 MiB", "check the address"},
		{418, "", `{"message":"` + strings.Repeat("tea \\n", 1000) + `"}`, fault.GitRefused, "tea tea", "satisfy the rule"},
	} {
		server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for line := range strings.Lines(tt.header) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		})
		err := client(t, server).Call(t.Context(), http.MethodGet, "/x?private=1", nil, &struct{}{})
		check(t, fmt.Sprint(tt.status), err, tt.code, strings.Replace(tt.want, "%", server.URL, 1), tt.hint)
		if tt.status >= 400 && rest.Status(err) != tt.status {
			t.Errorf("status %d of %v", rest.Status(err), err)
		}
	}
}

// TestRetryAfter: seconds are counted from now.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for header, wait := range map[string]time.Duration{"3600": time.Hour, "": time.Minute, "soon": time.Minute} {
		server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", header)
			w.WriteHeader(http.StatusTooManyRequests)
		})
		before := time.Now()
		err := client(t, server).Call(t.Context(), http.MethodGet, "/x", nil, &struct{}{})
		_, rest, _ := strings.Cut(fmt.Sprint(err), "limited until ")
		until, parseErr := time.Parse(time.RFC3339, rest[:min(len(rest), 20)])
		if parseErr != nil || until.Before(before.Add(wait-time.Second)) || until.After(time.Now().Add(wait)) {
			t.Errorf("Retry-After %q: until %v (%v)", header, until, err)
		}
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	var stranger atomic.Int64
	other := serve(t, func(http.ResponseWriter, *http.Request) { stranger.Add(1) })
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/old":
			http.Redirect(w, r, "/api/new", http.StatusMovedPermanently)
		case "/api/kept":
			http.Redirect(w, r, "/api/new", http.StatusTemporaryRedirect)
		case "/api/away":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/api/loop":
			http.Redirect(w, r, "/api/loop", http.StatusFound)
		default:
			fmt.Fprintf(w, `{"method":%q,"auth":%q}`, r.Method, r.Header.Get("Authorization"))
		}
	})
	for _, tt := range []struct {
		method, path string
		ok           bool
	}{
		{"GET", "/old", true},
		{"PATCH", "/kept", true},
		{"PATCH", "/old", false}, // would become GET
		{"POST", "/old", false},
		{"GET", "/away", false},
		{"PUT", "/away", false},
		{"GET", "/loop", false},
	} {
		var got struct{ Method, Auth string }
		err := client(t, server).Call(t.Context(), tt.method, tt.path, "in", &got)
		if tt.ok && (err != nil || got.Method != tt.method || got.Auth != "Bearer t0ken") {
			t.Errorf("%s %s: %+v, %v", tt.method, tt.path, got, err)
		}
		if !tt.ok {
			check(t, tt.method+tt.path, err, fault.GitURL, "the API redirects to another host", "use the address that")
		}
	}
	if stranger.Load() != 0 {
		t.Error("the other host was asked")
	}
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	down := server.URL
	server.Close()
	c, err := rest.New(down, token, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "down", c.Call(t.Context(), http.MethodGet, "/x", nil, nil), fault.GitUnavailable, "connection refused", "check that the API is up")

	server = serve(t, func(http.ResponseWriter, *http.Request) {})
	if c, err = rest.New(server.URL, token, nil); err != nil {
		t.Fatal(err)
	}
	check(t, "unknown CA", c.Call(t.Context(), http.MethodGet, "/x", nil, nil), fault.GitCertificate, "unknown authority", "give the CA")

	ctx, cancel := context.WithCancelCause(t.Context())
	server = serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel(errors.New("stopping"))
		<-r.Context().Done()
	})
	if err := client(t, server).Call(ctx, http.MethodGet, "/x", nil, nil); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("cancelled: %v", err)
	}

	silent := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, stop := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("no answer within 100ms"))
	defer stop()
	err = client(t, silent).Call(ctx, http.MethodPost, "/x", nil, nil)
	check(t, "silent", err, fault.GitUnavailable, "no answer within 100ms", "check that the API is up")
}

func TestToken(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := serve(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	c, err := rest.New(server.URL, func(context.Context) (string, error) {
		return "", fault.New(fault.SecretFile, "mount it", "no token")
	}, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	check(t, "no token", c.Call(t.Context(), http.MethodGet, "/x", nil, nil), fault.SecretFile, "no token", "mount it")
	if asked.Load() != 0 {
		t.Error("the API was asked without a token")
	}
}
