// Package gitserver is a small Git server in this process, for demonstrations on machines without one.
//
// It serves one bare repository over smart HTTP, to git and to Digestlock alike. The repository is an ordinary one on
// disk, to be explored with git afterwards. There is no authentication: serve it on the loopback interface only.
package gitserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// Repo is a bare repository on disk. It is safe for concurrent use, as long as nothing else writes to it.
type Repo struct {
	dir string
	mu  sync.RWMutex // held for writing while a branch moves
}

// Commit is one entry of a branch's history.
type Commit struct {
	Hash    string
	Author  string // "Name <address>"
	When    time.Time
	Message string
	Diff    string // unified, against the parent
}

// person makes the commits that Repo.Commit is asked for.
var person = object.Signature{Name: "A Person", Email: "person@example.com"}

// New creates an empty bare repository in dir, which may exist if it is empty. Its default branch is main.
func New(dir string) (*Repo, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return nil, errors.Join(err, fmt.Errorf("create repository: %s is not empty", dir))
	}
	r := &Repo{dir: dir}
	st := r.open()
	if err := st.Init(); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	cfg, err := st.Config()
	if err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	cfg.Core.IsBare = true
	err = errors.Join(st.SetConfig(cfg), st.SetReference(plumbing.NewSymbolicReference(plumbing.HEAD, plumbing.Main)))
	if err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	return r, nil
}

// open returns the repository's storage afresh: go-git's is not safe for concurrent use, and opening it is cheap.
func (r *Repo) open() *filesystem.Storage {
	return filesystem.NewStorage(osfs.New(r.dir, osfs.WithBoundOS()), cache.NewObjectLRUDefault())
}

// Commit adds or replaces files, path → content, on branch, and makes the branch if need be. It returns the commit's
// hash.
func (r *Repo) Commit(branch, message string, files map[string][]byte) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hash, err := commit(r.open(), plumbing.NewBranchReferenceName(branch), message, files)
	if err != nil {
		return "", fmt.Errorf("commit to %s: %w", branch, err)
	}
	return hash.String(), nil
}

func commit(st *filesystem.Storage, name plumbing.ReferenceName, message string, files map[string][]byte) (plumbing.Hash, error) {
	c := object.Commit{Author: person, Message: strings.TrimSpace(message) + "\n"}
	c.Author.When = time.Now()
	c.Committer = c.Author
	all := map[string]object.TreeEntry{}
	old, err := st.Reference(name)
	switch {
	case err == nil:
		c.ParentHashes = []plumbing.Hash{old.Hash()}
		if all, err = list(st, old.Hash()); err != nil {
			return plumbing.ZeroHash, err
		}
	case !errors.Is(err, plumbing.ErrReferenceNotFound):
		return plumbing.ZeroHash, err
	}
	for p, content := range files {
		if p == "." || path.Clean(p) != p || path.IsAbs(p) || strings.HasPrefix(p, "../") {
			return plumbing.ZeroHash, fmt.Errorf("path %q is not relative and clean", p)
		}
		blob, err := save(st, plumbing.BlobObject, content)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		mode := filemode.Regular
		if all[p].Mode == filemode.Executable {
			mode = filemode.Executable
		}
		all[p] = object.TreeEntry{Mode: mode, Hash: blob}
	}
	if c.TreeHash, err = saveTree(st, all); err != nil {
		return plumbing.ZeroHash, err
	}
	hash, err := encode(st, &c)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return hash, st.CheckAndSetReference(plumbing.NewHashReference(name, hash), old)
}

// list returns all entries of a commit but directories, by path.
func list(st *filesystem.Storage, commit plumbing.Hash) (map[string]object.TreeEntry, error) {
	c, err := object.GetCommit(st, commit)
	if err != nil {
		return nil, err
	}
	tree, err := c.Tree()
	if err != nil {
		return nil, err
	}
	all := map[string]object.TreeEntry{}
	walk := object.NewTreeWalker(tree, true, nil)
	defer walk.Close()
	for {
		p, e, err := walk.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if e.Mode != filemode.Dir {
			all[p] = e
		}
	}
}

// saveTree writes the trees for entries by path and returns the root's hash.
func saveTree(st *filesystem.Storage, entries map[string]object.TreeEntry) (plumbing.Hash, error) {
	tree := object.Tree{}
	below := map[string]map[string]object.TreeEntry{}
	for p, e := range entries {
		dir, rest, nested := strings.Cut(p, "/")
		if !nested {
			e.Name = p
			tree.Entries = append(tree.Entries, e)
			continue
		}
		if _, file := entries[dir]; file {
			return plumbing.ZeroHash, fmt.Errorf("%s is a file and a directory", dir)
		}
		if below[dir] == nil {
			below[dir] = map[string]object.TreeEntry{}
		}
		below[dir][rest] = e
	}
	for dir, entries := range below {
		hash, err := saveTree(st, entries)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		tree.Entries = append(tree.Entries, object.TreeEntry{Name: dir, Mode: filemode.Dir, Hash: hash})
	}
	sort.Sort(object.TreeEntrySorter(tree.Entries))
	return encode(st, &tree)
}

func encode(st *filesystem.Storage, o interface {
	Encode(plumbing.EncodedObject) error
},
) (plumbing.Hash, error) {
	encoded := st.NewEncodedObject()
	if err := o.Encode(encoded); err != nil {
		return plumbing.ZeroHash, err
	}
	return st.SetEncodedObject(encoded)
}

func save(st *filesystem.Storage, kind plumbing.ObjectType, content []byte) (plumbing.Hash, error) {
	o := st.NewEncodedObject()
	o.SetType(kind)
	w, err := o.Writer()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	_, err = w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		return plumbing.ZeroHash, err
	}
	return st.SetEncodedObject(o)
}

// Export writes the files of commit, a hash in hex, into dir. It replaces what is in the way and leaves the rest.
// Symbolic links and submodules are left out.
func (r *Repo) Export(commit, dir string) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	st := r.open()
	all, err := list(st, plumbing.NewHash(commit))
	if err != nil {
		return fmt.Errorf("export %s: %w", commit, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if err := export(st, root, p, all[p]); err != nil {
			return fmt.Errorf("export %s of %s: %w", p, commit, err)
		}
	}
	return nil
}

func export(st *filesystem.Storage, root *os.Root, p string, e object.TreeEntry) error {
	if e.Mode == filemode.Symlink || e.Mode == filemode.Submodule {
		return nil
	}
	blob, err := object.GetBlob(st, e.Hash)
	if err != nil {
		return err
	}
	r, err := blob.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	var content bytes.Buffer
	if _, err := content.ReadFrom(r); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if e.Mode == filemode.Executable {
		mode = 0o755
	}
	return errors.Join(root.MkdirAll(path.Dir(p), 0o755), root.WriteFile(p, content.Bytes(), mode))
}

// Log returns the history of branch along first parents, newest first. A branch that does not exist is an error.
func (r *Repo) Log(branch string) ([]Commit, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	st := r.open()
	ref, err := st.Reference(plumbing.NewBranchReferenceName(branch))
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", branch, err)
	}
	var log []Commit
	for next := ref.Hash(); !next.IsZero(); {
		c, err := object.GetCommit(st, next)
		if err != nil {
			return nil, fmt.Errorf("log of %s: commit %s: %w", branch, next, err)
		}
		diff, err := diff(c)
		if err != nil {
			return nil, fmt.Errorf("log of %s: diff of %s: %w", branch, next, err)
		}
		log = append(log, Commit{
			Hash:    next.String(),
			Author:  c.Author.Name + " <" + c.Author.Email + ">",
			When:    c.Author.When,
			Message: c.Message,
			Diff:    diff,
		})
		next = plumbing.ZeroHash
		if len(c.ParentHashes) > 0 {
			next = c.ParentHashes[0]
		}
	}
	return log, nil
}

// diff compares c with its first parent, or with nothing.
func diff(c *object.Commit) (string, error) {
	var before *object.Tree
	if len(c.ParentHashes) > 0 {
		parent, err := c.Parent(0)
		if err != nil {
			return "", err
		}
		if before, err = parent.Tree(); err != nil {
			return "", err
		}
	}
	after, err := c.Tree()
	if err != nil {
		return "", err
	}
	changes, err := object.DiffTree(before, after)
	if err != nil {
		return "", err
	}
	patch, err := changes.Patch()
	if err != nil {
		return "", err
	}
	return patch.String(), nil
}
