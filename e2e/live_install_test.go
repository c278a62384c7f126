package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
)

// testInstall: what people see who forgot a part of the installation, and that nothing else is needed once it is there.
func testInstall(t *testing.T, s *liveStack) {
	s.stopFollowing(t)
	s.resolver.terminate(t)
	var wg sync.WaitGroup
	missing := filepath.Join(t.TempDir(), "token")
	for _, tt := range []struct {
		name, program string
		args          []string
		want          string
	}{
		{
			"the resolver without the secret of its token", "digestlock",
			[]string{"serve", "--listen", s.resolverAddr, "--token-file", missing, "--state-dir", t.TempDir()},
			"digestlock: error: --token-file: open " + missing + ": no such file or directory [secret-file]" + hintLine,
		},
		{
			"the companion without the secret of the resolver's token", "digestlock-companion",
			[]string{"--once", "--kubernetes", "--kubeconfig", s.kubeconfig, "--resolver", s.api, "--resolver-token-file", missing},
			"digestlock-companion: error: --resolver-token-file: open " + missing + ": no such file or directory [secret-file]\ndigestlock-companion: hint: ",
		},
		{
			"the companion without its roles", "digestlock-companion", // 30 s: somebody may be about to give them
			[]string{"--once", "--kubernetes", "--kubeconfig", s.kubeconfigOf(t, "powerless"), "--resolver", s.api, "--resolver-token-file", s.tokenFile},
			`applications.argoproj.io is forbidden: User "system:serviceaccount:argocd:powerless" cannot list resource "applications"`,
		},
	} {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, tt.program), tt.args...)
			cmd.Env = []string{"HOME=" + s.dir}
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%s: %v, and it prints\n%s\nwant %s", tt.name, err, out, tt.want)
			}
		})
	}

	a, digest := s.begin(t, "install", nil)
	a.awaitRefusal(t, "[resolver-unavailable]"+hintLine)
	a.awaitRefusal(t, "resolver.sock: connect: no such file or directory")
	wg.Wait()
	s.startResolver(s.t, s.dir, s.resolverAddr)
	a.refresh(t, v1alpha1.RefreshTypeHard)
	a.awaitImage(t, digest)
	s.startFollowing()
	a.awaitLock(t, digest)
	a.awaitRest(t, digest)
	a.wantHistory(t, 1)
}

// kubeconfigOf is the file of a new service account without any role.
func (s *liveStack) kubeconfigOf(t *testing.T, account string) string {
	t.Helper()
	const accounts = "/api/v1/namespaces/argocd/serviceaccounts"
	s.cluster.create(t, accounts, fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {name: %s}}", account))
	var token struct{ Status struct{ Token string } }
	s.cluster.ask(t, http.MethodPost, accounts+"/"+account+"/token", `{apiVersion: authentication.k8s.io/v1, kind: TokenRequest, spec: {}}`, &token)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	writeFile(t, file, strings.ReplaceAll(readFile(t, s.cluster.kubeconfig), adminToken, token.Status.Token))
	return file
}
