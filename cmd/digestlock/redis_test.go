package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// redisServer is a real one with TLS and a user who may do no more than docs/replicas.md says.
type redisServer struct {
	t       *testing.T
	address string
	dir     string // with its certificate, key and the user's password
	cmd     *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server here: apt-get install redis-server")
	}
	r := &redisServer{t: t, address: registrytest.FreeAddress(), dir: t.TempDir()}
	c := certificate(t, time.Hour)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	r.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	r.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	r.write("password", "correct-horse\n")
	_, port, _ := net.SplitHostPort(r.address)
	r.write("redis.conf", fmt.Sprintf(`port 0
tls-port %s
bind 127.0.0.1
tls-cert-file cert.pem
tls-key-file key.pem
tls-auth-clients no
save ""
user default off
%s
`, port, strings.ReplaceAll(documented(t), "PASSWORD", "correct-horse")))
	r.start()
	t.Cleanup(func() { r.kill() })
	return r
}

// documented returns the line for Redis' configuration that docs/replicas.md gives.
func documented(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^user digestlock .*$`).Find(page)
	if line == nil {
		t.Fatal("docs/replicas.md has no user")
	}
	return string(line)
}

func (r *redisServer) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *redisServer) start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", "redis.conf")
	r.cmd.Dir = r.dir
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for range 400 {
		if c, err := net.Dial("tcp", r.address); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	r.t.Fatal("redis-server does not listen")
}

func (r *redisServer) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // killed
}

// replica is a resolver of several that share a Redis.
type replica struct {
	*api.Client
	address string

	mu  sync.Mutex
	log []string
}

func startReplica(t *testing.T, r *redisServer, registry string, more ...string) *replica {
	t.Helper()
	r.write("token", "secret")
	cmd := exec.CommandContext(t.Context(), "digestlock", append([]string{
		"serve", "--socket=", "--listen=127.0.0.1:0", "--token-file", filepath.Join(r.dir, "token"), "--state-dir", t.TempDir(),
		"--insecure-registry", registry, "--registry-qps=1000", "--refresh-window=0", "--ttl=10m",
		"--redis-url", "rediss://digestlock@" + r.address, "--redis-password-file", filepath.Join(r.dir, "password"),
		"--redis-ca-file", filepath.Join(r.dir, "cert.pem"), "--redis-timeout=5s",
	}, more...)...)
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &replica{}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ready := make(chan string, 1)
	go func() {
		defer close(ready)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.log = append(p.log, lines.Text())
			p.mu.Unlock()
			var entry struct{ Msg, Listen string }
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "serving" {
				ready <- entry.Listen
			}
		}
	}()
	p.address = <-ready
	if p.address == "" {
		t.Fatalf("resolver did not start:\n%s", p.said())
	}
	if p.Client, err = api.NewClient("http://"+p.address, "secret"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (p *replica) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, "\n")
}

// metric reports whether the replica has this line among its metrics.
func (p *replica) metric(t *testing.T, line string) bool {
	t.Helper()
	res, err := http.Get("http://" + p.address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(body), "\n"+line+"\n")
}

// team is three replicas, a registry and a Redis.
type team struct {
	redis    *redisServer
	registry *registrytest.Server
	replicas []*replica
	refs     []image.Ref
	digests  map[string]string // by reference, what the registry serves
}

func startTeam(t *testing.T, images int, more ...string) *team {
	t.Helper()
	s := &team{redis: startRedis(t), registry: registrytest.Start(t), digests: map[string]string{}}
	for i := range images {
		repo := fmt.Sprintf("acme/app-%d", i)
		digest := s.registry.Push(repo, "latest")
		ref, err := image.Parse(s.registry.Host + "/" + repo + ":latest")
		if err != nil {
			t.Fatal(err)
		}
		s.refs = append(s.refs, ref)
		s.digests[ref.String()] = digest
	}
	for range 3 {
		s.replicas = append(s.replicas, startReplica(t, s.redis, s.registry.Host, more...))
	}
	s.registry.ResetCounts()
	return s
}

// resolve asks a replica for everything, and holds the answers against the registry.
func (s *team) resolve(ctx context.Context, p *replica) error {
	out, err := p.Resolve(ctx, nil, nil, s.refs)
	if err != nil {
		return err
	}
	for _, r := range out {
		if r.Err != nil || r.Digest != s.digests[r.Ref.String()] {
			return fmt.Errorf("%s = %s, %w, want %s", r.Ref, r.Digest, r.Err, s.digests[r.Ref.String()])
		}
	}
	return nil
}

// together asks all replicas at once.
func (s *team) together(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for n, p := range s.replicas {
		wg.Go(func() {
			if err := s.resolve(t.Context(), p); err != nil {
				t.Errorf("replica %d: %v", n, err)
			}
		})
	}
	wg.Wait()
}

func (s *team) wantHeads(t *testing.T, want int) {
	t.Helper()
	if got := s.registry.Counts().Head; got != want {
		t.Errorf("%d requests for manifests, want %d", got, want)
	}
}

// TestReplicasAskOnce: three replicas and 50 references are 50 requests, at once and later.
func TestReplicasAskOnce(t *testing.T) {
	t.Parallel()
	s := startTeam(t, 50)
	s.registry.SetLatency(300 * time.Millisecond) // so that all come while one is asking
	s.together(t)
	s.wantHeads(t, 50)
	s.replicas = append(s.replicas, startReplica(t, s.redis, s.registry.Host))
	s.together(t)
	s.wantHeads(t, 50)
	other := startReplica(t, s.redis, s.registry.Host, "--redis-prefix=other")
	if err := s.resolve(t.Context(), other); err != nil {
		t.Error(err)
	}
	s.wantHeads(t, 100)
}

// TestReplicasRefreshOnce: what is in use is kept fresh with one request for all replicas, in each nine tenths of a TTL.
func TestReplicasRefreshOnce(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	s := startTeam(t, 20, "--ttl="+ttl.String(), "--refresh-window=1m")
	begun, rounds := time.Now(), 0
	for s.registry.Counts().Head < 4*len(s.refs) {
		s.together(t)
		if rounds++; t.Failed() || rounds > 2000 {
			t.Fatalf("%d requests for manifests in %d rounds, want more", s.registry.Counts().Head, rounds)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// Counted before the clock is read: more time only allows more.
	got, periods := s.registry.Counts().Head, 1+int(time.Since(begun)/(ttl*9/10))
	t.Logf("%d requests for manifests, %d references, 3 replicas, %d rounds, %d periods", got, len(s.refs), rounds, periods)
	if got > periods*len(s.refs) {
		t.Errorf("%d requests for manifests in %d periods, want %d at most", got, periods, periods*len(s.refs))
	}
}

// TestReplicasForgetTogether: a flush at one replica reaches the others' memory, with a request for all.
func TestReplicasForgetTogether(t *testing.T) {
	t.Parallel()
	s := startTeam(t, 4)
	s.together(t)
	name := s.refs[0].String()
	for _, target := range []string{name, strings.TrimSuffix(name, ":latest")} {
		s.registry.ResetCounts()
		s.digests[name] = s.registry.Push(s.refs[0].Repository, "latest")
		flushed, err := s.replicas[0].Flush(t.Context(), []string{target})
		if err != nil || len(flushed.Flushed) != 1 || flushed.Flushed[0].New != s.digests[name] {
			t.Fatalf("flush %s = %+v, %v, want the new digest", target, flushed, err)
		}
		for n, p := range s.replicas {
			var err error
			for range 400 { // the message takes a moment
				if err = s.resolve(t.Context(), p); err == nil {
					break
				}
				time.Sleep(25 * time.Millisecond)
			}
			if err != nil {
				t.Errorf("replica %d after a flush of %s: %v", n, target, err)
			}
		}
		s.wantHeads(t, 1)
	}
	s.digests[name] = s.registry.Push(s.refs[0].Repository, "latest")
	s.flushAll(t, name)
	s.together(t)
}

// flushAll flushes as CI does, and wants a row with the new digest for each replica.
func (s *team) flushAll(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("digestlock", "flush", "--token-file", filepath.Join(s.redis.dir, "token"), name)
	for _, p := range s.replicas {
		cmd.Args = append(cmd.Args, "--server", "http://"+p.address)
	}
	out, err := cmd.CombinedOutput()
	row := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` .* ` + s.digests[name][:len("sha256:")+12] + ` .* ok$`)
	if n := len(row.FindAll(out, -1)); err != nil || n != len(s.replicas) {
		t.Errorf("flush of all: %v, %d rows that say ok, want %d:\n%s", err, n, len(s.replicas), out)
	}
}

// TestDocumentedResolver: the arguments that docs/replicas.md gives a resolver of its own are good.
func TestDocumentedResolver(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"serve"}
	for _, m := range regexp.MustCompile(`(?m)^ +- (--\S+)`).FindAllStringSubmatch(string(page), -1) {
		args = append(args, m[1])
	}
	if len(args) < 4 {
		t.Fatalf("docs/replicas.md has arguments %q, want more", args)
	}
	if out, err := exec.Command("digestlock", append(args, "--help")...).CombinedOutput(); err != nil {
		t.Errorf("digestlock %q: %v\n%s", args, err, out)
	}
}

// TestRedisKilled kills Redis under load and starts it again, empty. Nobody sees an error or a wrong digest, the
// registry is asked no more often than by replicas that share nothing, and they share again afterwards.
func TestRedisKilled(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	s := startTeam(t, 10, "--ttl="+ttl.String(), "--redis-timeout=1s")
	s.together(t)
	ctx, cancel := context.WithCancel(t.Context())
	begun := time.Now()
	var load sync.WaitGroup
	for n, p := range s.replicas {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := s.resolve(t.Context(), p); err != nil {
					t.Errorf("replica %d: %v", n, err)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for range 2 {
		s.redis.kill()
		s.wantDown(t, 1)
		s.redis.start()
		s.wantDown(t, 0)
	}
	cancel()
	load.Wait()
	// What a restart made a replica throw away is asked again, attempts times at most.
	bound := len(s.replicas) * len(s.refs) * (int(time.Since(begun)/ttl) + 1 + 2*2*3)
	if got := s.registry.Counts().Head; got > bound {
		t.Errorf("%d requests for manifests, want %d at most", got, bound)
	}
	for n, p := range s.replicas {
		log := p.said()
		if lost, back := strings.Count(log, "shared cache lost"), strings.Count(log, "shared cache back"); lost != 2 || back != 2 {
			t.Errorf("replica %d logs %d losses and %d returns of Redis, want 2 and 2:\n%s", n, lost, back, log)
		}
		if strings.Contains(log, "correct-horse") {
			t.Errorf("replica %d logs the password", n)
		}
	}
}

// wantDown waits until all replicas have noticed that Redis is away, or back.
func (s *team) wantDown(t *testing.T, down int) {
	t.Helper()
	for n, p := range s.replicas {
		noticed := false
		for range 800 {
			if noticed = p.metric(t, fmt.Sprintf("digestlock_shared_cache_down %d", down)); noticed {
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
		if !noticed {
			t.Errorf("replica %d has not come to digestlock_shared_cache_down %d:\n%s", n, down, p.said())
		}
	}
}
