package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// startOpenSSH starts OpenSSH's own sshd for the user who runs the tests, with one key that may come in. It returns the
// start of its repositories' addresses, that key's file, and a known_hosts file.
func startOpenSSH(t *testing.T) (base, key, knownHosts string) {
	t.Helper()
	dir := shortDir(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"host", "key"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if u.Uid == "0" { // where sshd gives up root's rights; its package makes it at boot
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	addr := freeAddr()
	host, port, _ := strings.Cut(addr, ":")
	writeFile(t, file("config"), fmt.Sprintf(`ListenAddress %s
Port %s
HostKey %s
AuthorizedKeysFile %s
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
`, host, port, file("host"), file("key.pub")))
	writeFile(t, file("known_hosts"), fmt.Sprintf("[%s]:%s %s", host, port, readFile(t, file("host.pub"))))
	p := start(t, exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", file("config")), showLog(t, file("sshd.log")))
	p.waitReady(t, func(ctx context.Context) error { return dial(ctx, "tcp", addr) })
	return "ssh://" + u.Username + "@" + addr, file("key"), file("known_hosts")
}

// TestOpenSSH: the companion commits through OpenSSH's own server, with a mark, and writes nothing to one whose key is
// another than known.
func TestOpenSSH(t *testing.T) {
	base, key, knownHosts := startOpenSSH(t)
	s := startResolverFor(t, startRegistry(t, ""))
	s.registry.push(t, "acme/server:latest")
	g := startGit(t, map[string]string{
		"kustomization.yaml": "resources: [pod.yaml]\n",
		"pod.yaml":           "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: " + s.registry.image("acme/server:latest") + "}]}\n",
	})
	repo := base + g.bare
	render := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock"), "generate", "--server", "unix://"+s.socket, g.work)
	render.Env = []string{
		"HOME=" + t.TempDir(), "ARGOCD_APP_NAME=backend", "ARGOCD_APP_PROJECT_NAME=default", "ARGOCD_APP_SOURCE_REPO_URL=" + repo,
		"ARGOCD_APP_SOURCE_TARGET_REVISION=main", "ARGOCD_APP_SOURCE_PATH=.", "ARGOCD_APP_REVISION=" + g.head(t),
	}
	if out, err := render.CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, out)
	}
	companion := func(knownHosts string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock-companion"), "--once",
			"--resolver", s.api, "--resolver-token-file", s.tokenFile, "--repo", repo, "--ssh-key-file", key, "--ssh-known-hosts-file", knownHosts)
		cmd.Env = []string{"HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	before := g.head(t)
	other := filepath.Join(t.TempDir(), "known_hosts")
	writeFile(t, other, strings.Replace(readFile(t, knownHosts), strings.Fields(readFile(t, knownHosts))[2], strings.Fields(readFile(t, key+".pub"))[1], 1))
	if out, err := companion(other); err == nil || !strings.Contains(out, "[git-host-key]") || g.head(t) != before {
		t.Errorf("another host key: %v, main at %s, want it refused and main at %s\n%s", err, g.head(t), before, out)
	}

	if out, err := companion(knownHosts); err != nil {
		t.Fatalf("companion: %v\n%s", err, out)
	}
	if parent := git(t, g.bare, "rev-parse", "main~"); parent != before {
		t.Errorf("the commit is on %s, want %s", parent, before)
	}
	if mark := git(t, g.bare, "rev-parse", "refs/digestlock/main"); mark != g.head(t) {
		t.Errorf("the mark is at %s, want %s", mark, g.head(t))
	}
	if text := git(t, g.bare, "show", "main:digest-lock.yaml"); !strings.Contains(text, s.registry.image("acme/server:latest")) {
		t.Errorf("lock:\n%s", text)
	}
}
