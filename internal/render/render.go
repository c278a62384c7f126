// Package render runs kustomize build inside this process. It is the only package that knows krusty.
//
// One build at a time: krusty keeps the OpenAPI schema in process-wide variables, so concurrent builds race, and one
// build's custom schema changes the next unless that begins with a reset (measured with v0.21.2: 120 silently wrong
// outputs). Who is tempted to keep a process warm for Argo CD's renders: that would be 1.2 times faster in sum (measured over 900 real overlays), and 32 of them came out
// different after one with a custom schema.
package render

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/openapi"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/remotebase"
)

// KustomizeVersion is the release of the kustomize CLI whose output this package gives. The module behind it is
// kustomize/api v0.21.2. Builds set it in the binary, see the Makefile, because buildMetadata: [managedByLabel]
// prints it.
const KustomizeVersion = "v5.8.2"

// errRemote is what a kustomization gets for naming anything outside its repository.
var errRemote = errors.New("names a remote base or file")

// Output is what one build rendered, or one [Read] found. It is not safe for concurrent use.
type Output struct {
	objects        []*yaml.Node
	encode         func() ([]byte, error)
	configurations map[string][]byte
	inputs         *Inputs
	maxBytes       int
}

// Build renders the kustomization in dir as "kustomize build" does: files below their kustomization only, no plugins,
// no exec, no containers, nothing over the network but by o.Remote, and nothing outside of the repository (see jail). It
// changes process-wide state while it runs (see guard), so that a process does little else meanwhile; two calls never overlap.
//
// Build honours ctx by returning early; krusty itself cannot be stopped, so that the caller is expected to end the
// process then. Errors carry a hint where there is one.
func Build(ctx context.Context, dir string, o Options) (*Output, error) {
	return buildWithin(ctx, dir, o, usual)
}

// Options are what a build does beside "kustomize build". The zero value is nothing.
type Options struct {
	Edits  Edits
	Helm   Helm
	Remote *remotebase.Client // fetches bases and files from elsewhere, for one build; nil refuses them
}

func buildWithin(ctx context.Context, dir string, o Options, l limits) (*Output, error) {
	if err := hasKustomization(dir); err != nil {
		return nil, err
	}
	dir, err := realPath(dir)
	if err != nil {
		return nil, err
	}
	d := newDisk(jail(dir), l)
	d.helm = o.Helm.Command != ""
	tmp := ""
	if o.Remote != nil || d.helm { // nothing else leaves files, and a directory is one of a small render's 20 ms
		// Where none can be made, on a read-only file system, helm can leave nothing behind either.
		if tmp, err = os.MkdirTemp("", "digestlock-render-"); err == nil {
			defer func() { _ = os.RemoveAll(tmp) }()
		}
	}
	if o.Remote != nil {
		if err != nil {
			return nil, fault.New(fault.FileUnreadable, "mount a writable directory for temporary files, where remote bases are allowed", "%w", err)
		}
		if d.remotes, err = newRemotes(ctx, o.Remote, tmp); err != nil {
			return nil, err
		}
		defer d.remotes.wait()
	}
	if !o.Edits.None() {
		if err := d.apply(o.Edits, dir); fault.CodeOf(err) == fault.Parameter {
			return nil, err
		} else if err != nil {
			return nil, explain(err, dir, d)
		}
	}
	type result struct {
		m   resmap.ResMap
		err error
	}
	done := make(chan result, 1)
	go func() {
		m, err := guarded(d, dir, tmp, o.Helm)
		done <- result{m, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, explain(r.err, dir, d)
		}
		if err := d.origins(r.m); err != nil {
			return nil, err
		}
		return &Output{objects: objects(r.m), encode: func() ([]byte, error) { return encode(r.m) }, configurations: d.configurations, inputs: d.inputs(dir, o), maxBytes: l.output}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("kustomize build: %w", context.Cause(ctx))
	}
}

func objects(m resmap.ResMap) []*yaml.Node {
	nodes := make([]*yaml.Node, 0, m.Size())
	for _, r := range m.Resources() {
		nodes = append(nodes, r.YNode())
	}
	return nodes
}

// Objects returns the objects, in output order. Changes to a scalar's value show in YAML.
func (o *Output) Objects() []*yaml.Node { return o.objects }

// YAML returns the objects as one multi-document stream: the bytes "kustomize build" prints, or those that were read.
func (o *Output) YAML() ([]byte, error) {
	data, err := o.encode()
	if err == nil && len(data) > o.maxBytes {
		return nil, fault.New(fault.TooLarge, "render less at once: split the overlay into several Applications",
			"the overlay renders %d bytes, %d are the limit", len(data), o.maxBytes)
	}
	return data, err
}

// encode is the ResMap's AsYaml with as many objects at a time as there are processors: that is a third of a render.
func encode(m resmap.ResMap) ([]byte, error) {
	all := m.Resources()
	docs := make([][]byte, len(all))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, r := range all {
		g.Go(func() (err error) {
			docs[i], err = r.AsYAML()
			return err
		})
	}
	if g.Wait() != nil {
		return m.AsYaml() // says of which object
	}
	return bytes.Join(docs, []byte("---\n")), nil
}

// realPath returns dir as krusty names it in its errors.
func realPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func hasKustomization(dir string) error {
	const hint = "give the directory that holds the kustomization"
	info, err := os.Stat(dir)
	if err != nil {
		return fault.New(fault.NoKustomization, hint, "%w", err)
	}
	if !info.IsDir() {
		return fault.New(fault.NoKustomization, hint, "%s is not a directory", dir)
	}
	names := konfig.RecognizedKustomizationFileNames()
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil
		}
	}
	return fault.New(fault.NoKustomization, "point the Application's path at a kustomize overlay, or add a kustomization.yaml",
		"no %s in %s", strings.Join(names, ", "), dir)
}

var building sync.Mutex

func guarded(d *disk, dir, tmp string, helm Helm) (m resmap.ResMap, err error) {
	building.Lock()
	defer building.Unlock()
	defer guard(tmp, web{d})()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("kustomize panicked: %v", p)
		}
	}()
	openapi.ResetOpenAPI()           // what another build's custom schema left, which would change this one
	o := krusty.MakeDefaultOptions() // RootOnly, no plugins, no functions, no helm
	o.PluginConfig.HelmConfig = helm.config()
	o.Reorder = krusty.ReorderOptionUnspecified
	m, err = krusty.MakeKustomizer(o).Run(d, dir)
	if d.refused != nil {
		return nil, d.refused
	}
	return m, err
}

// guard closes what krusty offers no option for and returns the function that opens it again: its loader fetches
// http(s) through http.DefaultTransport, which becomes network, and Git bases by starting whatever "git" PATH names, and its deprecation
// notices go straight to os.Stderr and the standard logger, where Argo CD would show them in front of an error. Its
// temporary files go below tmp unless that is "".
func guard(tmp string, network http.RoundTripper) (restore func()) {
	transport, stderr, logTo := http.DefaultTransport, os.Stderr, log.Writer()
	http.DefaultTransport = network
	restorePath, restoreTmp := setenv("PATH", ""), func() {}
	if tmp != "" {
		restoreTmp = setenv("TMPDIR", tmp)
	}
	log.SetOutput(io.Discard)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err == nil {
		os.Stderr = null
	}
	return func() {
		http.DefaultTransport, os.Stderr = transport, stderr
		log.SetOutput(logTo)
		restorePath()
		restoreTmp()
		if null != nil {
			_ = null.Close()
		}
	}
}

func setenv(key, value string) (restore func()) {
	old, had := os.LookupEnv(key)
	_ = os.Setenv(key, value)
	return func() {
		_ = os.Unsetenv(key)
		if had {
			_ = os.Setenv(key, old)
		}
	}
}
