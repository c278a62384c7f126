// Package gitrepo reads a few files at the tip of a remote branch and pushes one commit on top of it, without a clone.
//
// It speaks to the remote through go-git's transport layer: the tip and its trees are fetched without file contents
// where the server can do that, trees are edited in memory, and the new objects are pushed by compare-and-swap on the
// tip that was read. No repository is kept on disk and nothing is ever forced; only a branch that [Change.Onto] names
// may move sideways. What go-git cannot do, git does ([Binary]): it moves the packs, to and from an empty repository that
// lives for one command, and all the rest stays as it is. TLS certificates and SSH host keys are verified, unless [Auth] says Insecure.
package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/digestlock/digestlock/internal/fault"
)

// The outcomes that a caller branches on. Match with [errors.Is].
var (
	// ErrMoved: the branch is not where it was when the snapshot was read. Read again and re-apply.
	ErrMoved = errors.New("branch has moved since it was read")
	// ErrNoChange: every file already has the wanted content; nothing was pushed.
	ErrNoChange = errors.New("nothing to change")
	// ErrNotRegular: a path that is not a regular file in an existing directory, or could never be one. It comes
	// inside an [fs.PathError] that names the path.
	ErrNotRegular = errors.New("not a regular file in an existing directory")
	// ErrBranch: the repository has no such branch; what was asked for may be a tag or a commit.
	ErrBranch = errors.New("no such branch")
	// ErrAuth: the server refused the credentials, or what they may do.
	ErrAuth = errors.New("access denied")
)

// stepTimeout bounds each call that talks to the server, for callers whose context has no deadline.
const stepTimeout = 2 * time.Minute

// readAttempts is how often Read starts again when the branch is force-pushed between listing and fetching it.
const readAttempts = 3

// forgotten is how long a branch is remembered that nobody reads: what is forgotten costs one fetch, and what is kept, the
// trees of a repository, memory.
const forgotten = time.Hour

// Remote is one remote repository. It is safe for concurrent use and keeps, per branch, the last snapshot that was
// read, for as long as it is read once an hour. It holds no connection open for longer than half a minute and needs no closing.
type Remote struct {
	name      string // for people: never holds credentials
	secrets   secrets
	transport func(*names) transport.Transport
	bridge    func(ctx context.Context, service string, s *Snapshot) (*link, error)
	client    *http.Client // for http
	login     login
	endpoint  transport.Endpoint
	binary    Binary

	mu      sync.Mutex // guards what follows
	last    map[plumbing.ReferenceName]reading
	refused map[plumbing.ReferenceName]error // marks, by branch
	orphans []plumbing.ReferenceName         // branches that had a mark and nothing else when refs were listed last
	keeps   bool                             // orphans, whatever is asked
	sha256  bool                             // the kind of names, once refs were listed
}

type reading struct {
	*Snapshot
	at time.Time
}

// String returns the repository's address without credentials.
func (r *Remote) String() string { return r.name }

// Read returns the tip of branch, which is a short or full branch name; "" and "HEAD" mean the default branch. When
// the tip and its mark are where they were last read it returns that same *Snapshot, at the price of one listing of
// the refs.
//
// It returns ErrBranch when there is no such branch (an empty repository has none) and ErrAuth when the server
// refuses the credentials.
func (r *Remote) Read(ctx context.Context, branch string) (*Snapshot, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	for attempt := 1; ; attempt++ {
		s, err := r.read(ctx, branch)
		if err == nil {
			return s, nil
		}
		// A tip that was force-pushed away before it was fetched can no longer be asked for.
		if attempt == readAttempts || s == nil || !r.moved(ctx, s) {
			return nil, r.explain(ctx, "read", err)
		}
	}
}

// Own returns the tip of a branch that holds only what the caller writes there, as Read does: in it, directories come with
// their files. Where there is no such branch yet the snapshot is empty and has no commit, and Push creates the branch with
// a history of its own.
func (r *Remote) Own(ctx context.Context, branch string) (*Snapshot, error) {
	s, err := r.Read(ctx, branch)
	if errors.Is(err, ErrBranch) {
		s, err = r.empty(plumbing.NewBranchReferenceName(branch)), nil
	}
	if err != nil {
		return nil, err
	}
	own := *s
	own.own = true
	return &own, nil
}

// empty is a snapshot without a commit.
func (r *Remote) empty(branch plumbing.ReferenceName) *Snapshot {
	s := newSnapshot(r, branch, plumbing.ZeroHash, capability.NewList(), &names{sha256: r.hasLongNames()})
	s.endpoint = r.endpoint
	return s
}

// read returns a nil snapshot when it fails before there is a tip to fetch, and the snapshot with the error after.
func (r *Remote) read(ctx context.Context, branch string) (*Snapshot, error) {
	ep := r.endpoint // go-git rewrites the endpoint of a session after a redirect
	known := &names{}
	session, refs, err := r.advertised(ctx, &ep, known)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	r.noteOrphans(refs)
	name, tip, err := resolve(refs, branch)
	if err != nil {
		return nil, err
	}
	mark := refs.References[markName(name).String()]
	if s := r.cached(name, tip, mark, known); s != nil {
		return s, nil
	}
	s := newSnapshot(r, name, tip, refs.Capabilities, known)
	s.endpoint, s.mark = ep, mark
	if err := s.load(ctx, session); err != nil {
		return s, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remember(s)
	return s, nil
}

// remember keeps s as the last of its branch, and forgets what nobody reads any more. The caller holds mu.
func (r *Remote) remember(s *Snapshot) {
	now := time.Now()
	r.last[s.branch] = reading{s, now}
	maps.DeleteFunc(r.last, func(_ plumbing.ReferenceName, l reading) bool { return now.Sub(l.at) > forgotten })
	maps.DeleteFunc(r.refused, func(branch plumbing.ReferenceName, _ error) bool { return r.last[branch].Snapshot == nil })
}

// advertised opens a session and returns what the server has, whose names known learns. It changes ep where the server
// redirects. The caller closes the session.
func (r *Remote) advertised(ctx context.Context, ep *transport.Endpoint, known *names) (transport.UploadPackSession, *packp.AdvRefs, error) {
	session, err := r.uploadPack(ctx, ep, known)
	if err != nil {
		return nil, nil, err
	}
	refs, err := session.AdvertisedReferencesContext(ctx)
	if err == nil {
		err = r.checkFormat(refs.Capabilities, known)
	}
	if err != nil {
		_ = session.Close()
		return nil, nil, err
	}
	return session, refs, nil
}

func (r *Remote) cached(name plumbing.ReferenceName, tip, mark plumbing.Hash, known *names) *Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.last[name].Snapshot
	if s == nil || s.commit != tip {
		return nil
	}
	if s.mark != mark {
		elsewhere := *s
		elsewhere.mark = elsewhere.names.short(known.whole(mark))
		s = &elsewhere
	}
	r.remember(s)
	return s
}

// where asks the server of s where a branch and its mark are now; the zero hash means that there is none.
func (r *Remote) where(ctx context.Context, s *Snapshot, name plumbing.ReferenceName) (branch, mark plumbing.Hash, err error) {
	ep := s.endpoint
	session, err := r.uploadPack(ctx, &ep, s.names)
	if err != nil {
		return plumbing.ZeroHash, plumbing.ZeroHash, err
	}
	defer session.Close()
	refs, err := session.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return plumbing.ZeroHash, plumbing.ZeroHash, nil
	}
	if err != nil {
		return plumbing.ZeroHash, plumbing.ZeroHash, err
	}
	return refs.References[name.String()], refs.References[markName(name).String()], nil
}

// moved reports whether s's branch is known to be elsewhere than s.
func (r *Remote) moved(ctx context.Context, s *Snapshot) bool {
	tip, _, err := r.where(ctx, s, s.branch)
	return err == nil && tip != s.commit
}

// ValidBranch reports whether Git takes name as the short name of a branch.
func ValidBranch(name string) bool {
	return name != "HEAD" && !strings.HasPrefix(name, "refs/") && plumbing.NewBranchReferenceName(name).Validate() == nil
}

// resolve finds the branch that is meant and its tip.
func resolve(refs *packp.AdvRefs, branch string) (plumbing.ReferenceName, plumbing.Hash, error) {
	name := plumbing.NewBranchReferenceName(strings.TrimPrefix(branch, "refs/heads/"))
	if branch == "" || branch == "HEAD" {
		var err error
		if name, err = defaultBranch(refs); err != nil {
			return "", plumbing.ZeroHash, err
		}
	}
	if tip, ok := refs.References[name.String()]; ok {
		return name, tip, nil
	}
	if _, ok := refs.References[plumbing.NewTagReferenceName(strings.TrimPrefix(branch, "refs/tags/")).String()]; ok {
		return "", plumbing.ZeroHash, fault.New(fault.GitBranch, "target a branch; commits cannot be added to a tag", "%q is a tag: %w", branch, ErrBranch)
	}
	if isName(branch) {
		return "", plumbing.ZeroHash, fault.New(fault.GitBranch, "target a branch; commits cannot be added to a fixed commit", "%q is a commit: %w", branch, ErrBranch)
	}
	return "", plumbing.ZeroHash, fault.New(fault.GitBranch, "create the branch, or name one that exists", "branch %q: %w", name.Short(), ErrBranch)
}

func defaultBranch(refs *packp.AdvRefs) (plumbing.ReferenceName, error) {
	for _, ref := range refs.Capabilities.Get(capability.SymRef) {
		if target, ok := strings.CutPrefix(ref, "HEAD:"); ok {
			return plumbing.ReferenceName(target), nil
		}
	}
	return "", fault.New(fault.GitBranch, "name the branch to use", "HEAD of the repository names no branch: %w", ErrBranch)
}

// errFormat: go-git knows only SHA-1 object names.
var errFormat = errors.New("the repository uses SHA-256 object names")

func (r *Remote) checkFormat(caps *capability.List, known *names) error {
	known.sha256 = slices.Contains(caps.Get("object-format"), "sha256")
	r.mu.Lock()
	r.sha256 = known.sha256
	r.mu.Unlock()
	if known.sha256 && r.binary == BinaryNever {
		return errFormat
	}
	return nil
}

// hasLongNames reports what was found out when the refs were last listed.
func (r *Remote) hasLongNames() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sha256
}

// deadline bounds one call of ours within ctx.
func deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("no answer from the Git server within %v", stepTimeout))
}
