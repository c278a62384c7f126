package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

func parseRef(t *testing.T, s string) image.Ref {
	t.Helper()
	r, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCovers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, image string
		want           bool
	}{
		{"ghcr.io/acme/server", "ghcr.io/acme/server", true},
		{"ghcr.io/acme/server", "ghcr.io/acme/server:v1", true},
		{"ghcr.io/acme/server", "ghcr.io/acme/server-admin", false},
		{"ghcr.io/acme/server", "ghcr.io/acme/server/cache", true},
		{"ghcr.io/acme", "ghcr.io/acme/server", true},
		{"ghcr.io/acme", "ghcr.io/acme-labs/server", false},
		{"ghcr.io/acme", "ghcr.io/other/acme", false},
		{"ghcr.io/acme/*", "ghcr.io/acme/server", true},
		{"ghcr.io/acme/*", "ghcr.io/acme/team/server", true},
		{"ghcr.io/acme/*", "ghcr.io/acme", false},
		{"ghcr.io/acme/app-*", "ghcr.io/acme/app-web", true},
		{"ghcr.io/acme/app-*", "ghcr.io/acme/web", false},
		{"ghcr.io/*/server", "ghcr.io/acme/server", true},
		{"ghcr.io/*/server", "ghcr.io/acme/team/server", false},
		{"ghcr.io", "ghcr.io/acme/server", true},
		{"ghcr.io", "ghcr.io.evil.example/acme/server", false},
		{"localhost:5000/acme", "localhost:5000/acme/server", true},
		{"localhost:5000/acme", "localhost:5001/acme/server", false},
		{"index.docker.io/library/nginx", "nginx", true},
	}
	for _, tt := range tests {
		if got := covers(tt.pattern, parseRef(t, tt.image)); got != tt.want {
			t.Errorf("covers(%s, %s) = %v, want %v", tt.pattern, tt.image, got, tt.want)
		}
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	token := Token{claims: map[string]any{
		"repository": "acme/app", "ref": "refs/heads/main", "sub": "system:serviceaccount:ci:builder", "protected": true,
		"runs": 3, "empty": "",
	}}
	tests := []struct {
		claims map[string]string
		want   bool
	}{
		{map[string]string{"repository": "acme/app"}, true},
		{map[string]string{"repository": "acme/*", "ref": "refs/heads/main"}, true},
		{map[string]string{"repository": "acme/*", "ref": "refs/heads/release"}, false},
		{map[string]string{"repository": "*"}, false}, // * stops at a slash
		{map[string]string{"repository": "acme"}, false},
		{map[string]string{"repository": "Acme/app"}, false},
		{map[string]string{"sub": "system:serviceaccount:ci:*"}, true},
		{map[string]string{"protected": "true"}, true},
		{map[string]string{"runs": "3"}, false},
		{map[string]string{"absent": "*"}, false},
		{map[string]string{"empty": "*"}, false},
	}
	for _, tt := range tests {
		if got := (rule{Claims: tt.claims}).fits(token); got != tt.want {
			t.Errorf("rule %v fits = %v, want %v", tt.claims, got, tt.want)
		}
	}
}

const githubURL = "https://token.actions.githubusercontent.com"

func config(issuer, claims, images string) string {
	return fmt.Sprintf("issuers:\n- issuer: %s\n  audience: digestlock\n  rules:\n  - claims: %s\n    images: %s\n", issuer, claims, images)
}

func TestParse(t *testing.T) {
	t.Parallel()
	const images = "[ghcr.io/acme]"
	tests := []struct{ name, text, want string }{
		{"GitHub", config(githubURL, "{repository: acme/*, ref: refs/heads/main}", images), ""},
		{"GitHub, subject", config(githubURL, `{sub: "repo:acme/app:*"}`, images), ""},
		{"GitLab, a boolean", config("https://gitlab.com", "{namespace_path: acme, ref_protected: true}", images), ""},
		{"GitLab of one's own", config("https://gitlab.example.com", "{ref: main}", images), ""},
		{"Kubernetes", config("https://kubernetes.default.svc", `{sub: "system:serviceaccount:ci:*"}`, "['localhost:5000', ghcr.io/acme/app-*]"), ""},

		{"GitHub, everybody", config(githubURL, "{ref: refs/heads/main}", images), "everybody gets tokens of this issuer"},
		{"GitHub, any owner", config(githubURL, `{repository: "*/app"}`, images), "everybody gets tokens"},
		{"GitHub, some owners", config(githubURL, `{repository: "ac*/app"}`, images), "everybody gets tokens"},
		{"GitHub, any subject", config(githubURL, `{sub: "repo:*"}`, images), "everybody gets tokens"},
		{"gitlab.com, everybody", config("https://gitlab.com", "{ref: main}", images), "everybody gets tokens"},
		{"Google, everybody", config("https://accounts.google.com", "{email_verified: true}", images), "everybody gets tokens"},

		{"empty", "", "no issuers"},
		{"no list", "issuers: []", "no issuers"},
		{"typo", "isuers: []", "field isuers not found"},
		{"typo in a rule", strings.Replace(config("https://x", "{a: b}", images), "images", "image", 1), "field image not found"},
		{"two documents", config("https://x", "{a: b}", images) + "---\n", "more than one YAML document"},
		{"plain http", config("http://x", "{a: b}", images), "want https://host"},
		{"no rules", "issuers: [{issuer: https://x, audience: y}]", "no rules"},
		{"no claims", config("https://x", "{}", images), "at least one each"},
		{"no images", config("https://x", "{a: b}", "[]"), "at least one each"},
		{"empty claim", config("https://x", "{a: ''}", images), "not a pattern"},
		{"bad claim", config("https://x", "{a: '['}", images), "not a pattern"},
		{"image without host", config("https://x", "{a: b}", "[acme/app]"), "begin with the registry's host"},
		{"image with any host", config("https://x", "{a: b}", "['*.io/acme']"), "begin with the registry's host"},
		{"everything", config("https://x", "{a: b}", "['*']"), "begin with the registry's host"},
		{"Docker Hub by another name", config("https://x", "{a: b}", "[docker.io/acme]"), "write index.docker.io instead of docker.io"},
		{"upper case host", config("https://x", "{a: b}", "[GHCR.io/acme]"), "write ghcr.io instead of GHCR.io"},
		{"image with a tag", config("https://x", "{a: b}", "['ghcr.io/acme/app:latest']"), "without a tag"},
		{"bad image", config("https://x", "{a: b}", "['ghcr.io/[']"), "not a pattern"},
		{"slash at the end", config("https://x", "{a: b}", "[ghcr.io/acme/]"), "not a pattern"},
		{"large", "#" + strings.Repeat("x", maxFile), "more than"},
	}
	for _, tt := range tests {
		_, err := parse([]byte(tt.text))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: parse = %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestWithdrawnKey: a key that the issuer withdrew counts for an hour at most.
func TestWithdrawnKey(t *testing.T) {
	t.Parallel()
	i := accesstest.Listen()
	t.Cleanup(i.Close)
	ca, err := i.CAFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(Issuer{URL: i.URL, Audience: "digestlock", CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	old := i.Token(nil)
	p := v.issuers[i.URL]
	for range 2 {
		if _, err := v.Verify(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		i.Rotate()
	}
	if left := time.Until(p.until); left > time.Hour {
		t.Errorf("the keys count for %v more", left)
	}
	p.until = time.Now()
	if _, err := v.Verify(t.Context(), old); err == nil {
		t.Error("an hour after the key was withdrawn: accepted")
	}
}

// TestDocumented: what docs/flush.md shows is what is read.
func TestDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/flush.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```yaml\nissuers:")
	block, _, _ := strings.Cut(rest, "```")
	p, err := parse([]byte("issuers:" + block))
	if !ok || err != nil || len(p.rules) < 3 {
		t.Errorf("the file in docs/flush.md: %+v, %v", p, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCaller: a token opens what the rules that fit it say, and what the file says now.
func TestCaller(t *testing.T) {
	t.Parallel()
	i := accesstest.Listen()
	t.Cleanup(i.Close)
	dir := t.TempDir()
	ca, err := i.CAFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "oidc.yaml")
	head := fmt.Sprintf("issuers:\n- issuer: %s\n  audience: digestlock\n  caFile: %s\n  rules:\n", i.URL, ca)
	write(t, path, head+`
  - {claims: {repository: acme/*, ref: refs/heads/main}, images: [ghcr.io/acme]}
  - {claims: {repository: acme/app}, images: [ghcr.io/acme/app, quay.io/acme]}
`)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	app := accesstest.Claims{"repository": "acme/app", "ref": "refs/heads/topic", "sub": "repo:acme/app"}
	c, err := f.Caller(t.Context(), i.Token(app))
	if err != nil {
		t.Fatal(err)
	}
	if want := i.URL + " repo:acme/app"; c.Name != want {
		t.Errorf("caller %q, want %q", c.Name, want)
	}
	for name, ok := range map[string]bool{"ghcr.io/acme/app": true, "quay.io/acme/x:v1": true, "ghcr.io/acme/other": false, "nginx": false} {
		err := c.May(parseRef(t, name))
		if (err == nil) != ok {
			t.Errorf("May(%s) = %v, want ok = %v", name, err, ok)
		}
		if err != nil && (!errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "may flush: ghcr.io/acme/app, quay.io/acme") || fault.Hint(err) == "") {
			t.Errorf("May(%s) = %v with hint %q", name, err, fault.Hint(err))
		}
	}
	_, err = f.Caller(t.Context(), i.Token(accesstest.Claims{"repository": "evil/app", "ref": "refs/heads/main"}))
	if want := `no rule fits the token's claims: ref "refs/heads/main", repository "evil/app"`; !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), want) {
		t.Errorf("stranger: %v, want %s", err, want)
	}
	if _, err := f.Caller(t.Context(), "one-of-the-resolver's-own"); !errors.Is(err, ErrNotJWT) {
		t.Errorf("another token: %v, want ErrNotJWT", err)
	}

	// Taken away without a restart, and nobody comes in while the file is broken or gone.
	write(t, path, head+"  - {claims: {repository: acme/other}, images: [ghcr.io/acme]}\n")
	if _, err := f.Caller(t.Context(), i.Token(app)); !errors.Is(err, ErrForbidden) {
		t.Errorf("after the rule is gone: %v, want ErrForbidden", err)
	}
	write(t, path, head)
	if _, err := f.Caller(t.Context(), i.Token(app)); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no rules") {
		t.Errorf("broken file: %v, want ErrUnavailable", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Caller(t.Context(), i.Token(app)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no file: %v, want ErrUnavailable", err)
	}
	if _, err := Open(path); err == nil || fault.Hint(err) == "" {
		t.Errorf("Open of no file: %v with hint %q", err, fault.Hint(err))
	}
}
