package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	manyFiles = 47_000 // a large monorepo of manifests
	fewFiles  = 2_000
	// maxGrowth bounds what one commit may add to an idle companion, in MiB.
	maxGrowth = 40.0
	target    = "apps/app-0007/digest-lock.yaml"
)

// commit compares one commit of one file to a large repository behind git http-backend, as the companion makes it, with
// what a person, or a script, would do.
func (b *bench) commit(ctx context.Context) ([]row, error) {
	url, stop, err := b.gitServer(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	ours := row{Name: fmt.Sprintf("%d files: one of them committed and pushed", b.files), Aim: fmt.Sprintf("≤ 500 ms, ≤ %.0f MiB over idle", maxGrowth)}
	theirs := row{Name: "the same by git clone --depth 1, commit and push"}
	var growth, idle, peak float64
	for i := range b.colds {
		ms, before, most, err := b.commitOnce(ctx, url, fmt.Sprintf("ours: %d\n", i))
		if err != nil {
			return nil, err
		}
		ours.Millis = append(ours.Millis, ms)
		if most-before >= growth {
			growth, idle, peak = most-before, before, most
		}
	}
	ms, rss, err := b.cloneOnce(ctx, url)
	if err != nil {
		return nil, err
	}
	theirs.Millis = []float64{ms} // once, it takes long enough
	theirs.Facts = fmt.Sprintf("largest git process %.1f MiB", rss)
	ours.Base, theirs.Base = theirs.Millis, theirs.Millis
	if ours.Facts = "memory not measured: this system has no /proc"; peak > 0 {
		ours.Facts = fmt.Sprintf("RSS at most %.1f MiB, %.1f when idle: %.1f for the commit", peak, idle, growth)
	}
	if growth > maxGrowth {
		b.broken = append(b.broken, fmt.Sprintf("%s: %.0f MiB, at most %.0f promised", ours.Name, growth, maxGrowth))
	}
	return []row{ours, theirs}, nil
}

// gitServer serves a new repository of many files.
func (b *bench) gitServer(ctx context.Context) (url string, stop func(), err error) {
	root := filepath.Join(b.dir, "git")
	repo := filepath.Join(root, "repo.git")
	if err := b.git(ctx, nil, "init", "--quiet", "--bare", "--initial-branch=main", repo); err != nil {
		return "", nil, err
	}
	for _, setting := range []string{"http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"} {
		if err := b.git(ctx, nil, "-C", repo, "config", setting, "true"); err != nil {
			return "", nil, err
		}
	}
	if err := b.git(ctx, manifests(b.files), "-C", repo, "fast-import", "--quiet"); err != nil {
		return "", nil, err
	}
	if err := b.git(ctx, nil, "-C", repo, "repack", "-q", "-a", "-d", "-b"); err != nil { // as forges keep theirs
		return "", nil, err
	}
	host, err := b.serveGit(root)
	if err != nil {
		return "", nil, err
	}
	return host.url + "/repo.git", host.stop, nil
}

// gitHost is git http-backend on a port of the loopback interface.
type gitHost struct {
	url      string
	stop     func()
	requests atomic.Int64
	bytes    atomic.Int64 // of both directions' bodies, as they travel
}

// serveGit serves the bare repositories below root.
func (b *bench) serveGit(root string) (*gitHost, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	backend := &cgi.Handler{
		Path: git, Args: []string{"http-backend"}, Stderr: io.Discard,
		Env: append(b.gitEnviron(), "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1"),
	}
	h := &gitHost{url: "http://" + listener.Addr().String()}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(r.Body, counter{&h.bytes}), r.Body}
		backend.ServeHTTP(weighed{w, &h.bytes}, r)
	})}
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	h.stop = func() {
		_ = server.Close()
		<-done
	}
	return h, nil
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// weighed is an answer whose body is counted.
type weighed struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w weighed) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// manifests is one commit of so many files, for git fast-import.
func manifests(files int) io.Reader {
	var s bytes.Buffer
	s.WriteString("commit refs/heads/main\ncommitter bench <bench@example.com> 1700000000 +0000\ndata 5\nfirst\n")
	file := func(name, content string) {
		fmt.Fprintf(&s, "M 100644 inline %s\ndata %d\n%s\n", name, len(content), content)
	}
	const each = 47
	for i := range files {
		app, n := i/each, i%each
		if n == 0 {
			file(fmt.Sprintf("apps/app-%04d/digest-lock.yaml", app), "first\n")
			continue
		}
		file(fmt.Sprintf("apps/app-%04d/base/object-%02d.yaml", app, n), fmt.Sprintf(
			"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-%d-%d\n  namespace: team-%d\ndata:\n  key: %x\n", app, n, app%40, i*2654435761))
	}
	return &s
}

func (b *bench) gitEnviron() []string {
	return b.environ([]string{
		"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@example.com", "GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@example.com",
	})
}

func (b *bench) git(ctx context.Context, in io.Reader, args ...string) error {
	_, err := b.gitRSS(ctx, in, args...)
	return err
}

// gitRSS runs git and returns how many MiB the largest of its processes had.
func (b *bench) gitRSS(ctx context.Context, in io.Reader, args ...string) (float64, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env, cmd.Stdin = b.gitEnviron(), in
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, nil
	}
	return float64(usage.Maxrss) / 1024, nil
}

// commitOnce has a process of its own make the commit, and returns its time and its memory before and at most.
func (b *bench) commitOnce(ctx context.Context, url, content string) (ms, before, most float64, err error) {
	cmd := exec.CommandContext(ctx, b.program("commit"), url, target, content)
	cmd.Env, cmd.Stderr = b.environ(nil), os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, 0, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, 0, err
	}
	p, said := process{pid: cmd.Process.Pid}, bufio.NewReader(stdout)
	if _, err := said.ReadString('\n'); err == nil {
		before, _, _ = p.rss() // zero on systems without /proc
		_, _ = stdin.Write([]byte("\n"))
	}
	took, _ := said.ReadString('\n') // nothing when it failed, which Wait tells
	_, most, _ = p.rss()
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		return 0, 0, 0, fmt.Errorf("commit: %w", err)
	}
	ms, err = strconv.ParseFloat(strings.TrimSpace(took), 64)
	return ms, before, most, err
}

func (b *bench) cloneOnce(ctx context.Context, url string) (ms, rss float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "clone")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	rss, err = b.gitRSS(ctx, nil, "clone", "--quiet", "--depth=1", url, dir)
	if err != nil {
		return 0, 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, target), []byte("theirs\n"), 0o600); err != nil {
		return 0, 0, err
	}
	for _, args := range [][]string{{"commit", "--quiet", "--message=build: update", target}, {"push", "--quiet", "origin", "main"}} {
		more, err := b.gitRSS(ctx, nil, append([]string{"-C", dir}, args...)...)
		if err != nil {
			return 0, 0, err
		}
		rss = max(rss, more)
	}
	return millis(time.Since(start)), rss, nil
}
