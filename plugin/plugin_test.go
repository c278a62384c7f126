package plugin

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/pin"
)

var update = flag.Bool("update", false, "write the generated files")

// TestGeneratedFiles fails when somebody changed the table of parameters and not what is made from it.
func TestGeneratedFiles(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"plugin.yaml": YAML(), "../docs/parameters.md": Markdown()} {
		if *update {
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s is stale, run go test ./plugin -update (-want +got):\n%s", name, diff)
		}
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	for _, p := range Parameters() {
		s := Defaults()
		if err := p.Set(&s, p.Default); err != nil {
			t.Errorf("default of %s: %v", p.Name, err)
		}
	}
	tests := []struct {
		name, in string
		want     Settings
	}{
		{"none", "", Defaults()},
		{"null", "null", Defaults()},
		{"empty", "[]", Defaults()},
		{
			"all",
			`[{"name":"mode","string":"locked"},{"name":"tags","array":["latest","dev-*"]},
			  {"name":"pin-format","string":"digest"},{"name":"allow-empty","string":"true"},
			  {"name":"include-images","array":["ghcr.io/**"]},{"name":"exclude-images","array":["nginx"]},
			  {"name":"exclude-kinds","array":["Job"]},{"name":"image-fields","array":["spec/x","Backup:spec/y","Backup.acme.io:spec/z"]}]`,
			Settings{Mode: Locked, PinFormat: pin.DigestOnly, AllowEmpty: true, Policy: pin.Policy{
				Tags: image.Tags{"latest", "dev-*"}, Include: []string{"ghcr.io/**"}, Exclude: []string{"nginx"}, ExcludeKinds: []string{"Job"},
				Fields: []pin.Field{{Path: "spec/x"}, {Kind: "Backup", Path: "spec/y"}, {Kind: "Backup", Group: "acme.io", Path: "spec/z"}},
			}},
		},
	}
	for _, tt := range tests {
		got := Defaults()
		if err := got.Read(tt.in); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestParametersRefused(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want, hint string }{
		{`{`, "source.plugin.parameters", "list of entries"},
		{`[{"name":"server","string":"http://evil"}]`, `unknown parameter "server"`, "valid parameters are allow-empty, api-versions, common-annotations"},
		{`[{"name":"mode","array":["follow"]}]`, `parameter "mode" is not of type string`, "write it as {name: mode, string: …}"},
		{`[{"name":"mode"}]`, `parameter "mode" is not of type string`, ""},
		{`[{"name":"mode","string":"x"}]`, `"x" is not one of follow, live, locked`, "follow (the lock"},
		{`[{"name":"tags","array":[]}]`, "nothing would be pinned", ""},
		{`[{"name":"tags","array":["[a"]}]`, `tag pattern "[a"`, ""},
		{`[{"name":"exclude-images","array":["nginx:latest"]}]`, "give the name without tag", ""},
		{`[{"name":"exclude-kinds","array":["[a"]}]`, `kind pattern "[a"`, ""},
		{`[{"name":"image-fields","array":["spec//x"]}]`, `field path "spec//x"`, ""},
		{`[{"name":"allow-empty","string":"maybe"}]`, `"maybe" is neither true nor false`, ""},
		{`[{"name":"mode","string":"follow"},{"name":"mode","string":"locked"}]`, `parameter "mode" is given twice`, ""},
	}
	for _, tt := range tests {
		s := Defaults()
		err := s.Read(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Read(%s) = %v, want %q in it", tt.in, err, tt.want)
			continue
		}
		if h := fault.Hint(err); h == "" || !strings.Contains(h, tt.hint) {
			t.Errorf("Read(%s): hint %q, want %q in it", tt.in, h, tt.hint)
		}
	}
}

// FuzzParameters: whatever an Application's author writes, there is an error or usable settings, and never a panic.
func FuzzParameters(f *testing.F) {
	f.Add(`[{"name":"mode","string":"locked"},{"name":"tags","array":["latest"]}]`)
	f.Add(`[{"name":"tags","map":{"a":"b"}}]`)
	f.Fuzz(func(t *testing.T, in string) {
		s := Defaults()
		if s.Read(in) != nil {
			return
		}
		if (s.Mode != Follow && s.Mode != Live && s.Mode != Locked) || len(s.Policy.Tags) == 0 || s.Policy.Check() != nil ||
			(s.PinFormat != pin.TagAndDigest && s.PinFormat != pin.DigestOnly) {
			t.Errorf("Read(%q) gives %+v", in, s)
		}
	})
}

func TestSource(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"ARGOCD_APP_PROJECT_NAME": "p", "ARGOCD_APP_NAME": "a", "ARGOCD_APP_SOURCE_REPO_URL": "https://git.example.com/r",
		"ARGOCD_APP_SOURCE_TARGET_REVISION": "main", "ARGOCD_APP_SOURCE_PATH": "x/y", "ARGOCD_APP_REVISION": "3f2c1ab",
	}
	want := &lock.Source{
		Project: "p", Application: "a", Repository: "https://git.example.com/r", TargetRevision: "main", Path: "x/y", Revision: "3f2c1ab",
	}
	if diff := cmp.Diff(want, Source(func(k string) string { return env[k] })); diff != "" {
		t.Errorf("Source (-want +got):\n%s", diff)
	}
	for url, want := range map[string]string{
		"https://u:p@git.example.com/r":    "https://git.example.com/r",
		"https://u:p%zz@git.example.com/r": "https://git.example.com/r", // parses as no URL
		"ssh://git@git.example.com/~/r":    "ssh://git@git.example.com/~/r",
	} {
		env["ARGOCD_APP_SOURCE_REPO_URL"] = url
		if s := Source(func(k string) string { return env[k] }); s.Repository != want {
			t.Errorf("source of %s has repository %s, want %s", url, s.Repository, want)
		}
	}
	env["ARGOCD_APP_REVISION"] = "streamed"
	if s := Source(func(k string) string { return env[k] }); s != nil {
		t.Errorf("a local diff has source %+v, want none", s)
	}
	if s := Source(func(string) string { return "" }); s != nil {
		t.Errorf("outside of Argo CD there is source %+v", s)
	}
}

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// resolverFunc stands for a resolver whose behaviour a test sets.
type resolverFunc func(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error)

func (f resolverFunc) Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
	return f(ctx, source, locked, refs)
}

func overlay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const pod = `apiVersion: v1
kind: Pod
metadata:
  name: p
spec:
  containers:
  - image: ghcr.io/acme/a:latest
    name: a
  - image: ghcr.io/acme/b
    name: b
`

// TestReportsWhatItRendered: the resolver hears of every image of a render, and of a lock-only one too, in one call.
func TestReportsWhatItRendered(t *testing.T) {
	files := map[string]string{
		"kustomization.yaml": "resources: [pod.yaml]\n",
		"pod.yaml":           pod,
		lock.FileName: string((&lock.Document{Pins: []lock.Pin{
			{Image: "ghcr.io/acme/a:latest", Digest: digest, ResolvedAt: time.Unix(0, 0).UTC()},
		}}).Format()),
	}
	var calls int
	r := resolverFunc(func(_ context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
		calls++
		if source.Application != "app" || len(locked) != 1 || locked[0].Image != "ghcr.io/acme/a:latest" {
			t.Errorf("reported %+v with %v", source, locked)
		}
		out := make([]image.Resolution, len(refs))
		for i, ref := range refs {
			out[i] = image.Resolution{Ref: ref, Digest: digest, Stale: true}
		}
		return out, nil
	})
	source := &lock.Source{Application: "app", Revision: "3f2c1ab"}
	got, err := Render{Dir: overlay(t, files), Settings: Defaults(), Source: source, Resolver: r}.Generate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Summary{Pinned: 2, Locked: 1, Resolved: 1, Stale: 1}); got.Summary != want || calls != 1 {
		t.Errorf("summary %+v after %d calls, want %+v after 1", got.Summary, calls, want)
	}
	if n := strings.Count(string(got.Manifests), "@"+digest); n != 2 {
		t.Errorf("%d digests in\n%s", n, got.Manifests)
	}

	files["pod.yaml"] = strings.Split(pod, "  - image: ghcr.io/acme/b")[0]
	calls = 0
	if _, err := (Render{Dir: overlay(t, files), Settings: Defaults(), Source: source, Resolver: r}).Generate(t.Context()); err != nil || calls != 1 {
		t.Errorf("render from the lock: %v, reported %d times, want once", err, calls)
	}
	failing := resolverFunc(func(context.Context, *lock.Source, []lock.Pin, []image.Ref) ([]image.Resolution, error) {
		return nil, errors.New("away")
	})
	if _, err := (Render{Dir: overlay(t, files), Settings: Defaults(), Source: source, Resolver: failing}).Generate(t.Context()); err != nil {
		t.Errorf("render from the lock without a resolver: %v", err)
	}
}

// TestNothingWithoutEveryDigest: a resolver that answers nonsense cannot make half a render.
func TestNothingWithoutEveryDigest(t *testing.T) {
	for name, digest := range map[string]string{"no digest": "", "not a digest": "latest"} {
		r := resolverFunc(func(_ context.Context, _ *lock.Source, _ []lock.Pin, refs []image.Ref) ([]image.Resolution, error) {
			out := make([]image.Resolution, len(refs))
			for i, ref := range refs {
				out[i] = image.Resolution{Ref: ref, Digest: digest}
			}
			return out, nil
		})
		files := map[string]string{"kustomization.yaml": "resources: [pod.yaml]\n", "pod.yaml": pod}
		got, err := Render{Dir: overlay(t, files), Settings: Defaults(), Resolver: r}.Generate(t.Context())
		if err == nil || got.Manifests != nil {
			t.Errorf("%s: rendered %q, %v, want an error and nothing", name, got.Manifests, err)
		}
	}
}
