package main

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

// TestForgeToken: what the API is asked with, for each way that Git proves itself.
func TestForgeToken(t *testing.T) {
	t.Parallel()
	var asked string
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Authorization")
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(api.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("of-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	app := func(context.Context) (string, string, error) { return "x-access-token", "of-app", nil }
	for name, tt := range map[string]struct {
		auth  gitrepo.Auth
		file  string
		repos bool // by --repo
		want  string
	}{
		"password":                   {gitrepo.Auth{Username: "u", Password: "of-git"}, "", false, "Bearer of-git"},
		"token":                      {gitrepo.Auth{Token: "of-git", Password: "p"}, "", false, "Bearer of-git"},
		"app":                        {gitrepo.Auth{TokenSource: app, Password: "p"}, "", false, "Bearer of-app"},
		"ssh":                        {gitrepo.Auth{SSHKey: []byte("k")}, file, false, "Bearer of-file"},
		"a secret's own comes first": {gitrepo.Auth{Password: "of-git"}, file, false, "Bearer of-git"},
		"a file before a flag's":     {gitrepo.Auth{Password: "of-git"}, file, true, "Bearer of-file"},
	} {
		tt.auth.CA = ca
		f := &forgeFlags{pushBranch: "x/{{.Branch}}", kind: "gitea", tokenFile: tt.file}
		if tt.repos {
			tt.auth = f.apiAuth(tt.auth)
		}
		ensure, err := f.open(api.URL+"/acme/k8s.git", tt.auth)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, _, err = ensure(t.Context(), companion.Request{Head: "x/main", Base: "main", Title: "t"})
		if asked != tt.want || err == nil || !strings.Contains(err.Error(), "418") {
			t.Errorf("%s: asked with %q, want %q (%v)", name, asked, tt.want, err)
		}
	}
	if _, err := (&forgeFlags{pushBranch: "x"}).open("git@github.com:acme/k8s", gitrepo.Auth{}); fault.CodeOf(err) != fault.GitCredentials {
		t.Errorf("no token: %v", err)
	}
	if ensure, err := (&forgeFlags{}).open("https://nowhere.example.com", gitrepo.Auth{}); ensure != nil || err != nil {
		t.Errorf("without --push-branch: %v", err)
	}
}

// TestForgeOneHost: what is for the repositories of one host goes to no other.
func TestForgeOneHost(t *testing.T) {
	t.Parallel()
	f := &forgeFlags{pushBranch: "x", kind: "github", url: "https://ghe.example.com/api/v3"}
	password := gitrepo.Auth{Password: "p"}
	for url, ok := range map[string]bool{"https://ghe.example.com/a/b": true, "ssh://git@ghe.example.com/a/c": true} {
		if _, err := f.open(url, password); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := f.open("https://github.com/a/b", password); fault.CodeOf(err) != fault.Usage {
		t.Errorf("a second host: %v", err)
	}
	f = &forgeFlags{pushBranch: "x"} // each gets its own
	for _, url := range []string{"https://github.com/a/b", "https://gitlab.com/a/b"} {
		if _, err := f.open(url, password); err != nil {
			t.Error(err)
		}
	}
}
