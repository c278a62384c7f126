package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// prefix is that of Image Updater's annotations, and the API group of its custom resources.
const prefix = "argocd-image-updater.argoproj.io"

// updater is what Image Updater is told about one Application, by annotations (0.x and 1.x) or by a custom resource (1.x).
type updater struct {
	from    string // for people
	images  []tracked
	method  string
	target  string
	branch  string
	repo    string
	pulls   bool // it opens pull requests
	signed  bool // it verifies signatures
	unknown []string
}

// tracked is one image that it updates.
type tracked struct {
	alias, written string // as in the list: "ghcr.io/acme/server:latest"
	ref            image.Ref
	kustomizeName  string
	helm, plugin   bool
	settings
}

// settings are those that may be given for all images or for one.
type settings struct {
	strategy, allow, secret string
	ignore                  []string
	force, platforms        bool
}

// over returns s with what it lacks from the broader settings.
func (s settings) over(broad settings) settings {
	s.strategy, s.allow, s.secret = cmp.Or(s.strategy, broad.strategy), cmp.Or(s.allow, broad.allow), cmp.Or(s.secret, broad.secret)
	if s.ignore == nil {
		s.ignore = broad.ignore
	}
	s.force, s.platforms = s.force || broad.force, s.platforms || broad.platforms
	return s
}

// annotated returns what the annotations of an Application say, nil when they list no images.
func annotated(annotations map[string]string) (*updater, error) {
	images, ok := annotations["image-list"]
	if !ok {
		return nil, nil
	}
	u := &updater{from: "its annotations"}
	used := map[string]bool{"image-list": true}
	take := func(key string) string {
		used[key] = true
		return strings.TrimSpace(annotations[key])
	}
	read := func(alias string) (s settings, err error) {
		if alias != "" {
			alias = strings.ReplaceAll(alias, "/", "_") + "."
		}
		s = settings{strategy: take(alias + "update-strategy"), allow: cmp.Or(take(alias+"allow-tags"), take(alias+"tag-match")), secret: take(alias + "pull-secret")}
		if v := take(alias + "ignore-tags"); v != "" {
			for t := range strings.SplitSeq(v, ",") {
				s.ignore = append(s.ignore, strings.TrimSpace(t))
			}
		}
		s.platforms = take(alias+"platforms") != ""
		if v := take(alias + "force-update"); v != "" {
			if s.force, err = strconv.ParseBool(v); err != nil {
				return s, conflict("%s%s: %q is neither true nor false", alias, "force-update", v)
			}
		}
		return s, nil
	}
	all, err := read("")
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(images, ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		alias, written, found := strings.Cut(strings.TrimSpace(entry), "=")
		if !found {
			alias, written = "", alias
		}
		t := tracked{alias: strings.TrimSpace(alias), written: strings.TrimSpace(written), settings: all}
		if t.alias != "" {
			own, err := read(t.alias)
			if err != nil {
				return nil, err
			}
			t.settings = own.over(all)
			name := strings.ReplaceAll(t.alias, "/", "_")
			t.kustomizeName = take(name + ".kustomize.image-name")
			for _, h := range []string{".helm.image-name", ".helm.image-tag", ".helm.image-spec"} {
				t.helm = take(name+h) != "" || t.helm
			}
		}
		u.images = append(u.images, t)
	}
	u.method, u.target, u.branch, u.repo = take("write-back-method"), take("write-back-target"), take("git-branch"), take("git-repository")
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !used[key] {
			u.unknown = append(u.unknown, key)
		}
	}
	return u, u.check()
}

// reference is one entry of an ImageUpdater's applicationRefs.
type reference struct {
	doc     *document
	name    string // of the ImageUpdater
	ns      string
	pattern string
	node    *yaml.Node
	list    *yaml.Node
	own     bool // it says which images, and does not leave that to annotations
	labels  *yaml.Node
	config  *updater
	err     error
}

// references returns the entries of an ImageUpdater.
func references(d *document) []*reference {
	name, spec := stringAt(d.root, "metadata", "name"), at(d.root, "spec")
	refs := at(spec, "applicationRefs")
	if refs == nil || refs.Kind != yaml.SequenceNode {
		return nil
	}
	var out []*reference
	for _, n := range refs.Content {
		r := &reference{
			doc: d, name: name, ns: stringAt(d.root, "metadata", "namespace"), pattern: stringAt(n, "namePattern"), node: n, list: refs,
			own: stringAt(n, "useAnnotations") != "true", labels: at(n, "labelSelectors"),
		}
		r.config, r.err = configured(name, spec, n)
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b *reference) int { return cmp.Compare(b.specificity(), a.specificity()) })
	return out
}

// specificity orders as Image Updater does: a name before a pattern, one with labels before one without, the longer one.
func (r *reference) specificity() int {
	score := len(strings.NewReplacer("*", "", "?", "").Replace(r.pattern))
	if !strings.ContainsAny(r.pattern, "*?[]") {
		score += 1_000_000
	}
	if r.labels != nil {
		score += 10_000
	}
	return score
}

// selects reports whether r is about an Application.
func (r *reference) selects(a *application) bool {
	if r.ns != "" && a.namespace != "" && r.ns != a.namespace {
		return false
	}
	if ok, _ := path.Match(r.pattern, a.name); !ok {
		return false
	}
	want := at(r.labels, "matchLabels")
	if want != nil {
		for i := 0; i+1 < len(want.Content); i += 2 {
			if stringAt(a.meta, "labels", want.Content[i].Value) != want.Content[i+1].Value {
				return false
			}
		}
	}
	return true
}

func configured(name string, spec, ref *yaml.Node) (*updater, error) {
	u := &updater{from: "ImageUpdater " + name, signed: at(spec, "imagesVerification") != nil || at(ref, "imagesVerification") != nil}
	if exp := at(ref, "labelSelectors", "matchExpressions"); exp != nil {
		return nil, conflict("ImageUpdater %s: matchExpressions cannot be looked at here", name)
	}
	all := settingsAt(at(ref, "commonUpdateSettings")).over(settingsAt(at(spec, "commonUpdateSettings")))
	if images := at(ref, "images"); images != nil {
		for _, n := range images.Content {
			t := tracked{alias: stringAt(n, "alias"), written: stringAt(n, "imageName")}
			t.settings = settingsAt(at(n, "commonUpdateSettings")).over(all)
			t.kustomizeName = stringAt(n, "manifestTargets", "kustomize", "name")
			t.helm, t.plugin = at(n, "manifestTargets", "helm") != nil, at(n, "manifestTargets", "plugin") != nil
			u.signed = u.signed || at(n, "imagesVerification") != nil
			u.images = append(u.images, t)
		}
	}
	for _, from := range []*yaml.Node{at(ref, "writeBackConfig"), at(spec, "writeBackConfig")} {
		u.method = cmp.Or(u.method, stringAt(from, "method"))
		git := at(from, "gitConfig")
		u.target, u.branch = cmp.Or(u.target, stringAt(git, "writeBackTarget")), cmp.Or(u.branch, stringAt(git, "branch"))
		u.repo, u.pulls = cmp.Or(u.repo, stringAt(git, "repository")), u.pulls || at(git, "pullRequest") != nil
	}
	return u, u.check()
}

func settingsAt(n *yaml.Node) settings {
	return settings{
		strategy: stringAt(n, "updateStrategy"), allow: stringAt(n, "allowTags"), secret: stringAt(n, "pullSecret"),
		ignore: list(at(n, "ignoreTags")), force: stringAt(n, "forceUpdate") == "true", platforms: at(n, "platforms") != nil,
	}
}

// check returns what contradicts itself, and completes the images of the digest strategy.
func (u *updater) check() error {
	aliases, names := map[string]string{}, map[string]string{}
	for i := range u.images {
		t := &u.images[i]
		if before, twice := aliases[t.alias]; twice && t.alias != "" {
			return conflict("alias %q stands for %q and for %q", t.alias, before, t.written)
		}
		aliases[t.alias] = t.written
		if t.follows() != "" {
			continue
		}
		ref, err := image.Parse(t.written)
		if err != nil {
			return fault.New(fault.MigrateConflict, "write it as name:tag, as the digest strategy has it", "%w", err)
		}
		t.ref = ref
		name := cmp.Or(t.kustomizeName, ref.Registry+"/"+ref.Repository)
		if before, twice := names[name]; twice && before != ref.Tag {
			return conflict("image %s is followed at two tags, %s and %s, and kustomize has one place for both", name, before, ref.Tag)
		}
		names[name] = ref.Tag
	}
	if len(u.images) == 0 {
		return conflict("%s: no images", u.from)
	}
	return nil
}

// follows returns why Digestlock cannot do what Image Updater does for an image, "" when it can.
func (t *tracked) follows() string {
	switch t.strategy {
	case "digest":
	case "semver", "":
		return fmt.Sprintf("%s is updated by semver, which chooses among tags: Digestlock follows one tag to its digest", t.written)
	case "latest", "newest-build":
		return fmt.Sprintf("%s is updated by %s, which takes the tag that was built last: Digestlock follows one tag to its digest", t.written, t.strategy)
	case "name", "alphabetical":
		return fmt.Sprintf("%s is updated by %s, which takes the last tag of a sorted list: Digestlock follows one tag to its digest", t.written, t.strategy)
	default:
		return fmt.Sprintf("%s has update strategy %q, which Image Updater takes for semver", t.written, t.strategy)
	}
	if strings.Contains(t.written, "{{") {
		return fmt.Sprintf("%s is a template: what it stands for is not in this file", t.written)
	}
	return ""
}

func conflict(format string, args ...any) error {
	return fault.New(fault.MigrateConflict, "decide what is meant, and correct it there", format, args...)
}
