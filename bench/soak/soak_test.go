// Package soak has the programs do for a long time, all at once, what they are for, and be killed meanwhile: "make soak".
package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/registrytest"
)

var length = flag.Duration("soak", 0, "how long TestSoak works before it looks at where everything ended; 0 leaves it out")

const (
	images = 6
	token  = "t0ken"
	// settle is how long after the last of what happens everything has to be where it belongs: a TTL, a quiet window and a
	// few cycles, on a machine that does other things, too.
	settle = time.Minute
)

// TestSoak has two companions, each with a resolver of its own that knows nothing of the other, work on the branches of a
// real Git server while images are pushed, with and without a flush at one of them, Applications are rendered, and people
// revert, edit, reset, hold and release. One companion is killed, or told to end, again and again, and in the first third
// the resolvers too; the other companion runs from beginning to end, the resolvers from the second third on, and they must
// not grow. The Git server loses connections and answers, and is away for a while. A judge reads each move of the branches.
func TestSoak(t *testing.T) {
	if *length == 0 {
		t.Skip("for a soak say -soak 20m, or make soak")
	}
	w := newWorld(t)
	w.begin()
	grown := growth{}
	for began, looked := time.Now(), time.Now(); time.Since(began) < *length; {
		w.act(time.Since(began) < *length/3)
		if time.Since(looked) > time.Second {
			looked = time.Now()
			for _, r := range w.repos {
				r.judge.look(t)
			}
			grown.sample(t, w)
		}
		if t.Failed() {
			break
		}
		time.Sleep(rand.N(200 * time.Millisecond))
	}
	w.busy.Wait()
	w.settle()
	w.end()
	for _, r := range w.repos {
		r.judge.look(t)
		t.Logf("%s: %v", filepath.Base(r.Dir), r.judge.seen)
	}
	t.Logf("did %v", w.did)
	grown.judge(t)
}

// world is everything that takes part.
type world struct {
	t     *testing.T
	dir   string
	bin   string
	reg   *registrytest.Server
	git   *flaky
	repos []*repo

	resolvers  [2]*program
	companions [2]*program // the first is never killed

	busy sync.WaitGroup // flushes and renders
	mu   sync.Mutex     // guards what follows
	tags map[string]*tag
	did  map[string]int
}

// tag is what was pushed to an image's tag: all digests by when, and the last.
type tag struct {
	order map[string]int
	now   string
}

type repo struct {
	*gittest.Repo
	person *gittest.Clone
	paths  []string
	judge  *judge
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), reg: registrytest.Start(t), git: &flaky{}, tags: map[string]*tag{}, did: map[string]int{}}
	w.bin = filepath.Join(w.dir, "bin")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", w.bin+"/", "../../cmd/digestlock", "../../cmd/digestlock-companion")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for i := range images {
		w.push(w.image(i))
	}
	server := gittest.HTTPS(t, gittest.Wrap(w.git.wrap), gittest.Config("core.logAllRefUpdates=always"))
	for i, paths := range []int{9, 3} {
		w.repos = append(w.repos, w.newRepo(server, fmt.Sprintf("repo%d.git", i), paths))
	}
	w.write("token", token)
	w.write("password", server.Auth.Password)
	w.write("ca.pem", string(server.Auth.CA))
	for _, dir := range []string{"tmp", "_cmp_server"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.programs(server)
	return w
}

func (w *world) write(name, content string) {
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) image(i int) string { return fmt.Sprintf("%s/acme/image-%d:latest", w.reg.Host, i) }

func (w *world) newRepo(server *gittest.Server, name string, paths int) *repo {
	r := &repo{}
	files := map[string]string{}
	for p := range paths {
		path := fmt.Sprintf("apps/%d", p)
		r.paths = append(r.paths, path)
		files[path+"/kustomization.yaml"] = "resources: [pods.yaml]\n"
		var pods strings.Builder
		for i := range 1 + p%3 {
			fmt.Fprintf(&pods, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod-%d}\nspec: {containers: [{name: c, image: %q}]}\n", i, w.image((p+i)%images))
		}
		files[path+"/pods.yaml"] = pods.String()
	}
	r.Repo = server.Create(w.t, name, files)
	r.person = r.Clone(w.t, "main")
	r.judge = newJudge(w, r.Repo, paths)
	return r
}

func (w *world) programs(server *gittest.Server) {
	at := func(name string) string { return filepath.Join(w.dir, name) }
	args := []string{
		"--interval=1s", "--quiet-window=1s", "--quiet-max=3s", "--resolver-token-file=" + at("token"), "--token-file=" + at("token"),
		"--git-username=" + server.Auth.Username, "--git-password-file=" + at("password"), "--git-ca-file=" + at("ca.pem"),
	}
	for _, r := range w.repos {
		args = append(args, "--repo="+r.URL+"@main")
	}
	for i := range w.companions {
		w.resolvers[i] = w.program(fmt.Sprintf("resolver %d", i), "digestlock", "serve", "--ttl=3s", "--socket="+w.socket(i), "--token-file="+at("token"),
			"--state-dir="+at(fmt.Sprintf("state-%d", i)), "--insecure-registry="+w.reg.Host)
		w.companions[i] = w.program(fmt.Sprintf("companion %d", i), "digestlock-companion", append(slices.Clip(args), "--resolver=http://"+w.resolvers[i].address)...)
	}
}

func (w *world) socket(resolver int) string { return filepath.Join(w.dir, fmt.Sprint("s", resolver)) }

// begin starts all programs and has each Application rendered once by each resolver.
func (w *world) begin() {
	for _, p := range w.all() {
		p.start()
		p.await()
	}
	for _, r := range w.repos {
		for _, path := range r.paths {
			for i := range w.resolvers {
				w.render(r, path, i)
			}
		}
	}
	w.busy.Wait()
}

func (w *world) all() []*program { return slices.Concat(w.resolvers[:], w.companions[:]) }

// act does one thing of many at random.
func (w *world) act(resolversToo bool) {
	r := w.repos[rand.IntN(len(w.repos))]
	switch n := rand.IntN(100); {
	case n < 30:
		image := w.image(rand.IntN(images))
		w.push(image)
		if rand.IntN(3) > 0 {
			w.flush(image)
		}
	case n < 55:
		w.render(r, r.paths[rand.IntN(len(r.paths))], rand.IntN(len(w.resolvers)))
	case n < 85:
		w.person(r)
	case n < 97:
		p := w.companions[1]
		if resolversToo && rand.IntN(2) == 0 {
			p = w.resolvers[rand.IntN(len(w.resolvers))]
		}
		w.restart(p)
	default:
		w.count("the Git server went away")
		w.git.restart(rand.N(2 * time.Second))
	}
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did[what]++
}

func (w *world) push(image string) {
	repository, name, _ := strings.Cut(strings.TrimPrefix(image, w.reg.Host+"/"), ":")
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.tags[image]
	if x == nil {
		x = &tag{order: map[string]int{}}
		w.tags[image] = x
	}
	x.now = w.reg.Push(repository, name)
	x.order[x.now] = len(x.order) + 1
	w.did["push"]++
}

// pushed returns the how many-th digest of an image's tag this is, 0 for one that was never pushed, and whether it is the last.
func (w *world) pushed(image, digest string) (n int, last bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.tags[image]
	if x == nil {
		return 0, false
	}
	return x.order[digest], x.now == digest
}

// last returns the digest that an image's tag stands at.
func (w *world) last(image string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tags[image].now
}

// older returns a digest that was pushed before the one given, "" when there is none.
func (w *world) older(image, digest string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for d, n := range w.tags[image].order {
		if n < w.tags[image].order[digest] {
			return d
		}
	}
	return ""
}

// flush tells one companion of a push. It may be dead, or say that the Git server is.
func (w *world) flush(image string) {
	x := w.companions[rand.IntN(len(w.companions))]
	w.busy.Go(func() {
		ctx, cancel := context.WithTimeout(w.t.Context(), settle)
		defer cancel()
		c, err := api.NewClient("http://"+x.address, token)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer c.Close()
		if _, err := c.Flush(ctx, []string{image}); err != nil {
			w.count("flush failed")
			return
		}
		w.count("flush")
	})
}

// restart ends a program, most times without asking it, and starts it again.
func (w *world) restart(p *program) {
	if rand.IntN(4) == 0 {
		w.count(p.name + " told to end")
		p.await() // before, it ends as any program does
		p.stop()
	} else {
		w.count(p.name + " killed")
		p.kill()
	}
	time.Sleep(rand.N(time.Second) * time.Duration(rand.IntN(2)))
	p.start()
}

// settle waits until each pin is where its tag is, or where a hold keeps it, and until the branches stand still.
func (w *world) settle() {
	for _, p := range w.all() {
		p.await()
	}
	deadline := time.Now().Add(settle)
	for {
		var open []string
		for _, r := range w.repos {
			r.judge.look(w.t)
			open = append(open, r.judge.open()...)
		}
		if len(open) == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Errorf("still open %v after the last push:\n%s", settle, strings.Join(open, "\n"))
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	var tips []string
	for range 2 {
		var now []string
		for _, r := range w.repos {
			now = append(now, r.Git(w.t, "rev-parse", "main"))
		}
		if tips != nil && !slices.Equal(tips, now) {
			w.t.Errorf("the branches moved from %v to %v with nothing to do", tips, now)
		}
		tips = now
		time.Sleep(5 * time.Second) // some cycles
	}
}

// end stops everything and looks at what it leaves.
func (w *world) end() {
	for _, p := range w.all() {
		p.stop()
	}
	left, err := filepath.Glob(filepath.Join(w.dir, "state-*", ".*"))
	if err != nil || len(left) > 0 {
		w.t.Errorf("%v are left in the state directory, %v", left, err)
	}
	if left := w.temporary(); left > 0 {
		w.t.Errorf("%d temporary files are left", left)
	}
	for _, r := range w.repos {
		if problems := r.Git(w.t, "fsck", "--strict"); strings.Contains(problems, "error") {
			w.t.Errorf("git fsck: %s", problems)
		}
	}
}

// temporary returns how many files programs have in the directory for them.
func (w *world) temporary() int {
	files, err := os.ReadDir(filepath.Join(w.dir, "tmp"))
	if err != nil {
		w.t.Error(err)
	}
	return len(files)
}

// program is one of ours that runs for long.
type program struct {
	t       *testing.T
	name    string
	address string // of its HTTP
	make    func() *exec.Cmd
	log     string // file
	cmd     *exec.Cmd
}

func (w *world) program(name, command string, args ...string) *program {
	p := &program{t: w.t, name: name, address: registrytest.FreeAddress(), log: filepath.Join(w.dir, name+".log")}
	p.make = func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(w.bin, command), append(args, "--listen="+p.address)...) //nolint:gosec // ours
		cmd.Env = w.environ()
		return cmd
	}
	w.t.Cleanup(p.kill)
	w.t.Cleanup(p.tell)
	return p
}

func (w *world) environ(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "DOCKER_CONFIG=" + w.dir, "TMPDIR=" + filepath.Join(w.dir, "tmp")}, more...)
}

func (p *program) start() {
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = p.make()
	p.cmd.Stderr = log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// await waits until the program answers.
func (p *program) await() {
	for deadline := time.Now().Add(settle); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get("http://" + p.address + "/readyz") //nolint:noctx // it has a deadline
		if err == nil {
			_ = res.Body.Close()
		}
		if err == nil && res.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s is not ready after %v: %v", p.name, settle, err)
		}
	}
}

func (p *program) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // killed
		p.cmd = nil
	}
}

// stop asks the program to end, which it must do by itself and without a complaint.
func (p *program) stop() {
	late := time.AfterFunc(settle, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%s was told to end: %v", p.name, err)
	}
	p.cmd = nil
}

// tell shows what the program said where the test has failed, and fails where it said that it broke.
func (p *program) tell() {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return // never started
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "WARNING: DATA RACE") {
			p.t.Errorf("%s broke:\n%s", p.name, strings.Join(lines[i:min(i+40, len(lines))], "\n"))
			return
		}
	}
	if p.t.Failed() {
		p.t.Logf("%s said last:\n%s", p.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// flaky is a Git server's way to the network. What it does not pass on, or back, is lost as it is when a server is killed.
type flaky struct {
	life atomic.Int64 // goes up with each restart
	away atomic.Bool
}

func (f *flaky) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		life := f.life.Load()
		if !f.away.Load() {
			next.ServeHTTP(w, r)
		}
		if f.away.Load() || f.life.Load() != life {
			panic(http.ErrAbortHandler) // what git has done, nobody hears
		}
	})
}

func (f *flaky) restart(after time.Duration) {
	f.life.Add(1)
	f.away.Store(true)
	time.Sleep(after)
	f.away.Store(false)
}
