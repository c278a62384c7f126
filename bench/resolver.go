package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

const (
	many      = 10_000 // references, in as many repositories; the default of --cache-size
	maxRSS    = 64.0   // MiB
	perAsk    = 1000   // references in one request, as a very large render asks
	refreshed = 1000   // references kept fresh
	askers    = 4
)

// memory fills a resolver's cache and reads what the process takes, as the system sees it.
func (b *bench) memory(ctx context.Context) ([]row, error) {
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	refs := pushMany(reg.Registry, reg.Host, many)
	p, err := b.startResolver(ctx, reg.Host)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	empty, _, err := p.rss()
	if err != nil {
		return []row{{Name: "resolver: memory", Facts: err.Error()}}, nil //nolint:nilerr // other systems have no /proc
	}
	var full, peak float64
	for range 3 { // once to fill it, twice as it goes on
		if _, err := p.resolve(ctx, refs); err != nil {
			return nil, err
		}
		if full, peak, err = p.rss(); err != nil {
			return nil, err
		}
	}
	heads := reg.Counts().Head
	if peak > maxRSS {
		b.broken = append(b.broken, fmt.Sprintf("resolver: %.0f MiB at %d references, at most %.0f promised", peak, many, maxRSS))
	}
	return []row{{
		Name: fmt.Sprintf("resolver: %d references", many),
		Facts: fmt.Sprintf("RSS %.1f MiB, at most %.1f, of which %.1f before the first; %.0f bytes a reference; %d HEAD",
			full, peak, empty, (full-empty)*(1<<20)/many, heads),
		Aim: fmt.Sprintf("≤ %.0f MiB", maxRSS),
	}}, nil
}

// remembered times requests for references that the resolver remembers, over its socket, as renders make them.
func (b *bench) remembered(ctx context.Context) ([]row, error) {
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	refs := pushMany(reg.Registry, reg.Host, images)
	p, err := b.startResolver(ctx, reg.Host, "--ttl=1h")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := p.resolve(ctx, refs); err != nil {
		return nil, err
	}
	reg.ResetCounts()
	before, err := p.mallocs(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	times, err := p.askAlike(ctx, refs, 30*b.runs)
	if err != nil {
		return nil, err
	}
	wall := time.Since(start)
	after, err := p.mallocs(ctx)
	if err != nil {
		return nil, err
	}
	asked := float64(len(times) * len(refs))
	slices.Sort(times)
	r := row{
		Name: fmt.Sprintf("resolver: %d remembered references a request, %d at a time, over the socket", images, askers), Millis: times,
		Facts: fmt.Sprintf("p99 %.1f ms, %.0f references/s, %.1f allocations a reference, %d requests to the registry",
			times[len(times)*99/100], asked/wall.Seconds(), (after-before)/asked, reg.Counts().Head),
		Aim: "0 requests to the registry",
	}
	if n := reg.Counts().Head; n > 0 {
		b.broken = append(b.broken, fmt.Sprintf("%s: %d requests to the registry", r.Name, n))
	}
	return []row{r}, nil
}

// refresh counts what it takes to keep references fresh at a registry that allows half as many requests again as that
// takes, and answers 429 to the rest.
func (b *bench) refresh(ctx context.Context) ([]row, error) {
	ttl := time.Minute
	if b.colds == 1 {
		ttl = 3 * time.Second
	}
	reg := registrytest.New()
	limited := &limited{next: reg}
	srv := httptest.NewServer(limited)
	defer srv.Close()
	host := srv.Listener.Addr().String()
	refs := pushMany(reg, host, refreshed)
	p, err := b.startResolver(ctx, host, "--refresh-window=1h", "--ttl="+ttl.String())
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := p.resolve(ctx, refs); err != nil {
		return nil, err
	}
	start := time.Now()
	limited.limit(int(1.5 * refreshed / ttl.Seconds()))
	reg.ResetCounts()
	select { // the first TTL's references are due together, the second's no longer
	case <-time.After(2*ttl + ttl/10):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	heads, refused := reg.Counts().Head, limited.refusals()
	most := refreshed * int(time.Since(start).Seconds()/(0.9*ttl.Seconds()))
	results, err := p.resolve(ctx, refs)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("resolver: %d references kept fresh for %v, %d requests/s allowed", refreshed, 2*ttl+ttl/10, limited.perSecond)
	if heads > most {
		b.broken = append(b.broken, fmt.Sprintf("%s: %d HEAD, at most %d promised", name, heads, most))
	}
	stale := 0
	for _, r := range results {
		if r.Stale {
			stale++
		}
	}
	return []row{{
		Name: name,
		Facts: fmt.Sprintf("%d HEAD answered, %d refused (429); then asked for all: %d HEAD, %d answers stale",
			heads, refused, reg.Counts().Head-heads, stale),
		Aim: fmt.Sprintf("≤ %d HEAD", most),
	}}, nil
}

// The defaults of serve.
const (
	defaultTTL = time.Minute
	defaultQPS = 50
)

// behind looks at a resolver with as many references in use as its cache holds, all of one registry, which it may ask for
// less than a third of them within a TTL. Time runs faster than it says: TTL and rate are those of serve but for a factor.
func (b *bench) behind(ctx context.Context) ([]row, error) {
	refs, faster, qps := many, 12, 12.0*defaultQPS
	if b.colds == 1 {
		refs, faster, qps = many/10, 120, 120.0*defaultQPS/10 // as many TTLs for a round
	}
	ttl, observed := defaultTTL/time.Duration(faster), time.Duration(4*float64(refs)/qps*float64(time.Second))
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	p, err := b.startResolver(ctx, reg.Host, "--refresh-window=1h", "--ttl="+ttl.String(), fmt.Sprintf("--registry-qps=%g", qps))
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := p.resolve(ctx, pushMany(reg.Registry, reg.Host, refs)); err != nil {
		return nil, err
	}
	reg.ResetCounts()
	start, oldest := time.Now(), 0.0
	for time.Since(start) < observed && ctx.Err() == nil {
		time.Sleep(ttl / 4)
		age, err := p.metric(ctx, "digestlock_cache_oldest_in_use_seconds")
		if err != nil {
			return nil, err
		}
		oldest = max(oldest, age)
	}
	heads, seconds := float64(reg.Counts().Head), time.Since(start).Seconds()
	r := row{
		Name: fmt.Sprintf("resolver: %d references in use for %.0f s, %.0f requests/s allowed, TTL %v, in 1/%d of the time",
			refs, seconds*float64(faster), qps/float64(faster), defaultTTL, faster),
		Facts: fmt.Sprintf("%.1f HEAD/s; the oldest digest is %.0f s old at most", heads/seconds/float64(faster), oldest*float64(faster)),
		Aim:   fmt.Sprintf("≤ %.0f HEAD/s", qps/float64(faster)),
	}
	if heads > qps*(seconds+2) { // what it saved up for two seconds may come at once
		b.broken = append(b.broken, r.Name+": "+r.Facts)
	}
	return []row{r}, nil
}

// limited is a registry that answers so many requests a second and refuses the others.
type limited struct {
	next http.Handler

	mu                       sync.Mutex
	perSecond, used, refused int // per second 0: no limit
	second                   int64
}

func (l *limited) limit(perSecond int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.perSecond = perSecond
}

func (l *limited) refusals() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

// admit reports whether one more request fits into this second.
func (l *limited) admit() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		l.second, l.used = now, 0
	}
	if l.perSecond > 0 && l.used >= l.perSecond {
		l.refused++
		return false
	}
	l.used++
	return true
}

func (l *limited) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !l.admit() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "TOOMANYREQUESTS", http.StatusTooManyRequests)
		return
	}
	l.next.ServeHTTP(w, r)
}

// pushMany pushes n images into repositories of their own and returns their references.
func pushMany(reg *registrytest.Registry, host string, n int) []image.Ref {
	refs := make([]image.Ref, n)
	for i := range refs {
		repo := fmt.Sprintf("acme/team/application-%05d/server", i)
		reg.Push(repo, image.DefaultTag)
		refs[i] = image.Ref{Registry: host, Repository: repo, Tag: image.DefaultTag}
	}
	return refs
}

// process is a resolver that was started for a measurement.
type process struct {
	pid     int
	socket  string
	address string // of /metrics
	stop    func()
	client  *api.Client
}

// resolve asks for all references, some at a time, and fails unless each has a digest.
func (p *process) resolve(ctx context.Context, refs []image.Ref) ([]image.Resolution, error) {
	var all []image.Resolution
	for some := range slices.Chunk(refs, perAsk) {
		results, err := p.client.Resolve(ctx, nil, nil, some)
		if err != nil {
			return nil, err
		}
		for _, r := range results {
			if r.Err != nil {
				return nil, fmt.Errorf("%s: %w", r.Ref, r.Err)
			}
		}
		all = append(all, results...)
	}
	return all, nil
}

// askAlike makes n requests for the same references, some at a time, and returns the wall time of each.
func (p *process) askAlike(ctx context.Context, refs []image.Ref, n int) ([]float64, error) {
	times, errs := make([]float64, n), make([]error, askers)
	var wg sync.WaitGroup
	for a := range askers {
		wg.Go(func() {
			for i := a; i < n && errs[a] == nil; i += askers {
				start := time.Now()
				_, errs[a] = p.resolve(ctx, refs)
				times[i] = millis(time.Since(start))
			}
		})
	}
	wg.Wait()
	return times, errors.Join(errs...)
}

// rss returns the resident memory in MiB, now and at most.
func (p *process) rss() (now, peak float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, 0, errors.New("not measured: this system has no /proc")
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			now = kb / 1024
		case "VmHWM":
			peak = kb / 1024
		}
	}
	return now, peak, nil
}

// mallocs returns how often the resolver has allocated since it started.
func (p *process) mallocs(ctx context.Context) (float64, error) {
	return p.metric(ctx, "go_memstats_mallocs_total")
}

// metric returns the value of a metric without labels.
func (p *process) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}
