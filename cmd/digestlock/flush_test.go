package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/fanout"
	"github.com/digestlock/digestlock/internal/image"
)

type issuerKey struct{}

// issuerOf returns the place of the script's issuer, nil in it until there is one.
func issuerOf(ts *testscript.TestScript) **accesstest.Issuer {
	return ts.Value(issuerKey{}).(**accesstest.Issuer)
}

// issue is issuer [runner]: it starts an OIDC issuer at $ISSUER, with its certificate's authority in the file $ISSUER_CA; or
// the token service of a GitHub Actions runner that hands out tokens of that issuer for a job in acme/app.
func issue(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 1 {
		runner(ts)
		return
	}
	i := accesstest.Listen()
	ts.Defer(i.Close)
	ca, err := i.CAFile(ts.Getenv("WORK"))
	ts.Check(err)
	ts.Setenv("ISSUER", i.URL)
	ts.Setenv("ISSUER_CA", ca)
	*issuerOf(ts) = i
}

func runner(ts *testscript.TestScript) {
	const secret = "runner-secret"
	i := *issuerOf(ts)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret || r.FormValue("api-version") != "2.0" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": i.Token(accesstest.Claims{
			"aud": r.FormValue("audience"), "sub": "repo:acme/app:ref:refs/heads/main", "repository": "acme/app",
		})})
	}))
	ts.Defer(s.Close)
	ts.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", s.URL+"/token?api-version=2.0")
	ts.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", secret)
}

// flood TOKEN flushes what a caller may flush at once, until that is too much.
func flood(ts *testscript.TestScript, _ bool, args []string) {
	images := slices.Repeat([]string{ts.Getenv("REGISTRY") + "/acme/server:latest"}, 300)
	for range 3 {
		if ask(ts, http.MethodPost, "/flush?"+url.Values{"image": images}.Encode(), args[0], "") == "429" {
			return
		}
	}
	ts.Fatalf("900 flushes at once were not too many")
}

// token VARIABLE CLAIM=VALUE... sets the variable to a token of the issuer.
func token(ts *testscript.TestScript, _ bool, args []string) {
	claims := accesstest.Claims{}
	for _, a := range args[1:] {
		name, value, _ := strings.Cut(a, "=")
		claims[name] = value
	}
	ts.Setenv(args[0], (*issuerOf(ts)).Token(claims))
}

// committer is a companion's loop that pushes one commit in each cycle.
type committer struct{}

func (committer) Waits() bool { return false }

func (committer) Wake(...image.Target) {}

func (committer) Sync(context.Context, ...image.Target) ([]companion.Commit, error) {
	return []companion.Commit{{
		Repository: "https://git.example.com/k8s.git", Branch: "main", Hash: strings.Repeat("3f2c1ab0", 5), Message: "server: move on\n\nmore\n",
	}}, nil
}

// front starts a companion's front door at $COMPANION for the resolvers at $LISTEN and $LISTEN2.
func front(ts *testscript.TestScript, _ bool, _ []string) {
	addresses := []string{"http://" + ts.Getenv("LISTEN"), "http://" + ts.Getenv("LISTEN2")}
	token, err := api.Token(ts.MkAbs("token"))
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	s := fanout.New(fanout.Options{
		Replicas: func(context.Context) (out []*api.Client, err error) {
			for _, a := range addresses {
				c, err := api.NewClient(a, token)
				if err != nil {
					return nil, err
				}
				out = append(out, c)
			}
			return out, nil
		},
		Loop: committer{}, Status: func() any { return nil }, Keys: door.Keys{TokenFile: ts.MkAbs("token")},
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ctx, l) })
	ts.Defer(func() {
		stop()
		wg.Wait()
	})
	ts.Setenv("COMPANION", "http://"+l.Addr().String())
}

// TestShowCommitted: what a companion has not done is said, and nothing of resolvers. Text of others stays on its line.
func TestShowCommitted(t *testing.T) {
	t.Parallel()
	resolvers := []api.Replica{{Address: "http://r"}}
	for name, tt := range map[string]struct {
		replica flushed
		want    string
	}{
		"resolver": {flushed{Replica: "r"}, ""},
		"not over": {flushed{Replica: "c", Resolvers: resolvers, Status: "/v1/status"}, "\nc has not ended its cycle yet, GET /v1/status there says how it goes\n"},
		"nothing":  {flushed{Replica: "c", Resolvers: resolvers, Commits: []api.Commit{}}, "\nc committed nothing: nothing is new, or it waits for more\n"},
		"not all": {
			flushed{Replica: "c", Resolvers: resolvers, Commits: []api.Commit{{Commit: "3f2c1ab", Branch: "main", Subject: "a\nb\tc"}}, Problem: &api.Problem{Message: "branch x\nis protected"}},
			"\nCOMMIT   REPOSITORY  BRANCH  SUBJECT\n3f2c1ab  -           main    a b c\nc could not do everything: branch x is protected\n",
		},
	} {
		var out strings.Builder
		if err := showCommitted(&out, []flushed{tt.replica}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
