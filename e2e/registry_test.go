package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registryServer is a distribution registry in a process of its own. It can be stopped and started again at the same
// address with the same images.
type registryServer struct {
	addr, dir, log string
	proc           *process
}

// startRegistry starts one. config is added to its configuration.
func startRegistry(t *testing.T, config string) *registryServer {
	t.Helper()
	r := &registryServer{addr: freeAddr(), dir: t.TempDir()}
	writeFile(t, filepath.Join(r.dir, "config.yml"), fmt.Sprintf(`
version: 0.1
log: {level: warn}
http: {addr: %q, secret: e2e}
storage:
  filesystem: {rootdirectory: %q}
  maintenance: {uploadpurging: {enabled: false}}
%s`, r.addr, filepath.Join(r.dir, "images"), config))
	r.log = showLog(t, filepath.Join(r.dir, "registry.log"))
	r.start(t)
	return r
}

func (r *registryServer) start(t *testing.T) {
	t.Helper()
	cmd := self(t, asRegistry, "serve", filepath.Join(r.dir, "config.yml"))
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	r.proc = start(t, cmd, r.log)
	r.proc.waitReady(t, func(ctx context.Context) error { return dial(ctx, "tcp", r.addr) })
}

func (r *registryServer) stop() { r.proc.kill() }

// image is the full reference of a repository and tag in this registry.
func (r *registryServer) image(ref string) string { return r.addr + "/" + ref }

// push uploads a new multi-arch image under ref, such as "backend/server:latest", and returns the digest the registry
// now serves for it.
func (r *registryServer) push(t *testing.T, ref string) string {
	t.Helper()
	return pushImage(t, r.image(ref))
}

// pushImage uploads a new multi-arch image under a full reference and returns its digest.
func pushImage(t *testing.T, ref string, options ...remote.Option) string {
	t.Helper()
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		t.Fatal(err)
	}
	index, err := random.Index(256, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index, append(options, remote.WithContext(t.Context()))...); err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// accessLine finds method and path in a line of the registry's access log.
var accessLine = regexp.MustCompile(`"([A-Z]+ /v2/\S*) HTTP/1\.1"`)

// requests lists what the registry has been asked so far, such as "HEAD /v2/backend/server/manifests/latest", oldest
// first. A request is logged before it is answered.
func (r *registryServer) requests(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, m := range accessLine.FindAllStringSubmatch(readFile(t, r.log), -1) {
		found = append(found, m[1])
	}
	return found
}

// checkOK reports whether a GET of url is answered with status 200.
func checkOK(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return nil
}
