package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/digestlock/digestlock/internal/fault"
)

// Change is one commit to be made on top of a snapshot.
type Change struct {
	Files     map[string][]byte // path → full new content; nil deletes, and an empty non-nil slice is an empty file
	Message   string
	Author    Signature
	Committer Signature // the zero value means Author
	When      time.Time // of both; its location is recorded too

	// Mark moves the branch's mark, the ref refs/digestlock/<branch>, to the new commit too: both or none, where the
	// server can do that. A server that takes the branch and refuses the mark is no error, see [Remote.MarkRefused].
	Mark bool

	// Onto moves that branch, a short name, to the new commit, and leaves the snapshot's own where it is. OntoAt is the
	// commit, in hex, that it must stand at, which need not be in the new one's history; "" means that there must be no
	// such branch yet: it is created. Mark is not for it.
	Onto, OntoAt string

	// Sign returns the signature of the commit, armored: payload is the commit's object without a signature. Nil means
	// that it is not signed.
	Sign func(payload []byte) (string, error)
}

// Signature says who. Angle brackets and line breaks are dropped, as git does.
type Signature struct{ Name, Email string }

func (s Signature) at(when time.Time) (object.Signature, error) {
	crud := strings.NewReplacer("<", "", ">", "", "\n", "", "\r", "", "\x00", "")
	name, email := strings.TrimSpace(crud.Replace(s.Name)), strings.TrimSpace(crud.Replace(s.Email))
	if name == "" || email == "" {
		return object.Signature{}, fault.New(fault.Usage, "set the name and the email address to commit as", "commit has no author")
	}
	return object.Signature{Name: name, Email: email, When: when}, nil
}

// Push commits c on top of s and moves the branch there if it is still at s, or else c.Onto if that is still at c.OntoAt;
// it never forces. It returns the new commit's hash. A file keeps the mode that it has, a new one is not executable, and a directory that loses its last
// file goes with it.
//
// It returns ErrNoChange when there is nothing to commit, ErrMoved when the branch is no longer there, or was elsewhere
// meanwhile as its mark tells, ErrNotRegular
// inside an [fs.PathError] for a path that [Snapshot.Files] would refuse, ErrAuth when the credentials may not push,
// and otherwise the server's own reason. When ctx ends it is open whether the push took place: read again.
func (s *Snapshot) Push(ctx context.Context, c Change) (commit string, err error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	hash, objects, err := s.build(c)
	if err != nil {
		return "", s.remote.explain(ctx, "commit to", err)
	}
	m := move{branch: s.branch, from: s.commit, to: hash, mark: c.Mark}
	if c.Onto != "" {
		m = move{branch: plumbing.NewBranchReferenceName(c.Onto), from: s.names.parse(c.OntoAt), to: hash}
	}
	if err := s.push(ctx, m, objects); err != nil {
		return "", s.remote.explain(ctx, "push to", err)
	}
	if c.Onto == "" && !s.commit.IsZero() {
		s.pushed(hash, objects)
	}
	return s.names.hex(hash), nil
}

// pushed remembers the branch at a commit that was built on s and pushed, as a fetch of it would have it: whoever reads the
// branch next, and finds it there, has to fetch nothing. Where something is missing that is left to the fetch. So it is
// for SHA-256 repositories, where each fetch begins with new names and forgets the old ones, and for servers that are not
// shallow, where a fetch brings the history too.
func (s *Snapshot) pushed(commit plumbing.Hash, objects *memory.Storage) {
	if s.names.sha256 || !s.caps.Supports(capability.Shallow) {
		return
	}
	c, err := object.GetCommit(objects, commit)
	if err != nil {
		return
	}
	next := *s
	next.commit, next.tree, next.root, next.generations, next.own = commit, c.TreeHash, commit, 1, false
	next.store = &store{names: &names{}, objects: memory.NewStorage(), depth: map[plumbing.Hash]int{}}
	if next.carry(commit, objects, s.store) && next.carryTree(c.TreeHash, objects, s.store) {
		s.remote.mu.Lock()
		defer s.remote.mu.Unlock()
		s.remote.remember(&next)
	}
}

// carryTree copies a tree with all that is known below it. It reports whether all trees are.
func (s *Snapshot) carryTree(tree plumbing.Hash, added *memory.Storage, before *store) bool {
	if !s.carry(tree, added, before) {
		return false
	}
	entries, err := s.entries(tree)
	if err != nil {
		return false
	}
	for _, e := range entries {
		switch e.Mode {
		case filemode.Submodule:
		case filemode.Dir:
			if !s.carryTree(e.Hash, added, before) {
				return false
			}
		default:
			s.carry(e.Hash, added, before)
		}
	}
	return true
}

// carry copies one object, and reports whether it is known.
func (s *Snapshot) carry(h plumbing.Hash, added *memory.Storage, before *store) bool {
	o, ok := added.Objects[h]
	if !ok {
		before.mu.Lock()
		o, ok = before.objects.Objects[h]
		before.mu.Unlock()
	}
	if ok {
		_, _ = s.objects.SetEncodedObject(o) // into memory
	}
	return ok
}

// build makes the commit and the objects that only it has.
func (s *Snapshot) build(c Change) (plumbing.Hash, *memory.Storage, error) {
	none := plumbing.ZeroHash
	for p, content := range c.Files {
		if _, _, err := s.find(p); err != nil {
			return none, nil, err
		}
		if len(content) > maxFile {
			return none, nil, &fs.PathError{Op: "write", Path: p, Err: errTooLarge}
		}
	}
	e := editor{base: s, objects: memory.NewStorage()}
	tree, err := e.tree(s.tree, c.Files)
	if err != nil {
		return none, nil, err
	}
	if tree == s.tree {
		return none, nil, ErrNoChange
	}
	commit, err := c.commit(tree, s.commit)
	if err == nil && c.Sign != nil {
		commit.PGPSignature, err = c.sign(s.names, commit)
	}
	if err != nil {
		return none, nil, err
	}
	hash, err := e.add(commit)
	return hash, e.objects, err
}

func (c Change) commit(tree, parent plumbing.Hash) (*object.Commit, error) {
	message := strings.TrimSpace(strings.ReplaceAll(c.Message, "\x00", ""))
	if message == "" {
		return nil, errors.New("commit has no message")
	}
	author, err := c.Author.at(c.When)
	if err != nil {
		return nil, err
	}
	committer := author
	if c.Committer != (Signature{}) {
		if committer, err = c.Committer.at(c.When); err != nil {
			return nil, err
		}
	}
	var parents []plumbing.Hash
	if !parent.IsZero() {
		parents = []plumbing.Hash{parent}
	}
	return &object.Commit{Author: author, Committer: committer, Message: message + "\n", TreeHash: tree, ParentHashes: parents}, nil
}

// sign returns the signature, of whatever kind: go-git calls it after the only one that it knows.
func (c Change) sign(known *names, commit *object.Commit) (string, error) {
	o := &plumbing.MemoryObject{}
	if err := commit.EncodeWithoutSignature(o); err != nil {
		return "", err
	}
	payload, err := known.lengthen(o)
	if err != nil {
		return "", err
	}
	return c.Sign(payload)
}

// editor writes new versions of trees of base.
type editor struct {
	base    *Snapshot
	objects *memory.Storage // the new ones
}

// tree returns tree with files changed, which are relative to it. A tree that becomes empty is the zero hash, except
// the root, which somebody asked for.
func (e editor) tree(tree plumbing.Hash, files map[string][]byte) (plumbing.Hash, error) {
	before, err := e.base.entries(tree)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	after := slices.Clone(before)
	below := map[string]map[string][]byte{}
	for name, content := range files {
		dir, rest, nested := strings.Cut(name, "/")
		if !nested {
			if after, err = e.file(after, name, content); err != nil {
				return plumbing.ZeroHash, err
			}
			continue
		}
		if below[dir] == nil {
			below[dir] = map[string][]byte{}
		}
		below[dir][rest] = content
	}
	for dir, files := range below {
		i := index(after, dir)
		if i < 0 { // of a branch of our own: build has refused it in others
			i, after = len(after), append(after, object.TreeEntry{Name: dir, Mode: filemode.Dir})
		}
		hash, err := e.tree(after[i].Hash, files)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		if after[i].Hash = hash; hash.IsZero() {
			after = slices.Delete(after, i, i+1)
		}
	}
	if slices.Equal(before, after) {
		return tree, nil
	}
	if len(after) == 0 && tree != e.base.tree {
		return plumbing.ZeroHash, nil
	}
	sort.Sort(object.TreeEntrySorter(after)) // git's order, in which a directory sorts as if it ended in a slash
	return e.add(&object.Tree{Entries: after})
}

// file sets the entry for one file. Blobs that only repeat what is there are not worth adding.
func (e editor) file(entries []object.TreeEntry, name string, content []byte) ([]object.TreeEntry, error) {
	i := index(entries, name)
	if content == nil {
		if i < 0 {
			return entries, nil
		}
		return slices.Delete(entries, i, i+1), nil
	}
	blob := &plumbing.MemoryObject{}
	blob.SetType(plumbing.BlobObject)
	if _, err := blob.Write(content); err != nil {
		return nil, err
	}
	named, err := e.base.names.named(blob)
	if err != nil {
		return nil, err
	}
	hash := named.Hash()
	switch {
	case i < 0:
		entries = append(entries, object.TreeEntry{Name: name, Mode: filemode.Regular, Hash: hash})
	case entries[i].Hash == hash:
		return entries, nil
	default:
		entries[i].Hash = hash
	}
	_, err = e.objects.SetEncodedObject(named)
	return entries, err
}

func (e editor) add(o interface {
	Encode(plumbing.EncodedObject) error
},
) (plumbing.Hash, error) {
	encoded := &plumbing.MemoryObject{}
	if err := o.Encode(encoded); err != nil {
		return plumbing.ZeroHash, err
	}
	named, err := e.base.names.named(encoded)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return e.objects.SetEncodedObject(named)
}

// move is what a push does to a branch, and to its mark. The zero hash is where a branch stands that is not there.
type move struct {
	branch   plumbing.ReferenceName
	from, to plumbing.Hash
	mark     bool
}

// push sends the objects and asks for the move. What came of it is decided by where the branch is afterwards, never by
// what an error says.
func (s *Snapshot) push(ctx context.Context, m move, objects *memory.Storage) error {
	m.mark = m.mark && s.remote.MarkRefused(m.branch.Short()) == nil
	err := s.send(ctx, m, objects)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrMoved) {
		return err
	}
	refused, _ := errors.AsType[*refusal](err)
	if refused != nil {
		err = fault.New(fault.GitRefused, "allow the pusher to change this branch, or satisfy the rule that the server names",
			"branch %s was rejected: %w", m.branch.Short(), refused)
	}
	tip, at, lost := s.remote.where(ctx, s, m.branch)
	switch {
	case lost != nil:
		return err
	case tip != m.from && tip != m.to:
		return ErrMoved
	case tip == m.from && (!m.mark || refused == nil):
		return err
	case tip == m.from: // because of the mark, perhaps
		without := m
		without.mark = false
		if err := s.push(ctx, without, objects); err != nil {
			return err
		}
	}
	// A mark that somebody else has moved since may be free to move the next time.
	if m.mark && refused != nil && at == s.mark {
		s.remote.refuseMark(m.branch, refused)
	}
	return nil
}

// send asks for the move, and for the mark to move there with it, or after it where the server cannot move both or none: a
// mark must never stand at a commit that the branch did not get.
func (s *Snapshot) send(ctx context.Context, m move, objects *memory.Storage) error {
	session, refs, err := s.receiver(ctx)
	if err != nil {
		return err
	}
	defer session.Close()
	// A mark that has moved elsewhere says that the branch was there meanwhile: somebody pushed, and a person took that back.
	mark := refs.References[markName(m.branch).String()]
	if refs.References[m.branch.String()] != m.from || m.mark && mark != s.mark && mark != m.from {
		return ErrMoved
	}
	req := packp.NewReferenceUpdateRequestFromCapabilities(refs.Capabilities)
	req.Commands = []*packp.Command{{Name: m.branch, Old: m.from, New: m.to}}
	together := m.mark && refs.Capabilities.Supports(capability.Atomic)
	if together {
		must(req.Capabilities.Set(capability.Atomic))
		req.Commands = append(req.Commands, m.markCommand(refs))
	}
	if err := s.exchange(ctx, session, refs, req, objects); err != nil || together || !m.mark {
		return err
	}
	return s.sendMark(ctx, m, objects)
}

// sendMark sends the objects once more, or none that the server has.
func (s *Snapshot) sendMark(ctx context.Context, m move, objects *memory.Storage) error {
	session, refs, err := s.receiver(ctx)
	if err != nil {
		return err
	}
	defer session.Close()
	req := packp.NewReferenceUpdateRequestFromCapabilities(refs.Capabilities)
	req.Commands = []*packp.Command{m.markCommand(refs)}
	return s.exchange(ctx, session, refs, req, objects)
}

func (m move) markCommand(refs *packp.AdvRefs) *packp.Command {
	name := markName(m.branch)
	return &packp.Command{Name: name, Old: refs.References[name.String()], New: m.to}
}

// receiver opens a session to push in, which the caller closes.
func (s *Snapshot) receiver(ctx context.Context) (transport.ReceivePackSession, *packp.AdvRefs, error) {
	ep := s.endpoint
	session, err := s.remote.receivePack(ctx, &ep, s.names)
	if err != nil {
		return nil, nil, err
	}
	refs, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		_ = session.Close()
		return nil, nil, err
	}
	return session, refs, nil
}

// exchange sends req with the objects, nil where it only deletes, and returns a *refusal when the server says that it did not do all of it.
func (s *Snapshot) exchange(ctx context.Context, session transport.ReceivePackSession, refs *packp.AdvRefs, req *packp.ReferenceUpdateRequest, objects *memory.Storage) error {
	if s.byGit() {
		return s.pushByGit(ctx, req, objects)
	}
	if objects != nil {
		pack, err := pack(objects)
		if err != nil {
			return err
		}
		req.Packfile = io.NopCloser(pack)
	}
	var words tail
	if refs.Capabilities.Supports(capability.Sideband64k) {
		must(req.Capabilities.Set(capability.Sideband64k))
		req.Progress = &words
	}
	report, err := session.ReceivePack(ctx, req)
	if report == nil {
		if err == nil {
			err = errors.New("the server did not say whether it accepted the push")
		}
		return err
	}
	return rejection(report, words.String())
}

// refusal is why the server did not do all of a push.
type refusal struct{ reason string }

func (e *refusal) Error() string { return e.reason }

// rejection returns what the server said against the push, or nil. Where all is refused because of one, the last says
// why: the mark comes after the branch.
func rejection(report *packp.ReportStatus, words string) error {
	if report.Error() == nil {
		return nil
	}
	reason := "unpack " + report.UnpackStatus
	for _, c := range report.CommandStatuses {
		if c.Error() != nil {
			reason = c.Status
		}
	}
	if words != "" {
		reason += ": " + words
	}
	return &refusal{reason}
}

// pack encodes the objects in a stable order and without deltas: there is nothing to gain with a handful of small ones.
func pack(objects *memory.Storage) (*bytes.Buffer, error) {
	hashes := slices.SortedFunc(maps.Keys(objects.Objects), func(a, b plumbing.Hash) int { return bytes.Compare(a[:], b[:]) })
	var buf bytes.Buffer
	if _, err := packfile.NewEncoder(&buf, objects, false).Encode(hashes, 0); err != nil {
		return nil, fmt.Errorf("encode pack: %w", err)
	}
	return &buf, nil
}
