package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

const (
	// atOnce is how much a companion has under way with one Git server.
	atOnce = 8
	// maxIdleRequests is what a cycle without a change asks for, per branch: where its refs are.
	maxIdleRequests = 1
)

// scale looks at a resolver and a companion with a large fleet when nothing happens, beside what git itself takes to ask
// as many repositories where their branches are.
func (b *bench) scale(ctx context.Context) ([]row, error) {
	sizes := []struct{ apps, repos, refs int }{{1000, 1, 10}, {1000, 200, 1}}
	if b.colds == 1 {
		sizes = []struct{ apps, repos, refs int }{{50, 1, 10}, {20, 10, 1}}
	}
	var rows []row
	for _, s := range sizes {
		reg := registrytest.Listen(registrytest.New())
		refs := pushMany(reg.Registry, reg.Host, s.apps*s.refs)
		f, err := b.newFleet(ctx, reg, shape{apps: s.apps, repos: s.repos, refs: func(app int) []image.Ref { return refs[app*s.refs : (app+1)*s.refs] }})
		if err != nil {
			reg.Close()
			return rows, err
		}
		more, err := b.idle(ctx, f, refs)
		f.stop()
		reg.Close()
		rows = append(rows, more...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// idle times cycles that find nothing to do, git ls-remote, and the resolver's ledger.
func (b *bench) idle(ctx context.Context, f *fleet, refs []image.Ref) ([]row, error) {
	name := fmt.Sprintf("%d sources, %d references, %d repositories", f.apps, len(refs), f.repos)
	ours, theirs := row{Name: name + ": a cycle with nothing to do"}, row{Name: "the same repositories, git ls-remote, 8 at a time"}
	before := f.tips()
	requests := 0
	for range b.runs {
		start := f.host.requests.Load()
		took, err := f.wake(ctx, refs[0])
		if err != nil {
			return nil, err
		}
		ours.Millis = append(ours.Millis, millis(took))
		requests = max(requests, int(f.host.requests.Load()-start))
		if took, err = b.listAll(ctx, f); err != nil {
			return nil, err
		}
		theirs.Millis = append(theirs.Millis, millis(took))
	}
	ours.Base, theirs.Base = theirs.Millis, theirs.Millis
	now, peak, _ := f.companion.rss() // 0 on systems without /proc
	ours.Facts = fmt.Sprintf("%.1f requests to the Git server for each repository; companion's RSS %.0f MiB, at most %.0f", float64(requests)/float64(f.repos), now, peak)
	if !slices.Equal(before, f.tips()) || requests > maxIdleRequests*f.repos {
		b.broken = append(b.broken, fmt.Sprintf("%s: %s, branches unmoved %v; one request for each promised", ours.Name, ours.Facts, slices.Equal(before, f.tips())))
	}
	pins, err := f.pins(ctx, b.runs)
	if err != nil {
		return nil, err
	}
	pins.Name = name + ": the resolver's ledger, GET /v1/pins"
	return []row{ours, theirs, pins}, nil
}

// wake flushes an image that stands where it stood, and returns how long the cycle took that this began.
func (f *fleet) wake(ctx context.Context, ref image.Ref) (time.Duration, error) {
	time.Sleep(gap)
	start := time.Now()
	if _, err := f.companion.client.Flush(ctx, []string{ref.String()}); err != nil {
		return 0, err
	}
	return f.companion.cycle(ctx, start)
}

func (b *bench) listAll(ctx context.Context, f *fleet) (time.Duration, error) {
	errs := make([]error, f.repos)
	start := time.Now()
	every(atOnce, f.repos, func(i int) {
		errs[i] = b.git(ctx, nil, "ls-remote", fmt.Sprintf("%s/%d.git", f.host.url, i), "refs/heads/main")
	})
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

// pins times the answer that each cycle begins with.
func (f *fleet) pins(ctx context.Context, runs int) (row, error) {
	r := row{}
	size := int64(0)
	for range runs {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.resolver.address+"/v1/pins", strings.NewReader(""))
		if err != nil {
			return r, err
		}
		req.Header.Set("Authorization", "Bearer "+fleetToken)
		start := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return r, err
		}
		size, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return r, err
		}
		r.Millis = append(r.Millis, millis(time.Since(start)))
	}
	now, peak, _ := f.resolver.rss() // 0 on systems without /proc
	r.Facts = fmt.Sprintf("%.0f KiB; resolver's RSS %.0f MiB, at most %.0f", float64(size)/1024, now, peak)
	return r, nil
}
