// Package e2e drives the built binaries as a user does, on real parts: Argo CD's own repo-server code streams a Git
// repository to the real argocd-cmp-server, which runs our plugin.yaml; a real distribution registry holds the images
// and a real git http-backend takes the companion's commits; a real API server holds the Applications that it works for. TestArgoCD (live_*_test.go)
// runs all of Argo CD as processes. It is a module of its own so that Argo CD's dependencies never reach the program.
//
// Run it with "go test -count=1 .": the go command does not see that the program changed and would repeat an old result.
// The tests set process-wide environment that Argo CD reads, so they run one after the other.
package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	cmpserver "github.com/argoproj/argo-cd/v3/cmd/argocd-cmp-server/commands"
	"github.com/argoproj/argo-cd/v3/util/cli"
	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
)

// Names under which the test binary starts itself to be another program. Argo CD's own binary picks its component the
// same way.
const (
	asCMPServer = "argocd-cmp-server"
	asRegistry  = "registry"
	asHelm      = "helm"
)

// kustomizeVersion is the linker flag of the Makefile without which kustomize does not know its version, to be appended.
const kustomizeVersion = "-X sigs.k8s.io/kustomize/api/provenance.version="

// binDir holds digestlock, digestlock-companion and a helm, made once by TestMain, and the kustomize CLIs, made by the
// first test that needs them.
var binDir string

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case asCMPServer:
		exitWithParent()
		cmpserver.NewCommand().Execute()
	case asRegistry:
		exitWithParent()
		registry.RootCmd.Execute()
	case asHelm:
		helm()
	default:
		os.Exit(run(m))
	}
	os.Exit(1) // both serve until they are killed
}

// exitWithParent ends this process when the test process is gone, however it died: argocd-cmp-server ignores SIGINT
// and SIGTERM and would outlive an interrupted test run.
func exitWithParent() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
}

// helm is helm's own main function.
func helm() {
	cmd, err := helmcmd.NewRootCmd(os.Stdout, os.Args[1:], helmcmd.SetupLogging)
	if err == nil {
		err = cmd.Execute()
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// run builds what is tested, sets up the environment all tests share and runs them.
func run(m *testing.M) int {
	if _, err := exec.LookPath("git"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: the git command is needed as the Git server and by Argo CD:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "digestlock-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)

	build := exec.Command("go", "build", "-trimpath", "-ldflags", kustomizeVersion+linked.version, "-o", dir+string(filepath.Separator), "./cmd/digestlock", "./cmd/digestlock-companion")
	build.Dir = ".." // the program's own go.mod, not ours
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: build digestlock: %v\n%s", err, out)
		return 1
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, asHelm))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	binDir = dir

	for name, value := range map[string]string{
		"GIT_CONFIG_NOSYSTEM": "1",
		"GIT_CONFIG_GLOBAL":   os.DevNull,
		"GIT_AUTHOR_NAME":     "Dev Eloper",
		"GIT_AUTHOR_EMAIL":    "dev@example.com",
		"GIT_COMMITTER_NAME":  "Dev Eloper",
		"GIT_COMMITTER_EMAIL": "dev@example.com",
		"NO_PROXY":            "127.0.0.1",
		"no_proxy":            "127.0.0.1",
	} {
		os.Setenv(name, value)
	}
	cli.SetLogLevel("error") // the repo-server code would tell of every git command
	return m.Run()
}
