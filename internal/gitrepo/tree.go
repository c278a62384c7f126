package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"

	"github.com/digestlock/digestlock/internal/fault"
)

// ReadFixed returns one commit with all its files: ref is the name of a tag or the full hash of a commit. A branch is
// refused, it moves. What is more than maxBytes in memory is refused before it is there.
func (r *Remote) ReadFixed(ctx context.Context, ref string, maxBytes int64) (*Snapshot, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	s, err := r.readFixed(ctx, ref, maxBytes)
	if err != nil {
		return nil, r.explain(ctx, "read", err)
	}
	return s, nil
}

func (r *Remote) readFixed(ctx context.Context, ref string, maxBytes int64) (*Snapshot, error) {
	ep := r.endpoint
	known := &names{}
	session, refs, err := r.advertised(ctx, &ep, known)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	commit, err := fixed(refs, ref, known)
	if err != nil {
		return nil, err
	}
	s := newSnapshot(r, "", commit, refs.Capabilities, known)
	s.endpoint, s.partial, s.maxBytes = ep, false, maxBytes
	return s, s.load(ctx, session)
}

// fixed finds the commit that ref names. A hash comes first, so that no tag of that name can stand for it.
func fixed(refs *packp.AdvRefs, ref string, known *names) (plumbing.Hash, error) {
	const hint = "name a tag of the repository, or the full hash of a commit"
	if isName(ref) {
		commit := known.parse(ref)
		if !offers(refs, commit) {
			return commit, fault.New(fault.GitBranch, "name a tag", "the server hands out only what its branches and tags point to, which %s is not", ref)
		}
		return commit, nil
	}
	tag := plumbing.NewTagReferenceName(strings.TrimPrefix(ref, "refs/tags/")).String()
	if commit, ok := refs.Peeled[tag]; ok {
		return commit, nil
	}
	if commit, ok := refs.References[tag]; ok {
		return commit, nil
	}
	branch := plumbing.NewBranchReferenceName(strings.TrimPrefix(ref, "refs/heads/")).String()
	if _, ok := refs.References[branch]; ok || ref == "HEAD" {
		return plumbing.ZeroHash, fault.New(fault.GitBranch, hint, "%q is a branch, which moves", ref)
	}
	return plumbing.ZeroHash, fault.New(fault.GitBranch, hint, "no tag %q", ref)
}

// offers reports whether the server can be asked for commit.
func offers(refs *packp.AdvRefs, commit plumbing.Hash) bool {
	if refs.Capabilities.Supports(capability.AllowReachableSHA1InWant) || refs.Capabilities.Supports(capability.AllowTipSHA1InWant) {
		return true
	}
	for _, tips := range []map[string]plumbing.Hash{refs.References, refs.Peeled} {
		for _, tip := range tips {
			if tip == commit {
				return true
			}
		}
	}
	return false
}

// Room is how much an unpacked tree may take.
type Room struct {
	Bytes   int64
	Entries int // files, links and directories: a few small trees that name each other stand for any number of them
}

var errNoRoom = fault.New(fault.TooLarge, "use a smaller repository, or copy what you need of it", "the repository unpacks to too much")

// Unpack writes the files of a snapshot that ReadFixed returned into root, which is to be empty, and takes what it
// writes from room. Links are written as they are, wherever they lead, and never followed. Submodules are left out.
func (s *Snapshot) Unpack(ctx context.Context, root *os.Root, room *Room) error {
	if err := s.unpack(ctx, s.tree, ".", root, room); err != nil {
		return s.remote.explain(ctx, "unpack", err)
	}
	return nil
}

func (s *Snapshot) unpack(ctx context.Context, tree plumbing.Hash, dir string, root *os.Root, room *Room) error {
	entries, err := s.entries(tree)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name)
		if why := malformed(name); why != "" || strings.Contains(e.Name, "/") {
			return fmt.Errorf("%w: %q: %s", ErrNotRegular, e.Name, why)
		}
		if room.Entries--; room.Entries < 0 {
			return errNoRoom
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.unpackEntry(ctx, e, name, root, room); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshot) unpackEntry(ctx context.Context, e object.TreeEntry, name string, root *os.Root, room *Room) error {
	switch e.Mode {
	case filemode.Submodule:
		return nil
	case filemode.Dir:
		if err := root.Mkdir(name, 0o700); err != nil {
			return err
		}
		return s.unpack(ctx, e.Hash, name, root, room)
	}
	content, err := s.content(e.Hash, room)
	if err != nil {
		return err
	}
	if e.Mode == filemode.Symlink {
		return root.Symlink(string(content), name)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

func (s *Snapshot) content(blob plumbing.Hash, room *Room) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.objects.EncodedObject(plumbing.BlobObject, blob)
	if err != nil {
		return nil, err
	}
	if room.Bytes -= o.Size(); room.Bytes < 0 {
		return nil, errNoRoom
	}
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
