// Package demo tells Digestlock's story on one machine with real parts: a registry, a Git server, the resolver and the
// plugin as processes of their own, and the companion's core in this one. Every line it prints as output is output, and each claim it makes
// is checked: a demo that lies fails.
package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/examples"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gitserver"
	"github.com/digestlock/digestlock/internal/lazy"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registrytest"
)

const (
	overlays = "k8s/namespaces/backend/overlays/"
	server   = "acme/backend/server"
	migrate  = "acme/backend/migrate"

	// startTimeout bounds the start of the resolver's process.
	startTimeout = 20 * time.Second
	// stopTimeout is how long the resolver may take to end before it is killed.
	stopTimeout = 5 * time.Second
)

// Options are what a demo needs from its surroundings.
type Options struct {
	Self string    // path of the digestlock binary
	Out  io.Writer // where the story is told
	Keep bool      // leave the workspace behind and say how to explore it
}

// demo is one run.
type demo struct {
	Options
	dir        string
	registry   *registrytest.Registry
	host       string // the registry's
	repository *gitserver.Repo
	gitURL     string
	resolver   *resolver
	companion  *companion.Companion
	step       int
}

// Run tells the story. It returns an error when anything is not as told, and leaves nothing behind unless asked to.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "digestlock-demo-")
	if err != nil {
		return err
	}
	if !o.Keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	d := &demo{Options: o, dir: dir, registry: registrytest.New()}
	var stop closers
	defer stop.close()
	if err := d.start(ctx, &stop); err != nil {
		return err
	}
	return d.tell(ctx, &stop)
}

// closers are run in reverse, once.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c *closers) close() {
	for _, f := range slices.Backward(*c) {
		f()
	}
	*c = nil
}

// start brings up the registry, the Git server and the resolver.
func (d *demo) start(ctx context.Context, stop *closers) error {
	var err error
	if d.host, err = serve(d.registry, stop); err != nil {
		return err
	}
	if d.repository, err = gitserver.New(filepath.Join(d.dir, "k8s.git")); err != nil {
		return err
	}
	git, err := serve(http.StripPrefix("/k8s.git", d.repository.Handler()), stop)
	if err != nil {
		return err
	}
	d.gitURL = "http://" + git + "/k8s.git"
	if d.resolver, err = startResolver(ctx, d.Self, d.dir, d.host); err != nil {
		return err
	}
	stop.add(d.resolver.stop)
	remote, err := gitrepo.Open(d.gitURL, gitrepo.Auth{})
	if err != nil {
		return err
	}
	client, err := api.NewClient("http://"+d.resolver.address, d.resolver.token)
	if err != nil {
		return err
	}
	stop.add(client.Close)
	d.companion = companion.New(companion.Options{
		Replicas:     func(context.Context) ([]companion.Replica, error) { return []companion.Replica{client}, nil },
		Repositories: []companion.Repository{{Remote: remote, URL: d.gitURL}},
		Author:       gitrepo.Signature{Name: "digestlock", Email: "digestlock@localhost"},
		Log:          slog.New(slog.DiscardHandler),
	})
	return nil
}

func serve(h http.Handler, stop *closers) (host string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with ErrServerClosed
	}()
	stop.add(func() {
		_ = srv.Close()
		<-done
	})
	return l.Addr().String(), nil
}

func (d *demo) tell(ctx context.Context, stop *closers) error {
	d.say("A kustomize repository, a registry, a Git server: all real, all in %s", d.dir)

	d.chapter("CI pushes two images under the tag latest")
	first := d.push(server)
	migration := d.push(migrate)

	d.chapter("The repository says latest; Argo CD asks Digestlock to render the dev overlay")
	files, err := d.example()
	if err != nil {
		return err
	}
	seed, err := d.repository.Commit("main", "backend: dev and prod overlays", files)
	if err != nil {
		return err
	}
	manifests, err := d.render(ctx, seed, "dev")
	if err != nil {
		return err
	}
	d.print(manifests)
	if err := d.expect(manifests, first, migration); err != nil {
		return err
	}

	d.chapter("The companion commits the pins beside the overlay")
	locked, err := d.commit(ctx)
	if err != nil {
		return err
	}

	d.chapter("Argo CD renders that commit: the lock decides, nobody asks a registry")
	if err := d.check(ctx, locked, "dev", first, migration); err != nil {
		return err
	}

	d.chapter("CI pushes a new image under the same tag, and flushes the resolver's cache")
	second := d.push(server)
	if err := d.flush(ctx, server); err != nil {
		return err
	}
	d.say("The commit that is deployed still renders what it always did:")
	if err := d.check(ctx, locked, "dev", first, migration); err != nil {
		return err
	}

	d.chapter("The companion commits what moved, and only that")
	updated, err := d.commit(ctx)
	if err != nil {
		return err
	}

	d.chapter("Argo CD renders the new commit: the new image is deployed")
	if err := d.check(ctx, updated, "dev", second, migration); err != nil {
		return err
	}

	d.chapter("Somebody reverts that commit; the companion does not put the image back")
	reverted, err := d.revert(ctx, updated, locked)
	if err != nil {
		return err
	}
	if err := d.check(ctx, reverted, "dev", first, migration); err != nil {
		return err
	}

	d.chapter("The next push is adopted again")
	third := d.push(server)
	if err := d.flush(ctx, server); err != nil {
		return err
	}
	if updated, err = d.commit(ctx); err != nil {
		return err
	}
	if err := d.check(ctx, updated, "dev", third, migration); err != nil {
		return err
	}

	d.chapter("Rollback: the old commit renders the old image, also with the registry and the resolver gone")
	stop.close()
	if err := d.check(ctx, locked, "dev", first, migration); err != nil {
		return err
	}

	d.chapter("Prod says v1.2.3 and was never touched")
	if err := d.check(ctx, updated, "prod"); err != nil {
		return err
	}

	d.chapter("What Git remembers")
	history, err := d.repository.Log("main")
	if err != nil {
		return err
	}
	for _, c := range history {
		subject, _, _ := strings.Cut(c.Message, "\n")
		d.print(fmt.Sprintf("%.7s %s  %s\n", c.Hash, c.Author, subject))
	}
	d.farewell(updated)
	return nil
}

// example returns the example repository with the demo's registry in place of the documentation's.
func (d *demo) example() (map[string][]byte, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(examples.K8s, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(examples.K8s, path)
		files[path] = bytes.ReplaceAll(data, []byte(examples.Registry), []byte(d.host))
		return err
	})
	return files, err
}

func (d *demo) push(repository string) (digest string) {
	digest = d.registry.Push(repository, "latest")
	d.print(fmt.Sprintf("pushed %s/%s:latest\n    is %s\n", d.host, repository, digest))
	return digest
}

// render runs the real command on a checkout of commit, as Argo CD's sidecar does.
func (d *demo) render(ctx context.Context, commit, overlay string) (string, error) {
	// Argo CD unpacks a repository below a directory of this name, which bounds what a render may read.
	checkout := filepath.Join(d.dir, "_cmp_server", commit[:7])
	if err := os.RemoveAll(checkout); err != nil {
		return "", err
	}
	if err := d.repository.Export(commit, checkout); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, d.Self, "generate")
	cmd.Dir = filepath.Join(checkout, filepath.FromSlash(overlays+overlay))
	cmd.Env = []string{
		"DIGESTLOCK_SERVER=unix://" + d.resolver.socket,
		"ARGOCD_APP_NAME=backend-" + overlay,
		"ARGOCD_APP_PROJECT_NAME=default",
		"ARGOCD_APP_REVISION=" + commit,
		"ARGOCD_APP_SOURCE_REPO_URL=" + d.gitURL,
		"ARGOCD_APP_SOURCE_TARGET_REVISION=main",
		"ARGOCD_APP_SOURCE_PATH=" + overlays + overlay,
		"ARGOCD_APP_PARAMETERS=null",
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	d.say("$ cd _cmp_server/%.7s/%s%s && digestlock generate", commit, overlays, overlay)
	err := cmd.Run()
	d.print(stderr.String())
	if err != nil {
		return "", fmt.Errorf("digestlock generate: %w", err)
	}
	return stdout.String(), nil
}

var imageLine = lazy.Regexp(`(?m)^.*\bimage: .*\n`)

// check renders, shows the image lines and compares the digests in them.
func (d *demo) check(ctx context.Context, commit, overlay string, digests ...string) error {
	manifests, err := d.render(ctx, commit, overlay)
	if err != nil {
		return err
	}
	d.print(strings.Join(imageLine().FindAllString(manifests, -1), ""))
	return d.expect(manifests, digests...)
}

var anyDigest = lazy.Regexp(`sha256:[0-9a-f]{64}`)

func (d *demo) expect(manifests string, digests ...string) error {
	got := anyDigest().FindAllString(manifests, -1)
	slices.Sort(got)
	slices.Sort(digests)
	if !slices.Equal(got, digests) {
		return fmt.Errorf("rendered digests %v, want %v", got, digests)
	}
	return nil
}

// commit runs one cycle of the companion, which must make one commit, and shows it. It returns the commit's hash.
func (d *demo) commit(ctx context.Context) (string, error) {
	commits, err := d.companion.Once(ctx)
	if err != nil {
		return "", err
	}
	if len(commits) != 1 {
		return "", fmt.Errorf("%d commits, want 1", len(commits))
	}
	history, err := d.repository.Log("main")
	if err != nil {
		return "", err
	}
	c := history[0]
	if c.Hash != commits[0].Hash {
		return "", fmt.Errorf("the branch is at %s, the companion pushed %s", c.Hash, commits[0].Hash)
	}
	d.say("The companion pushed:")
	d.print(fmt.Sprintf("commit %s\nAuthor: %s\n\n%s\n%s", c.Hash, c.Author, indent(c.Message), c.Diff))
	if more, err := d.companion.Once(ctx); err != nil || len(more) > 0 {
		return "", errors.Join(err, fmt.Errorf("a second cycle made %d commits, want none", len(more)))
	}
	return c.Hash, nil
}

// revert takes back what commit did to the lock, as git revert does, and has the companion look at it. It returns the
// companion's commit.
func (d *demo) revert(ctx context.Context, commit, before string) (string, error) {
	file := overlays + "dev/" + lock.FileName
	old, err := os.ReadFile(filepath.Join(d.dir, "_cmp_server", before[:7], filepath.FromSlash(file)))
	if err != nil {
		return "", err
	}
	message := "Revert \"build: auto-update backend/server\"\n\nThis reverts commit " + commit + ".\n"
	d.say("$ git revert %.7s && git push", commit)
	if _, err := d.repository.Commit("main", message, map[string][]byte{file: old}); err != nil {
		return "", err
	}
	return d.commit(ctx)
}

func (d *demo) flush(ctx context.Context, repository string) error {
	address := "http://" + d.resolver.address + "/flush?image=" + url.QueryEscape(d.host+"/"+repository+":latest")
	d.say("$ curl -X POST -H \"Authorization: Bearer $TOKEN\" %q", address)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.resolver.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	d.print(string(body))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("flush: %s", res.Status)
	}
	return nil
}

func (d *demo) farewell(commit string) {
	if !d.Keep {
		d.say("\nEverything above was real and is gone again. With --keep the workspace stays.")
		return
	}
	d.say("\nThe workspace stays in %s. To explore it:", d.dir)
	d.print(fmt.Sprintf("git -C %[1]s/k8s.git log -p\n%[2]s generate %[1]s/_cmp_server/%.7[3]s/%[4]sdev\nrm -r %[1]s\n",
		d.dir, d.Self, commit, overlays))
}

func (d *demo) chapter(title string) {
	d.step++
	d.say("\n%d. %s\n", d.step, title)
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.Out, format+"\n", args...) }

// print shows output of a real part.
func (d *demo) print(output string) { _, _ = io.WriteString(d.Out, indent(output)) }

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line != "\n" {
			b.WriteString("    ")
		}
		b.WriteString(line)
	}
	return b.String()
}

// resolver is "digestlock serve" as a process.
type resolver struct {
	socket, address, token string
	cmd                    *exec.Cmd
	done                   chan struct{}
}

func startResolver(ctx context.Context, self, dir, registry string) (*resolver, error) {
	r := &resolver{socket: filepath.Join(dir, "resolver.sock"), token: rand.Text(), done: make(chan struct{})}
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte(r.token+"\n"), 0o600); err != nil {
		return nil, err
	}
	r.cmd = exec.Command(self, "serve", "--socket", r.socket, "--listen", "127.0.0.1:0", "--token-file", tokenFile,
		"--state-dir", filepath.Join(dir, "state"), "--insecure-registry", registry)
	r.cmd.Env = []string{"DOCKER_CONFIG=" + dir} // nobody's credentials
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start resolver: %w", err)
	}
	serving := make(chan string, 1)
	go func() {
		defer close(r.done)
		readLog(stderr, serving)
		_ = r.cmd.Wait() // how it ends is up to stop
	}()
	select {
	case r.address = <-serving:
		return r, nil
	case <-r.done:
		err = errors.New("resolver ended at once")
	case <-time.After(startTimeout):
		err = fmt.Errorf("resolver not ready within %v", startTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	r.stop()
	return nil, err
}

// readLog sends the address that the resolver logs once it listens, and reads the rest so that it never blocks.
func readLog(log io.Reader, serving chan<- string) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var entry struct{ Msg, Listen string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "serving" {
			serving <- entry.Listen
			break
		}
	}
	_, _ = io.Copy(io.Discard, log)
}

func (r *resolver) stop() {
	_ = r.cmd.Process.Signal(os.Interrupt)
	select {
	case <-r.done:
	case <-time.After(stopTimeout):
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}
