// Package plugin is the Config Management Plugin itself: what Argo CD announces and runs. Its Generate is one render,
// from a kustomize overlay to manifests in which every mutable tag carries its digest.
package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/pin"
	"github.com/digestlock/digestlock/internal/render"
)

// Resolver answers with the digest of each reference, in the same order. A source, where given, says whose credentials
// to use; where it has a repository, it is that of a render which is complete once all of refs are resolved, and locked
// are the pins that its lock decided.
type Resolver interface {
	Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error)
}

// streamed is Argo CD's revision for a local diff: a tree that nobody committed, so that nothing of it is recorded.
const streamed = "streamed"

// Source returns what Argo CD says it renders, nil outside of Argo CD and for a local diff.
func Source(getenv func(string) string) *lock.Source {
	s := &lock.Source{
		Project:        Project(getenv),
		Application:    getenv("ARGOCD_APP_NAME"),
		Repository:     getenv("ARGOCD_APP_SOURCE_REPO_URL"),
		TargetRevision: getenv("ARGOCD_APP_SOURCE_TARGET_REVISION"),
		Path:           getenv("ARGOCD_APP_SOURCE_PATH"),
		Revision:       getenv("ARGOCD_APP_REVISION"),
	}
	if !strings.HasPrefix(strings.ToLower(s.Repository), "ssh://") {
		s.Repository = lock.WithoutUser(s.Repository) // somebody's password has no place in a ledger
	}
	if s.Repository == "" || s.Revision == "" || s.Revision == streamed {
		return nil
	}
	return s
}

// Project returns the project that Argo CD renders for, and "" outside of Argo CD.
func Project(getenv func(string) string) string { return getenv("ARGOCD_APP_PROJECT_NAME") }

// Summary counts what a render did, in distinct images.
type Summary struct {
	Pinned   int // images that carry a digest now
	Locked   int // of these, by the lock
	Resolved int // of these, by the resolver
	Stale    int // of the resolved, from an answer that could not be renewed
	Jobs     int // Jobs that carry one of them: immutable, so that their sync fails once the digest moves
}

func summarise(decisions []Decision, jobs int) Summary {
	s := Summary{Pinned: len(decisions), Jobs: jobs}
	for _, d := range decisions {
		switch d.By {
		case ByLock, ByHold:
			s.Locked++
		case ByStale:
			s.Stale++
			s.Resolved++
		case ByResolver, ByCache:
			s.Resolved++
		}
	}
	return s
}

func (s Summary) String() string {
	text := fmt.Sprintf("pinned=%d locked=%d resolved=%d stale=%d", s.Pinned, s.Locked, s.Resolved, s.Stale)
	if s.Jobs > 0 {
		text += fmt.Sprintf(" jobs=%d", s.Jobs)
	}
	return text
}

// Render is one render: what to render, how, and who answers for what the lock does not say.
type Render struct {
	Dir      string
	Settings Settings
	Source   *lock.Source // what the ledger is told; nil outside of Argo CD
	Resolver Resolver     // asked only for images that the lock does not decide, so that mode locked needs none
	Project  string       // Argo CD's, whose registry credentials are used; "" outside of Argo CD

	Manifests io.Reader    // what somebody else rendered, pinned in place of an overlay; the lock is still the one in Dir
	DryRun    bool         // the resolver is asked as ever, and records nothing of this render
	Progress  func(string) // told, unless nil, what the render is busy with

	Renders Renders // remember what was rendered; nil for nobody
	Program string  // tells this program from another version of it, for Renders
}

// Result is what a render gave.
type Result struct {
	Manifests []byte
	Summary   Summary
	Decisions []Decision // one per image, sorted by its normalised reference
}

// Generate renders the overlay. All mutable references are pinned, or there is an error and no manifests.
func (r Render) Generate(ctx context.Context) (Result, error) {
	if r.Source != nil {
		source := *r.Source
		source.Mode = string(r.Settings.Mode)
		r.Source = &source
	}
	was, key := r.recall(ctx)
	if was != nil {
		r.report(ctx, was.Decisions)
		return *was, nil
	}
	p, err := r.find(ctx)
	if err != nil {
		return Result{}, err
	}
	manifests, err := r.write(ctx, &p)
	if err != nil {
		return Result{}, err
	}
	res := Result{Manifests: manifests, Summary: summarise(p.decisions, len(p.pins.Jobs())), Decisions: p.decisions}
	r.remember(ctx, key, p, res)
	return res, nil
}

// write decides on the images of p and returns the manifests. They are encoded, a quarter of a render, while the resolver
// is asked or told.
func (r Render) write(ctx context.Context, p *planned) (manifests []byte, err error) {
	draft, err := p.pins.Draft(r.Settings.PinFormat)
	if err != nil {
		return nil, err
	}
	var encoding sync.WaitGroup
	var encodeErr error
	encoding.Go(func() { manifests, encodeErr = p.output.YAML() })
	p.decisions = r.decide(ctx, p.pins.Images(), p.lock)
	if err = failures(p.decisions); err == nil {
		r.report(ctx, p.decisions)
	}
	encoding.Wait()
	if err = cmp.Or(err, encodeErr); err != nil {
		return nil, err
	}
	digests := make(map[string]string, len(p.decisions))
	for _, d := range p.decisions {
		digests[d.Image] = d.Digest
	}
	return manifests, draft.Fill(manifests, digests)
}

// planned is a render that is decided and not written yet.
type planned struct {
	output    *render.Output
	lock      *lock.Document // nil when there is none
	lockText  []byte         // its bytes
	pins      *pin.Plan
	decisions []Decision // one per image of pins, in its order
}

// plan renders the overlay, finds its images and decides on them.
func (r Render) plan(ctx context.Context) (planned, error) {
	p, err := r.find(ctx)
	if err != nil {
		return planned{}, err
	}
	p.decisions = r.decide(ctx, p.pins.Images(), p.lock)
	return p, nil
}

// Images renders the overlay and returns its mutable images, sorted, and the lock beside it, nil when there is none. It
// asks nobody.
func (r Render) Images(ctx context.Context) ([]image.Ref, *lock.Document, error) {
	p, err := r.find(ctx)
	if err != nil {
		return nil, nil, err
	}
	return p.pins.Images(), p.lock, nil
}

// find is plan without the decisions.
func (r Render) find(ctx context.Context) (planned, error) {
	out, err := r.build(ctx)
	if err != nil {
		return planned{}, err
	}
	locked, text, err := ReadLock(r.Dir)
	if err != nil {
		return planned{}, err
	}
	objects := out.Objects()
	if len(objects) == 0 && !r.Settings.AllowEmpty {
		return planned{}, r.noObjects()
	}
	policy := r.Settings.Policy
	for _, f := range out.ImageFields() {
		policy.Fields = append(slices.Clip(policy.Fields), pin.Field{Group: f.Group, Version: f.Version, Kind: f.Kind, Path: f.Path})
	}
	pins, err := pin.New(objects, policy)
	if err != nil {
		return planned{}, err
	}
	return planned{output: out, lock: locked, lockText: text, pins: pins}, nil
}

func (r Render) build(ctx context.Context) (*render.Output, error) {
	if r.Manifests != nil {
		r.progress("reading manifests from stdin")
		if !r.Settings.Build.Edits.None() {
			return nil, fault.New(fault.Parameter, "give them to what renders: parameters such as namespace change a kustomize overlay",
				"manifests on stdin keep all but their images, and the parameters change more")
		}
		return render.Read(ctx, r.Manifests)
	}
	r.progress("rendering")
	return render.Build(ctx, r.Dir, r.Settings.Build)
}

func (r Render) noObjects() error {
	const hint = "give parameter allow-empty: \"true\" if that is what you want"
	if r.Manifests != nil {
		return fault.New(fault.NoObjects, "see whether the command in front of the pipe failed; "+hint, "stdin holds no objects, and Argo CD would delete what runs")
	}
	return fault.New(fault.NoObjects, hint, "the overlay renders no objects, and Argo CD would delete what runs")
}

func (r Render) progress(text string) {
	if r.Progress != nil {
		r.Progress(text)
	}
}

// ReadLock returns the lock beside the overlay in dir and its bytes, nil when there is none. A link is an error.
func ReadLock(dir string) (*lock.Document, []byte, error) {
	data, err := readLock(dir)
	if data == nil || err != nil {
		return nil, nil, err
	}
	d, err := lock.Parse(lock.FileName, data)
	return d, data, err
}

// readLock returns the bytes of the lock in dir, nil when there is none and not for an empty one. A link is refused: its
// target may be any file of the sidecar, and the error would show what is in it.
func readLock(dir string) ([]byte, error) {
	name := filepath.Join(dir, lock.FileName)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.LockNotAFile, "replace it by a regular file, or delete it and let the companion write it anew",
			"%s is not a regular file", lock.FileName)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, lock.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", lock.FileName, err)
	}
	return data, nil
}
