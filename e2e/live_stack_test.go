package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// liveStack is a whole Argo CD, as it is installed, in processes instead of pods:
//
//	etcd, kube-apiserver                            the cluster, without controllers and nodes
//	redis, repo-server, cmp-server,
//	application-controller, argocd-server           Argo CD v3.5.7, see e2e/argocd
//	digestlock serve, digestlock-companion          ours; digestlock generate is started by cmp-server
//	registry, git http-backend                      what they work with
//
// Because there is no kube-controller-manager, Deployments stay Progressing, Jobs end when a test says so (endJob), and
// nothing is collected that depends on what was deleted.
//
// One stack serves many scenarios, one after the other: each deploys a liveApp, whose image, overlay and namespace are its own.
type liveStack struct {
	*installation
	t     *testing.T       // the stack's own, so that what a scenario starts again outlives the scenario
	parts map[string]*part // of Argo CD, by name
	bin   string           // on Argo CD's PATH: its program under all its names, and digestlock

	resolverAddr, companionAddr, redisAddr, serverAddr string
}

// part is a process of Argo CD. It can be stopped and started again, at the same address.
type part struct {
	command *exec.Cmd // to be copied
	log     string
	ready   func(context.Context) error
	proc    *process
}

// Argo CD's processes, in the order in which they start.
const (
	redis      = "redis-server"
	repoServer = "argocd-repo-server"
	cmpServer  = "argocd-cmp-server"
	controller = "argocd-application-controller"
	apiServer  = "argocd-server"

	// Those that only one scenario needs start with it.
	setController = "argocd-applicationset-controller"
	commitServer  = "argocd-commit-server"
)

var argoCDParts = []string{redis, cmpServer, repoServer, controller, apiServer}

// newLiveStack takes 15 s, and minutes when the build cache knows nothing of Argo CD and kube-apiserver.
func newLiveStack(t *testing.T) *liveStack {
	t.Helper()
	dir := shortDir(t)
	s := &liveStack{
		installation: newInstallation(t, dir, map[string]string{"README.md": "what runs where\n"}),
		t:            t,
		bin:          argoCDBin(t, dir),
		resolverAddr: freeAddr(), companionAddr: freeAddr(), redisAddr: freeAddr(), serverAddr: freeAddr(),
	}
	s.cluster = startCluster(t)
	s.fill(t)
	s.fillArgoCD(t)
	s.parts = s.describe(t)
	s.start()
	return s
}

// argoCDBin makes a directory with what Argo CD starts by name.
func argoCDBin(t *testing.T, dir string) string {
	t.Helper()
	program, err := buildArgoCD()
	if err != nil {
		t.Fatalf("build Argo CD: %v", err)
	}
	bin := filepath.Join(dir, "bin")
	wrapper := filepath.Join(bin, "git-verify-wrapper.sh")
	writeFile(t, wrapper, readFile(t, filepath.Join(argoCDSource(t), "hack/git-verify-wrapper.sh")))
	if err := os.Chmod(wrapper, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"argocd": program, repoServer: program, cmpServer: program, controller: program, apiServer: program,
		setController: program, commitServer: program,
		"digestlock": filepath.Join(binDir, "digestlock"),
	} {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

// buildArgoCD builds Argo CD's program, once, into the go command's own cache.
var buildArgoCD = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-n", "github.com/argoproj/argo-cd/v3/cmd")
	cmd.Dir = "argocd"
	return stdoutOf(cmd)
})

// fillArgoCD creates what Argo CD's own manifests would have, beside what the companion reads.
func (s *liveStack) fillArgoCD(t *testing.T) {
	t.Helper()
	const meta = `metadata: {name: %s, labels: {app.kubernetes.io/part-of: argocd}}`
	for _, name := range []string{"argocd-cm", "argocd-rbac-cm", "argocd-ssh-known-hosts-cm", "argocd-gpg-keys-cm"} {
		s.cluster.create(t, "/api/v1/namespaces/argocd/configmaps", "apiVersion: v1\nkind: ConfigMap\n"+fmt.Sprintf(meta, name))
	}
	s.cluster.create(t, "/api/v1/namespaces/argocd/secrets", "apiVersion: v1\nkind: Secret\n"+fmt.Sprintf(meta, "argocd-secret")+
		"\ndata: {server.secretkey: "+base64.StdEncoding.EncodeToString([]byte("e2e"))+"}\n")
	s.cluster.create(t, "/api/v1/namespaces/argocd/secrets", fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: deploy-read, labels: {argocd.argoproj.io/secret-type: repository}}
stringData: {type: git, url: %q, username: %q, password: %q}
`, s.git.url, gitUser, gitPassword))
}

// describe says how Argo CD's processes are started.
func (s *liveStack) describe(t *testing.T) map[string]*part {
	t.Helper()
	sockets, certs := filepath.Join(s.dir, "plugins"), filepath.Join(s.dir, "tls")
	for _, d := range []string{sockets, filepath.Join(s.dir, "tmp"), filepath.Join(s.dir, "cmp"), filepath.Join(s.dir, "redis")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(certs, "127.0.0.1"), readFile(t, s.git.caFile)) // in a cluster argocd-tls-certs-cm
	redisAddr, serverAddr, repoAddr := s.redisAddr, s.serverAddr, freeAddr()
	repoMetrics, controllerMetrics, serverMetrics := freeAddr(), freeAddr(), freeAddr()
	setMetrics, commitAddr, commitMetrics := freeAddr(), freeAddr(), freeAddr()

	parts := map[string]*part{}
	add := func(name string, ready func(context.Context) error, env []string, args ...string) {
		path, err := exec.LookPath(name)
		if name != redis {
			path, err = filepath.Join(s.bin, name), nil
		}
		if err != nil {
			t.Fatalf("Argo CD needs redis: apt-get install redis-server: %v", err)
		}
		parts[name] = &part{
			command: &exec.Cmd{Path: path, Args: append([]string{name}, args...), Env: append(env, "NO_PROXY=127.0.0.1")},
			log:     showLog(t, filepath.Join(s.dir, name+".log")),
			ready:   ready,
		}
	}
	env := []string{
		"PATH=" + s.bin + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"HOME=" + s.dir,
		"TMPDIR=" + filepath.Join(s.dir, "tmp"),
		"KUBECONFIG=" + s.cluster.kubeconfig,
		"ARGOCD_FAKE_IN_CLUSTER=true", // https://kubernetes.default.svc is the cluster of KUBECONFIG
		"ARGOCD_GPG_ENABLED=false",
		"ARGOCD_TLS_DATA_PATH=" + certs,
		"ARGOCD_PLUGINSOCKFILEPATH=" + sockets,
		"ARGOCD_ASK_PASS_SOCK=" + filepath.Join(s.dir, "ask.sock"),
	}
	add(redis, func(ctx context.Context) error { return dial(ctx, "tcp", redisAddr) }, nil,
		"--bind", "127.0.0.1", "--port", port(redisAddr), "--save", "", "--dir", filepath.Join(s.dir, "redis"))
	add(cmpServer, func(ctx context.Context) error { return dial(ctx, "unix", filepath.Join(sockets, "digestlock.sock")) },
		[]string{ // the environment of a hardened sidecar: no HOME, no git
			"PATH=" + s.bin,
			"TMPDIR=" + filepath.Join(s.dir, "cmp"),
			"ARGOCD_PLUGINSOCKFILEPATH=" + sockets,
			"DIGESTLOCK_SERVER=unix://" + filepath.Join(s.dir, "resolver.sock"),
		},
		"--config-dir-path", filepath.Join("..", "plugin"), "--logformat", "text")
	add(repoServer, func(ctx context.Context) error { return checkOK(ctx, "http://"+repoMetrics+"/healthz?full=true") }, env,
		"--address", "127.0.0.1", "--port", port(repoAddr), "--metrics-address", "127.0.0.1", "--metrics-port", port(repoMetrics),
		"--redis", redisAddr, "--disable-tls", "--client-ca-path=", "--logformat", "text", "--loglevel", "warn")
	add(controller, func(ctx context.Context) error { return checkOK(ctx, "http://"+controllerMetrics+"/healthz") }, env,
		"--namespace", "argocd", "--application-namespaces", "team-a", "--metrics-port", port(controllerMetrics),
		"--redis", redisAddr, "--repo-server", repoAddr, "--repo-server-plaintext", "--logformat", "text",
		"--hydrator-enabled", "--commit-server", commitAddr)
	add(apiServer, func(ctx context.Context) error { return checkOK(ctx, "http://"+serverAddr+"/healthz?full=true") }, env,
		"--namespace", "argocd", "--application-namespaces", "team-a", "--insecure", "--disable-auth",
		"--address", "127.0.0.1", "--port", port(serverAddr), "--metrics-address", "127.0.0.1", "--metrics-port", port(serverMetrics),
		"--redis", redisAddr, "--repo-server", repoAddr, "--repo-server-plaintext", "--logformat", "text", "--loglevel", "warn")
	add(setController, func(ctx context.Context) error { return checkOK(ctx, "http://"+setMetrics+"/metrics") }, env,
		"--namespace", "argocd", "--metrics-addr", setMetrics, "--probe-addr", freeAddr(), "--webhook-addr", freeAddr(),
		"--argocd-repo-server", repoAddr, "--repo-server-plaintext", "--logformat", "text", "--loglevel", "warn")
	add(commitServer, func(ctx context.Context) error { return checkOK(ctx, "http://"+commitMetrics+"/healthz?full=true") }, env,
		"--address", "127.0.0.1", "--port", port(commitAddr), "--metrics-address", "127.0.0.1", "--metrics-port", port(commitMetrics),
		"--logformat", "text", "--loglevel", "warn")
	return parts
}

// port of an address of freeAddr.
func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// start starts all that scenarios stop, and waits until everything answers.
func (s *liveStack) start() {
	s.t.Helper()
	s.startResolver(s.t, s.dir, s.resolverAddr)
	for _, name := range argoCDParts {
		s.startPart(name)
	}
	s.startFollowing()
}

// startFollowing starts the companion.
func (s *liveStack) startFollowing() {
	s.t.Helper()
	s.startCompanion(s.t, s.companionAddr, "--interval=5s", "--quiet-window=0", "--lease-duration=5s")
}

// follower is the companion that runs, or ran last.
func (s *liveStack) follower() *process { return s.companions[s.companionAddr] }

// stopFollowing ends the companion. It runs again when the scenario ends, at the latest.
func (s *liveStack) stopFollowing(t *testing.T) {
	t.Helper()
	s.follower().terminate(t)
	t.Cleanup(func() {
		if s.follower().ended() {
			s.startFollowing()
		}
	})
}

func (s *liveStack) followerLog() string { return s.companionLog(s.companionAddr) }

// stop ends what start started. Argo CD is killed: its cmp-server ignores SIGTERM.
func (s *liveStack) stop() {
	s.t.Helper()
	s.follower().terminate(s.t)
	for _, name := range argoCDParts {
		s.parts[name].proc.kill()
	}
	s.resolver.terminate(s.t)
}

func (s *liveStack) startPart(name string) {
	s.t.Helper()
	p := s.parts[name]
	cmd := *p.command
	p.proc = start(s.t, &cmd, p.log)
	p.proc.waitReady(s.t, p.ready)
}

// with starts a part for the time of a scenario.
func (s *liveStack) with(t *testing.T, name string) {
	t.Helper()
	s.startPart(name)
	t.Cleanup(s.parts[name].proc.kill)
}

// flushRedis has Argo CD forget all manifests that it has rendered.
func (s *liveStack) flushRedis(t *testing.T) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "redis-cli", "-p", port(s.redisAddr), "flushall").CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte("OK")) {
		t.Fatalf("redis-cli flushall: %v\n%s", err, out)
	}
}

// cli runs Argo CD's command line and returns what it prints on both channels.
func (s *liveStack) cli(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(s.bin, "argocd"), append(args, "--server", s.serverAddr, "--plaintext")...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "NO_PROXY=127.0.0.1", "PATH=" + os.Getenv("PATH")} // which has diff
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// renders counts how often Argo CD had the plugin render a path, or what is below it.
func (s *liveStack) renders(t *testing.T, path string) (n int) {
	t.Helper()
	for line := range strings.Lines(readFile(t, s.parts[cmpServer].log)) {
		if strings.Contains(line, `msg="digestlock generate"`) && (strings.Contains(line, "/"+path+" ") || strings.Contains(line, "/"+path+"/")) {
			n++
		}
	}
	return n
}
