package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/plugin"
)

// sourceFile begins the names of the files in which Argo CD finds overrides of an Application's source, beside the overlay.
const sourceFile = ".argocd-source"

// application is an Application or an ApplicationSet, with what is to become of it.
type application struct {
	doc             *document
	of, kind        string
	name, namespace string
	meta, spec      *yaml.Node // an ApplicationSet's are those of its template
	annotations     []string   // of Image Updater, in full
	updater         *updater   // nil when Image Updater has no word about it
	ref             *reference // where that is from, nil for annotations

	err        error
	stays, fix string // why it is left alone, and what would help

	overlays []overlay
	shared   bool // its kustomizations change, which others may render too
	params   parameters
	edits    map[*document]string
	gone     []string
	findings []Finding
}

func (a *application) moves() bool { return a.updater != nil && a.err == nil && a.stays == "" }

func (a *application) say(check, format string, args ...any) {
	a.findings = append(a.findings, Finding{Of: a.of, Check: check, Text: fmt.Sprintf(format, args...)})
}

func (a *application) warn(check, fix, format string, args ...any) {
	a.findings = append(a.findings, Finding{Of: a.of, Check: check, Text: fmt.Sprintf(format, args...), Fix: fix, Warn: true})
}

// prepare plans for an Application by itself. Stays is why it is left alone.
func (p *planner) prepare(ctx context.Context, a *application) (stays string, err error) {
	a.edits = map[*document]string{}
	if stays := a.unsuited(); stays != "" {
		return stays, nil
	}
	if a.overlays, stays, a.fix = p.locate(a); stays != "" {
		return stays, nil
	}
	source := at(a.spec, "source")
	a.params.follow(a.updater.images)
	if err := a.params.kustomize(at(source, "kustomize")); err != nil {
		return "", err
	}
	a.explain()
	var common []string
	for i := range a.overlays {
		images, err := p.overlay(ctx, a, &a.overlays[i])
		if err != nil {
			return "", err
		}
		if i > 0 && !slices.Equal(images, common) {
			a.fix = "move it by hand"
			return "the overlays of its Applications have different image overrides, and its template has one place for them", nil
		}
		common = images
	}
	a.params.set("images", common)
	if err := a.params.check(); err != nil {
		return "", err
	}
	a.say("plugin", "digestlock, %s", a.params)
	return "", a.rewrite(source)
}

// unsuited returns why an Application cannot move as it is.
func (a *application) unsuited() string {
	a.fix = "none, Image Updater goes on with it; or give it a fixed tag, which a bot like Renovate moves by pull requests"
	for _, t := range a.updater.images {
		if why := t.follows(); why != "" {
			if t.strategy == "latest" {
				a.fix = "if the tag latest is meant, that is strategy digest of image:latest: say so there, and run again"
			}
			return why
		}
		if t.helm {
			return fmt.Sprintf("%s is a helm parameter, and digestlock renders kustomize", t.written)
		}
		if t.plugin {
			return fmt.Sprintf("%s is a variable of another plugin", t.written)
		}
		for _, glob := range t.ignore {
			if ok, _ := path.Match(glob, t.ref.Tag); ok {
				a.fix = "take ignore-tags away, or hold the pin after the move: digestlock hold"
				return fmt.Sprintf("%s is switched off by ignore-tags %q", t.written, glob)
			}
		}
	}
	a.fix = "change it by hand"
	switch source := at(a.spec, "source"); {
	case at(a.spec, "sources") != nil:
		a.fix = "change the source of the overlay by hand: the plan of an Application with one source shows how"
		return "it has several sources"
	case at(a.spec, "sourceHydrator") != nil:
		return "it is hydrated: see modes.md for mode locked"
	case source == nil || stringAt(source, "path") == "":
		return "it has no source with a path"
	case at(source, "helm") != nil || at(source, "chart") != nil || at(source, "directory") != nil:
		return "its source is no kustomize overlay"
	case at(source, "plugin") != nil:
		a.fix = "take the annotations away, or the plugin"
		return "its source uses a plugin already"
	case at(source, "kustomize", "version") != nil:
		a.fix = "see whether it renders the same without: digestlock has one kustomize inside"
		return "it asks for a kustomize version, spec.source.kustomize.version"
	case a.updater.signed:
		a.fix = "none, Image Updater goes on with it; or verify at admission"
		return "Image Updater verifies signatures for it, which digestlock does not"
	case a.updater.repo != "" && sameURL(a.updater.repo) != sameURL(stringAt(source, "repoURL")):
		return fmt.Sprintf("Image Updater writes to another repository, %s: the companion writes where the overlay is", lock.WithoutUser(a.updater.repo))
	case strings.Contains(stringAt(a.doc.root, "spec", "templatePatch"), "kustomize"):
		return "its templatePatch names kustomize"
	}
	a.fix = "have Image Updater write beside the overlay, or move its digests by hand"
	if t := a.updater.target; t != "" && !a.targetsOverlay() && strings.HasPrefix(a.updater.method, "git") {
		return fmt.Sprintf("Image Updater writes to %q, which is not the overlay's own file: others may use it", t)
	}
	return ""
}

// targetsOverlay reports whether a kustomization is written to that is the overlay's own.
func (a *application) targetsOverlay() bool {
	kind, to, _ := strings.Cut(a.updater.target, ":")
	own := path.Clean("/" + stringAt(a.spec, "source", "path"))
	if !strings.HasPrefix(to, "/") {
		to = path.Join(own, to)
	}
	return kind == "kustomization" && path.Clean(to) == own
}

// overlay plans for one directory: the digests that Image Updater wrote there become pins. It returns the image overrides
// that are still needed.
func (p *planner) overlay(ctx context.Context, a *application, o *overlay) ([]string, error) {
	kustomizationFile := kustomization(o.show)
	if kustomizationFile == "" {
		return nil, fault.New(fault.NoKustomization, "point the Application at an overlay", "no kustomization, or several, in %s", o.show)
	}
	images, from := list(at(a.spec, "source", "kustomize", "images")), a.doc.file.path
	for _, name := range a.sourceFiles(*o) {
		written, err := p.source(a, name)
		if err != nil {
			return nil, err
		}
		if written != nil {
			images, from = written, name
		}
	}
	o.from = from
	overrides := p.overrides(ctx, a, o, images)
	if err := p.kustomization(a, o, kustomizationFile); err != nil {
		return nil, err
	}
	for _, t := range a.updater.images {
		if i := slices.IndexFunc(o.pins, func(pin lock.Pin) bool { return pin.Image == t.ref.String() }); i >= 0 {
			a.say("seed", "%s %s from %s", t.ref, o.pins[i].Digest, o.from)
		} else if d, err := p.lockOf(o.dir); err == nil && has(d, t.ref) {
			a.say("seed", "%s: %s has its pin already", t.ref, filepath.Join(o.show, lock.FileName))
		} else {
			a.warn("seed", "if that must not roll out: copy spec.source.kustomize.images of the live Application into this file, and run again",
				"%s: no digest in this checkout, so that the first render takes what its tag stands at", t.ref)
		}
	}
	return overrides, nil
}

// sourceFiles returns where overrides of one of a's Applications may be. Those of a namespace that is not Argo CD's own have
// it in the name, and a file does not always say which it is.
func (a *application) sourceFiles(o overlay) []string {
	files := []string{filepath.Join(o.show, sourceFile+".yaml"), filepath.Join(o.show, sourceFile+"-"+o.name+".yaml")}
	if a.namespace != "" {
		return append(files, filepath.Join(o.show, sourceFile+"-"+a.namespace+"_"+o.name+".yaml"))
	}
	others, _ := filepath.Glob(filepath.Join(o.show, sourceFile+"-*_"+o.name+".yaml"))
	return append(files, others...)
}

func has(d *lock.Document, ref image.Ref) bool {
	_, ok := d.Find(ref.String())
	return ok
}

// source reads an override file, takes its kustomize part, and returns its images; nil when there is none.
func (p *planner) source(a *application, name string) ([]string, error) {
	d, err := single(name)
	if d == nil || err != nil {
		return nil, err
	}
	k := at(d.root, "kustomize")
	if k == nil {
		return nil, nil
	}
	if filepath.Base(name) == sourceFile+".yaml" {
		return nil, fault.New(fault.MigrateConflict, "Image Updater did not write it, and Argo CD refuses it beside a plugin: turn it into parameters by hand, and delete it", "%s has kustomize, for all Applications of this path", name)
	}
	if err := a.params.kustomize(k); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	images := append([]string{}, list(at(k, "images"))...)
	if len(d.root.Content) == 2 {
		a.gone = append(a.gone, name)
		a.say("delete", "%s: Argo CD refuses it beside a plugin", name)
		return images, nil
	}
	if err := d.remove(d.root, "kustomize"); err != nil {
		return nil, uneditable(name, err)
	}
	if a.edits[d], err = d.result(); err != nil {
		return nil, uneditable(name, err)
	}
	a.say("edit", "%s: without kustomize, which Argo CD refuses beside a plugin", name)
	return images, nil
}

// single reads a file of one document, nil when it is not there.
func single(name string) (*document, error) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && !info.Mode().IsRegular():
		return nil, fault.New(fault.MigrateFile, "replace it by a regular file", "%s is not a regular file", name)
	case err == nil && info.Size() > maxFile:
		return nil, fault.New(fault.MigrateFile, "see what it is", "%s has %d bytes", name, info.Size())
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fault.New(fault.MigrateFile, "let this user read it", "%w", err)
	}
	f := &file{path: name}
	d := &document{file: f, lines: slices.Collect(strings.Lines(string(data)))}
	f.docs = []*document{d}
	if err := d.parse(); err != nil || d.root == nil {
		return nil, fault.New(fault.MigrateFile, "correct it there, and run again", "%s is not a map in YAML: %v", name, err)
	}
	return d, nil
}

// overrides turns Argo CD's image overrides into pins and those overrides that the overlay still needs.
func (p *planner) overrides(ctx context.Context, a *application, o *overlay, images []string) (out []string) {
	var rendered []plugin.Row
	var failed error
	if len(images) > 0 {
		var e plugin.Explanation
		settings := plugin.Defaults()
		settings.Mode = plugin.Locked
		e, failed = plugin.Render{Dir: o.show, Settings: settings}.Explain(ctx)
		rendered = e.Rows
	}
	for _, text := range images {
		name, value, renames := strings.Cut(text, "=")
		if !renames {
			name, value = "", text
		}
		ref, err := image.Parse(value)
		t := a.updater.of(ref, name)
		if err != nil || t == nil {
			if err == nil && ref.Digest != "" {
				a.warn("keeps", "none; a digest that is not one of Image Updater's is somebody's decision", "%s: its digest has no tag that Image Updater follows, and stays", text)
			}
			out = append(out, text)
			continue
		}
		if ref.Digest != "" && ref.Tag != "" && ref.Tag != t.ref.Tag {
			a.warn("keeps", "correct one of the two, and run again", "%s: Image Updater follows %s, which is another tag", text, t.written)
			out = append(out, text)
			continue
		}
		if ref.Digest != "" {
			p.seed(a, o, t, ref.Digest, ref.Tag != "")
		}
		if failed != nil {
			a.warn("images", "take parameter images away, if the overlay says "+t.ref.Tag+" itself", "kept as an override, because the overlay does not render here: %v", failed)
		}
		if failed != nil || renames || differs(rendered, t.ref) {
			out = append(out, strings.TrimPrefix(name+"="+ref.Name+":"+t.ref.Tag, "="))
		}
	}
	return out
}

// differs reports whether an overlay renders a repository with another tag than that of ref.
func differs(rows []plugin.Row, ref image.Ref) bool {
	for _, r := range rows {
		got, err := image.Parse(r.Value)
		if err == nil && r.Image != "" && got.Registry == ref.Registry && got.Repository == ref.Repository && got.String() != ref.String() {
			return true
		}
	}
	return false
}

// of returns the image that Image Updater follows under a reference, and where that is given under kustomize's name for it.
func (u *updater) of(ref image.Ref, name string) *tracked {
	for i, t := range u.images {
		if t.ref.Registry == ref.Registry && t.ref.Repository == ref.Repository && (name == "" || t.kustomizeName == "" || name == t.kustomizeName) {
			return &u.images[i]
		}
	}
	return nil
}

func (p *planner) seed(a *application, o *overlay, t *tracked, digest string, tagged bool) {
	if !image.IsDigest(digest) {
		a.warn("seed", "none", "%s: %s is no digest that a lock can hold", t.ref, digest)
		return
	}
	if !slices.ContainsFunc(o.pins, func(pin lock.Pin) bool { return pin.Image == t.ref.String() }) {
		o.pins = append(o.pins, lock.Pin{Image: t.ref.String(), Digest: digest, ResolvedAt: p.now})
	}
	a.params.written(tagged)
}

// kustomization takes the digests out of the overlay's kustomization, where Image Updater wrote them there.
func (p *planner) kustomization(a *application, o *overlay, name string) error {
	if !a.targetsOverlay() || !strings.HasPrefix(a.updater.method, "git") {
		return nil
	}
	d, err := single(name)
	if err != nil {
		return err
	}
	images := at(d.root, "images")
	if images == nil || images.Kind != yaml.SequenceNode {
		return nil
	}
	changed := false
	for _, n := range images.Content {
		digest := stringAt(n, "digest")
		if digest == "" {
			continue
		}
		as := stringAt(n, "name")
		repository := stringAt(n, "newName")
		if repository == "" {
			repository = as
		}
		ref, badRef := image.Parse(repository)
		t := a.updater.of(ref, as)
		tag := stringAt(n, "newTag")
		if badRef != nil || t == nil || tag != "" && tag != t.ref.Tag {
			a.warn("keeps", "none, if somebody pinned it; else name its tag there and take the digest away", "%s: %s has a digest without a tag that Image Updater follows, and stays", name, as)
			continue
		}
		p.seed(a, o, t, digest, tag != "")
		with := ""
		if tag == "" {
			with = "newTag: " + scalar(t.ref.Tag)
		}
		if err := d.replace(n, "digest", with); err != nil {
			return uneditable(name, err)
		}
		changed, o.from = true, name
	}
	if !changed {
		return nil
	}
	a.shared = true
	if a.edits[d], err = d.result(); err != nil {
		return uneditable(name, err)
	}
	a.say("edit", "%s: tags in place of digests", name)
	return nil
}

// rewrite edits the Application itself.
func (a *application) rewrite(source *yaml.Node) error {
	d := a.doc
	var err error
	text := a.params.text()
	if at(source, "kustomize") != nil {
		err = d.replace(source, "kustomize", text)
	} else {
		err = d.insert(source, "path", text)
	}
	notes := at(a.meta, "annotations")
	if notes != nil && len(notes.Content) == 2*len(a.annotations) {
		err = errors.Join(err, d.remove(a.meta, "annotations"))
	} else {
		for _, key := range a.annotations {
			err = errors.Join(err, d.remove(notes, key))
		}
	}
	if err == nil {
		a.edits[d], err = d.result()
	}
	if err != nil {
		return uneditable(d.file.path, errStyle)
	}
	a.say("edit", "%s", d.file.path)
	return nil
}

// explain says what becomes of what Image Updater was told.
func (a *application) explain() {
	u := a.updater
	for _, t := range u.images {
		a.say("image", "%s, update strategy digest: follows its tag in mode follow", t.written)
		if t.allow != "" || len(t.ignore) > 0 {
			a.say("gone", "allow-tags and ignore-tags of %s: there is one tag to choose from", t.ref)
		}
		if t.force {
			a.say("gone", "force-update of %s: what the overlay renders is pinned", t.ref)
		}
		if t.platforms {
			a.say("gone", "platforms of %s: the digest is that of the index, and each node takes its platform from it", t.ref)
		}
		if t.secret != "" {
			a.warn("gone", "see credentials.md", "pull-secret of %s, %s: the resolver needs credentials for %s of its own", t.ref, t.secret, t.ref.Registry)
		}
	}
	method, secret, _ := strings.Cut(u.method, ":")
	switch {
	case method != "git":
		a.warn("gone", "take spec.source.kustomize out of the live Application too, where applying this file does not: Argo CD refuses it beside a plugin",
			"write-back-method argocd: what Image Updater wrote is in the live Application")
	case secret != "" && secret != "repocreds":
		a.warn("gone", "see companion.md", "write-back-method %s: the companion writes with what Argo CD has for the repository", u.method)
	default:
		a.say("gone", "write-back-method git: the companion commits digest-lock.yaml")
	}
	base, push, requests := strings.Cut(u.branch, ":")
	if u.pulls {
		push, requests = "for pull requests", true
	}
	if requests {
		a.warn("gone", "digestlock-companion --push-branch, see pull-requests.md", "Image Updater commits to a branch of its own, %s", push)
	}
	if revision := stringAt(a.spec, "source", "targetRevision"); base != "" && base != revision {
		a.warn("gone", "see whether they are the same", "git-branch %s: the companion commits to targetRevision, %q", base, revision)
	}
	for _, key := range u.unknown {
		a.warn("gone", "see whether it is missed", "annotation %s, which is not known here", key)
	}
}

// parameters are those of the plugin, in the order in which they are written.
type parameters struct {
	list             []parameter
	tagged, untagged bool // what Image Updater wrote had tags beside digests
}

type parameter struct {
	name  string
	value any // string, []string or map[string]string
}

// fields are those of source.kustomize, with the parameters of the same meaning.
var fields = []struct{ field, name string }{
	{"namePrefix", "name-prefix"},
	{"nameSuffix", "name-suffix"},
	{"namespace", "namespace"},
	{"commonLabels", "common-labels"},
	{"forceCommonLabels", "force-common-labels"},
	{"labelWithoutSelector", "label-without-selector"},
	{"labelIncludeTemplates", "label-include-templates"},
	{"commonAnnotations", "common-annotations"},
	{"forceCommonAnnotations", "force-common-annotations"},
	{"commonAnnotationsEnvsubst", "common-annotations-envsubst"},
	{"components", "components"},
	{"ignoreMissingComponents", "ignore-missing-components"},
	{"replicas", "replicas"},
	{"patches", "patches"},
	{"kubeVersion", "kube-version"},
	{"apiVersions", "api-versions"},
}

// kustomize takes the fields of a source.kustomize but for its images. Those of an override file win.
func (ps *parameters) kustomize(k *yaml.Node) error {
	if k == nil || k.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(k.Content); i += 2 {
		key, v := k.Content[i].Value, k.Content[i+1]
		if key == "images" {
			continue
		}
		at := slices.IndexFunc(fields, func(f struct{ field, name string }) bool { return f.field == key })
		if at < 0 {
			return fault.New(fault.MigrateConflict, "take it away if it is not needed, and run again", "kustomize.%s has no parameter of the same meaning", key)
		}
		value, err := valueOf(key, v)
		if err != nil {
			return fault.New(fault.MigrateConflict, "correct it there, and run again", "kustomize.%s: %w", key, err)
		}
		ps.set(fields[at].name, value)
	}
	return nil
}

func valueOf(key string, n *yaml.Node) (any, error) {
	switch {
	case key == "replicas":
		var all []struct{ Name, Count string }
		err := n.Decode(&all)
		out := map[string]string{}
		for _, r := range all {
			out[r.Name] = r.Count
		}
		return out, err
	case key == "patches":
		var all []any
		err := n.Decode(&all)
		var out []string
		for _, patch := range all {
			text, jsonErr := json.Marshal(patch)
			out, err = append(out, string(text)), errors.Join(err, jsonErr)
		}
		return out, err
	case n.Kind == yaml.SequenceNode:
		return list(n), nil
	case n.Kind == yaml.MappingNode:
		out := map[string]string{}
		return out, n.Decode(&out)
	}
	return n.Value, nil
}

// set gives a parameter a value; an empty list is none.
func (ps *parameters) set(name string, value any) {
	ps.list = slices.DeleteFunc(ps.list, func(p parameter) bool { return p.name == name })
	if l, ok := value.([]string); !ok || len(l) > 0 {
		ps.list = append(ps.list, parameter{name, value})
	}
}

// follow has exactly those images pinned that Image Updater updated.
func (ps *parameters) follow(images []tracked) {
	var tags, names []string
	for _, t := range images {
		name := t.ref.Registry + "/" + t.ref.Repository
		if rest, ok := strings.CutPrefix(name, image.DefaultRegistry); ok {
			name = "docker.io" + rest
		}
		tags, names = append(tags, t.ref.Tag), append(names, name)
	}
	slices.Sort(tags)
	slices.Sort(names)
	ps.set("mode", string(plugin.Follow))
	ps.set("tags", slices.Compact(tags))
	ps.set("include-images", slices.Compact(names))
}

func (ps *parameters) written(tagged bool) {
	ps.tagged, ps.untagged = ps.tagged || tagged, ps.untagged || !tagged
	if ps.untagged && !ps.tagged {
		ps.set("pin-format", "digest") // name@digest, as it was: another text would be a rollout
	} else {
		ps.set("pin-format", []string(nil))
	}
}

// check returns what the plugin would say about the parameters.
func (ps *parameters) check() error {
	var out []map[string]any
	for _, p := range ps.list {
		key := "string"
		switch p.value.(type) {
		case []string:
			key = "array"
		case map[string]string:
			key = "map"
		}
		out = append(out, map[string]any{"name": p.name, key: p.value})
	}
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	settings := plugin.Defaults()
	return settings.Read(string(text))
}

// String says in one line what the parameters are.
func (ps parameters) String() string {
	var out []string
	for _, p := range ps.list {
		switch v := p.value.(type) {
		case string:
			out = append(out, p.name+"="+v)
		case []string:
			text := strings.Join(v, ",")
			if p.name == "patches" {
				text = fmt.Sprintf("(%d)", len(v))
			}
			out = append(out, p.name+"="+text)
		case map[string]string:
			out = append(out, fmt.Sprintf("%s=(%d)", p.name, len(v)))
		}
	}
	return strings.Join(out, " ")
}

// text returns the entry of a source, without indentation.
func (ps *parameters) text() string {
	var b strings.Builder
	b.WriteString("plugin:\n  name: digestlock\n  parameters:\n")
	for _, p := range ps.list {
		b.WriteString("    - name: " + p.name + "\n")
		switch v := p.value.(type) {
		case string:
			b.WriteString("      string: " + scalar(v) + "\n")
		case []string:
			b.WriteString("      array:\n")
			for _, s := range v {
				b.WriteString("        - " + scalar(s) + "\n")
			}
		case map[string]string:
			b.WriteString("      map:\n")
			for _, k := range sortedKeys(v) {
				b.WriteString("        " + scalar(k) + ": " + scalar(v[k]) + "\n")
			}
		}
	}
	return b.String()
}

// scalar returns a text as YAML of one line that is a text again.
func scalar(s string) string {
	if out, err := yaml.Marshal(s); err == nil && strings.Count(string(out), "\n") == 1 {
		return strings.TrimSpace(string(out))
	}
	out, _ := json.Marshal(s) // YAML, too, and a string always encodes
	return string(out)
}
