package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/pin"
	"github.com/digestlock/digestlock/internal/registrytest"
	"github.com/digestlock/digestlock/internal/render"
)

const (
	// maxRequests is the floor for images in distinct repositories of one registry: a ping, a token, a HEAD for each.
	maxRequests = images + 2
)

// call is one program run to its end.
type call struct {
	args []string
	env  []string
	dir  string // "" is that of this process
}

// once runs a call and returns its wall time in milliseconds.
func (b *bench) once(ctx context.Context, c call) (float64, error) {
	return b.run(ctx, c, nil)
}

// output runs a call and returns what it printed and its wall time in milliseconds.
func (b *bench) output(ctx context.Context, c call) ([]byte, float64, error) {
	var stdout bytes.Buffer
	ms, err := b.run(ctx, c, &stdout)
	return stdout.Bytes(), ms, err
}

func (b *bench) run(ctx context.Context, c call, stdout io.Writer) (float64, error) {
	cmd := exec.CommandContext(ctx, b.program(c.args[0]), c.args[1:]...)
	cmd.Env, cmd.Dir = b.environ(c.env), c.dir
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%v: %w: %s", c.args, err, stderr.Bytes())
	}
	return float64(wall.Microseconds()) / 1000, nil
}

// environ keeps the registries' credentials, proxies and settings of this machine out.
func (b *bench) environ(more []string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "DOCKER_CONFIG=" + b.dir, "TMPDIR=" + b.dir}, more...)
}

// interleave runs the calls in turn, so that what else the machine does hits all of them alike, and returns the wall
// times of each.
func (b *bench) interleave(ctx context.Context, runs int, calls ...call) ([][]float64, error) {
	times := make([][]float64, len(calls))
	for round := range runs + 1 {
		for i := range calls {
			i = (i + round) % len(calls)
			ms, err := b.once(ctx, calls[i])
			if err != nil {
				return nil, err
			}
			if round > 0 { // the first fills the page cache
				times[i] = append(times[i], ms)
			}
		}
	}
	return times, nil
}

// locked compares generate, with everything in the lock, with the kustomize CLI that it links: alone as on a laptop, and
// with the report to a resolver as in Argo CD.
func (b *bench) locked(ctx context.Context) ([]row, error) {
	example, err := b.example()
	if err != nil {
		return nil, err
	}
	p, err := b.startResolver(ctx, "", "--render-cache=0")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	rows, err := b.renders(ctx, b.runs, "example", example, p.socket)
	if err != nil {
		return nil, err
	}
	for _, n := range []int{2, 10, deployments, manyDeployments} {
		names := imageNames("registry.example.com", min(n, images))
		dir, err := b.overlay(fmt.Sprintf("locked-%d", n), n, names)
		if err != nil {
			return nil, err
		}
		if err := writeLock(dir, names); err != nil {
			return nil, err
		}
		runs := b.runs
		if n == manyDeployments {
			runs = b.colds
		}
		more, err := b.renders(ctx, runs, fmt.Sprintf("%d Deployments, %d images", n, len(names)), dir, p.socket)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// renders measures one overlay.
func (b *bench) renders(ctx context.Context, runs int, name, dir, socket string) ([]row, error) {
	times, err := b.interleave(ctx, runs,
		call{args: []string{"kustomize", "build", dir}},
		call{args: []string{"plain", dir}},
		call{args: []string{"digestlock", "generate", dir}},
		call{args: []string{"digestlock", "generate", "--server=unix://" + socket, dir}, env: source(0)})
	if err != nil {
		return nil, err
	}
	base := times[0]
	return []row{
		{Name: name + ": kustomize build", Millis: base, Base: base},
		{Name: name + ": plain build, in process", Millis: times[1], Base: base},
		{Name: name + ": generate, all in the lock", Millis: times[2], Base: base, Aim: "≤ 1.00"},
		{Name: name + ": the same, reported to a resolver", Millis: times[3], Base: base},
	}, nil
}

// source is what Argo CD says of a render at the n-th commit.
func source(n int) []string {
	return []string{
		"ARGOCD_APP_NAME=bench", "ARGOCD_APP_PROJECT_NAME=default", "ARGOCD_APP_SOURCE_REPO_URL=https://git.example.com/acme/k8s.git",
		"ARGOCD_APP_SOURCE_TARGET_REVISION=main", "ARGOCD_APP_SOURCE_PATH=bench", fmt.Sprintf("ARGOCD_APP_REVISION=%040x", n),
	}
}

// again compares the render of a commit that changed something else, in a fresh copy of the repository as Argo CD makes it,
// with a build by kustomize.
func (b *bench) again(ctx context.Context) ([]row, error) {
	large, err := b.large("again", "registry.example.com")
	if err != nil {
		return nil, err
	}
	if err := writeLock(large, imageNames("registry.example.com", images)); err != nil {
		return nil, err
	}
	p, err := b.startResolver(ctx, "")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	r := row{Name: fmt.Sprintf("%d Deployments, %d images: again at another commit, inputs unchanged", deployments, images), Aim: "≤ 0.10, all remembered, byte-identical"}
	want, _, err := b.output(ctx, call{args: []string{"digestlock", "generate", "--server=", large}})
	if err != nil {
		return nil, err
	}
	differ := 0
	for i := range b.runs + 1 { // the first is built
		base, err := b.once(ctx, call{args: []string{"kustomize", "build", large}})
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(filepath.Dir(b.dir), fmt.Sprint("copy", i))
		if err := os.CopyFS(dir, os.DirFS(large)); err != nil {
			return nil, err
		}
		got, ms, err := b.output(ctx, call{args: []string{"digestlock", "generate", "--server=unix://" + p.socket, dir}, env: source(i)})
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(got, want) {
			differ++
		}
		if i > 0 {
			r.Base, r.Millis = append(r.Base, base), append(r.Millis, ms)
		}
	}
	built, err := p.metric(ctx, "digestlock_renders_remembered_total")
	if err != nil {
		return nil, err
	}
	r.Facts = fmt.Sprintf("%.0f of %d built and remembered, %d not byte-identical", built, b.runs+1, differ)
	if built != 1 || differ > 0 {
		b.broken = append(b.broken, r.Name+": "+r.Facts)
	}
	return []row{r}, nil
}

// resolve counts what a render without lock asks a registry for, through a resolver and directly.
func (b *bench) resolve(ctx context.Context) ([]row, error) {
	var rows []row
	for _, latency := range []time.Duration{20 * time.Millisecond, 50 * time.Millisecond} {
		for _, access := range []string{"anonymous", "bearer"} {
			more, err := b.resolveAt(ctx, latency, access)
			if err != nil {
				return rows, err
			}
			rows = append(rows, more...)
		}
	}
	return rows, nil
}

func (b *bench) resolveAt(ctx context.Context, latency time.Duration, access string) ([]row, error) {
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	for i := range images {
		reg.Push(repository(i), "latest")
	}
	if access == "bearer" {
		reg.RequireBearer("", "")
	}
	reg.SetLatency(latency)
	overlay, err := b.large(access, reg.Host)
	if err != nil {
		return nil, err
	}
	name, aim := fmt.Sprintf("%d images at %v: %s, ", images, latency, access), "≤ 1.15"
	if latency > 20*time.Millisecond {
		aim += " of the floor"
	}
	cold := b.counted(name+"cold, through serve", aim, maxRequests)
	warm := b.counted(name+"warm, through serve", "≤ 1.15", 0)
	direct := b.counted(name+"cold, without serve", aim, maxRequests)
	for range b.colds {
		base, err := b.once(ctx, call{args: []string{"kustomize", "build", overlay}})
		if err != nil {
			return nil, err
		}
		for _, c := range []*counted{cold, warm, direct} {
			c.row.Base = append(c.row.Base, base)
		}
		p, err := b.startResolver(ctx, reg.Host)
		if err != nil {
			return nil, err
		}
		through := call{args: []string{"digestlock", "generate", "--server=unix://" + p.socket, overlay}}
		err = errors.Join(cold.add(ctx, reg, through), warm.add(ctx, reg, through))
		p.stop()
		if err != nil {
			return nil, err
		}
		if err := direct.add(ctx, reg, call{args: []string{"digestlock", "generate", "--server=", "--insecure-registry", reg.Host, overlay}}); err != nil {
			return nil, err
		}
	}
	answers := 2 // that wait for each other: ping, and the HEADs together
	if access == "bearer" {
		answers++
	}
	floor := median(warm.row.Millis) + float64(answers)*millis(latency)
	for _, c := range []*counted{cold, direct} {
		c.row.Facts += fmt.Sprintf("; %.2f of the floor, a warm render and %d answers", median(c.row.Millis)/floor, answers)
	}
	return []row{cold.row, warm.row, direct.row}, nil
}

// counted is a row whose requests have a limit.
type counted struct {
	bench *bench
	limit int
	row   row
}

func (b *bench) counted(name, aim string, limit int) *counted {
	return &counted{b, limit, row{Name: name, Aim: fmt.Sprintf("%s, %d requests at most", aim, limit)}}
}

// add runs the call once and holds what it asked reg for against the limit.
func (c *counted) add(ctx context.Context, reg *registrytest.Server, what call) error {
	reg.ResetCounts()
	ms, err := c.bench.once(ctx, what)
	if err != nil {
		return err
	}
	c.row.Millis = append(c.row.Millis, ms)
	total, facts := requests(reg)
	if c.row.Facts == "" || total > c.limit {
		c.row.Facts = facts
	}
	if total > c.limit {
		c.bench.broken = append(c.bench.broken, fmt.Sprintf("%s: %s, at most %d promised", c.row.Name, facts, c.limit))
	}
	return nil
}

// requests says what reg was asked for.
func requests(reg *registrytest.Server) (total int, facts string) {
	n := reg.Counts()
	total = n.Ping + n.Token + n.Head + n.Get + n.Other
	facts = fmt.Sprintf("%d requests", total)
	if total > 0 {
		facts += fmt.Sprintf(": %d ping, %d token, %d HEAD, %d GET", n.Ping, n.Token, n.Head, n.Get)
	}
	return total, facts
}

// startResolver starts a resolver with an empty state, with more flags, and waits until its socket answers.
func (b *bench) startResolver(ctx context.Context, registry string, flags ...string) (*process, error) {
	dir, err := os.MkdirTemp(b.dir, "s")
	if err != nil {
		return nil, err
	}
	p := &process{socket: filepath.Join(dir, "s"), address: registrytest.FreeAddress()}
	if p.client, err = api.NewClient("unix://"+p.socket, ""); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.program("digestlock"), append([]string{
		"serve", "--listen=" + p.address, "--log-level=warn",
		"--socket=" + p.socket, "--state-dir=" + filepath.Join(dir, "state"), "--insecure-registry=" + registry, "--registry-qps=1e6",
	}, flags...)...)
	if err := p.start(b, cmd); err != nil {
		return nil, err
	}
	for range 500 {
		c, err := net.Dial("unix", p.socket)
		if err == nil {
			_ = c.Close()
			return p, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.stop()
	return nil, fmt.Errorf("serve: no answer on its socket within 5 s")
}

// start starts the program that p is.
func (p *process) start(b *bench, cmd *exec.Cmd) error {
	cmd.Env, cmd.Stderr = b.environ(nil), os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	p.stop = func() {
		p.client.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // what it was asked for is there already
	}
	return nil
}

// start measures what every render pays before its first line of ours.
func (b *bench) start(ctx context.Context) ([]row, error) {
	times, err := b.interleave(ctx, b.runs, call{args: []string{"digestlock", "version"}})
	if err != nil {
		return nil, err
	}
	return []row{{Name: "start: digestlock version", Millis: times[0], Aim: "≤ 10 ms"}}, nil
}

// The largest overlay, and how many images [bench.stages] has in it.
const (
	manyDeployments = 1000
	manyImages      = 300
)

// stages times the parts of a render in this process, everything locked: where the pins' share would show.
func (b *bench) stages(ctx context.Context) ([]row, error) {
	names := imageNames("registry.example.com", manyImages)
	dir, err := b.overlay("many", manyDeployments, names)
	if err != nil {
		return nil, err
	}
	if err := writeLock(dir, names); err != nil {
		return nil, err
	}
	var build, pins []float64
	var before, after runtime.MemStats
	for range b.colds {
		start := time.Now()
		out, err := render.Build(ctx, dir, render.Options{})
		if err != nil {
			return nil, err
		}
		runtime.ReadMemStats(&before)
		built := time.Now()
		if err := pinAll(out, dir); err != nil {
			return nil, err
		}
		pinned := time.Now()
		runtime.ReadMemStats(&after)
		if _, err := out.YAML(); err != nil {
			return nil, err
		}
		build = append(build, millis(built.Sub(start)+time.Since(pinned)))
		pins = append(pins, millis(pinned.Sub(built)))
	}
	return []row{{
		Name: fmt.Sprintf("%d Deployments, %d images, all in the lock: finding, deciding, rewriting", manyDeployments, manyImages), Millis: pins,
		Facts: fmt.Sprintf("%.1f %% of its build, %.1f allocations per resource", 100*median(pins)/median(build),
			float64(after.Mallocs-before.Mallocs)/manyDeployments),
		Aim: "≤ 5 %",
	}}, nil
}

// pinAll does what plugin.Render does between the build and the output.
func pinAll(out *render.Output, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, lock.FileName))
	if err != nil {
		return err
	}
	locked, err := lock.Parse(lock.FileName, data)
	if err != nil {
		return err
	}
	plan, err := pin.New(out.Objects(), pin.Policy{Tags: image.Tags{image.DefaultTag}})
	if err != nil {
		return err
	}
	digests := map[string]string{}
	for _, r := range plan.Images() {
		p, ok := locked.Find(r.String())
		if !ok {
			return fmt.Errorf("%s is not in the lock", r)
		}
		digests[r.String()] = p.Digest
	}
	return plan.Apply(digests, pin.TagAndDigest)
}

func (b *bench) sizes(context.Context) ([]row, error) {
	var rows []row
	for _, name := range []string{"digestlock", "digestlock-companion", "plain"} {
		info, err := os.Stat(b.program(name))
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{Name: "size: " + name, Facts: fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), Aim: "≤ 30 MB"})
	}
	return rows, nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(ms []float64) float64 {
	s := slices.Sorted(slices.Values(ms))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func least(ms []float64) float64 { return slices.Min(ms) }
