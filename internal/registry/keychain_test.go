package registry

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// These tests set the environment, and so cannot be parallel.

// noDockerConfig takes away all that names a docker config.
func noDockerConfig(t *testing.T) {
	for _, v := range []string{"HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_AUTH_CONFIG"} {
		t.Setenv(v, "")
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func dockerAuth(host, user, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestDockerConfigIsReadAnew(t *testing.T) {
	noDockerConfig(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	s := registrytest.Start(t)
	s.RequireBasic("u", "old")
	all, want := refs(t, s, 1)
	c := New(Options{Insecure: []string{s.Host}})
	file := filepath.Join(dir, "config.json")

	wantError(t, one(c, all[0]), image.ErrUnauthorized, "unauthorized (401)", "no docker config was found: mount a config.json with an entry for "+s.Host)
	write(t, file, dockerAuth(s.Host, "u", "old"))
	wantResults(t, c.Resolve(t.Context(), all), want)
	s.RequireBasic("u", "new")
	wantError(t, one(c, all[0]), image.ErrUnauthorized, "unauthorized (401)", fmt.Sprintf("check the entry for %s in the docker config %q", s.Host, file))
	write(t, file, dockerAuth(s.Host, "u", "new"))
	wantResults(t, c.Resolve(t.Context(), all), want)
}

func TestMalformedDockerConfigIsAnError(t *testing.T) {
	noDockerConfig(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	file := filepath.Join(dir, "config.json")
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	for name, text := range map[string]string{
		"not JSON":   `{"auths": hunter2`,
		"bad base64": fmt.Sprintf(`{"auths":{%q:{"auth":"hunter2!"}}}`, s.Host),
	} {
		t.Run(name, func(t *testing.T) {
			write(t, file, text)
			r := one(New(Options{Insecure: []string{s.Host}}), all[0])
			if r.Err == nil || !strings.HasPrefix(r.Err.Error(), fmt.Sprintf("%s: read docker config %q: ", s.Host, file)) {
				t.Fatalf("error = %v, want one that names %s", r.Err, file)
			}
			if strings.Contains(r.Err.Error(), "hunter2") {
				t.Errorf("error tells the file's contents: %v", r.Err)
			}
			if fault.Hint(r.Err) == "" {
				t.Error("no hint")
			}
			wantCounts(t, s, registrytest.Counts{})
		})
	}
}

func TestMissingHelperIsAnError(t *testing.T) {
	noDockerConfig(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	write(t, filepath.Join(dir, "config.json"), `{"credsStore":"nonexistent"}`)
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	r := one(New(Options{Insecure: []string{s.Host}}), all[0])
	if r.Err == nil || !strings.Contains(r.Err.Error(), "docker-credential-nonexistent") {
		t.Errorf("error = %v, want one that names the helper", r.Err)
	}
}

func TestHelpersOutputIsNotRepeated(t *testing.T) {
	noDockerConfig(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir)
	write(t, filepath.Join(dir, "config.json"), `{"credsStore":"leaky"}`)
	write(t, filepath.Join(dir, "docker-credential-leaky"), "#!/bin/sh\necho hunter2\nexit 1\n")
	if err := os.Chmod(filepath.Join(dir, "docker-credential-leaky"), 0o700); err != nil { //nolint:gosec // it has to run
		t.Fatal(err)
	}
	s := registrytest.Start(t)
	all, _ := refs(t, s, 1)
	r := one(New(Options{Insecure: []string{s.Host}}), all[0])
	if r.Err == nil || !strings.Contains(r.Err.Error(), "exit status 1") || strings.Contains(r.Err.Error(), "hunter2") {
		t.Errorf("error = %v, want one with the exit status only", r.Err)
	}
}

// Without HOME, go-containerregistry by itself would read containers/auth.json in the working directory.
func TestWithoutHome(t *testing.T) {
	noDockerConfig(t)
	s := registrytest.Start(t)
	all, want := refs(t, s, 1)
	checkout := t.TempDir()
	write(t, filepath.Join(checkout, "containers/auth.json"), `{"credsStore":"x/../../evil"}`)
	t.Chdir(checkout)
	wantResults(t, New(Options{Insecure: []string{s.Host}}).Resolve(t.Context(), all), want)
}
