package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	giteaUser     = "acme"
	giteaPassword = "correct-horse-1"
)

// giteaServer is a Gitea in a process of its own: a registry with token authentication that sends signed webhooks.
type giteaServer struct{ addr string }

// startGitea builds Gitea, which takes minutes when the build cache knows nothing of it, and starts it with one user.
// It refuses to run as root and needs to read what it runs on, hence a directory of its own.
func startGitea(t *testing.T) *giteaServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "gitea") // the parent of t.TempDir is for its owner only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g := &giteaServer{addr: freeAddr()}
	as := giteaOwner(t)
	buildGitea(t, dir)
	work, config := filepath.Join(dir, "work"), filepath.Join(dir, "app.ini")
	writeFile(t, config, fmt.Sprintf(`
RUN_USER = %[1]s
RUN_MODE = prod
WORK_PATH = %[2]s
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[3]s
ROOT_URL = http://127.0.0.1:%[3]s/
STATIC_ROOT_PATH = %[4]s
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = %[2]s/gitea.db
[security]
INSTALL_LOCK = true
[webhook]
ALLOWED_HOST_LIST = loopback
[log]
LEVEL = Warn
`, as.Username, work, g.addr[len("127.0.0.1:"):], filepath.Join(dir, "static")))
	giveAway(t, dir, as)

	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(dir, "gitea"), append([]string{"--config", config}, args...)...)
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + work, "PATH=" + os.Getenv("PATH"), "USER=" + as.Username}
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id(t, as.Uid), Gid: id(t, as.Gid)}}
		}
		return cmd
	}
	for _, args := range [][]string{
		{"migrate"},
		{
			"admin", "user", "create", "--username", giteaUser, "--password", giteaPassword,
			"--email", "acme@example.com", "--must-change-password=false",
		},
	} {
		if out, err := command(args...).CombinedOutput(); err != nil {
			t.Fatalf("gitea %s: %v\n%s", args[0], err, out)
		}
	}
	p := start(t, command("web"), showLog(t, filepath.Join(dir, "gitea.log")))
	p.waitReady(t, func(ctx context.Context) error { return checkOK(ctx, "http://"+g.addr+"/api/v1/version") })
	return g
}

// buildGitea puts the program and the files that it reads into dir. Its own directory may be root's alone.
func buildGitea(t *testing.T, dir string) {
	t.Helper()
	build := exec.Command("go", "build", "-tags", "sqlite sqlite_unlock_notify", "-ldflags", "-s -w", "-o", dir, "code.gitea.io/gitea")
	build.Dir = "gitea"
	build.Env = append(os.Environ(), "CGO_ENABLED=1") // for sqlite
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build gitea: %v\n%s", err, out)
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "code.gitea.io/gitea")
	list.Dir = "gitea"
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	source := string(bytes.TrimSpace(out))
	for _, d := range []string{"options", "templates"} {
		if err := os.CopyFS(filepath.Join(dir, "static", d), os.DirFS(filepath.Join(source, d))); err != nil {
			t.Fatal(err)
		}
	}
}

// giteaOwner is who Gitea runs as: we, or nobody if we are root.
func giteaOwner(t *testing.T) *user.User {
	t.Helper()
	u, err := user.Current()
	if err == nil && u.Uid == "0" {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// giveAway makes everything in dir as's own.
func giveAway(t *testing.T, dir string, as *user.User) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(id(t, as.Uid)), int(id(t, as.Gid)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func id(t *testing.T, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func (g *giteaServer) auth() authn.Authenticator {
	return &authn.Basic{Username: giteaUser, Password: giteaPassword}
}

// call asks Gitea's API as its user.
func (g *giteaServer) call(t *testing.T, method, path string, content any) {
	t.Helper()
	body, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	g.ask(t, method, path, string(body), nil)
}

// ask asks Gitea's API as its user for an answer, nil for none that matters.
func (g *giteaServer) ask(t *testing.T, method, path, content string, answer any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+g.addr+"/api/v1"+path, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(giteaUser, giteaPassword)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && answer != nil {
		err = json.Unmarshal(body, answer)
	}
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("gitea %s %s: %s %s (%v)", method, path, resp.Status, body, err)
	}
}
