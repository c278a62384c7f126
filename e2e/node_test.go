package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Addresses in the network of a node, all of which are the node's own.
const (
	nodeAddr     = "10.90.0.1"
	gitAddr      = "10.90.0.2"
	registryAddr = "10.90.0.3"

	gitHost      = "git.example.com"
	registryHost = "registry.example.com"
)

// node is a Kubernetes of one machine, with a Git server and a registry beside it, in namespaces of its own.
type node struct {
	*kubeCluster
	git               *gitServer
	dir               string
	certFile, keyFile string // of gitHost and registryHost, and the authority
	kubectlPath       string
	pushers           chan string // users who have pushed to Git
}

// isolate runs this test once more, as the first process of namespaces of its own. When that ends, however it does, the
// kernel ends all that it started, and unmounts all that was mounted.
func isolate(t *testing.T, dir string) {
	t.Helper()
	t.Cleanup(func() { removeCgroups(t, "/"+filepath.Base(dir)) })
	temp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temp, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=25m")
	cmd.Env = append(os.Environ(), podsVar+"="+dir, "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}
	var out bytes.Buffer
	cmd.Stdout = io.MultiWriter(&out, t.Output())
	cmd.Stderr = cmd.Stdout
	stdin, err := cmd.StdinPipe() // see exitWithParent
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	switch err := cmd.Run(); {
	case err != nil:
		t.Fatalf("in its namespaces: %v", err)
	case bytes.Contains(out.Bytes(), []byte("--- SKIP: "+t.Name())):
		t.Skip("see above")
	case !bytes.Contains(out.Bytes(), []byte("--- PASS: "+t.Name())):
		t.Fatal("it was not run")
	}
}

// world makes the namespaces a machine of their own: what is written to /etc, /var and /run is lost with them. The tunables
// are the machine's, and have what the kubelet would set, so that it sets nothing.
const world = `
mount --make-rprivate /
mount -t proc proc /proc
for d in etc var; do
  mkdir -p $DIR/$d $DIR/work-$d
  mount -t overlay overlay -o lowerdir=/$d,upperdir=$DIR/$d,workdir=$DIR/work-$d /$d
done
mount -t tmpfs tmpfs /run
mkdir /run/tunables
tunable() {
  echo $2 >/run/tunables/$(basename $1)
  mount --bind /run/tunables/$(basename $1) /proc/sys/$1
}
tunable vm/overcommit_memory 1
tunable vm/panic_on_oom 0
tunable kernel/panic 10
tunable kernel/panic_on_oops 1
tunable kernel/keys/root_maxkeys 1000000
tunable kernel/keys/root_maxbytes 25000000

ip link set lo up
ip link add node0 type veth peer name node1
for a in $ADDRESSES; do ip addr add $a/24 dev node0; done
ip link set node0 up
ip link set node1 up
ip route add $SERVICES dev node0 # or nothing here would ask for a Service, which kube-proxy looks for behind the routes
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables # a Service's answers come over the bridge
iptables -t nat -A OUTPUT -m comment --comment probe -m statistic --mode random --probability 0.5 -j ACCEPT

for c in /sys/fs/cgroup/*/; do
  mkdir -p $c$CGROUP
  for f in cpuset.cpus cpuset.mems; do
    if [ -e $c$f ]; then cat $c$f >$c$CGROUP/$f; fi
  done
done
`

// enter makes the node, without anything that runs on it.
func enter(t *testing.T, dir string) *node {
	t.Helper()
	exitWithParent()
	cmd := exec.Command("sh", "-eu", "-c", world)
	cmd.Env = append(os.Environ(), "DIR="+filepath.Join(dir, "world"), "CGROUP="+filepath.Base(dir), "SERVICES="+serviceRange, "ADDRESSES="+strings.Join([]string{nodeAddr, gitAddr, registryAddr}, " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("this kernel, or this container, cannot be a node: %v\n%s", err, out)
	}
	n := &node{
		dir: dir, kubectlPath: kubernetes(t, "kubectl"),
		certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem"),
	}
	n.certify(t)
	t.Setenv("SSL_CERT_FILE", n.certFile)
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s %s\n%s %s\n", gitAddr, gitHost, registryAddr, registryHost)
	writeFile(t, "/etc/hosts", hosts)
	return n
}

// removeCgroups removes what kubelet and containers leave.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + name)
	if err != nil {
		t.Fatal(err)
	}
	await(t, func() error { // what was killed leaves them in its own time
		for _, root := range roots {
			var dirs []string
			filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
					return fmt.Errorf("remove cgroup %s: %w", dir, err)
				}
			}
		}
		return nil
	})
}

// certify makes a certificate that is its own authority.
func (n *node) certify(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{gitHost, registryHost}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, n.certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, n.keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
}

// The registry's only user, who may do all, and who may only read from the Git server.
const (
	registryUser     = "robot"
	registryPassword = "wrong-cow-cell-clip"
	gitReader        = "reader"
	gitReadPassword  = "all dogs go to heaven"
)

// startRegistry serves images to registryUser at registryHost.
func (n *node) startRegistry(t *testing.T) {
	t.Helper()
	dir := filepath.Join(n.dir, "registry")
	hash, err := bcrypt.GenerateFromPassword([]byte(registryPassword), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "htpasswd"), registryUser+":"+string(hash)+"\n")
	r := &registryServer{addr: registryAddr + ":443", dir: dir, log: showLog(t, filepath.Join(n.dir, "registry.log"))}
	writeFile(t, filepath.Join(dir, "config.yml"), fmt.Sprintf(`
version: 0.1
log: {level: warn}
http: {addr: %q, secret: e2e, tls: {certificate: %q, key: %q}}
storage: {filesystem: {rootdirectory: %q}}
auth: {htpasswd: {realm: e2e, path: %q}}
`, r.addr, n.certFile, n.keyFile, filepath.Join(dir, "images"), filepath.Join(dir, "htpasswd")))
	r.start(t)
}

// startGit serves a repository at gitHost: to gitReader for reading, to gitUser for both.
func (n *node) startGit(t *testing.T, tree map[string]string) {
	t.Helper()
	n.git, n.pushers = newGit(t, "acme/k8s.git", tree), make(chan string, 100)
	backend := httpBackend(t, filepath.Dir(filepath.Dir(n.git.bare)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user == gitReader && password == gitReadPassword && !strings.Contains(r.URL.String(), "git-receive-pack") {
			r.SetBasicAuth(gitUser, gitPassword)
		}
		if strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
			n.pushers <- user
		}
		backend.ServeHTTP(w, r)
	})}
	cert, err := tls.LoadX509KeyPair(n.certFile, n.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", gitAddr+":443", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// startKubernetes starts all of it and waits until the node is ready for pods.
func (n *node) startKubernetes(t *testing.T) {
	t.Helper()
	dir := filepath.Join(n.dir, "kubernetes")
	n.kubeCluster = startAPIServer(t, dir, nodeAddr+":6443", "--kubelet-preferred-address-types=InternalIP")
	n.startContainerd(t)
	n.startDNS(t)
	flags := func(flags ...string) []string { return append([]string{"--kubeconfig=" + n.kubeconfig}, flags...) }
	for program, flags := range map[string][]string{
		"kube-controller-manager": flags("--leader-elect=false", "--root-ca-file="+filepath.Join(dir, "apiserver.crt"), "--service-account-private-key-file="+filepath.Join(dir, "sa.key")),
		"kube-scheduler":          flags("--leader-elect=false"),
		"kube-proxy":              {"--config=" + n.proxyConfig(t)},
		"kubelet":                 flags("--config="+n.kubeletConfig(t), "--root-dir="+filepath.Join(n.dir, "kubelet"), "--hostname-override=node", "--node-ip="+nodeAddr),
	} {
		start(t, exec.Command(kubernetes(t, program), flags...), showLog(t, filepath.Join(n.dir, program+".log")))
	}
	n.kubectl(t, "wait", "--for=create", "--timeout=60s", "node/node")
	n.kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "node/node")
	n.kubectl(t, "wait", "--for=create", "--timeout=60s", "serviceaccount/default")
}

func (n *node) proxyConfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(n.dir, "kube-proxy.yaml")
	writeFile(t, file, fmt.Sprintf(`
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
hostnameOverride: node
mode: iptables
clusterCIDR: 10.91.0.0/16
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s} # are the machine's
`, n.kubeconfig))
	return file
}

func (n *node) kubeletConfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(n.dir, "kubelet.yaml")
	writeFile(t, file, fmt.Sprintf(`
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0 # nothing that a container may change
enforceNodeAllocatable: []
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
imageGCHighThresholdPercent: 100
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: ""
`, filepath.Base(n.dir), nodeAddr))
	return file
}

// startContainerd starts it with all registries' images at registryHost.
func (n *node) startContainerd(t *testing.T) {
	t.Helper()
	config := filepath.Join(n.dir, "containerd.toml")
	writeFile(t, config, fmt.Sprintf(`
version = 2
root = %q
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = "/etc/cni/e2e"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
`, filepath.Join(n.dir, "containerd"), pauseImage, cniPlugins))
	writeFile(t, "/etc/containerd/certs.d/_default/hosts.toml", fmt.Sprintf(`
[host."https://%[1]s"]
  capabilities = ["pull", "resolve"]
  ca = %[2]q
  [host."https://%[1]s".header]
    authorization = "Basic %[3]s"
`, registryHost, n.certFile, base64.StdEncoding.EncodeToString([]byte(registryUser+":"+registryPassword))))
	writeFile(t, "/etc/cni/e2e/e2e.conflist", `{
  "cniVersion": "0.4.0", "name": "e2e",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}`)
	p := start(t, exec.Command("containerd", "--config="+config), showLog(t, filepath.Join(n.dir, "containerd.log")))
	p.waitReady(t, func(ctx context.Context) error { return dial(ctx, "unix", "/run/containerd/containerd.sock") })
}

// startDNS answers for Services, and for what is in /etc/hosts.
func (n *node) startDNS(t *testing.T) {
	t.Helper()
	file := filepath.Join(n.dir, "Corefile")
	writeFile(t, file, fmt.Sprintf(`. {
  errors
  hosts {
    fallthrough
  }
  kubernetes cluster.local {
    kubeconfig %s
  }
}
`, n.kubeconfig))
	p := start(t, exec.Command(filepath.Join(n.dir, "coredns"), "-conf", file), showLog(t, filepath.Join(n.dir, "coredns.log")))
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, nodeAddr+":53")
	}}
	p.waitReady(t, func(ctx context.Context) error {
		_, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
		return err
	})
}

// kubectl runs it and returns what it prints on stdout.
func (n *node) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.tryKubectl(t, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (n *node) tryKubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(n.kubectlPath, append([]string{"--kubeconfig=" + n.kubeconfig}, args...)...)
	cmd.Env = []string{"HOME=" + n.dir}
	return stdoutOf(cmd)
}

// apply applies objects as docs/install.md says.
func (n *node) apply(t *testing.T, objects string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	writeFile(t, file, objects)
	n.kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", file)
}
