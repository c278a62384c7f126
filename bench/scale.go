package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/digestlock/digestlock/internal/api"
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
	pins, err := b.pins(ctx, name, f)
	return []row{ours, theirs, pins}, err
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

// pins times the answer that each cycle begins with: as a whole, when nothing has changed since, and both as a companion
// reads them.
func (b *bench) pins(ctx context.Context, name string, f *fleet) (row, error) {
	r := row{Name: name + ": the resolver's ledger, GET /v1/pins", Aim: "304 when nothing is new"}
	var short, read, again []float64
	var full, unchanged ledger
	for range b.runs {
		var err error
		if full, err = f.ledger(ctx, ""); err != nil {
			return r, err
		}
		if unchanged, err = f.ledger(ctx, full.tag); err != nil {
			return r, err
		}
		r.Millis, short = append(r.Millis, millis(full.took)), append(short, millis(unchanged.took))
		client, err := api.NewClient("http://"+f.resolver.address, fleetToken)
		if err != nil {
			return r, err
		}
		for _, times := range []*[]float64{&read, &again} {
			start := time.Now()
			if _, err := client.Pins(ctx); err != nil {
				return r, err
			}
			*times = append(*times, millis(time.Since(start)))
		}
		client.Close()
	}
	now, peak, _ := f.resolver.rss() // 0 on systems without /proc
	r.Facts = fmt.Sprintf("%.0f KiB, read by a companion in %.1f ms; nothing new: %d with %d bytes in %.1f ms, %.1f ms; resolver's RSS %.0f MiB, at most %.0f",
		float64(full.size)/1024, median(read), unchanged.status, unchanged.size, median(short), median(again), now, peak)
	if unchanged.status != http.StatusNotModified || unchanged.size > 0 {
		b.broken = append(b.broken, r.Name+": "+r.Facts)
	}
	return r, nil
}

// ledger is how a resolver answered.
type ledger struct {
	status int
	tag    string
	size   int64
	took   time.Duration
}

// ledger asks the resolver for its ledger, unless that is the one of that tag.
func (f *fleet) ledger(ctx context.Context, tag string) (ledger, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.resolver.address+"/v1/pins", nil)
	if err != nil {
		return ledger{}, err
	}
	req.Header.Set("Authorization", "Bearer "+fleetToken)
	if tag != "" {
		req.Header.Set("If-None-Match", tag)
	}
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ledger{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	size, err := io.Copy(io.Discard, resp.Body)
	return ledger{resp.StatusCode, resp.Header.Get("ETag"), size, time.Since(start)}, err
}
