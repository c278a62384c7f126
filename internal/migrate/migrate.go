// Package migrate plans how a checkout moves from Argo CD Image Updater to digestlock: what becomes of each Application,
// of what Image Updater was told about it, and of the digests that it wrote. It reads files and writes none.
//
// An Application moves as a whole or stays as it is. What a plan does not understand, it leaves alone and says so.
package migrate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/plugin"
)

// maxFile bounds a file that is read: Applications are small, and what is larger is data.
const maxFile = 4 << 20

// Plan is what is to be done, and what people should know.
type Plan struct {
	Findings []Finding
	Changes  []Change // sorted so that locks come before what needs them
}

// Finding is one line about one thing. Err is set where something is wrong; Warn where something is left to people.
type Finding struct {
	Of, Check, Text, Fix string
	Warn                 bool
	Err                  error
}

// Change is the new content of a file, nil when it is to be deleted.
type Change struct {
	Path string
	Data []byte
}

// New plans for the checkouts in dirs. Pins that it seeds are of the time now. Errors are about dirs and ctx; all else is
// a finding.
func New(ctx context.Context, dirs []string, now time.Time) (*Plan, error) {
	p := &planner{now: now, locks: map[string]*lock.Document{}, shown: map[string]string{}, changed: map[string][]byte{}, files: map[string]*file{}}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return nil, fault.New(fault.MigrateFile, "give the directory of a checkout", "%s is not a directory that can be read", dir)
		}
		p.checkouts = append(p.checkouts, newCheckout(dir))
	}
	for _, dir := range dirs {
		if err := p.walk(ctx, dir); err != nil {
			return nil, err
		}
	}
	p.plan(ctx)
	return p.result(), ctx.Err()
}

type planner struct {
	now       time.Time
	checkouts []checkout
	files     map[string]*file // by absolute path
	apps      []*application
	refs      []*reference
	locks     map[string]*lock.Document // by directory, those with seeds
	shown     map[string]string         // the same directories for people
	changed   map[string][]byte         // by path, nil for gone
	findings  []Finding
}

func (p *planner) add(f Finding) { p.findings = append(p.findings, f) }

// walk reads what is below dir. It follows no links.
func (p *planner) walk(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			p.add(Finding{Of: name, Check: "file", Err: fault.New(fault.MigrateFile, "let this user read it", "%w", err)})
			return nil
		}
		if e.IsDir() && e.Name() == ".git" {
			return fs.SkipDir
		}
		if ext := filepath.Ext(name); ext != ".yaml" && ext != ".yml" || strings.HasPrefix(e.Name(), sourceFile) {
			return nil
		}
		p.read(filepath.Clean(name), e)
		return nil
	})
}

func (p *planner) read(name string, e fs.DirEntry) {
	if e.Type()&fs.ModeSymlink != 0 {
		// What it leads to is read where it is, if that is in the checkout.
		return
	}
	if abs, err := filepath.Abs(name); err != nil || !e.Type().IsRegular() || p.files[abs] != nil {
		return
	}
	if info, err := e.Info(); err == nil && info.Size() > maxFile {
		p.add(Finding{Of: name, Check: "file", Warn: true, Text: fmt.Sprintf("not read: %d bytes, more than the %d of a file that is looked at", info.Size(), maxFile), Fix: "split it, if it has Applications"})
		return
	}
	data, err := os.ReadFile(name)
	if err != nil {
		p.add(Finding{Of: name, Check: "file", Err: fault.New(fault.MigrateFile, "let this user read it", "%w", err)})
		return
	}
	if !bytes.Contains(data, []byte("argoproj.io/")) {
		return
	}
	f := p.open(name, string(data))
	for _, d := range f.docs {
		p.document(d)
	}
}

func (p *planner) open(name, text string) *file {
	f := &file{path: name}
	f.docs = split(f, text)
	if abs, err := filepath.Abs(name); err == nil {
		p.files[abs] = f
	}
	return f
}

// document takes an Application, an ApplicationSet or an ImageUpdater.
func (p *planner) document(d *document) {
	text := d.text()
	if !strings.Contains(text, "argoproj.io/") {
		return
	}
	err := d.parse()
	if kind := stringAt(d.root, "kind"); err == nil && (kind == "Application" || kind == "ApplicationSet") && stringAt(d.root, "metadata", "name") == "" {
		err = errors.New("no metadata.name") // or {{ .Values.name }}, which is YAML for something else
	}
	if err != nil && strings.Contains(text, prefix) {
		f := Finding{Of: d.file.path, Check: "file", Err: fault.New(fault.MigrateFile, "correct it there, and run again", "document %d names Image Updater and is not read: %s", 1+slices.Index(d.file.docs, d), strings.TrimPrefix(err.Error(), "yaml: "))}
		if strings.Contains(text, "{{") {
			f.Err, f.Warn = nil, true
			f.Text, f.Fix = "a template, which is no YAML before it is rendered", "move the Applications that it makes by hand: the plan of one of them shows how"
		}
		p.add(f)
	}
	if err != nil || d.root == nil {
		return
	}
	group, _, _ := strings.Cut(stringAt(d.root, "apiVersion"), "/")
	switch kind := stringAt(d.root, "kind"); {
	case group == prefix && kind == "ImageUpdater":
		p.refs = append(p.refs, references(d)...)
	case group == "argoproj.io" && (kind == "Application" || kind == "ApplicationSet"):
		p.apps = append(p.apps, newApplication(d, kind))
	}
}

func newApplication(d *document, kind string) *application {
	a := &application{doc: d, kind: kind, meta: at(d.root, "metadata"), spec: at(d.root, "spec")}
	a.name, a.namespace = stringAt(a.meta, "name"), stringAt(a.meta, "namespace")
	if kind == "ApplicationSet" {
		a.meta, a.spec = at(a.spec, "template", "metadata"), at(a.spec, "template", "spec")
	}
	a.of = fmt.Sprintf("%s: %s %s", d.file.path, kind, a.name)
	return a
}

// plan decides about each Application, then about all of them together.
func (p *planner) plan(ctx context.Context) {
	for _, a := range p.apps {
		if a.err = p.configure(a); a.err == nil && a.updater != nil {
			a.stays, a.err = p.prepare(ctx, a)
		}
	}
	for again := true; again; {
		again = false
		for _, a := range p.apps {
			if a.moves() {
				a.stays = p.company(a)
				again = again || a.stays != ""
			}
		}
	}
	for _, a := range p.apps {
		if a.moves() {
			a.err = p.accept(a)
		}
		switch {
		case a.err != nil:
			p.add(Finding{Of: a.of, Check: "left alone", Err: a.err})
		case a.updater == nil:
		case a.stays != "":
			p.add(Finding{Of: a.of, Check: "left alone", Warn: true, Text: a.stays, Fix: a.fix})
		default:
			p.findings = append(p.findings, a.findings...)
		}
	}
	p.retire()
}

// configure finds what Image Updater is told about an Application.
func (p *planner) configure(a *application) error {
	notes := map[string]string{}
	if m := at(a.meta, "annotations"); m != nil && m.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if key, ok := strings.CutPrefix(m.Content[i].Value, prefix+"/"); ok {
				if _, twice := notes[key]; twice {
					return conflict("annotation %s is there twice", key)
				}
				notes[key] = m.Content[i+1].Value
				a.annotations = append(a.annotations, m.Content[i].Value)
			}
		}
	}
	u, err := annotated(notes)
	if err != nil {
		return err
	}
	if u == nil && strings.Contains(a.doc.text(), prefix+"/image-list") {
		return fault.New(fault.MigrateFile, "write them in metadata.annotations, without anchors and templates, and run again", "annotations of Image Updater stand where they are not looked for")
	}
	a.updater = u
	if a.kind == "ApplicationSet" {
		return nil // whose Applications have names that only Argo CD knows
	}
	seen := map[string]bool{}
	for _, r := range p.refs {
		if seen[r.name] || !r.selects(a) {
			continue
		}
		seen[r.name] = true // the first one counts
		if !r.own {
			continue
		}
		if r.err != nil {
			return r.err
		}
		if a.updater != nil {
			return conflict("%s and ImageUpdater %s both say what to update", a.updater.from, r.name)
		}
		a.updater, a.ref = r.config, r
	}
	return nil
}

// company returns why an Application stays because of another one that stays.
func (p *planner) company(a *application) string {
	for _, b := range p.apps {
		if b == a || b.moves() {
			continue
		}
		if a.ref != nil && b.ref == a.ref {
			a.fix = "see there, or give it an entry of its own in ImageUpdater " + a.ref.name
			return fmt.Sprintf("namePattern %q of ImageUpdater %s is also about %s, which stays", a.ref.pattern, a.ref.name, b.of)
		}
		if a.shared && b.updater == nil && b.err == nil {
			b.overlays, _, _ = p.locate(b)
		}
		for _, o := range b.overlays {
			if a.shared && slices.ContainsFunc(a.overlays, func(own overlay) bool { return own.dir == o.dir }) {
				a.fix = "move both, or give them overlays of their own"
				return fmt.Sprintf("%s renders the same path and stays, and would lose the digests of its kustomization", b.of)
			}
		}
	}
	return ""
}

// accept makes an Application's changes part of the plan, all or none.
func (p *planner) accept(a *application) error {
	for d, text := range a.edits {
		if before, has := p.changed[d.file.path]; has && len(d.file.docs) == 1 && string(before) != text {
			return conflict("%s is changed for another Application, too, in another way: write this plan, commit it, and run again", d.file.path)
		}
	}
	locks := map[string]*lock.Document{}
	for _, o := range a.overlays {
		d, err := p.lockOf(o.dir)
		if err != nil {
			return err
		}
		for _, pin := range o.pins {
			if old, has := d.Find(pin.Image); has && old.Digest != pin.Digest {
				return conflict("%s has %s at %s already, and %s has it at %s", filepath.Join(o.show, lock.FileName), pin.Image, old.Digest, o.from, pin.Digest)
			} else if !has {
				d = d.With(pin)
			}
		}
		if len(o.pins) > 0 {
			locks[o.dir] = d
			p.shown[o.dir] = o.show
		}
	}
	maps.Copy(p.locks, locks)
	for d, text := range a.edits {
		d.lines = slices.Collect(strings.Lines(text))
		p.touch(d.file)
	}
	for _, name := range a.gone {
		p.changed[name] = nil
	}
	return nil
}

// touch notes the file as it is now.
func (p *planner) touch(f *file) {
	var b strings.Builder
	for _, d := range f.docs {
		b.WriteString(d.text())
	}
	p.changed[f.path] = []byte(b.String())
	if strings.TrimSpace(strings.ReplaceAll(b.String(), "---", "")) == "" {
		p.changed[f.path] = nil
	}
}

// retire takes those entries out of ImageUpdaters whose Applications have all moved.
func (p *planner) retire() {
	byDoc := map[*document][]*reference{}
	var docs []*document
	for _, r := range p.refs {
		moved := 0
		for _, a := range p.apps {
			if a.ref == r && a.moves() {
				moved++
			}
		}
		if moved == 0 {
			continue
		}
		if byDoc[r.doc] == nil {
			docs = append(docs, r.doc)
		}
		byDoc[r.doc] = append(byDoc[r.doc], r)
	}
	for _, d := range docs {
		p.retireFrom(d, byDoc[d])
	}
}

func (p *planner) retireFrom(d *document, refs []*reference) {
	of := fmt.Sprintf("%s: ImageUpdater %s", d.file.path, refs[0].name)
	for _, r := range refs {
		p.add(Finding{Of: of, Check: "gone", Text: fmt.Sprintf("applicationRefs namePattern %q", r.pattern)})
		if strings.ContainsAny(r.pattern, "*?[]") {
			p.add(Finding{Of: of, Check: "pattern", Warn: true, Text: fmt.Sprintf("%q may be about Applications that are not in this checkout: Image Updater forgets them too", r.pattern), Fix: "keep the entry for those, under their names"})
		}
	}
	if len(refs) == len(refs[0].list.Content) {
		d.lines = nil
		p.touch(d.file)
		p.add(Finding{Of: of, Check: "delete", Text: "the ImageUpdater, which has no entry left"})
		return
	}
	for _, r := range refs {
		if err := d.removeItem(r.list, r.node); err != nil {
			p.unedited(of, d, err)
			return
		}
	}
	text, err := d.result()
	if err != nil {
		p.unedited(of, d, err)
		return
	}
	d.lines = slices.Collect(strings.Lines(text))
	p.touch(d.file)
	p.add(Finding{Of: of, Check: "edit", Text: d.file.path})
}

func (p *planner) unedited(of string, d *document, err error) {
	p.add(Finding{Of: of, Check: "edit", Err: uneditable(d.file.path, err)})
}

func uneditable(name string, err error) error {
	return fault.New(fault.MigrateFile, "write it one entry a line, or change it by hand", "edit %s: %w", name, err)
}

// lockOf returns the lock of a directory, with the seeds that it gets; nil when there is none.
func (p *planner) lockOf(dir string) (*lock.Document, error) {
	if d := p.locks[dir]; d != nil {
		return d, nil
	}
	d, _, err := plugin.ReadLock(dir)
	return d, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// result returns the plan: locks first, so that no reader of a half written checkout finds the plugin without its lock.
func (p *planner) result() *Plan {
	out := &Plan{Findings: p.findings}
	for _, dir := range slices.Sorted(maps.Keys(p.locks)) {
		out.Changes = append(out.Changes, Change{filepath.Join(p.shown[dir], lock.FileName), p.locks[dir].Format()})
	}
	for _, name := range slices.SortedFunc(maps.Keys(p.changed), func(a, b string) int {
		return cmp.Or(cmp.Compare(filepath.Dir(b), filepath.Dir(a)), cmp.Compare(a, b))
	}) {
		out.Changes = append(out.Changes, Change{name, p.changed[name]})
	}
	return out
}
