package render

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/digestlock/digestlock/internal/fault"
)

// limits is what one build may take. Whoever meets one of them had no chance to be done before Argo CD's deadline.
type limits struct {
	file    int64 // bytes; the CRDs of the largest operators are a quarter of it
	total   int64 // bytes over all files, a file of a base counts each time that the base is used
	files   int   // kustomize's time grows faster than its objects: 2000 take 12 s
	aliased int   // YAML nodes that aliases add; ten lines can stand for a billion nodes
	output  int   // bytes; a cluster refuses single objects over 1.5 MiB
}

var usual = limits{file: 16 << 20, total: 64 << 20, files: 10_000, aliased: 1_000_000, output: 64 << 20}

var (
	errOutside = errors.New("is outside of the repository")
	// errEndless is what a file gets that krusty would never be done with: it follows such an alias until the stack is
	// full, which ends the process with a thousand lines of trace and cannot be recovered from.
	errEndless = errors.New("yaml: an alias inside of its own anchor")
)

// jail returns the directory that a build of dir, an absolute path without links, may not leave: the nearest above it
// that is a Git checkout, or the copy of the repository that argocd-cmp-server unpacked, which lacks .git when the
// operator excludes it. Where there is neither, Argo CD's renders get dir alone; for people, who render what is theirs
// with their own rights, a tree without Git is bounded by nothing but the disk, as with kustomize itself.
//
// ARGOCD_APP_SOURCE_PATH is no help: with manifest-generate-paths the copy may begin anywhere above dir.
func jail(dir string) string {
	up := dir
	for {
		if _, err := os.Lstat(filepath.Join(up, ".git")); err == nil || unpacked(up) {
			return up
		}
		if filepath.Dir(up) == up {
			break
		}
		up = filepath.Dir(up)
	}
	if os.Getenv("ARGOCD_APP_SOURCE_REPO_URL") != "" {
		return dir
	}
	return up
}

// unpacked reports whether root is the copy of a repository that argocd-cmp-server made for one render.
func unpacked(root string) bool { return filepath.Base(filepath.Dir(root)) == "_cmp_server" }

// disk is the file system of one build: regular files below root and below fetched bases, up to its limits. A build needs CleanedAbs and
// ReadFile; for all else there is an empty file system in memory, so that nothing can be listed or written.
type disk struct {
	filesys.FileSystem
	root    filesys.ConfirmedDir
	limits  limits // what is left of them
	helm    bool   // charts are inflated, within bounds
	clean   map[string]bool
	refused error // the first file that could not be read: krusty passes over a kustomization that it cannot read

	remotes *remotes // nil when none are allowed
	seen    observed

	edited         map[string][]byte // what the parameters make of a kustomization, by path
	kustomizations []file
	configurations map[string][]byte // by path, nil until krusty reads it
}

// file is one that krusty has read.
type file struct {
	name string
	data []byte
}

func newDisk(root string, l limits) *disk {
	return &disk{
		FileSystem: filesys.MakeFsInMemory(), root: filesys.ConfirmedDir(root), limits: l,
		clean: map[string]bool{}, edited: map[string][]byte{}, configurations: map[string][]byte{}, seen: observed{known: map[fact]bool{}},
	}
}

// CleanedAbs resolves all links. It is the door to the disk: krusty asks here for each file and each base.
func (d *disk) CleanedAbs(name string) (filesys.ConfirmedDir, string, error) {
	real, info, err := d.stat(name)
	d.saw(name, real, info, nil, err)
	if err != nil {
		return "", "", fmt.Errorf("evalsymlink failure on '%s' : %w", name, err) // as krusty's own says it, see rewrites
	}
	if info.IsDir() {
		return filesys.ConfirmedDir(real), "", nil
	}
	d.clean[real] = true
	return filesys.ConfirmedDir(filepath.Dir(real)), filepath.Base(real), nil
}

// stat returns where name really is, and what is there.
func (d *disk) stat(name string) (real string, info os.FileInfo, err error) {
	if real, err = d.resolve(name); err == nil {
		info, err = os.Stat(real)
	}
	return real, info, err
}

// resolve returns where name really is. What is outside is not looked at: an error would tell whether it exists.
func (d *disk) resolve(name string) (string, error) {
	outside := &fs.PathError{Op: "lstat", Path: name, Err: errOutside}
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	root := d.rootOf(abs)
	if !holds(root, abs) {
		return "", outside
	}
	real, err := filepath.EvalSymlinks(abs)
	if missing, ok := errors.AsType[*fs.PathError](err); ok && !holds(root, missing.Path) || err == nil && !holds(root, real) {
		return "", outside
	}
	return real, err
}

// rootOf returns the directory that what begins at name may not leave: that of a fetched base, or the repository's.
func (d *disk) rootOf(name string) filesys.ConfirmedDir {
	if d.remotes != nil {
		for root := range d.remotes.bases {
			if holds(filesys.ConfirmedDir(root), name) {
				return filesys.ConfirmedDir(root)
			}
		}
	}
	return d.root
}

func holds(root filesys.ConfirmedDir, name string) bool {
	return filesys.ConfirmedDir(name).HasPrefix(root)
}

// ReadFile reads a regular file.
func (d *disk) ReadFile(name string) ([]byte, error) {
	data, err := d.read(name)
	switch f := (file{name, data}); {
	case err != nil:
	case slices.Contains(konfig.RecognizedKustomizationFileNames(), filepath.Base(name)):
		if err = d.note(f); err == nil {
			data, err = d.serve(f)
		}
	case d.helm:
		err = f.hiddenChart()
	}
	if _, ok := d.configurations[name]; ok {
		d.configurations[name] = data
	}
	if err != nil {
		d.refuse(err)
	}
	return data, err
}

// refuse makes err the one of the build unless there is one.
func (d *disk) refuse(err error) {
	if d.refused == nil {
		d.refused = err
	}
}

func (d *disk) read(name string) ([]byte, error) {
	if !d.clean[name] {
		if _, err := d.resolve(name); err != nil {
			return nil, fault.New(fault.OutsideRepository, "render files of the repository only", "%w", err)
		}
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fault.New(fault.FileUnreadable, "make the file readable", "%w", err)
	}
	if !info.Mode().IsRegular() { // reading a pipe waits until somebody writes
		return nil, fault.New(fault.FileUnreadable, "replace it by a file", "%s: not a regular file", name)
	}
	if err := d.take(name, info.Size()); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(name)
	d.saw(name, name, info, data, err)
	if err != nil {
		return nil, fault.New(fault.FileUnreadable, "make the file readable", "%w", err)
	}
	return data, d.expand(name, data)
}

// take counts a file of size bytes.
func (d *disk) take(name string, size int64) error {
	if size > d.limits.file {
		return fault.New(fault.TooLarge, "split the file, or keep it out of the overlay", "%s: larger than %d bytes", name, d.limits.file)
	}
	const hint = "render less at once: split the overlay into several Applications"
	if d.limits.total -= size; d.limits.total < 0 {
		return fault.New(fault.TooLarge, hint, "%s: the overlay reads too many bytes", name)
	}
	if d.limits.files--; d.limits.files < 0 {
		return fault.New(fault.TooLarge, hint, "%s: the overlay reads too many files", name)
	}
	return nil
}

// expand counts what the aliases in the file add, and those in its strings, which may be patches.
func (d *disk) expand(name string, data []byte) error {
	if !bytes.ContainsAny(data, `&\`) { // no anchor, and no escape that spells one in a string
		return nil
	}
	var texts []string
	added, err := aliased(data, &texts)
	for _, text := range texts {
		if err == nil {
			var more int
			more, err = aliased([]byte(text), nil)
			added = min(added+more, huge)
		}
	}
	if err != nil {
		return fault.New(fault.YAMLAlias, "write out what the alias stands for", "%s: %w", name, err)
	}
	if d.limits.aliased -= added; d.limits.aliased < 0 {
		return fault.New(fault.YAMLAlias, "write out what the aliases stand for", "%s: yaml: aliases that stand for too much", name)
	}
	return nil
}

// huge is where counting ends, far from what an int overflows at.
const huge = 1 << 30

// aliased returns how many nodes the aliases of a YAML stream add when they are written out, and appends the stream's
// strings with anchors to texts unless that is nil. What is not YAML is not for us to say.
func aliased(data []byte, texts *[]string) (int, error) {
	dec, added := yaml.NewDecoder(bytes.NewReader(data)), 0
	for {
		var n yaml.Node
		if dec.Decode(&n) != nil {
			return added, nil
		}
		c := counter{sizes: map[*yaml.Node]int{}, texts: texts}
		size := c.size(&n)
		if c.endless {
			return 0, errEndless
		}
		added = min(added+size-c.written, huge)
	}
}

// counter counts the nodes of one document.
type counter struct {
	sizes   map[*yaml.Node]int // of the anchored nodes that are complete
	written int
	endless bool
	texts   *[]string
}

// size returns the number of nodes below n with aliases written out.
func (c *counter) size(n *yaml.Node) int {
	if n.Kind == yaml.AliasNode {
		c.written++
		size, complete := c.sizes[n.Alias] // an anchor comes before its aliases: it is complete, or n is in it
		c.endless = c.endless || !complete
		return size
	}
	if c.texts != nil && n.Kind == yaml.ScalarNode && bytes.ContainsRune([]byte(n.Value), '&') {
		*c.texts = append(*c.texts, n.Value)
	}
	c.written++
	size := 1
	for _, child := range n.Content {
		size = min(size+c.size(child), huge)
	}
	if n.Anchor != "" {
		c.sizes[n] = size
	}
	return size
}
