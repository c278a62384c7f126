package credentials

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/fault"
)

func TestScope(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a")
	for _, f := range []string{"team", "team.b", "default", "..data", "UPPER", "x/y", "-x"} {
		write(t, filepath.Join(dir, f, "config.json"), "{}")
	}
	write(t, filepath.Join(dir, "../config.json"), "{}")
	write(t, filepath.Join(dir, "file"), "")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	k, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for project, want := range map[string]string{
		"team": "team", "team.b": "team.b",
		"": "", "default": "", "unknown": "", "empty": "", "file": "", strings.Repeat("a", 254): "",
		"..": "", ".": "", "../a/team": "", "x/y": "", "..data": "", "UPPER": "", "team/": "", "-x": "", "team\n": "", "team\x00": "",
	} {
		if got := k.Scope(project); got != want {
			t.Errorf("Scope(%q) = %q, want %q", project, got, want)
		}
	}
	if got := (&Keychain{}).Scope("team"); got != "" {
		t.Errorf("Scope without a directory = %q, want none", got)
	}
}

// TestProjects: a project's own file comes before everybody's, entry by entry, and no project sees another's.
func TestProjects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	find := func(project, registry string) authn.AuthConfig {
		login, err := k.Find(t.Context(), k.Scope(project), registry, "")
		if err != nil {
			t.Error(err)
		}
		return login.Auth
	}
	if login, err := k.Find(t.Context(), "", "ghcr.io", ""); err != nil || !login.Anonymous() || !strings.Contains(login.Hint, filepath.Join(dir, "default/config.json")) {
		t.Errorf("without files = %+v, %v, want anonymous and a hint", login, err)
	}
	write(t, filepath.Join(dir, "a/config.json"), auths(entry("ghcr.io", "a")))
	write(t, filepath.Join(dir, "b/config.json"), auths(entry("ghcr.io", "b")))
	write(t, filepath.Join(dir, "default/config.json"), auths(entry("ghcr.io", "all"), entry("quay.io", "all")))
	tests := []struct{ project, registry, want string }{
		{"a", "ghcr.io", "a"},
		{"b", "ghcr.io", "b"},
		{"a", "quay.io", "all"},
		{"c", "ghcr.io", "all"},
		{"../a", "ghcr.io", "all"},
		{"", "ghcr.io", "all"},
	}
	for _, tt := range tests {
		if got := find(tt.project, tt.registry); got != user(tt.want) {
			t.Errorf("%s at %s = %+v, want %s", tt.project, tt.registry, got, tt.want)
		}
	}
	write(t, filepath.Join(dir, "a/config.json"), auths(entry("ghcr.io", "new")))
	if got := find("a", "ghcr.io"); got != user("new") {
		t.Errorf("after a change = %+v, want new", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if got := find("a", "ghcr.io"); got != user("all") || k.Scope("a") != "" {
		t.Errorf("after it was taken away = %+v in scope %q, want everybody's", got, k.Scope("a"))
	}
}

func TestCloudOf(t *testing.T) {
	t.Parallel()
	for registry, want := range map[string]string{
		"gcr.io": Google, "eu.gcr.io": Google, "asia-northeast2-docker.pkg.dev": Google,
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com": ECR, "1.dkr.ecr-fips.us-gov-west-1.amazonaws.com": ECR,
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn": ECR, ECRPublic: ECR, "acme.azurecr.io": ACR,
		"ghcr.io": "", "xgcr.io": "", "pkg.dev": "", "gcr.io.evil.com": "", "1.dkr.ecr.eu.amazonaws.com.evil.com": "",
		"x.1.dkr.ecr.eu.amazonaws.com": "", "azurecr.io": "", "acme.azurecr.io:443": "",
	} {
		if got := CloudOf(registry); got != want {
			t.Errorf("CloudOf(%q) = %q, want %q", registry, got, want)
		}
	}
}

// TestCloud: the helper is asked for the registries of clouds that the operator named, after the files.
func TestCloud(t *testing.T) {
	helperIn(t, "digestlock", `read host; case $host in
gcr.io) echo '{"Username":"cloud","Secret":"pw"}';;
eu.gcr.io) echo "metadata: connection refused"; exit 1;;
*) echo "credentials not found in native keychain"; exit 1;;
esac`)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "default/config.json"), auths(entry("us.gcr.io", "file")))
	k, err := New(Options{Dir: dir, Clouds: []string{Google}})
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]authn.AuthConfig{
		"gcr.io": user("cloud"), "us.gcr.io": user("file"), "acme.azurecr.io": {}, "ghcr.io": {},
	} {
		if login, err := k.Find(t.Context(), "", registry, ""); err != nil || login.Auth != want {
			t.Errorf("Find(%s) = %+v, %v, want %+v", registry, login, err, want)
		}
	}
	for registry, want := range map[string]string{
		"eu.gcr.io":   `google identity of this process for eu.gcr.io: "exit status 1: metadata: connection refused"`,
		"asia.gcr.io": `google identity of this process for asia.gcr.io: "docker-credential-digestlock does not know the registry, is it of another version?: credentials not found in native keychain"`,
	} {
		if _, err := k.Find(t.Context(), "", registry, ""); err == nil || err.Error() != want || fault.Hint(err) == "" {
			t.Errorf("Find(%s) = %v, want %s", registry, err, want)
		}
	}
	t.Setenv("PATH", dir)
	want := `google identity of this process for gcr.io: "exec: \"docker-credential-digestlock\": executable file not found in $PATH"`
	if _, err := k.Find(t.Context(), "", "gcr.io", ""); err == nil || err.Error() != want {
		t.Errorf("without the helper = %v, want %s", err, want)
	}
	if _, err := New(Options{Clouds: []string{Google, "ibm"}}); err == nil || err.Error() != `"ibm" is none of acr, ecr, google` {
		t.Errorf("New with another cloud = %v", err)
	}
}
