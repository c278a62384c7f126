package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/api/types"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/remotebase"
)

// remotes is what a build fetches. Kustomize would start git for a base; instead the disk serves a kustomization that
// names a directory below tmp, to which the base was fetched. Files it fetches itself, through web.
type remotes struct {
	tmp   string // without links
	bases map[string]remotebase.Base
	base  func(entry string) (remotebase.Base, error)
	file  func(address string, max int64) ([]byte, error)
	wait  func() // until nothing is written below tmp any more, once the build's context is done
}

func newRemotes(ctx context.Context, c *remotebase.Client, tmp string) (*remotes, error) {
	tmp, err := filepath.EvalSymlinks(tmp)
	if err != nil {
		return nil, err
	}
	var busy sync.Mutex
	return &remotes{
		tmp: tmp, bases: map[string]remotebase.Base{},
		base: func(entry string) (remotebase.Base, error) {
			busy.Lock()
			defer busy.Unlock()
			return c.Base(ctx, entry, tmp)
		},
		file: func(address string, max int64) ([]byte, error) { return c.File(ctx, address, max) },
		wait: func() {
			busy.Lock()
			defer busy.Unlock()
		},
	}, nil
}

// serve returns what krusty is to read of a kustomization: its own bytes, or what the parameters made of it, with each
// remote base replaced by where it is now. In what was fetched, no base may be outside of its own repository: krusty sees to its files only.
func (d *disk) serve(f file) ([]byte, error) {
	data := f.data
	if edited, ok := d.edited[f.name]; ok {
		data = edited
	}
	var k types.Kustomization
	if d.remotes == nil || k.Unmarshal(data) != nil { // krusty says what is wrong with it
		return data, nil
	}
	if d.helm && d.rootOf(f.name) != d.root && len(k.HelmCharts)+len(k.HelmChartInflationGenerator) > 0 {
		return nil, fault.New(fault.RemoteBase, "copy the base and its chart into this repository", "%s: helm inflates no chart of a remote base", f.name)
	}
	fetched := false
	//lint:ignore SA1019 old overlays have bases, and they are fetched like resources
	for _, entries := range [][]string{k.Resources, k.Bases, k.Components, k.Generators, k.Transformers, k.Validators} {
		for i, entry := range entries {
			local, err := d.local(f, entry)
			if err != nil {
				return nil, fault.New(fault.CodeOf(err), fault.Hint(err), "%s: %w", f.where(entry), err)
			}
			entries[i], fetched = local, fetched || local != entry
		}
	}
	if !fetched {
		return data, nil
	}
	return json.Marshal(k)
}

// local returns the path of a remote base from f, and any other entry as it is.
func (d *disk) local(f file, entry string) (string, error) {
	dir := filepath.Dir(f.name)
	b, err := d.remotes.base(entry)
	switch {
	case err == nil:
		d.remotes.bases[b.Root], d.seen.beyond = b, true
		return filepath.Rel(dir, filepath.Join(b.Root, b.Path))
	case !errors.Is(err, remotebase.ErrNotListed):
		return "", err
	}
	// An entry of several lines is no path.
	if root := d.rootOf(dir); root != d.root && !strings.Contains(entry, "\n") && !holds(root, filepath.Join(dir, entry)) {
		return "", fault.New(fault.OutsideRepository, "a remote base may use what is in its own repository", "%w", errOutside)
	}
	return entry, nil
}

// where returns the entry with its file and line, without secrets.
func (f file) where(entry string) string {
	var n yaml.Node
	line := 0
	if yaml.Unmarshal(f.data, &n) == nil {
		scalars(&n, func(s *yaml.Node) {
			if s.Value == entry {
				line = s.Line
			}
		})
	}
	if line == 0 { // of a parameter
		return withoutSecrets(entry)
	}
	return fmt.Sprintf("in %s:%d: %s", f.name, line, withoutSecrets(entry))
}

// web is the network as krusty's loader sees it: one that answers with files, or with nothing.
type web struct{ *disk }

func (w web) RoundTrip(req *http.Request) (*http.Response, error) {
	if w.remotes == nil {
		return nil, errRemote
	}
	w.seen.beyond = true
	address := req.URL.String()
	data, err := w.remotes.file(address, w.limits.file)
	if errors.Is(err, remotebase.ErrNotListed) {
		return nil, errRemote
	}
	address = withoutSecrets(address)
	if err == nil {
		if err = w.take(address, int64(len(data))); err == nil {
			err = w.expand(address, data)
		}
		if err == nil && w.helm {
			err = file{address, data}.hiddenChart()
		}
	} else if entry := w.lastEntry(address); entry != "" {
		err = fault.New(fault.CodeOf(err), fault.Hint(err), "%s: %w", entry, err)
	}
	if err != nil {
		w.refuse(err) // krusty would go on and try the address as a repository
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req,
		Body: io.NopCloser(bytes.NewReader(data)), ContentLength: int64(len(data)),
	}, nil
}

// named replaces the paths of fetched bases in text by the repositories that they come from. It works on nil.
func (r *remotes) named(text string) string {
	if r == nil {
		return text
	}
	for root, b := range r.bases {
		at := regexp.QuoteMeta(filepath.Join(filepath.Base(r.tmp), filepath.Base(root)))
		text = regexp.MustCompile(`[^\s'"()\[\]]*\b`+at+`\b`).ReplaceAllLiteralString(text, b.Repository)
	}
	return text
}

// origins makes the annotations of "buildMetadata" name the repository that an object comes from, as those of kustomize
// do, and not where its files lie.
func (d *disk) origins(m resmap.ResMap) error {
	if d.remotes == nil || len(d.remotes.bases) == 0 {
		return nil
	}
	for _, r := range m.Resources() {
		// What is there and is no origin, the user wrote.
		if o, err := r.GetOrigin(); err == nil && o != nil && d.remotes.home(o) {
			if err := r.SetOrigin(o); err != nil {
				return err
			}
		}
		list, err := r.GetTransformations()
		moved := false
		for _, o := range list {
			moved = d.remotes.home(o) || moved
		}
		if err != nil || !moved {
			continue
		}
		if err := r.ClearTransformations(); err != nil {
			return err
		}
		for _, o := range list {
			if err := r.AddTransformation(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// home reports whether o is a file of a fetched base, and makes it one of its repository.
func (r *remotes) home(o *resource.Origin) bool {
	for _, path := range []*string{&o.Path, &o.ConfiguredIn} {
		for root, b := range r.bases {
			mark := filepath.Join(filepath.Base(r.tmp), filepath.Base(root)) + "/"
			if _, rest, ok := strings.Cut(*path, mark); ok {
				*path, o.Repo, o.Ref = rest, b.Repository, b.Ref
				return true
			}
		}
	}
	return false
}
