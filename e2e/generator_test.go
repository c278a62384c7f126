package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const lockedDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// generator makes overlays out of what people write, in all the ways in which YAML lets them.
type generator struct {
	*rand.Rand
	t    *testing.T
	root string
	n    int // objects so far
}

// newGenerator returns the generator of overlay number seed, to be written below dir.
func newGenerator(t *testing.T, seed uint64, dir string) *generator {
	t.Helper()
	return &generator{Rand: rand.New(rand.NewPCG(seed, 1)), t: t, root: filepath.Join(dir, fmt.Sprint(seed))}
}

// overlay writes an overlay and its base, and returns the overlay's directory.
func (g *generator) overlay() (dir string) {
	base, over := filepath.Join(g.root, "base"), filepath.Join(g.root, "overlays", "dev")
	var resources []string
	for i := range 1 + g.IntN(5) {
		name := fmt.Sprintf("r%d.%s", i, g.pick("yaml", "yml"))
		g.write(filepath.Join(base, name), g.documents())
		resources = append(resources, name)
	}
	extra := ""
	if g.oneIn(8) {
		g.write(filepath.Join(base, "extra.yaml"), extraObjects)
		resources = append(resources, "extra.yaml")
		extra = extraFields
	}
	g.write(filepath.Join(base, "kustomization.yaml"), "resources: ["+strings.Join(resources, ", ")+"]\n"+g.options())
	g.write(filepath.Join(over, "file.txt"), g.text()+"\n"+g.text()+"\n")
	g.write(filepath.Join(over, g.pick("kustomization.yaml", "kustomization.yml", "Kustomization")),
		"resources:\n- ../../base\n"+g.options()+g.generators(extra)+g.patches())
	return over
}

// extraObjects and extraFields are a Secret and a ConfigMap that releases of kustomize change in different ways.
const (
	extraObjects = `apiVersion: v1
kind: Secret
metadata: {name: extra}
stringData: {plain: text}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: extra}
data: {tag: "7", file.json: '{"address": "host:1"}'}
`
	extraFields = `- name: extra
  behavior: merge
  literals: [more=text]
replacements:
- source: {kind: ConfigMap, name: extra, fieldPath: data.tag}
  targets:
  - select: {kind: ConfigMap, name: extra}
    fieldPaths: ['data.file\.json.address']
    options: {delimiter: ":", index: 1}
`
)

// write writes a file, one in eight of them with the line ends of Windows, and now and then without the last one.
func (g *generator) write(name, content string) {
	if g.oneIn(8) {
		content = strings.ReplaceAll(content, "\n", "\r\n")
	}
	if g.oneIn(8) {
		content = strings.TrimRight(content, "\r\n")
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		g.t.Fatal(err)
	}
	writeFile(g.t, name, content)
}

func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func (g *generator) pick(options ...string) string { return options[g.IntN(len(options))] }

// some returns each of the options with a chance of one in three.
func (g *generator) some(options ...string) (out string) {
	for _, o := range options {
		if g.oneIn(3) {
			out += o
		}
	}
	return out
}

// rarely returns one of the options with a chance of one in twenty: kustomize refuses most of what they lead to.
func (g *generator) rarely(options ...string) string {
	if g.oneIn(20) {
		return g.pick(options...)
	}
	return ""
}

func (g *generator) options() string {
	labels := g.pick("includeSelectors: true", "includeSelectors: false", "includeTemplates: true")
	return g.some(
		"namePrefix: "+g.pick("dev-", "x")+"\n", "nameSuffix: '-"+g.pick("1", "v2")+"'\n", "namespace: "+g.pick("team", `"007"`)+"\n",
		"commonAnnotations: {note: "+g.text()+"}\n", "labels:\n- pairs: {team: "+g.pick("a", `"1"`, `"true"`)+"}\n  "+labels+"\n",
		"images:\n- name: ghcr.io/acme/app1\n  newTag: "+g.pick("v1.0", `"1.10"`, "latest")+"\n- {name: ghcr.io/acme/hashed, newTag: v2}\n",
		"replicas:\n- name: w0\n  count: 3\n", "buildMetadata: ["+g.pick("managedByLabel", "originAnnotations", "managedByLabel, originAnnotations")+"]\n",
		"sortOptions: {order: "+g.pick("fifo", "legacy")+"}\n", "generatorOptions: {disableNameSuffixHash: "+g.pick("true", "false")+"}\n",
	)
}

// generators returns generator fields, of which more are the items of secretGenerator and whatever follows it.
func (g *generator) generators(more string) string {
	out := g.some("configMapGenerator:\n- name: gen\n  literals:\n  - A=" + g.pick("1", "true", "x y", "ü") + "\n  files: [file.txt]\n")
	secret := g.some("- name: sec\n  literals: [K=v, N=1e3]\n") + more
	if secret == "" {
		return out
	}
	return out + "secretGenerator:\n" + secret
}

func (g *generator) patches() string {
	return g.some(
		"patches:\n- target: {kind: Deployment}\n  patch: |-\n    - op: add\n      path: /metadata/annotations\n      value: {patched: " + g.pick(`"yes"`, `"1"`, "p") + "}\n",
	)
}

// documents returns one to three objects in a stream, or in a list, with comments and documents that hold nothing.
func (g *generator) documents() string {
	if g.n > 0 && g.oneIn(12) {
		return g.json()
	}
	var docs []string
	for range 1 + g.IntN(3) {
		docs = append(docs, g.object())
	}
	if g.oneIn(6) {
		return g.list(docs)
	}
	out := g.rarely("%YAML 1.1\n", "\ufeff") + g.pick("", "", "# a comment\n", "---\n", "--- # a comment\n", "\n\n", "---\n# nothing here\n---\n")
	for i, d := range docs {
		if i > 0 {
			out += g.pick("---\n", "---\n", "---\n---\n", "---\n# nothing here\n---\n", "--- # next\n", "---\nnull\n---\n")
		}
		out += d
	}
	return out + g.pick("", "", "# the end\n", "---\n", "...\n", "\n\n\n")
}

func (g *generator) list(docs []string) string {
	items := ""
	for _, d := range docs {
		items += "- " + strings.ReplaceAll(strings.TrimSuffix(d, "\n"), "\n", "\n  ") + "\n"
	}
	return "apiVersion: v1\nkind: " + g.pick("List", "List", "DeploymentList") + "\nmetadata: {resourceVersion: \"\"}\nitems: # of all kinds\n" + items
}

// json returns an object as a machine writes it.
func (g *generator) json() string {
	g.n++
	return fmt.Sprintf("{\"apiVersion\": \"v1\",\n  \"kind\": \"Pod\", \"metadata\": {\"name\": \"w%d\"},\n  \"spec\": {\"containers\": [{\"name\":\"c\",\"image\":\"ghcr.io/acme/app2\", \"args\": [%s, 1e3, null, \"\\u00fc\"]}]}}\n",
		g.n-1, g.doubleQuoted())
}

func (g *generator) object() string {
	g.n++
	kind := g.IntN(9)
	if g.n == 1 {
		kind = 8 // replicas and patches speak of it
	}
	meta := fmt.Sprintf("metadata:%s\n  name: w%d\n", g.pick("", "", " # whose"), g.n-1)
	switch kind {
	case 0:
		return "apiVersion: v1\nkind: ConfigMap\n" + meta + "data:\n  image: ghcr.io/acme/decoy:latest\n  a: " + g.text() + "\n  b: " + g.block("    ") +
			"  " + g.key() + ": " + g.text() + "\n  folded: " + g.folded("    ")
	case 1:
		return "kind: CronJob\napiVersion: batch/v1\n" + meta + "spec:\n  schedule: '*/5 * * * *'\n  jobTemplate:\n    spec:\n      template:\n" +
			g.pod("        ")
	case 2:
		return "apiVersion: v1\nkind: Service\n" + meta + "spec: {ports: [{port: 80, name: " + g.pick("http", `"8080"`) + "}], selector: {app: x}}\n"
	case 3, 4:
		return "apiVersion: acme.io/v1\nkind: Widget\n" + meta + g.widget()
	case 5:
		return "apiVersion: apps/v1\nkind: StatefulSet\n" + meta + "spec:\n  serviceName: s\n  selector: {matchLabels: {app: x}}\n" +
			"  volumeClaimTemplates: [{metadata: {name: d}, spec: {accessModes: [ReadWriteOnce]}}]\n" +
			"  template:\n    metadata: {labels: {app: x}}\n" + g.pod("    ")
	case 6:
		return "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy" + g.pick("", "Binding") + "\n" + meta +
			"spec: {policyName: p, validationActions: [Deny]}\n"
	default:
		return "apiVersion: apps/v1\nkind: Deployment\n" + meta + "  annotations: {z: " + g.text() + ", a: " + g.text() + "}\n" +
			"spec:\n  selector: {matchLabels: {app: x}}\n  template:\n    metadata: {labels: {app: x}}\n" + g.pod("    ")
	}
}

// widget is a custom resource, where any value may be anything.
func (g *generator) widget() string {
	return "spec: # free form\n" +
		"  shared: &s {k: " + g.value() + ", l: [" + g.value() + ", " + g.value() + "]}\n" +
		"  again: *s\n" +
		g.some("  merged:\n    <<: *s\n    own: "+g.value()+"\n", "  <<: *s\n", "  merged2: {<<: [*s, {m: 1}], k: over}\n") +
		"  text: " + g.block("    ") +
		g.some(
			"  # about the next\n  "+g.key()+": "+g.value()+" # and after it\n",
			"  ? explicit\n  : "+g.value()+"\n",
			"  folded: "+g.folded("    "),
			"  flow: {a: ["+g.value()+",\n      "+g.value()+",], 'b': {}, c: [],\n    }\n",
			"  list:\n  - "+g.value()+"\n  -   - "+g.value()+"\n      - x\n  -\n    a: "+g.value()+"\n",
			"  empty:\n", "  tilde: ~\n",
		) + g.rarely("  1: one\n", "  true: yes\n") +
		"  containers:\n  - &c {name: a, image: &image " + g.quote("ghcr.io/acme/app3") + "}\n  - name: b\n    image: *image\n" +
		g.some("  - *c\n", "  - <<: *c\n    name: d\n", "  - name: e\n    \"image\": >-\n      ghcr.io/acme/app3:latest\n", "  - {name: f,\n    image: ghcr.io/acme/app3:latest}\n")
}

// pod returns a pod spec with the given indentation, its images in one of the styles.
func (g *generator) pod(indent string) string {
	out := indent + "spec:\n"
	for _, list := range []string{"initContainers", "containers"} {
		if list == "initContainers" && g.oneIn(2) {
			continue
		}
		out += indent + "  " + list + ":" + g.pick("", " # the images") + "\n"
		for i := range 1 + g.IntN(2) {
			out += g.container(indent+"  ", fmt.Sprintf("%s%d", list[:1], i))
		}
	}
	if g.oneIn(3) {
		out += indent + "  volumes: [{name: v, image: {reference: " + g.image() + "}}]\n"
	}
	return out
}

func (g *generator) container(indent, name string) string {
	if g.oneIn(3) {
		return indent + "- {image: " + g.image() + ", name: " + name + "}\n"
	}
	return indent + "- name: " + name + "\n" + indent + "  image: " + g.image() + g.pick("", "", " # :latest", "   ") + "\n" +
		indent + "  args: [--image, 'ghcr.io/acme/app1:latest', " + g.text() + "]\n" +
		indent + "  env:\n" + indent + "  - name: V\n" + indent + "    value: " + g.text() + "\n" +
		g.some(indent+"  command:\n"+indent+"  - sh\n"+indent+"  - -c\n"+indent+"  - "+g.block(indent+"    "))
}

func (g *generator) image() string {
	if g.oneIn(12) {
		return "ghcr.io/acme/hashed@sha512:" + strings.Repeat("6", 128)
	}
	return g.quote(fmt.Sprintf("ghcr.io/acme/app%d%s", g.IntN(4), g.pick("", ":latest", ":v1.2.3", "@"+lockedDigest)))
}

// quote writes a plain text in one of the ways to do so.
func (g *generator) quote(text string) string {
	return g.pick(text, "'"+text+"'", `"`+text+`"`, `"`+strings.ReplaceAll(text, "/", `\x2f`)+`"`, "!!str "+text)
}

// text returns a string, quoted where it would be something else without, or that is hard to print.
func (g *generator) text() string {
	return g.pick(
		g.doubleQuoted(), g.doubleQuoted(), g.doubleQuoted(),
		`'007'`, `'yes'`, `'it''s'`, "'"+g.looksOdd()+"'", `"`+g.looksOdd()+`"`, "!!str "+g.looksOdd(),
		`'\n stays'`, `'"'`, `plain`, `plain text`, `a-b_c.d/e`, `v1.2.3`, `1.2.3`, `12:30:45x`, `a#b`, `a:b`, `ünï`, `日本`, `😀`, "''",
	)
}

func (g *generator) doubleQuoted() string {
	return g.pick(`"1"`, `"~"`, `""`, `"tab\tnew\nline"`, `"ünï ☃"`, `"\u263a \U0001F600"`, `"nul \u0007 del \u007f nel \u0085 bom \ufeff"`,
		`"`+strings.Repeat("long line ", 30)+`"`, `"`+strings.Repeat("very long line ", 120)+`"`, `"`+strings.Repeat("x", 1500)+`"`,
		`"a: b # c"`, `"- x"`, `"? x"`, `"{}"`, `"[a"`, `" lead"`, `"trail "`, `"@at"`, `"%p"`, "\"`tick\"", `"!tag"`, `"&anchor"`, `"*alias"`, `"|"`, `">"`,
		`"back\\slash"`, `"a\"b"`, `"\n"`, `"two\n\nlines\n"`, `"---"`, `"..."`, `"="`, `"<<"`, `"null"`, `"trailing\n\n"`, `"line\r\nends"`, `"\u2028"`)
}

// looksOdd returns what one release of YAML or another takes for something else than a string.
func (g *generator) looksOdd() string {
	return g.pick("0x1F", "017", "0o17", "0b11", "1e3", "1.0", "1.", ".5", "-0", "+1", "1_000", "190:20:30", ".inf", "-.Inf", ".nan", "NaN",
		"true", "False", "yes", "NO", "on", "Off", "y", "n", "null", "Null", "~", "2026-11-23", "2026-11-23T01:02:03Z", "2026-11-23 01:02:03 +1",
		"12:30:45", "1e400", "12345678901234567890", "0.1e-7", "007", "08", "0")
}

// value returns a string or what is none.
func (g *generator) value() string {
	return g.pick(g.text(), g.looksOdd(), g.looksOdd(), "!!float 1", "!!binary aGVsbG8=", "!custom x", "null", "[]", "{}", "{a: {b: [c, {d: "+g.looksOdd()+"}]}}")
}

// key returns a key of a map.
func (g *generator) key() string {
	return g.pick("plain", "'quoted'", `"dou\u0062le"`, "dotted.key", "with/slash", "with space", "'007'", "\"yes\"", strings.Repeat("k", 200))
}

// block returns a multi-line text in one of YAML's block styles.
func (g *generator) block(indent string) string {
	out := g.pick("|", "|-", "|+", ">", ">-", ">+", "| # not text") + "\n" + indent + "first\n"
	for range g.IntN(4) {
		out += g.pick(indent, indent, indent, "\n"+indent, indent+"  ") +
			g.pick("second line", "image: ghcr.io/acme/decoy:latest", "# no comment", "ends with space ", "ü", "---", strings.Repeat("wide ", 300), "\ttab") + "\n"
	}
	return out
}

// folded returns a text that spreads over lines without a block style.
func (g *generator) folded(indent string) string {
	return g.pick("plain text\n"+indent+"that goes on\n\n"+indent+"for three lines", "'single\n"+indent+"quoted'", "\"double \\\n"+indent+"quoted\\\n"+indent+"\\  text\"") + "\n"
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
