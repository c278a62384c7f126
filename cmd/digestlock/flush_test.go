package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/digestlock/digestlock/internal/accesstest"
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
		if ask(ts, http.MethodPost, "/flush?"+url.Values{"image": images}.Encode(), args[0]) == "429" {
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
