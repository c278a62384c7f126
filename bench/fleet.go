package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registrytest"
)

const (
	fleetToken = "bench"
	// gap is more than a companion leaves between the end of a cycle and one that somebody asked for.
	gap = 600 * time.Millisecond
	// patience is with whatever has to come, on a machine that does other things too.
	patience = 5 * time.Minute
)

// fleet is a resolver, a companion, and the repositories that they keep the locks of, each Application with a path and a
// lock of its own.
type fleet struct {
	apps, repos         int
	host                *gitHost
	dirs                []string // of the bare repositories
	resolver, companion *process
}

// shape is what a fleet is made of.
type shape struct {
	apps, repos         int
	refs                func(app int) []image.Ref // that are rendered
	locked              func(app int) []lock.Pin  // that are rendered in their place, without a look at the registry; nil for none
	resolver, companion []string                  // flags besides
}

// newFleet starts all of it. It returns once every lock is committed.
func (b *bench) newFleet(ctx context.Context, reg *registrytest.Server, s shape) (*fleet, error) {
	f := &fleet{apps: s.apps, repos: s.repos}
	root, err := os.MkdirTemp(b.dir, "fleet")
	if err != nil {
		return nil, err
	}
	token := filepath.Join(root, "token")
	if err := os.WriteFile(token, []byte(fleetToken), 0o600); err != nil {
		return nil, err
	}
	if f.host, err = b.serveGit(root); err != nil {
		return nil, err
	}
	// A TTL that does not end keeps what a refresh asks for out of what a push costs.
	if f.resolver, err = b.startResolver(ctx, reg.Host, slices.Concat([]string{"--token-file=" + token, "--ttl=24h"}, s.resolver)...); err != nil {
		return nil, err
	}
	args := slices.Concat([]string{"--interval=24h", "--resolver=http://" + f.resolver.address, "--resolver-token-file=" + token, "--token-file=" + token}, s.companion)
	for i := range f.repos {
		name := fmt.Sprintf("%d.git", i)
		dir := filepath.Join(root, name)
		if err := b.overlays(ctx, dir, f.apps/f.repos); err != nil {
			return nil, err
		}
		f.dirs = append(f.dirs, dir)
		args = append(args, "--repo="+f.host.url+"/"+name+"@main")
	}
	if err := f.render(ctx, s); err != nil {
		return nil, err
	}
	before := f.tips()
	if f.companion, err = b.startCompanion(ctx, args); err != nil {
		return nil, err
	}
	if err := f.moved(ctx, before); err != nil {
		return nil, fmt.Errorf("%d Applications: no first commit: %w", f.apps, err)
	}
	return f, nil
}

func (f *fleet) stop() {
	for _, p := range []*process{f.companion, f.resolver} {
		if p != nil {
			p.stop()
		}
	}
	f.host.stop()
}

// overlays makes a bare repository of so many overlays without a lock.
func (b *bench) overlays(ctx context.Context, dir string, n int) error {
	if err := b.git(ctx, nil, "init", "--quiet", "--bare", "--initial-branch=main", dir); err != nil {
		return err
	}
	for _, setting := range []string{"http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"} {
		if err := b.git(ctx, nil, "-C", dir, "config", setting, "true"); err != nil {
			return err
		}
	}
	var s bytes.Buffer
	s.WriteString("commit refs/heads/main\ncommitter bench <bench@example.com> 1700000000 +0000\ndata 5\nfirst\n")
	for i := range n {
		fmt.Fprintf(&s, "M 100644 inline %s/kustomization.yaml\ndata 14\nresources: []\n\n", overlayPath(i))
	}
	return b.git(ctx, &s, "-C", dir, "fast-import", "--quiet")
}

func overlayPath(i int) string { return fmt.Sprintf("apps/app-%04d/overlays/dev", i) }

// render reports each Application to the resolver, as its first render would.
func (f *fleet) render(ctx context.Context, s shape) error {
	errs := make([]error, f.apps)
	every(askers, f.apps, func(i int) {
		repo := i % f.repos
		var refs []image.Ref
		var locked []lock.Pin
		if s.locked != nil {
			locked = s.locked(i)
		} else {
			refs = s.refs(i)
		}
		var results []image.Resolution
		results, errs[i] = f.resolver.client.Resolve(ctx, &lock.Source{
			Project: "default", Application: fmt.Sprintf("app-%04d", i), Repository: fmt.Sprintf("%s/%d.git", f.host.url, repo),
			TargetRevision: "main", Path: overlayPath(i / f.repos), Mode: "follow", Revision: "0123456789abcdef0123456789abcdef01234567",
		}, locked, refs)
		for _, r := range results {
			if r.Err != nil {
				errs[i] = r.Err
			}
		}
	})
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// every calls f for 0 to n-1, some at a time.
func every(atOnce, n int, f func(i int)) {
	var wg sync.WaitGroup
	for a := range atOnce {
		wg.Go(func() {
			for i := a; i < n; i += atOnce {
				f(i)
			}
		})
	}
	wg.Wait()
}

// tips returns where the branches are, as the server sees it.
func (f *fleet) tips() []string {
	tips := make([]string, len(f.dirs))
	for i, dir := range f.dirs {
		data, err := os.ReadFile(filepath.Join(dir, "refs/heads/main"))
		if err != nil {
			continue // between two names
		}
		tips[i] = string(data)
	}
	return tips
}

// moved waits until each branch is elsewhere than it was.
func (f *fleet) moved(ctx context.Context, before []string) error {
	for deadline := time.Now().Add(patience); ; {
		waits := 0
		for i, tip := range f.tips() {
			if tip == before[i] || tip == "" {
				waits++
			}
		}
		switch {
		case waits == 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("%d branches have not moved", waits)
		}
		time.Sleep(time.Millisecond)
	}
}

// startCompanion starts a companion and waits until its first cycle has ended.
func (b *bench) startCompanion(ctx context.Context, args []string) (*process, error) {
	p := &process{address: registrytest.FreeAddress()}
	var err error
	if p.client, err = api.NewClient("http://"+p.address, fleetToken); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.program("digestlock-companion"), append(args, "--listen="+p.address, "--log-level=warn")...)
	if err := p.start(b, cmd); err != nil {
		return nil, err
	}
	if _, err := p.cycle(ctx, time.Time{}); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// cycle returns how long the companion's last cycle took, once that is one that began after the given time.
func (p *process) cycle(ctx context.Context, after time.Time) (took time.Duration, err error) {
	for deadline := time.Now().Add(patience); ctx.Err() == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var began time.Time
		if began, took, err = p.status(ctx); err == nil && began.After(after) {
			return took, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("digestlock-companion: no cycle has ended within %v", patience)
	}
	return 0, err
}

// status returns when a companion's last cycle began and how long it took, zero before the first, and an error for
// problems that it had.
func (p *process) status(ctx context.Context) (began time.Time, took time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+api.StatusPath, nil)
	if err != nil {
		return began, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+fleetToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return began, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var status struct {
		Began, Ended time.Time
		Problems     []string
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return began, 0, err
	}
	if len(status.Problems) > 0 {
		return began, 0, fmt.Errorf("companion: %s", strings.Join(status.Problems, "; "))
	}
	return status.Began, status.Ended.Sub(status.Began), nil
}
