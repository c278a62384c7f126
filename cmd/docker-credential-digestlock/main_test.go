package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/credentials"
)

const program = "docker-credential-digestlock"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == program {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestHelper runs the program as the resolver does, in front of a metadata server.
func TestHelper(t *testing.T) {
	refuse := false
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if refuse {
			http.Error(w, "no such account", http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, `{"access_token":"ya29.secret","expires_in":3599,"token_type":"Bearer"}`)
	}))
	t.Cleanup(metadata.Close)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(exe, filepath.Join(bin, program)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(metadata.URL, "http://"))
	dir := t.TempDir()
	k, err := credentials.New(credentials.Options{Dir: dir, Clouds: []string{credentials.Google}})
	if err != nil {
		t.Fatal(err)
	}

	want := authn.AuthConfig{Username: "oauth2accesstoken", Password: "ya29.secret"}
	if login, err := k.Find(t.Context(), "", "gcr.io", ""); err != nil || login.Auth != want {
		t.Errorf("identity of the pod = %+v, %v, want %+v", login, err, want)
	}
	refuse = true
	_, err = k.Find(t.Context(), "", "gcr.io", "")
	if err == nil || !strings.Contains(err.Error(), "google identity of this process for gcr.io") || !strings.Contains(err.Error(), "not defined") {
		t.Errorf("no identity = %v, want an error with the metadata server's reason", err)
	}

	// From a docker config it is a helper like any other, which knows nothing of other registries.
	if err := os.Mkdir(filepath.Join(dir, "default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "default/config.json"), []byte(`{"credsStore":"digestlock"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if login, err := k.Find(t.Context(), "", "ghcr.io", ""); err != nil || !login.Anonymous() {
		t.Errorf("another registry = %+v, %v, want anonymous", login, err)
	}
}
