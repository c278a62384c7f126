package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/common"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/reposerver/apiclient"
	"github.com/argoproj/argo-cd/v3/reposerver/repository"
	gitclient "github.com/argoproj/argo-cd/v3/util/git"
	"k8s.io/apimachinery/pkg/api/resource"
)

// renderTimeout is how long Argo CD waits for a plugin unless told otherwise.
const renderTimeout = 60 * time.Second

// argoCD is Argo CD as far as rendering goes: the repo-server's own code in this process and argocd-cmp-server with
// our plugin.yaml in a process of its own.
type argoCD struct {
	git  *gitServer
	cmp  *process
	temp string // TMPDIR of argocd-cmp-server and so of every plugin process
}

// startArgoCD starts argocd-cmp-server with digestlock on its PATH and resolver as its --server. dir must be short:
// it holds a unix socket.
func startArgoCD(t *testing.T, dir string, git *gitServer, resolver string) *argoCD {
	t.Helper()
	a := &argoCD{git: git, temp: filepath.Join(dir, "tmp")}
	sockets := filepath.Join(dir, "plugins")
	for _, d := range []string{a.temp, sockets} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}

	a.trust(t, filepath.Join(dir, "tls"))
	t.Setenv(common.EnvPluginSockFilePath, sockets)

	cmd := self(t, asCMPServer, "--config-dir-path", filepath.Join("..", "plugin"), "--logformat", "text")
	if other := os.Getenv("DIGESTLOCK_TEST_CMP_SERVER"); other != "" { // that of another release, see the Makefile
		cmd.Path = other
	}
	cmd.Env = []string{ // no HOME, as in a hardened sidecar
		"PATH=" + binDir,
		"TMPDIR=" + a.temp,
		common.EnvPluginSockFilePath + "=" + sockets,
		"DIGESTLOCK_SERVER=" + resolver,
	}
	a.cmp = start(t, cmd, showLog(t, filepath.Join(dir, "argocd-cmp-server.log")))
	a.cmp.waitReady(t, func(ctx context.Context) error {
		return dial(ctx, "unix", filepath.Join(sockets, "digestlock.sock"))
	})
	return a
}

// trust has the repo-server's code believe the Git server, by the directory that in a cluster is argocd-tls-certs-cm.
func (a *argoCD) trust(t *testing.T, certs string) {
	t.Helper()
	repo, err := url.Parse(a.git.url)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(certs, repo.Hostname()), readFile(t, a.git.caFile))
	t.Setenv(common.EnvVarTLSDataPath, certs)
}

// application is what an Application says about its source.
type application struct {
	path       string
	parameters v1alpha1.ApplicationSourcePluginParameters
}

// render renders app at a commit as the repo-server does: fetch and check out with Argo CD's Git client, stream the
// repository with its .git to argocd-cmp-server, take the manifests. It returns them as JSON documents.
func (a *argoCD) render(ctx context.Context, app application, root, commit string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, renderTimeout)
	defer cancel()
	request := &apiclient.ManifestRequest{
		AppName:     filepath.Base(app.path),
		Namespace:   "default",
		ProjectName: "default",
		Repo:        &v1alpha1.Repository{Repo: a.git.url},
		KubeVersion: "v1.36.1",
		ApiVersions: []string{"v1", "apps/v1"},
		ApplicationSource: &v1alpha1.ApplicationSource{
			RepoURL:        a.git.url,
			Path:           app.path,
			TargetRevision: "main",
			Plugin:         &v1alpha1.ApplicationSourcePlugin{Name: "digestlock", Parameters: app.parameters},
		},
	}
	response, err := repository.GenerateManifests(ctx, filepath.Join(root, app.path), root, commit, request, false,
		gitclient.NoopCredsStore{}, resource.Quantity{}, nil)
	if err != nil {
		return nil, err
	}
	return response.Manifests, nil
}

// checkout fetches the repository and checks commit out into a new directory.
func (a *argoCD) checkout(t *testing.T, commit string) string {
	t.Helper()
	creds := gitclient.NewHTTPSCreds(gitUser, gitPassword, "", "", "", false, gitclient.NoopCredsStore{}, true)
	root := filepath.Join(t.TempDir(), "repo")
	client, err := gitclient.NewClientExt(a.git.url, root, creds, false, false, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Init(); err != nil {
		t.Fatal(err)
	}
	if err := client.Fetch("", 0); err != nil {
		t.Fatal(err)
	}
	if out, err := client.Checkout(commit, true, true); err != nil {
		t.Fatalf("checkout %s: %v\n%s", commit, err, out)
	}
	return root
}

// leftovers lists the processes that descend from argocd-cmp-server, also when they were adopted by another process:
// every one inherits its TMPDIR. It also lists what they left behind in that directory.
func (a *argoCD) leftovers(t *testing.T) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("finding leftover processes needs /proc")
	}
	var found []string
	server := strconv.Itoa(a.cmp.cmd.Process.Pid)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		stat, _ := os.ReadFile(filepath.Join(dir, "stat")) // an error: it just ended
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		child := parentPID(stat) == server
		descendant := slices.Contains(strings.Split(string(environ), "\x00"), "TMPDIR="+a.temp)
		if pid != server && (child || descendant) {
			found = append(found, fmt.Sprintf("process %s, parent %s", stat[:bytes.LastIndexByte(stat, ')')+1], parentPID(stat)))
		}
	}
	err = filepath.WalkDir(a.temp, func(path string, _ os.DirEntry, err error) error {
		if name, _ := filepath.Rel(a.temp, path); name != "." && name != common.DefaultCMPWorkDirName {
			found = append(found, "file "+name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// parentPID takes the fourth field out of /proc/PID/stat. The second one, the name in parentheses, may hold spaces.
func parentPID(stat []byte) string {
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte{' '})
	fields := bytes.Fields(rest)
	if len(fields) < 2 {
		return ""
	}
	return string(fields[1])
}

// images lists the images of all containers in manifests, in order.
func images(t *testing.T, manifests []string) []string {
	t.Helper()
	var found []string
	for _, manifest := range manifests {
		var object struct {
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct{ Image string }
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(manifest), &object); err != nil {
			t.Fatal(fmt.Errorf("manifest %s: %w", manifest, err))
		}
		for _, c := range object.Spec.Template.Spec.Containers {
			found = append(found, c.Image)
		}
	}
	return found
}
