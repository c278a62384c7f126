package render

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
)

// refused wants a build within l to end with this text, and a hint.
func refused(t *testing.T, dir string, l limits, want string) {
	t.Helper()
	out, err := buildWithin(t.Context(), dir, Options{}, l)
	if err == nil {
		_, err = out.YAML()
	}
	if err == nil || strings.TrimPrefix(err.Error(), "kustomize build: ") != want || fault.Hint(err) == "" {
		t.Errorf("Build: %v (hint %q), want %s", err, fault.Hint(err), want)
	}
}

func TestJail(t *testing.T) {
	for _, root := range []string{"repo/.git/HEAD", "_cmp_server/repo/x", "repo/x"} {
		top := t.TempDir()
		write(t, top, root, "", "base/kustomization.yaml", "resources: [a.yaml]", "base/a.yaml", pod)
		repo := filepath.Join(top, "repo")
		if strings.HasPrefix(root, "_cmp_server") {
			repo = filepath.Join(top, "_cmp_server", "repo")
			write(t, top, "_cmp_server/base/kustomization.yaml", "resources: [a.yaml]", "_cmp_server/base/a.yaml", pod)
		}
		dir := filepath.Join(repo, "app")
		write(t, repo, "base/kustomization.yaml", "resources: [a.yaml]", "base/a.yaml", pod)
		write(t, dir, "KUST", "resources: [../base]")
		build(t, dir)
		if root == "repo/x" { // neither: the disk for people, the directory for Argo CD
			write(t, dir, "KUST", "resources: [../../base]")
			build(t, dir)
			t.Setenv("ARGOCD_APP_SOURCE_REPO_URL", "https://git.example.com/x")
		}
		write(t, dir, "KUST", "resources: [../../base]")
		refused(t, dir, usual, "../../base: is outside of the repository")
		write(t, dir, "KUST", "resources: [../../nowhere]")
		refused(t, dir, usual, "../../nowhere: is outside of the repository")
		write(t, dir, "KUST", "components: [../../base]")
		refused(t, dir, usual, "a component: ../../base: is outside of the repository")
		if err := os.Symlink(filepath.Join(top, "base"), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "KUST", "resources: [link]")
		refused(t, dir, usual, "link: is outside of the repository")
		// A way out of the repository is one even where it leads back.
		if err := os.Symlink(filepath.Join(repo, "base"), filepath.Join(top, "back")); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "KUST", "resources: [../../back]")
		refused(t, dir, usual, "../../back: is outside of the repository")
		d := newDisk(repo, usual)
		if _, err := d.ReadFile(filepath.Join(top, "base", "a.yaml")); err == nil {
			t.Error("ReadFile reads outside")
		}
		if names, _ := d.ReadDir(top); len(names) > 0 || d.Exists(top+"/base") || d.RemoveAll(repo) == nil && !exists(repo) {
			t.Errorf("%s is listed or gone: %v", top, names)
		}
	}
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", pod)
	for _, tt := range []struct {
		change func(*limits)
		want   string
	}{
		{func(l *limits) { l.file = 30 }, "a.yaml: larger than 30 bytes"},
		{func(l *limits) { l.total = 60 }, "a.yaml: the overlay reads too many bytes"},
		{func(l *limits) { l.files = 1 }, "a.yaml: the overlay reads too many files"},
		{func(l *limits) { l.output = 10 }, "the overlay renders 90 bytes, 10 are the limit"},
	} {
		l := usual
		tt.change(&l)
		refused(t, dir, l, tt.want)
	}
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 8 {
		a := fmt.Sprintf("*a%d", i)
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Join([]string{a, a, a, a, a, a, a, a, a, a}, ", "))
	}
	const tooMuch = "yaml: aliases that stand for too much"
	write(t, dir, "a.yaml", "kind: Pod\n"+bomb)
	refused(t, dir, usual, "a.yaml: "+tooMuch)
	write(t, dir, "a.yaml", pod, "KUST", "resources: [a.yaml]\npatches:\n- patch: |-\n    "+strings.ReplaceAll(bomb, "\n", "\n    "))
	refused(t, dir, usual, "kustomization.yaml: "+tooMuch)
	write(t, dir, "KUST", "resources: [a.yaml]\npatches:\n- patch: \"a: \\x26a [*a]\"")
	refused(t, dir, usual, "kustomization.yaml: yaml: an alias inside of its own anchor")
}

func TestSecretsAreCut(t *testing.T) {
	dir := t.TempDir()
	for _, field := range []string{"resources: [", "configMapGenerator:\n- name: x\n  files: [", "components: ["} {
		write(t, dir, "KUST", field+"'https://u:p@ss@127.0.0.1:1/x/y?hunter2']")
		refused(t, dir, usual, fmt.Sprintf("names a remote base or file: in kustomization.yaml:%d: https://127.0.0.1:1/x/y", strings.Count(field, "\n")+1))
	}
}

// TestTokenOfGenerator: kustomize takes the token for the name of a file, and says so.
func TestTokenOfGenerator(t *testing.T) {
	dir := t.TempDir()
	for _, entry := range []string{"https://127.0.0.1:1/x?token=hunter2", "https://127.0.0.1:1/x?a=b&token=hunter2", "key=https://127.0.0.1:1/x?token=hunter//2"} {
		for _, kind := range []string{"configMapGenerator", "secretGenerator"} {
			write(t, dir, "KUST", kind+":\n- name: x\n  files: ['"+entry+"']", "b/kustomization.yaml", "resources: []")
			refused(t, dir, usual, "names a remote base or file: in kustomization.yaml:3: https://127.0.0.1:1/x")
		}
	}
}

// TestTemporaryFiles: krusty's end below a directory that is gone after the build; where there is none, it renders.
func TestTemporaryFiles(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	write(t, dir, "KUST", "resources: [a.yaml]", "a.yaml", pod)
	t.Setenv("TMPDIR", tmp)
	restore := guard("private", nil)
	if got := os.Getenv("TMPDIR"); got != "private" {
		t.Errorf("TMPDIR %q", got)
	}
	restore()
	helm := Options{Helm: Helm{Command: "/usr/local/bin/helm"}}
	if _, err := Build(t.Context(), dir, helm); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 || os.Getenv("TMPDIR") != tmp {
		t.Errorf("left: %v, %v", left, err)
	}
	t.Setenv("TMPDIR", filepath.Join(tmp, "nowhere"))
	build(t, dir)
	if _, err := Build(t.Context(), dir, helm); err != nil {
		t.Error(err)
	}
}

func TestImageFields(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [b]\nconfigurations: [c.yaml]", "c.yaml", "images:\n- {kind: X, path: spec/b}\n- {kind: X, path: spec/a}",
		"b/kustomization.yaml", "resources: [a.yaml]\nconfigurations: [c.yaml]", "b/a.yaml", pod, "b/c.yaml", "images:\n- {group: g, version: v1, kind: X, path: 's[]/i'}\n- {kind: X, path: spec/a}")
	out, err := Build(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []FieldSpec{{Kind: "X", Path: "spec/a"}, {Kind: "X", Path: "spec/b"}, {"g", "v1", "X", "s[]/i"}}
	if diff := cmp.Diff(want, out.ImageFields()); diff != "" {
		t.Error(diff)
	}
}
