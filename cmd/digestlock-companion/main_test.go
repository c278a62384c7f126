package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/daemon"
	"github.com/digestlock/digestlock/internal/door"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registrytest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"digestlock-companion": func() { cli.Main(program()) }})
}

// TestScripts runs testdata/script. Each script has a repository of its own at $REPO with an overlay in app, and a
// resolver at $RESOLVER whose ledger says that the overlay was rendered with ghcr.io/acme/server:latest. The files
// token, password and ca.pem open both, the file key opens nothing. $LISTEN is a free TCP address.
func TestScripts(t *testing.T) {
	t.Parallel()
	git := gittest.HTTPS(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setup(t, git, env) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"flush":  flush,
			"await":  await,
			"commit": count,
			"says":   says,
			"usage":  misuse,
			"git":    inRepository,
			"hook":   hook,
			"render": rendered,
			"scrape": scrape,
			"ask":    ask,
			"move":   move,
		},
	})
}

type surroundings struct {
	t        *testing.T
	repo     *gittest.Repo
	registry *registry
	cache    *cache.Cache
}

type surroundingsKey struct{}

func setup(t *testing.T, git *gittest.Server, env *testscript.Env) error {
	s := &surroundings{t: t, registry: &registry{digest: "sha256:" + strings.Repeat("1", 64)}}
	s.repo = git.Create(t, filepath.Base(env.WorkDir)+".git", map[string]string{"app/kustomization.yaml": "resources: []\n"})
	s.cache = cache.New(s.registry, cache.Options{})
	env.Defer(s.cache.Close)
	env.Values[surroundingsKey{}] = s
	for name, content := range map[string]string{"token": "# for the companion\nt0ken\n", "password": git.Auth.Password + "\n", "ca.pem": string(git.Auth.CA), "key": string(gittest.NewSSHKey(t))} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	address, err := serve(env.WorkDir, env.Defer, s.cache)
	if err != nil {
		return err
	}
	env.Setenv("LISTEN", registrytest.FreeAddress())
	env.Setenv("RESOLVER", address)
	env.Setenv("REPO", s.repo.URL)
	env.Setenv("DIGEST", s.registry.digest)
	return render(address, s.repo.URL)
}

// serve starts a resolver that keeps its state in dir, where the file token is, and has it stopped later.
func serve(dir string, later func(func()), c *cache.Cache) (address string, err error) {
	log := slog.New(slog.DiscardHandler)
	ledger, err := daemon.OpenLedger(filepath.Join(dir, ".state"), log)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := daemon.New(daemon.Options{
		Resolver: c, Ledger: ledger, Keys: door.Keys{TokenFile: filepath.Join(dir, "token")}, Log: log, Metrics: prometheus.NewRegistry(),
	})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, nil, l) })
	later(func() {
		stop()
		wg.Wait()
	})
	return "http://" + l.Addr().String(), nil
}

// render is what the plugin reports of a complete render.
func render(address, repository string) error {
	client, err := api.NewClient(address, "t0ken")
	if err != nil {
		return err
	}
	defer client.Close()
	ref, err := image.Parse("ghcr.io/acme/server")
	if err != nil {
		return err
	}
	_, err = client.Resolve(context.Background(), &lock.Source{
		Project: "default", Application: "backend", Repository: repository, TargetRevision: "main", Path: "app",
		Revision: "3f2c1ab", RenderedAt: time.Now(),
	}, nil, []image.Ref{ref})
	return err
}

// registry answers everything with one digest.
type registry struct {
	mu     sync.Mutex
	digest string
}

func (r *registry) Resolve(_ context.Context, _ string, refs []image.Ref) []image.Resolution {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []image.Resolution
	for _, ref := range refs {
		out = append(out, image.Resolution{Ref: ref, Digest: r.digest, At: time.Now()})
	}
	return out
}

func (r *registry) set(digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.digest = digest
}

func of(ts *testscript.TestScript) *surroundings {
	return ts.Value(surroundingsKey{}).(*surroundings)
}

// move is move DIGIT: it moves every tag to $NEXT, whose digest is made of that digit, and tells nobody.
func move(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	next := "sha256:" + strings.Repeat(args[0], 64)
	ts.Setenv("NEXT", next)
	s.registry.set(next)
}

// flush moves every tag to $NEXT, and tells the resolver.
func flush(ts *testscript.TestScript, neg bool, _ []string) {
	move(ts, neg, []string{"2"})
	s := of(ts)
	ref, err := image.Parse("ghcr.io/acme/server")
	ts.Check(err)
	s.cache.Flush(context.Background(), []image.Target{{Ref: ref}})
}

// rendered is render URL: it tells the resolver of a render of another repository.
func rendered(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(render(ts.Getenv("RESOLVER"), args[0]))
}

// inRepository is git ARGS...: it runs git in the bare repository on the server.
func inRepository(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	s.repo.Git(s.t, args...)
}

// hook NAME SCRIPT installs a hook in the repository on the server.
func hook(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	s.repo.Hook(s.t, args[0], args[1])
}

// await TEXT waits until the lock in Git holds the text.
func await(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	for range 400 {
		if s.repo.Git(s.t, "ls-tree", "main", "app/digest-lock.yaml") != "" &&
			strings.Contains(s.repo.Git(s.t, "show", "main:app/digest-lock.yaml"), args[0]) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("no %s in the lock", args[0])
}

// count is commit N checks the number of commits on main.
func count(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	if got := s.repo.Git(s.t, "rev-list", "--count", "main"); got != args[0] {
		ts.Fatalf("%s commits, want %s", got, args[0])
	}
}

// says REGEXP checks the last commit on main: who, and what, signature included.
func says(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	text := s.repo.Git(s.t, "cat-file", "commit", "main")
	if !regexp.MustCompile("(?m)" + args[0]).MatchString(text) {
		ts.Fatalf("no match for %s in\n%s", args[0], text)
	}
}

// misuse is usage ARGS... calls the program, which must print an error line and a hint line and exit with 2.
func misuse(ts *testscript.TestScript, _ bool, args []string) {
	var stdout, stderr strings.Builder
	lookup := func(string) (string, bool) { return "", false }
	for i, a := range args {
		if a == "password" || strings.HasSuffix(a, ".tmpl") {
			args[i] = ts.MkAbs(a)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // it may take the call for a good one
	defer cancel()
	code := program().Run(ctx, cli.Env{Lookup: lookup, Stdout: &stdout, Stderr: &stderr}, args)
	lines := strings.Split(stderr.String(), "\n")
	if code != 2 || stdout.Len() > 0 || len(lines) != 3 ||
		!strings.HasPrefix(lines[0], "digestlock-companion: error: ") || !strings.HasPrefix(lines[1], "digestlock-companion: hint: ") {
		ts.Fatalf("exit code %d, stdout %q, stderr:\n%s", code, &stdout, &stderr)
	}
	_, _ = ts.Stderr().Write([]byte(stderr.String()))
}

func TestSplitBranch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in, url, branch string
		restricted      bool
	}{
		{"https://git.example.com/team/k8s.git", "https://git.example.com/team/k8s.git", "", false},
		{"https://git.example.com/team/k8s.git@main", "https://git.example.com/team/k8s.git", "main", true},
		{"https://git.example.com/team/k8s@feature/x", "https://git.example.com/team/k8s", "feature/x", true},
		{"https://git.example.com/team/k8s@refs/heads/main", "https://git.example.com/team/k8s", "main", true},
		{"https://me@git.example.com:8443/team/k8s", "https://me@git.example.com:8443/team/k8s", "", false},
		{"https://me@git.example.com/team/k8s@main", "https://me@git.example.com/team/k8s", "main", true},
		{"https://git.example.com/@team/k8s@main", "https://git.example.com/@team/k8s", "main", true},
		{"git@git.example.com:team/k8s.git", "git@git.example.com:team/k8s.git", "", false},
		{"git@git.example.com:team/k8s.git@main", "git@git.example.com:team/k8s.git", "main", true},
		{"git@git.example.com:k8s@feature/x", "git@git.example.com:k8s", "feature/x", true},
		{"git.example.com:team/k8s@main", "git.example.com:team/k8s", "main", true},
		{"ssh://git@git.example.com:22/team/k8s", "ssh://git@git.example.com:22/team/k8s", "", false},
		{"ssh://git@git.example.com:22/team/k8s@a/b", "ssh://git@git.example.com:22/team/k8s", "a/b", true},
		{"https://git.example.com/team/k8s@", "https://git.example.com/team/k8s", "", true},
		{"https://me@git.example.com", "https://me@git.example.com", "", false},
		{"me@git.example.com", "me@git.example.com", "", false},
		{"", "", "", false},
	} {
		url, branch, restricted := splitBranch(tt.in)
		if url != tt.url || branch != tt.branch || restricted != tt.restricted {
			t.Errorf("splitBranch(%q) = %q, %q, %v, want %q, %q, %v", tt.in, url, branch, restricted, tt.url, tt.branch, tt.restricted)
		}
	}
}

// TestReplicasAreClosed: connections of one cycle do not pile up until the next thousand.
func TestReplicasAreClosed(t *testing.T) {
	t.Parallel()
	r := resolvers{address: "http://127.0.0.1:1"}
	first, err := r.replicas(t.Context())
	if err != nil || len(first) != 1 {
		t.Fatalf("replicas = %v, %v", first, err)
	}
	if again, err := r.replicas(t.Context()); err != nil || len(again) != 1 || len(r.clients) != 1 || again[0] == first[0] {
		t.Errorf("replicas = %v, %v, of which %d are open", again, err, len(r.clients))
	}
	if r.close(); len(r.clients) > 0 {
		t.Errorf("%d clients are left", len(r.clients))
	}
}

// TestReplicasKnowTheLedger: the clients of one cycle go on with what those of the one before it know, and nobody with what
// was known of a replica that was gone.
func TestReplicasKnowTheLedger(t *testing.T) {
	t.Parallel()
	var conditions []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conditions = append(conditions, r.Header.Get("If-None-Match"))
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, `{"sources":[{"source":{"application":"backend"},"pins":[]}]}`)
	}))
	defer s.Close()
	r := resolvers{}
	defer r.close()
	for _, address := range []string{s.URL, s.URL, s.URL, "http://127.0.0.1:1", s.URL} {
		r.address = address
		replicas, err := r.replicas(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		docs, err := replicas[0].Pins(t.Context())
		if address == s.URL && (err != nil || len(docs) != 1 || docs[0].Source.Application != "backend") {
			t.Errorf("Pins = %+v, %v", docs, err)
		}
	}
	if want := []string{"", `"1"`, `"1"`, ""}; !slices.Equal(conditions, want) {
		t.Errorf("If-None-Match: %q, want %q", conditions, want)
	}
}
