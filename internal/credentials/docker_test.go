package credentials

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/fault"
)

// Tests that set the environment cannot be parallel.

// noDockerConfig takes away all that names a docker config.
func noDockerConfig(t *testing.T) {
	for _, v := range []string{"HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(v, "")
	}
}

// write replaces a file the way Kubernetes does, in one step.
func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", []byte(text), 0o700); err != nil { //nolint:gosec // some of them have to run
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// entry is an entry of "auths", with password "pw".
func entry(host, user string) string {
	return fmt.Sprintf("%q:{\"auth\":%q}", host, base64.StdEncoding.EncodeToString([]byte(user+":pw")))
}

func auths(entries ...string) string { return `{"auths":{` + strings.Join(entries, ",") + `}}` }

// helperIn makes a credential helper of a shell script and PATH a directory that has it and nothing but sh.
func helperIn(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, helperPrefix+name), "#!/bin/sh\n"+script)
	t.Setenv("PATH", dir+":/bin:/usr/bin")
}

// TestSearch: which entry of a docker config counts.
func TestSearch(t *testing.T) {
	helperIn(t, "store", `read host; case $host in
helped.io) echo '{"Username":"helper","Secret":"pw"}';;
https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"pw"}';;
token.io) echo '{"Username":"<token>","Secret":"identity"}';;
*) echo "credentials not found in native keychain"; exit 1;;
esac`)
	const store = `"credsStore":"store"`
	tests := []struct {
		name, config, registry, repository string
		want                               authn.AuthConfig
		own                                bool
		hint                               string
	}{
		{"none", auths(entry("other.io", "u")), "ghcr.io", "", authn.AuthConfig{}, false, ""},
		{"registry", auths(entry("ghcr.io", "u")), "ghcr.io", "", user("u"), false, "check the entry for ghcr.io in "},
		{"registry, for a repository", auths(entry("ghcr.io", "u")), "ghcr.io", "a/b", user("u"), false, "check the entry for ghcr.io in "},
		{"repository", auths(entry("ghcr.io", "u"), entry("ghcr.io/a/b", "own")), "ghcr.io", "a/b", user("own"), true, "check the entry for ghcr.io/a/b in "},
		{"another repository", auths(entry("ghcr.io", "u"), entry("ghcr.io/a/b", "own")), "ghcr.io", "a/c", user("u"), false, "check the entry for ghcr.io in "},
		{"URL", auths(entry("https://ghcr.io/v2/", "u")), "ghcr.io", "", user("u"), false, "check the entry for ghcr.io in "},
		{"port", auths(entry("ghcr.io", "u")), "ghcr.io:5000", "", authn.AuthConfig{}, false, ""},
		{"Docker Hub as docker writes it", auths(entry("https://index.docker.io/v1/", "u")), dockerHub, "", user("u"), false, "check the entry for index.docker.io in "},
		{"Docker Hub as people write it", auths(entry("docker.io", "u")), dockerHub, "", user("u"), false, "check the entry for index.docker.io in "},
		{"identity token", `{"auths":{"ghcr.io":{"identitytoken":"t"}}}`, "ghcr.io", "", authn.AuthConfig{IdentityToken: "t"}, false, "check the entry for ghcr.io in "},
		{"store", `{` + store + `,"auths":{"helped.io":{}}}`, "helped.io", "", user("helper"), false, "check what docker-credential-store, named in "},
		{"store, Docker Hub", `{` + store + `}`, dockerHub, "", user("hub"), false, "check what docker-credential-store, named in "},
		{"store's identity token", `{` + store + `}`, "token.io", "", authn.AuthConfig{IdentityToken: "identity"}, false, "check what docker-credential-store, named in "},
		{"store that has none", `{` + store + `}`, "ghcr.io", "", authn.AuthConfig{}, false, ""},
		{"store that has none, an entry", `{` + store + `,"auths":{` + entry("ghcr.io", "u") + `}}`, "ghcr.io", "", user("u"), false, "check the entry for ghcr.io in "},
		{"helper of one registry", `{"credHelpers":{"helped.io":"store"},"credsStore":"missing"}`, "helped.io", "", user("helper"), false, "check what docker-credential-store, named in "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.json")
			write(t, file, tt.config)
			got, err := search(t.Context(), file, tt.registry, tt.repository)
			if err != nil || got.Auth != tt.want || got.Own != tt.own || !strings.HasPrefix(got.Hint, tt.hint) || (tt.hint == "") != (got.Hint == "") {
				t.Errorf("search = %+v, %v, want %+v, own %v, hint %q…", got, err, tt.want, tt.own, tt.hint)
			}
			if got.Source != strings.TrimPrefix(got.Hint, "check ") {
				t.Errorf("found in %q, with the hint %q", got.Source, got.Hint)
			}
			if got.Hint != "" && !strings.Contains(got.Hint, file) {
				t.Errorf("hint %q does not name %s", got.Hint, file)
			}
		})
	}
}

func user(name string) authn.AuthConfig { return authn.AuthConfig{Username: name, Password: "pw"} }

// TestBrokenFile: a file that cannot be read is an error that names it and tells nothing of what is in it.
func TestBrokenFile(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"not JSON":   `{"auths": hunter2`,
		"bad base64": `{"auths":{"ghcr.io":{"auth":"hunter2!"}}}`,
		"no colon":   `{"auths":{"ghcr.io":{"auth":"aHVudGVyMg=="}}}`,
		"a link":     "",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, fallback, "config.json")
		write(t, file, text)
		if text == "" {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		k, err := New(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Find(t.Context(), "", "ghcr.io", "")
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("read docker config %q: ", file)) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error = %v, want one that names %s alone", name, err, file)
		}
		if fault.Hint(err) == "" || fault.CodeOf(err) != fault.RegistryCredentials {
			t.Errorf("%s: hint %q, code %q", name, fault.Hint(err), fault.CodeOf(err))
		}
	}
}

// TestBrokenHelper: a helper that fails is an error that names it and the registry, without what it printed.
func TestBrokenHelper(t *testing.T) {
	tests := []struct{ name, helper, script, want string }{
		{"fails", "leaky", "echo hunter2; echo hunter2 >&2; exit 3", `credential helper "docker-credential-leaky" for ghcr.io: "exit status 3"`},
		{"answers nonsense", "leaky", "echo hunter2", `credential helper "docker-credential-leaky" for ghcr.io: "answered something else than credentials"`},
		{"is missing", "gone", "", `credential helper "docker-credential-gone" for ghcr.io: "exec: \"docker-credential-gone\": executable file not found in $PATH"`},
		{"is a path", "x/../../evil", "", `credential helper "docker-credential-x/../../evil" for ghcr.io: "is not the name of a program"`},
		{"is silent", "leaky", `sleep 20; echo '{"Username":"late","Secret":"pw"}'`, `credential helper "docker-credential-leaky" for ghcr.io: "that is enough"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			helperIn(t, "leaky", tt.script)
			file := filepath.Join(t.TempDir(), "config.json")
			write(t, file, fmt.Sprintf(`{"credHelpers":{"ghcr.io":%q},"auths":{%s}}`, tt.helper, entry("ghcr.io", "u")))
			ctx := t.Context()
			if tt.name == "is silent" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, 50*time.Millisecond, errors.New("that is enough"))
				defer cancel()
			}
			login, err := search(ctx, file, "ghcr.io", "")
			if err == nil || err.Error() != tt.want || !login.Anonymous() {
				t.Errorf("search = %+v, %v, want error %s", login, err, tt.want)
			}
			if h := fault.Hint(err); !strings.Contains(h, file) || strings.Contains(h, "hunter2") {
				t.Errorf("hint %q, want one that names %s", h, file)
			}
		})
	}
}

// Without HOME, go-containerregistry by itself would read containers/auth.json in the working directory.
func TestWithoutHome(t *testing.T) {
	noDockerConfig(t)
	checkout := t.TempDir()
	write(t, filepath.Join(checkout, "containers/auth.json"), `{"credsStore":"x/../../evil"}`)
	t.Chdir(checkout)
	login, err := (&Keychain{}).Find(t.Context(), "", "ghcr.io", "")
	if err != nil || !login.Anonymous() || !strings.HasPrefix(login.Hint, "no docker config was found: mount a config.json with an entry for ghcr.io") {
		t.Errorf("Find = %+v, %v, want anonymous", login, err)
	}
}

func TestDockerConfigIsFound(t *testing.T) {
	for name, file := range map[string]string{
		"DOCKER_CONFIG": "config.json", "HOME": ".docker/config.json", "XDG_RUNTIME_DIR": "containers/auth.json", "XDG_CONFIG_HOME": "containers/auth.json",
	} {
		t.Run(name, func(t *testing.T) {
			noDockerConfig(t)
			dir := t.TempDir()
			t.Setenv(name, dir)
			write(t, filepath.Join(dir, file), auths(entry("ghcr.io", "u")))
			login, err := (&Keychain{}).Find(t.Context(), "", "ghcr.io", "")
			if err != nil || login.Auth != user("u") {
				t.Errorf("Find = %+v, %v, want the entry of %s", login, err, file)
			}
		})
	}
}
