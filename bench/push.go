package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// What one flush may ask for: of the registry the tag's new digest, once, and for each branch where the image comes from,
// which those at work at the same time do not share; of a Git server, for each branch, its refs twice and the push.
const (
	maxLooks, maxReads = 1, 3
	maxGitRequests     = 3
)

// pushed times the way from a flush at the companion to the commit on the Git server, for one image that more and more
// Applications have, each with a lock of its own, in one repository and in ten.
func (b *bench) pushed(ctx context.Context) ([]row, error) {
	sizes := []struct{ apps, repos int }{{1, 1}, {100, 1}, {1000, 1}, {10, 10}, {100, 10}, {1000, 10}}
	if b.colds == 1 {
		sizes = sizes[:2]
	}
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	own := pushMany(reg.Registry, reg.Host, 1000) // no two locks are alike
	var fleets []*fleet
	var pushes []*flushes
	for i, s := range sizes {
		repo := fmt.Sprintf("acme/server-%d", i)
		reg.Push(repo, image.DefaultTag)
		ref := image.Ref{Registry: reg.Host, Repository: repo, Tag: image.DefaultTag}
		f, err := b.newFleet(ctx, reg, shape{
			apps: s.apps, repos: s.repos, refs: func(app int) []image.Ref { return []image.Ref{ref, own[app]} }, companion: []string{"--quiet-window=0"},
		})
		if err != nil {
			return nil, err
		}
		defer f.stop()
		fleets = append(fleets, f)
		pushes = append(pushes, &flushes{bench: b, fleet: f, reg: reg, ref: ref})
	}
	for round := range b.runs {
		for i := range pushes {
			if err := pushes[(i+round)%len(pushes)].once(ctx); err != nil {
				return nil, err
			}
		}
	}
	var rows []row
	for i, p := range pushes {
		base := pushes[0]
		if fleets[i].repos > 1 {
			base = pushes[slices.IndexFunc(fleets, func(f *fleet) bool { return f.repos > 1 })]
		}
		rows = append(rows, p.row(base.times))
		if s := sizes[i]; s.repos == 1 && (i+1 == len(sizes) || sizes[i+1].repos > 1) {
			git, err := p.byGit(ctx)
			if err != nil {
				return nil, err
			}
			git.Base = base.times
			rows = append(rows, git)
		}
	}
	return rows, nil
}

// crowded times the same where more images are in use than the registry's rate lets a resolver keep fresh: what was flushed
// must not wait for the others.
func (b *bench) crowded(ctx context.Context) ([]row, error) {
	apps, each, qps := 1000, 10, 50
	if b.colds == 1 {
		apps = 50
	}
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	pins := make([]lock.Pin, apps*each)
	for i := range pins {
		ref := image.Ref{Registry: reg.Host, Repository: fmt.Sprintf("acme/team/application-%05d/server", i), Tag: image.DefaultTag}
		pins[i] = lock.Pin{Image: ref.String(), Digest: reg.Push(ref.Repository, ref.Tag), ResolvedAt: time.Now().UTC()}
	}
	f, err := b.newFleet(ctx, reg, shape{
		apps: apps, repos: 1, companion: []string{"--quiet-window=0", "--interval=60s"}, resolver: []string{"--ttl=60s", fmt.Sprintf("--registry-qps=%d", qps)},
		locked: func(app int) []lock.Pin { return pins[app*each : (app+1)*each] },
	})
	if err != nil {
		return nil, err
	}
	defer f.stop()
	r := row{
		Name: fmt.Sprintf("flush to commit: %d images in one repository, %d looks a second allowed, TTL 60 s", len(pins), qps), Aim: "seconds",
	}
	p := &flushes{bench: b, fleet: f, reg: reg}
	for i := range min(b.runs, 12) {
		if p.ref, err = image.Parse(pins[i*7919%len(pins)].Image); err != nil {
			return nil, err
		}
		time.Sleep(time.Duration(i%4) * time.Second) // into a cycle, and after it
		if err := p.once(ctx); err != nil {
			return nil, err
		}
	}
	r.Millis = p.times
	sorted := slices.Sorted(slices.Values(p.times))
	r.Facts = fmt.Sprintf("at most %.1f s; all images take %d s", sorted[len(sorted)-1]/1000, len(pins)/qps)
	return []row{r}, nil
}

// byGit times what a script would do for the same commit. It ends the fleet's rounds: its locks have another comment.
func (p *flushes) byGit(ctx context.Context) (row, error) {
	r := row{Name: fmt.Sprintf("%d locks by git clone --depth 1, commit and push", p.fleet.apps)}
	for i := range p.colds {
		dir, err := os.MkdirTemp(p.dir, "clone")
		if err != nil {
			return r, err
		}
		start := time.Now()
		if err := p.git(ctx, nil, "clone", "--quiet", "--depth=1", p.fleet.host.url+"/0.git", dir); err != nil {
			return r, err
		}
		for app := range p.fleet.apps {
			file := filepath.Join(dir, overlayPath(app), lock.FileName)
			if err := os.WriteFile(file, fmt.Appendf(nil, "# %d %d\n", i, app), 0o600); err != nil {
				return r, err
			}
		}
		for _, args := range [][]string{{"commit", "--quiet", "--all", "--message=build: update"}, {"push", "--quiet", "origin", "main"}} {
			if err := p.git(ctx, nil, append([]string{"-C", dir}, args...)...); err != nil {
				return r, err
			}
		}
		r.Millis = append(r.Millis, millis(time.Since(start)))
		if err := os.RemoveAll(dir); err != nil {
			return r, err
		}
	}
	return r, nil
}

// flushes are what was measured of one fleet.
type flushes struct {
	*bench
	fleet *fleet
	reg   *registrytest.Server
	ref   image.Ref

	times                                 []float64
	looks, reads, commits, requests, size int
}

// once pushes an image, flushes it at the companion, and times until all branches have moved.
func (p *flushes) once(ctx context.Context) error {
	time.Sleep(gap)
	p.reg.Push(p.ref.Repository, p.ref.Tag)
	p.reg.ResetCounts()
	before, requests, size := p.fleet.tips(), p.fleet.host.requests.Load(), p.fleet.host.bytes.Load()
	done := make(chan error, 1)
	start := time.Now()
	commits := 0
	go func() {
		answer, err := p.fleet.companion.client.Flush(ctx, []string{p.ref.String()})
		commits = len(answer.Commits)
		done <- err
	}()
	err := p.fleet.moved(ctx, before)
	p.times = append(p.times, millis(time.Since(start)))
	if flushed := <-done; err == nil {
		err = flushed
	}
	if err != nil {
		return fmt.Errorf("%d Applications: %w", p.fleet.apps, err)
	}
	n := p.reg.Counts()
	p.commits += commits
	p.looks, p.reads = max(p.looks, n.Head), max(p.reads, n.Get)
	p.requests += int(p.fleet.host.requests.Load() - requests)
	p.size += int(p.fleet.host.bytes.Load() - size)
	return nil
}

func (p *flushes) row(base []float64) row {
	rounds := len(p.times)
	sorted := slices.Sorted(slices.Values(p.times))
	_, peak, _ := p.fleet.companion.rss() // 0 on systems without /proc
	r := row{
		Name:   fmt.Sprintf("flush to commit: %d Applications, %d repositories", p.fleet.apps, p.fleet.repos),
		Millis: p.times, Base: base, Aim: "≤ 1.5",
		Facts: fmt.Sprintf("p99 %.0f ms; a flush: %d HEAD and %d GET at the registry, %.1f commits, %.1f requests and %.1f KiB over Git for each; companion at most %.0f MiB",
			sorted[(rounds-1)*99/100], p.looks, p.reads, float64(p.commits)/float64(rounds), float64(p.requests)/float64(rounds*p.fleet.repos),
			float64(p.size)/float64(rounds*p.fleet.repos)/1024, peak),
	}
	if p.looks > maxLooks || p.reads > maxReads*p.fleet.repos || p.commits != rounds*p.fleet.repos || p.requests > rounds*p.fleet.repos*maxGitRequests {
		p.broken = append(p.broken, fmt.Sprintf("%s: %s; at most %d HEAD, and for each of %d commits %d GET and %d requests promised",
			r.Name, r.Facts, maxLooks, p.fleet.repos, maxReads, maxGitRequests))
	}
	return r
}
