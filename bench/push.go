package main

import (
	"context"
	"errors"
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

// perHost is how many repositories of one host the companion works on at a time.
const perHost = 8

// pushed times the way from a flush at the companion to the commit on the Git server, for one image that more and more
// Applications have, each with a lock of its own, in one repository and in ten.
func (b *bench) pushed(ctx context.Context) ([]row, error) {
	sizes := []shape{{apps: 1, repos: 1}, {apps: 100, repos: 1}, {apps: 1000, repos: 1}, {apps: 10, repos: 10}, {apps: 100, repos: 10}, {apps: 1000, repos: 10}}
	if b.colds == 1 {
		sizes = sizes[:2]
	}
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	own := pushMany(reg.Registry, reg.Host, 1000) // no two locks are alike
	var pushes []*flushes
	for i, s := range sizes {
		repo := fmt.Sprintf("acme/server-%d", i)
		reg.Push(repo, image.DefaultTag)
		ref := image.Ref{Registry: reg.Host, Repository: repo, Tag: image.DefaultTag}
		s.refs, s.companion = func(app int) []image.Ref { return []image.Ref{ref, own[app]} }, []string{"--quiet-window=0"}
		f, err := b.newFleet(ctx, reg, s)
		if err != nil {
			return nil, err
		}
		defer f.stop()
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
		of := slices.IndexFunc(sizes, func(s shape) bool { return s.repos == sizes[i].repos }) // whose figures are the base
		all, alone, err := p.byGit(ctx)
		if err != nil {
			return nil, err
		}
		p.gitAlone = alone.Millis
		all.Base, alone.Base = pushes[of].times, pushes[of].gitAlone
		rows = append(rows, p.row(pushes[of].times), alone, all)
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

// byGit times what a script would do for commits of as many locks, and the part of it that is nobody's but Git's: the push, of
// several repositories at a time. It ends the fleet's rounds: its locks have another comment.
func (p *flushes) byGit(ctx context.Context) (all, alone row, err error) {
	locks := fmt.Sprintf("%d locks in %d repositories by git: ", p.fleet.apps, p.fleet.repos)
	all.Name, alone.Name = locks+"clone --depth 1, commit and push", locks+"the push alone"
	for round := range p.colds {
		dir, err := os.MkdirTemp(p.dir, "clone")
		if err != nil {
			return all, alone, err
		}
		start := time.Now()
		err = p.each(func(repo int) error { return p.commitByGit(ctx, filepath.Join(dir, fmt.Sprint(repo)), repo, round) })
		pushing := time.Now()
		err = errors.Join(err, p.each(func(repo int) error {
			return p.git(ctx, nil, "-C", filepath.Join(dir, fmt.Sprint(repo)), "push", "--quiet", "origin", "main")
		}))
		all.Millis, alone.Millis = append(all.Millis, millis(time.Since(start))), append(alone.Millis, millis(time.Since(pushing)))
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			return all, alone, err
		}
	}
	return all, alone, nil
}

// each calls f for the fleet's repositories, as many at a time as the companion works on at one host.
func (p *flushes) each(f func(repo int) error) error {
	errs := make([]error, p.fleet.repos)
	every(perHost, p.fleet.repos, func(repo int) { errs[repo] = f(repo) })
	return errors.Join(errs...)
}

// commitByGit clones a repository to dir and commits other locks.
func (p *flushes) commitByGit(ctx context.Context, dir string, repo, round int) error {
	if err := p.git(ctx, nil, "clone", "--quiet", "--depth=1", fmt.Sprintf("%s/%d.git", p.fleet.host.url, repo), dir); err != nil {
		return err
	}
	for app := range p.fleet.apps / p.fleet.repos {
		file := filepath.Join(dir, overlayPath(app), lock.FileName)
		if err := os.WriteFile(file, fmt.Appendf(nil, "# %d %d\n", round, app), 0o600); err != nil {
			return err
		}
	}
	return p.git(ctx, nil, "-C", dir, "commit", "--quiet", "--all", "--message=build: update")
}

// flushes are what was measured of one fleet.
type flushes struct {
	*bench
	fleet *fleet
	reg   *registrytest.Server
	ref   image.Ref

	times, gitAlone                       []float64
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
