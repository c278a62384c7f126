package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/memory"
)

// maxFile bounds one file, read or written. A lock file is a few KiB.
const maxFile = 1 << 20

// errTooLarge: somebody put something huge where a small file belongs.
var errTooLarge = errors.New("larger than 1 MiB")

// Snapshot is a branch at one commit. It never changes, and is safe for concurrent use.
type Snapshot struct {
	remote   *Remote
	endpoint transport.Endpoint // after redirects
	branch   plumbing.ReferenceName
	commit   plumbing.Hash
	tree     plumbing.Hash
	mark     plumbing.Hash // where the branch's mark stood; zero for nowhere
	caps     *capability.List
	partial  bool  // fetched without file contents
	own      bool  // a directory that is missing may be made
	maxBytes int64 // of what is fetched at once, inflated

	// What commit was fetched with: as one of so many generations below root, which the server advertised.
	root        plumbing.Hash
	generations int

	*store
}

// store is what was fetched so far, shared by the snapshots of one branch at one commit and those of its ancestors.
type store struct {
	mu      sync.Mutex // guards what follows
	objects *memory.Storage
	depth   map[plumbing.Hash]int // how many generations below a commit are here
	parsed  map[plumbing.Hash][]object.TreeEntry
	places  map[plumbing.Hash]map[string]int // of the entries of wide trees, by name

	names *names
}

func newSnapshot(r *Remote, branch plumbing.ReferenceName, tip plumbing.Hash, caps *capability.List, known *names) *Snapshot {
	wants := caps.Supports(capability.AllowReachableSHA1InWant) || caps.Supports(capability.AllowTipSHA1InWant)
	return &Snapshot{
		remote: r, branch: branch, commit: tip, caps: caps,
		partial:  wants && caps.Supports(capability.Filter),
		maxBytes: maxInflated,
		root:     tip, generations: 1,
		store: &store{objects: memory.NewStorage(), depth: map[plumbing.Hash]int{}, names: known},
	}
}

// Commit returns the commit's hash in hex, "" for a branch that is still to be made.
func (s *Snapshot) Commit() string {
	if s.commit.IsZero() {
		return ""
	}
	return s.names.hex(s.commit)
}

// Branch returns the short name of the branch that was read, also when it was asked for as HEAD.
func (s *Snapshot) Branch() string { return s.branch.Short() }

// byGit reports whether packs are for git.
func (s *Snapshot) byGit() bool { return s.names.sha256 || s.remote.binary == BinaryAlways }

// Files returns the contents of those of paths that exist. What is not here yet is fetched in one round trip.
//
// A path that is not clean, or whose directory does not exist, or that is anything but a regular file fails with
// ErrNotRegular inside an [fs.PathError], as does a file of more than 1 MiB with another cause. ErrMoved means that
// the commit is no longer to be had because the branch has moved on.
func (s *Snapshot) Files(ctx context.Context, paths []string) (map[string][]byte, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	files, err := s.files(ctx, paths)
	if err != nil {
		return nil, s.unread(ctx, "read files of", err)
	}
	return files, nil
}

// unread explains why something could not be read: often the branch has moved on.
func (s *Snapshot) unread(ctx context.Context, doing string, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); !ok && ctx.Err() == nil && s.remote.moved(ctx, s) {
		err = ErrMoved
	}
	return s.remote.explain(ctx, doing, err)
}

func (s *Snapshot) files(ctx context.Context, paths []string) (map[string][]byte, error) {
	found := map[string]plumbing.Hash{}
	for _, p := range paths {
		e, ok, err := s.find(p)
		if err != nil {
			return nil, err
		}
		if ok {
			found[p] = e.Hash
		}
	}
	if err := s.need(ctx, found); err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for p, h := range found {
		content, err := s.blob(h)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: p, Err: err}
		}
		files[p] = content
	}
	return files, nil
}

// need fetches the contents that are still missing, all at once; one by one only to find out which one is too large.
func (s *Snapshot) need(ctx context.Context, found map[string]plumbing.Hash) error {
	missing := maps.Clone(found)
	maps.DeleteFunc(missing, func(_ string, h plumbing.Hash) bool { return s.has(h) })
	if len(missing) == 0 {
		return nil
	}
	err := s.fetchBlobs(ctx, slices.Collect(maps.Values(missing)))
	if !errors.Is(err, errTooLarge) {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(missing)) {
		if err := s.fetchBlobs(ctx, []plumbing.Hash{missing[p]}); err != nil {
			return &fs.PathError{Op: "read", Path: p, Err: err}
		}
	}
	return nil
}

func (s *Snapshot) has(h plumbing.Hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects.HasEncodedObject(h) == nil
}

func (s *Snapshot) blob(h plumbing.Hash) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.objects.EncodedObject(plumbing.BlobObject, h)
	if err != nil {
		return nil, err
	}
	if o.Size() > maxFile {
		return nil, errTooLarge
	}
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Names returns the names of a directory's entries, files or not, sorted. "" is the root. It returns an error that is
// fs.ErrNotExist when dir is not a directory.
func (s *Snapshot) Names(dir string) ([]string, error) {
	tree := s.tree
	if dir != "" && dir != "." {
		e, ok, err := s.entry(dir)
		if err != nil {
			return nil, err
		}
		if !ok || e.Mode != filemode.Dir {
			return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
		}
		tree = e.Hash
	}
	entries, err := s.entries(tree)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return names, nil
}

// find returns the regular file at p, or false when its directory has no entry of that name.
func (s *Snapshot) find(p string) (object.TreeEntry, bool, error) {
	refuse := func(format string, args ...any) (object.TreeEntry, bool, error) {
		return object.TreeEntry{}, false, &fs.PathError{Op: "use", Path: p, Err: fmt.Errorf("%w: "+format, append([]any{ErrNotRegular}, args...)...)}
	}
	if why := malformed(p); why != "" {
		return refuse("%s", why)
	}
	for i := range p {
		if p[i] != '/' {
			continue
		}
		e, ok, err := s.entry(p[:i])
		if err != nil {
			return object.TreeEntry{}, false, err
		}
		if !ok && s.own {
			return object.TreeEntry{}, false, nil
		}
		if !ok || e.Mode != filemode.Dir {
			return refuse("%s is %s", p[:i], kind(e, ok))
		}
	}
	e, ok, err := s.entry(p)
	if ok && !e.Mode.IsRegular() && e.Mode != filemode.Executable && e.Mode != filemode.Deprecated {
		return refuse("it is %s", kind(e, ok))
	}
	return e, ok, err
}

func kind(e object.TreeEntry, ok bool) string {
	switch {
	case !ok:
		return "missing"
	case e.Mode == filemode.Symlink:
		return "a symbolic link"
	case e.Mode == filemode.Submodule:
		return "a submodule"
	case e.Mode == filemode.Dir:
		return "a directory"
	}
	return "a file"
}

// malformed says what is wrong with the spelling of p, or "".
func malformed(p string) string {
	if p == "" || p == "." || path.IsAbs(p) || path.Clean(p) != p {
		return "the path is not relative and clean"
	}
	if strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return "the path holds control characters"
	}
	for part := range strings.SplitSeq(p, "/") {
		// On Windows, trailing dots and spaces fall off, and git~1 is a short name of .git.
		part = strings.ToLower(strings.TrimRight(part, ". "))
		if part == "" || part == ".git" || part == "git~1" {
			return "the path has a component that Git forbids"
		}
	}
	return ""
}

// entry returns the entry at the clean path p, or false when there is none.
func (s *Snapshot) entry(p string) (object.TreeEntry, bool, error) {
	e := object.TreeEntry{Mode: filemode.Dir, Hash: s.tree}
	for part := range strings.SplitSeq(p, "/") {
		if e.Mode != filemode.Dir {
			return object.TreeEntry{}, false, nil
		}
		entries, err := s.entries(e.Hash)
		if err != nil {
			return object.TreeEntry{}, false, err
		}
		i := s.place(e.Hash, entries, part)
		if i < 0 {
			return object.TreeEntry{}, false, nil
		}
		e = entries[i]
	}
	return e, true, nil
}

// wide is how many entries a tree has that are worth a map: all paths of a thousand overlays lead through one.
const wide = 32

// place is index for the entries of a tree.
func (s *Snapshot) place(tree plumbing.Hash, entries []object.TreeEntry, name string) int {
	if len(entries) < wide {
		return index(entries, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.places[tree] == nil {
		places := make(map[string]int, len(entries))
		for i, e := range slices.Backward(entries) { // of two of one name the first counts
			places[e.Name] = i
		}
		if s.places == nil {
			s.places = map[plumbing.Hash]map[string]int{}
		}
		s.places[tree] = places
	}
	if i, ok := s.places[tree][name]; ok {
		return i
	}
	return -1
}

func index(entries []object.TreeEntry, name string) int {
	return slices.IndexFunc(entries, func(e object.TreeEntry) bool { return e.Name == name })
}

// entries returns the entries of a tree, which are not to be changed. A tree is parsed once: a repository with a thousand
// overlays has its widest directories on the way to all of them. The zero hash is a tree that is still to be made.
func (s *Snapshot) entries(tree plumbing.Hash) ([]object.TreeEntry, error) {
	if tree.IsZero() {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if entries, ok := s.parsed[tree]; ok {
		return entries, nil
	}
	t, err := object.GetTree(s.objects, tree)
	if err != nil {
		return nil, fmt.Errorf("tree %s of commit %s: %w", tree, s.commit, err)
	}
	if s.parsed == nil {
		s.parsed = map[plumbing.Hash][]object.TreeEntry{}
	}
	s.parsed[tree] = t.Entries
	return t.Entries, nil
}
