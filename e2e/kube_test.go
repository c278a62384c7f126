package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
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
	"strings"
	"testing"

	argogit "github.com/argoproj/argo-cd/v3/util/git"
)

// adminToken is a cluster administrator's.
const adminToken = "correct-horse-admin"

// serviceRange is where Services have their addresses.
const serviceRange = "10.0.0.0/24"

// kubeCluster is an API server of its own on a store of its own, with Argo CD's kinds and the namespace argocd. Nothing
// else runs in it: no controllers, no nodes.
type kubeCluster struct {
	url        string
	kubeconfig string // an administrator's
	client     *http.Client
}

// startCluster takes seconds, and minutes when the build cache knows nothing of kube-apiserver.
func startCluster(t *testing.T) *kubeCluster {
	t.Helper()
	c := startAPIServer(t, t.TempDir(), freeAddr(),
		"--disable-admission-plugins=ServiceAccount", // waits for a controller
		"--endpoint-reconciler-type=none",
	)
	c.create(t, "/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: argocd}}`)
	for _, kind := range []string{"application", "applicationset", "appproject"} {
		c.define(t, filepath.Join(argoCDSource(t), "manifests/crds", kind+"-crd.yaml"), "/apis/argoproj.io/v1alpha1/"+kind+"s")
	}
	return c
}

// startAPIServer starts one at an address, with a store. Its certificate and the key of service accounts are in dir.
func startAPIServer(t *testing.T, dir, addr string, flags ...string) *kubeCluster {
	t.Helper()
	writeFile(t, filepath.Join(dir, "tokens.csv"), adminToken+",admin,admin,system:masters\n")
	writeFile(t, filepath.Join(dir, "sa.key"), newKey(t))
	etcd := startEtcd(t, dir)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, exec.Command(kubernetes(t, "kube-apiserver"), append([]string{
		"--etcd-servers=http://" + etcd,
		"--bind-address=" + host, "--secure-port=" + port,
		"--cert-dir=" + dir, // makes its certificate there
		"--token-auth-file=" + filepath.Join(dir, "tokens.csv"),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://" + addr,
		"--service-account-key-file=" + filepath.Join(dir, "sa.key"), "--service-account-signing-key-file=" + filepath.Join(dir, "sa.key"),
		"--service-cluster-ip-range=" + serviceRange,
	}, flags...)...), showLog(t, filepath.Join(dir, "kube-apiserver.log")))

	c := &kubeCluster{url: "https://" + addr, kubeconfig: filepath.Join(dir, "kubeconfig")}
	p.waitReady(t, func(ctx context.Context) error {
		if c.client == nil {
			pool := x509.NewCertPool()
			if cert, err := os.ReadFile(filepath.Join(dir, "apiserver.crt")); err != nil || !pool.AppendCertsFromPEM(cert) {
				return fmt.Errorf("no certificate yet: %v", err)
			}
			c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
			t.Cleanup(c.client.CloseIdleConnections)
		}
		return c.do(ctx, http.MethodGet, "/readyz", "")
	})
	writeFile(t, c.kubeconfig, fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: e2e, context: {cluster: e2e, user: admin}}]
current-context: e2e
`, c.url, filepath.Join(dir, "apiserver.crt"), adminToken))
	return c
}

// create posts an object in YAML to the collection at path.
func (c *kubeCluster) create(t *testing.T, path, object string) {
	t.Helper()
	if err := c.do(t.Context(), http.MethodPost, path, object); err != nil {
		t.Fatal(err)
	}
}

// read decodes what is at path.
func (c *kubeCluster) read(t *testing.T, path string, into any) {
	t.Helper()
	c.ask(t, http.MethodGet, path, "", into)
}

// ask decodes the answer to a request.
func (c *kubeCluster) ask(t *testing.T, method, path, body string, into any) {
	t.Helper()
	answer, err := c.call(t.Context(), method, path, body)
	if err == nil {
		err = json.Unmarshal(answer, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *kubeCluster) do(ctx context.Context, method, path, body string) error {
	_, err := c.call(ctx, method, path, body)
	return err
}

// call sends YAML, of which a PATCH is a merge patch that is JSON too, and returns JSON.
func (c *kubeCluster) call(ctx context.Context, method, path, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", "application/yaml")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return answer, err
}

// startEtcd returns the address of a store that is lost with the test.
func startEtcd(t *testing.T, dir string) string {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatalf("Kubernetes needs etcd: apt-get install etcd-server: %v", err)
	}
	addr, peer := freeAddr(), freeAddr()
	p := start(t, exec.Command(
		program, "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=http://"+addr, "--advertise-client-urls=http://"+addr,
		"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=default=http://"+peer,
	), showLog(t, filepath.Join(dir, "etcd.log")))
	p.waitReady(t, func(ctx context.Context) error { return checkOK(ctx, "http://"+addr+"/health") })
	return addr
}

// kubernetes builds a program of Kubernetes, once, into the go command's own cache.
func kubernetes(t *testing.T, program string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-n", program)
	cmd.Dir = "kube-apiserver"
	path, err := stdoutOf(cmd)
	if err != nil {
		t.Fatalf("build %s: %v", program, err)
	}
	return path
}

// argoCDSource is the directory of Argo CD's source.
func argoCDSource(t *testing.T) string {
	t.Helper()
	dir, err := stdoutOf(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/argoproj/argo-cd/v3"))
	if err != nil {
		t.Fatalf("find Argo CD's source: %v", err)
	}
	return dir
}

func stdoutOf(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

// newKey is a private key in PEM.
func newKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// TestKubernetes runs the tests of internal/argocd that want a real API server. They are there, and not here, to be
// built with the client-go of the program and not with Argo CD's.
func TestKubernetes(t *testing.T) {
	c := startCluster(t)
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=5m", "-v", "-run", "^TestReal", "./internal/argocd")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "DIGESTLOCK_TEST_KUBECONFIG="+c.kubeconfig)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestReal")) || bytes.Contains(out, []byte("--- SKIP")) {
		t.Errorf("go test: %v\n%s", err, out)
	}
}

// TestAddressesOfRepositories: Argo CD compares addresses as internal/argocd's own test says.
func TestAddressesOfRepositories(t *testing.T) {
	for line := range strings.Lines(readFile(t, "../internal/argocd/testdata/urls.txt")) {
		var in, want string
		if strings.HasPrefix(line, "#") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%q %q", &in, &want); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got := argogit.NormalizeGitURL(in); got != want {
			t.Errorf("Argo CD normalizes %q to %q, we to %q", in, got, want)
		}
	}
}
