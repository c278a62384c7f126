package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// corpus is how many overlays must render the same with both programs.
const corpus = 300

// TestBytes renders generated overlays with "kustomize build" of the same version and with "digestlock generate". With
// nothing to pin the bytes are equal; with everything in the lock, only the lines of mutable images differ, and by their
// digest alone. What the one refuses the other refuses.
func TestBytes(t *testing.T) {
	kustomize := buildKustomize(t)
	dir := t.TempDir()
	var rendered, refused, pinned int
	for seed := uint64(0); rendered < corpus; seed++ {
		if seed == 2*corpus {
			t.Fatalf("only %d of %d generated overlays render: the generator is wrong", rendered, seed)
		}
		root := filepath.Join(dir, fmt.Sprint(seed))
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), t: t, root: root}
		overlay := g.overlay()
		want, wantErr := output(t, kustomize, "build", overlay)
		got, err := output(t, filepath.Join(binDir, "digestlock"), "generate", "--server=", "--tags=none-of-them", overlay)
		if (err != nil) != (wantErr != nil) {
			t.Errorf("overlay %d: digestlock: %v; kustomize: %v\n%s", seed, err, wantErr, g.tree())
			continue
		}
		if err != nil {
			refused++
			continue
		}
		rendered++
		if !bytes.Equal(got, want) {
			t.Errorf("overlay %d: bytes differ\n--- kustomize\n%s\n--- digestlock\n%s\n%s", seed, want, got, g.tree())
			continue
		}
		g.lock(overlay)
		got, err = output(t, filepath.Join(binDir, "digestlock"), "generate", "--mode=locked", overlay)
		if err != nil {
			t.Errorf("overlay %d with a lock: %v\n%s", seed, err, g.tree())
			continue
		}
		pinned += onlyImagesDiffer(t, seed, string(want), string(got))
	}
	if pinned < corpus {
		t.Errorf("%d references pinned in %d overlays: the generator makes too few", pinned, corpus)
	}
	t.Logf("%d overlays rendered alike, %d refused alike, %d references pinned", rendered, refused, pinned)
}

// pinnedLine is the line of a mutable image that got its digest.
var pinnedLine = regexp.MustCompile(`^( *(?:- )?image: "?ghcr\.io/acme/app[0-9])(?::latest)?("?)$`)

// onlyImagesDiffer returns how many lines differ.
func onlyImagesDiffer(t *testing.T, seed uint64, plain, locked string) (n int) {
	t.Helper()
	a, b := strings.Split(plain, "\n"), strings.Split(locked, "\n")
	if len(a) != len(b) {
		t.Errorf("overlay %d: %d lines without, %d with pins", seed, len(a), len(b))
		return 0
	}
	for i := range a {
		m := pinnedLine.FindStringSubmatch(a[i])
		switch {
		case a[i] == b[i] && m == nil:
		case m == nil:
			t.Errorf("overlay %d: a line that is no image differs:\n%s\n%s", seed, a[i], b[i])
		case b[i] != m[1]+":latest@"+lockedDigest+m[2]:
			t.Errorf("overlay %d: %q became %q", seed, a[i], b[i])
		default:
			n++
		}
	}
	return n
}

func buildKustomize(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "kustomize")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-modfile=tools/go.mod", "-ldflags", kustomizeVersion, "-o", out, "sigs.k8s.io/kustomize/kustomize/v5")
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the kustomize CLI: %v\n%s", err, text)
	}
	return out
}

func output(t *testing.T, program string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, nil
}

const lockedDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// generator makes overlays out of what people write, in all the ways in which YAML lets them.
type generator struct {
	*rand.Rand
	t    *testing.T
	root string
	n    int
}

func (g *generator) overlay() (dir string) {
	base, over := filepath.Join(g.root, "base"), filepath.Join(g.root, "overlays", "dev")
	var resources []string
	for i := range 1 + g.IntN(5) {
		name := fmt.Sprintf("r%d.yaml", i)
		g.write(filepath.Join(base, name), g.documents())
		resources = append(resources, name)
	}
	g.write(filepath.Join(base, "kustomization.yaml"), "resources: ["+strings.Join(resources, ", ")+"]\n"+g.options())
	g.write(filepath.Join(over, "file.txt"), g.text()+"\n"+g.text()+"\n")
	g.write(filepath.Join(over, "kustomization.yaml"), "resources:\n- ../../base\n"+g.options()+g.generators()+g.patches())
	return over
}

// write writes a file, one in eight of them with the line ends of Windows.
func (g *generator) write(name, content string) {
	if g.IntN(8) == 0 {
		content = strings.ReplaceAll(content, "\n", "\r\n")
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		g.t.Fatal(err)
	}
	writeFile(g.t, name, content)
}

func (g *generator) pick(options ...string) string { return options[g.IntN(len(options))] }

// some returns each of the options with a chance of one in three.
func (g *generator) some(options ...string) (out string) {
	for _, o := range options {
		if g.IntN(3) == 0 {
			out += o
		}
	}
	return out
}

func (g *generator) options() string {
	return g.some(
		"namePrefix: "+g.pick("dev-", "x")+"\n", "nameSuffix: '-"+g.pick("1", "v2")+"'\n", "namespace: "+g.pick("team", `"007"`)+"\n",
		"commonAnnotations: {note: "+g.scalar()+"}\n", "labels:\n- pairs: {team: "+g.pick("a", `"1"`, `"true"`)+"}\n  includeSelectors: "+g.pick("true", "false")+"\n",
		"images:\n- name: ghcr.io/acme/app1\n  newTag: "+g.pick("v1.0", `"1.10"`, "latest")+"\n",
		"replicas:\n- name: w0\n  count: 3\n", "buildMetadata: ["+g.pick("managedByLabel", "originAnnotations", "managedByLabel, originAnnotations")+"]\n",
		"sortOptions: {order: "+g.pick("fifo", "legacy")+"}\n", "generatorOptions: {disableNameSuffixHash: "+g.pick("true", "false")+"}\n",
	)
}

func (g *generator) generators() string {
	return g.some(
		"configMapGenerator:\n- name: gen\n  literals:\n  - A="+g.pick("1", "true", "x y", "ü")+"\n  files: [file.txt]\n",
		"secretGenerator:\n- name: sec\n  literals: [K=v, N=1e3]\n",
	)
}

func (g *generator) patches() string {
	return g.some(
		"patches:\n- target: {kind: Deployment}\n  patch: |-\n    - op: add\n      path: /metadata/annotations\n      value: {patched: " + g.pick(`"yes"`, `"1"`, "p") + "}\n",
	)
}

// documents returns one to three objects, and now and then a List of them or an anchor that they share.
func (g *generator) documents() string {
	var docs []string
	for range 1 + g.IntN(3) {
		docs = append(docs, g.object())
	}
	if g.IntN(6) == 0 {
		items := ""
		for _, d := range docs {
			items += "- " + strings.ReplaceAll(strings.TrimSuffix(d, "\n"), "\n", "\n  ") + "\n"
		}
		return "apiVersion: v1\nkind: List\nitems:\n" + items
	}
	return g.pick("", "# a comment\n", "---\n") + strings.Join(docs, "---\n")
}

func (g *generator) object() string {
	g.n++
	meta := fmt.Sprintf("metadata:\n  name: w%d\n", g.n-1)
	kind := g.IntN(6)
	if g.n == 1 {
		kind = 5 // replicas and patches speak of it
	}
	switch kind {
	case 0:
		return "apiVersion: v1\nkind: ConfigMap\n" + meta + "data:\n  image: ghcr.io/acme/decoy:latest\n  a: " + g.scalar() + "\n  b: " + g.block("    ")
	case 1:
		return "kind: CronJob\napiVersion: batch/v1\n" + meta + "spec:\n  schedule: '*/5 * * * *'\n  jobTemplate:\n    spec:\n      template:\n" +
			g.pod("        ")
	case 2:
		return "apiVersion: v1\nkind: Service\n" + meta + "spec: {ports: [{port: 80, name: " + g.pick("http", `"8080"`) + "}], selector: {app: x}}\n"
	case 3:
		return "apiVersion: acme.io/v1\nkind: Widget\n" + meta + "spec:\n  shared: &s {k: " + g.scalar() + "}\n  again: *s\n  text: " + g.block("    ")
	default:
		return "apiVersion: apps/v1\nkind: Deployment\n" + meta + "  annotations: {z: " + g.scalar() + ", a: " + g.scalar() + "}\n" +
			"spec:\n  selector: {matchLabels: {app: x}}\n  template:\n    metadata: {labels: {app: x}}\n" + g.pod("    ")
	}
}

// pod returns a pod spec with the given indentation, its images in one of the styles.
func (g *generator) pod(indent string) string {
	out := indent + "spec:\n"
	for _, list := range []string{"initContainers", "containers"} {
		if list == "initContainers" && g.IntN(2) == 0 {
			continue
		}
		out += indent + "  " + list + ":\n"
		for i := range 1 + g.IntN(2) {
			image := fmt.Sprintf("ghcr.io/acme/app%d%s", g.IntN(4), g.pick("", ":latest", ":v1.2.3", "@"+lockedDigest))
			image = g.pick(image, "'"+image+"'", `"`+image+`"`)
			name := fmt.Sprintf("%s%d", list[:1], i)
			if g.IntN(3) == 0 {
				out += indent + "  - {image: " + image + ", name: " + name + "}\n"
				continue
			}
			out += indent + "  - name: " + name + "\n" + indent + "    image: " + image + "\n" +
				indent + "    args: [--image, 'ghcr.io/acme/app1:latest', " + g.scalar() + "]\n" +
				indent + "    env:\n" + indent + "    - name: V\n" + indent + "      value: " + g.scalar() + "\n"
		}
	}
	return out
}

// scalar returns a text that would be something else unquoted, or that is hard to print.
func (g *generator) scalar() string {
	return g.pick(`"1"`, `'007'`, `"1e3"`, `"0x1F"`, `'yes'`, `"null"`, `"~"`, `"1.0"`, `""`, `'it''s'`, `"tab\tnew\nline"`, `"ünï ☃"`,
		`"`+strings.Repeat("long line ", 30)+`"`, `"a: b # c"`, `"- x"`, `"{}"`, `" lead"`, `"trail "`, `plain`, `"2026-11-23"`, `"12:30:45"`, `"@at"`, `"%p"`)
}

func (g *generator) text() string {
	return g.pick("plain", "a: b", "- c", strings.Repeat("wide ", 40), "", "\ttab", "trailing  ", "# no comment", "ünï", "image: ghcr.io/acme/decoy:latest")
}

// block returns a multi-line text in one of YAML's block styles.
func (g *generator) block(indent string) string {
	out := g.pick("|", "|-", "|+", ">", ">-") + "\n" + indent + "first\n"
	for range g.IntN(4) {
		out += indent + g.pick("second line", "image: ghcr.io/acme/decoy:latest", "# no comment", "ends with space ", "ü") + "\n"
	}
	return out
}

// lock pins every mutable image that the generator knows.
func (g *generator) lock(dir string) {
	text := "apiVersion: digestlock.dev/v1\nkind: DigestLock\npins:\n"
	for i := range 4 {
		text += fmt.Sprintf("  - image: ghcr.io/acme/app%d:latest\n    digest: %s\n    resolvedAt: \"2026-11-23T00:00:00Z\"\n", i, lockedDigest)
	}
	writeFile(g.t, filepath.Join(dir, "digest-lock.yaml"), text)
}

// tree returns the generated files, for a failure that a person wants to see.
func (g *generator) tree() string {
	var out strings.Builder
	for _, pattern := range []string{"base/*", "overlays/dev/*"} {
		files, err := filepath.Glob(filepath.Join(g.root, pattern))
		if err != nil {
			g.t.Fatal(err)
		}
		for _, f := range files {
			fmt.Fprintf(&out, "=== %s\n%s\n", strings.TrimPrefix(f, g.root), readFile(g.t, f))
		}
	}
	return out.String()
}
