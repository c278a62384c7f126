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
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/pin"
	"github.com/digestlock/digestlock/internal/render"
)

// Resolver answers with the digest of each reference, in the same order. A source, where given, is that of a render
// which is complete once all of refs are resolved; locked are the pins that its lock decided.
type Resolver interface {
	Resolve(ctx context.Context, source *lock.Source, locked []lock.Pin, refs []image.Ref) ([]image.Resolution, error)
}

// reportTimeout bounds the report of a render that needs nothing from the resolver: it is worth that much and no more.
const reportTimeout = 500 * time.Millisecond

// streamed is Argo CD's revision for a local diff: a tree that nobody committed, so that nothing of it is recorded.
const streamed = "streamed"

// Source returns what Argo CD says it renders, nil outside of Argo CD and for a local diff.
func Source(getenv func(string) string) *lock.Source {
	s := &lock.Source{
		Project:        getenv("ARGOCD_APP_PROJECT_NAME"),
		Application:    getenv("ARGOCD_APP_NAME"),
		Repository:     getenv("ARGOCD_APP_SOURCE_REPO_URL"),
		TargetRevision: getenv("ARGOCD_APP_SOURCE_TARGET_REVISION"),
		Path:           getenv("ARGOCD_APP_SOURCE_PATH"),
		Revision:       getenv("ARGOCD_APP_REVISION"),
	}
	if s.Repository == "" || s.Revision == "" || s.Revision == streamed {
		return nil
	}
	return s
}

// Summary counts what a render did, in distinct images.
type Summary struct {
	Pinned   int // images that carry a digest now
	Locked   int // of these, by the lock
	Resolved int // of these, by the resolver
	Stale    int // of the resolved, from an answer that could not be renewed
}

func (s Summary) String() string {
	return fmt.Sprintf("pinned=%d locked=%d resolved=%d stale=%d", s.Pinned, s.Locked, s.Resolved, s.Stale)
}

// Generate renders the overlay in dir and returns its manifests. All mutable references are pinned, or there is an
// error and no manifests. The resolver is needed only for images that the lock does not decide; source may be nil.
func Generate(ctx context.Context, dir string, s Settings, source *lock.Source, r Resolver) ([]byte, Summary, error) {
	locked, err := readLock(dir)
	if err != nil {
		return nil, Summary{}, err
	}
	out, err := render.Build(ctx, dir)
	if err != nil {
		return nil, Summary{}, err
	}
	objects := out.Objects()
	if len(objects) == 0 && !s.AllowEmpty {
		return nil, Summary{}, fault.New("give parameter allow-empty: \"true\" if that is what you want",
			"the overlay renders no objects, and Argo CD would delete what runs")
	}
	plan, err := pin.New(objects, s.Tags)
	if err != nil {
		return nil, Summary{}, err
	}
	digests, sum, err := decide(ctx, s.Mode, plan.Images(), locked, source, r)
	if err != nil {
		return nil, Summary{}, err
	}
	if err := plan.Apply(digests, s.PinFormat); err != nil {
		return nil, Summary{}, err
	}
	manifests, err := out.YAML()
	return manifests, sum, err
}

// decide finds the digest of each image: the lock first, then the resolver, in one batch.
func decide(ctx context.Context, mode Mode, refs []image.Ref, locked *lock.Document, source *lock.Source, r Resolver) (map[string]string, Summary, error) {
	digests := make(map[string]string, len(refs))
	var pins []lock.Pin
	var open []image.Ref
	for _, ref := range refs {
		p, ok := locked.Find(ref.String())
		if !ok {
			open = append(open, ref)
			continue
		}
		digests[ref.String()] = p.Digest
		pins = append(pins, p)
	}
	sum := Summary{Pinned: len(refs), Locked: len(pins), Resolved: len(open)}
	switch {
	case mode == Locked && len(open) > 0:
		return nil, sum, fault.New("render the overlay in mode follow so that the companion adds the pins, or commit "+lock.FileName+" by hand",
			"mode locked: %s has no pin for %s", lock.FileName, list(open))
	case mode == Locked:
	case len(open) == 0:
		report(ctx, source, pins, r)
	default:
		results, err := r.Resolve(ctx, source, pins, open)
		if err != nil {
			return nil, sum, fmt.Errorf("%s needs resolving: %w", list(open), err)
		}
		if err := failures(results); err != nil {
			return nil, sum, err
		}
		for _, res := range results {
			digests[res.Ref.String()] = res.Digest
			if res.Stale {
				sum.Stale++
			}
		}
	}
	return digests, sum, nil
}

// report tells the resolver's ledger about a render that was decided by its lock. The render is right without that,
// so that a resolver that is away or slow is none of its business.
func report(ctx context.Context, source *lock.Source, pins []lock.Pin, r Resolver) {
	if source == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, _ = r.Resolve(ctx, source, pins, nil)
}

// failures returns one error that lists every image without digest, so that people mend all of them in one go.
func failures(results []image.Resolution) error {
	var texts []string
	var hint string
	for _, r := range results {
		if r.Err == nil {
			continue
		}
		if hint == "" {
			hint = cmp.Or(fault.Hint(r.Err), remedy(r.Err))
		}
		texts = append(texts, r.Ref.String()+": "+r.Err.Error())
	}
	if len(texts) == 0 {
		return nil
	}
	return fault.New(hint, "%d of %d images not resolved: %s", len(texts), len(results), strings.Join(texts, "; "))
}

// remedy is the hint for a look-up that failed without one of its own.
func remedy(err error) string {
	switch {
	case errors.Is(err, image.ErrNotFound):
		return "push the image, or correct its name or tag; a private repository looks missing to a resolver without credentials for it"
	case errors.Is(err, image.ErrUnauthorized):
		return "give the resolver credentials that may pull the image"
	default:
		return "try again once the registry answers; an image that " + lock.FileName + " names needs no registry"
	}
}

func list(refs []image.Ref) string {
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}

// readLock returns the lock beside the overlay, nil when there is none. A link is refused: its target may be any
// file of the sidecar, and the error would show what is in it.
func readLock(dir string) (*lock.Document, error) {
	name := filepath.Join(dir, lock.FileName)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New("replace it by a regular file, or delete it and let the companion write it anew",
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
	return lock.Parse(lock.FileName, data)
}
