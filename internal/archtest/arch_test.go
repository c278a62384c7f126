// Package archtest holds the import rules of docs/design.md as a test.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/digestlock/digestlock/"

// ours lists which packages of this module a package may import. One that is missing here may import none; one that
// nobody may import is a command or a leaf nobody needs. Cmd → plugin, companion, fanout, daemon → door → leaves, and never back.
var ours = map[string][]string{
	"cmd/digestlock":                   {"internal/api", "internal/cache", "internal/cli", "internal/credentials", "internal/daemon", "internal/demo", "internal/door", "internal/fault", "internal/history", "internal/image", "internal/lock", "internal/migrate", "internal/registry", "internal/remotebase", "internal/render", "internal/shared", "plugin"},
	"cmd/docker-credential-digestlock": {"internal/cloud"},
	"cmd/digestlock-companion":         {"internal/api", "internal/argocd", "internal/cli", "internal/companion", "internal/door", "internal/fanout", "internal/fault", "internal/forge", "internal/githubapp", "internal/gitrepo", "internal/signing"},

	"bench":        {"examples", "internal/api", "internal/cli", "internal/image", "internal/lock", "internal/pin", "internal/registrytest", "internal/render"},
	"bench/commit": {"internal/gitrepo"},
	"bench/plain":  {"internal/render"},

	"plugin":             {"internal/checkout", "internal/fault", "internal/image", "internal/lock", "internal/pin", "internal/render"},
	"internal/migrate":   {"internal/fault", "internal/image", "internal/lock", "plugin"},
	"internal/companion": {"internal/fault", "internal/gitrepo", "internal/image", "internal/lock"},
	"internal/daemon":    {"internal/api", "internal/cache", "internal/door", "internal/fault", "internal/image", "internal/lock"},
	"internal/fanout":    {"internal/api", "internal/companion", "internal/door", "internal/fault", "internal/image"},
	"internal/door":      {"internal/access", "internal/api", "internal/fault", "internal/hook", "internal/image"},
	"internal/demo":      {"examples", "internal/api", "internal/companion", "internal/gitrepo", "internal/gitserver", "internal/lock", "internal/registrytest"},

	// Leaves. An arrow between two of them is here because one speaks in terms of the other.
	"internal/access":      {"internal/fault", "internal/image"},
	"internal/argocd":      {"internal/fault"},
	"internal/api":         {"internal/fault", "internal/image", "internal/lock"},
	"internal/cache":       {"internal/image"},
	"internal/cli":         {"internal/fault"},
	"internal/cloud":       {"internal/credentials"},
	"internal/credentials": {"internal/fault"},
	"internal/forge":       {"internal/fault", "internal/rest"},
	"internal/githubapp":   {"internal/fault", "internal/rest"},
	"internal/gitrepo":     {"internal/fault"},
	"internal/gittest":     {"internal/gitrepo"},
	"internal/history":     {"internal/fault", "internal/lock"},
	"internal/hook":        {"internal/image"},
	"internal/lock":        {"internal/fault", "internal/image"},
	"internal/pin":         {"internal/fault", "internal/image"},
	"internal/registry":    {"internal/credentials", "internal/fault", "internal/image", "internal/netaddr"},
	"internal/remotebase":  {"internal/fault", "internal/gitrepo", "internal/netaddr"},
	"internal/render":      {"internal/fault", "internal/remotebase"},
	"internal/rest":        {"internal/fault"},
	"internal/shared":      {"internal/api", "internal/cache", "internal/image"},
	"internal/signing":     {"internal/fault"},
}

// forAll is the one package that any may import.
const forAll = "internal/lazy"

// theirs lists who may import a module of somebody else's that has exactly one door. Prefixes match whole elements.
var theirs = map[string][]string{
	"sigs.k8s.io/kustomize":                                {"internal/render"},
	"github.com/google/go-containerregistry/pkg/authn":     {"internal/credentials", "internal/registry"},
	"github.com/docker":                                    {"internal/credentials", "cmd/docker-credential-digestlock"},
	"github.com/aws":                                       {"internal/cloud"},
	"github.com/Azure":                                     {"internal/cloud"},
	"cloud.google.com":                                     {"internal/cloud"},
	"golang.org/x/oauth2":                                  {"internal/cloud"},
	"github.com/google/go-containerregistry/pkg/v1/remote": {"internal/registry"},
	"github.com/google/go-containerregistry/pkg/name":      {"internal/registry"},
	"github.com/google/go-containerregistry/pkg/registry":  {"internal/registrytest"},
	"github.com/hashicorp/golang-lru":                      {"internal/cache"},
	"github.com/redis/go-redis":                            {"internal/shared"},
	"github.com/coreos/go-oidc":                            {"internal/access"},
	"github.com/go-jose":                                   {"internal/accesstest"},
	"github.com/golang-jwt":                                {"internal/githubapp"},
	"github.com/go-git":                                    {"internal/gitrepo", "internal/gitserver"},
	"github.com/skeema/knownhosts":                         {"internal/gitrepo"},
	"golang.org/x/crypto":                                  {"internal/gitrepo", "internal/gittest", "internal/signing"},
	"golang.org/x/net":                                     {"internal/gitrepo", "internal/registry"},
	"golang.org/x/time":                                    {"internal/access", "internal/door", "internal/registry"},
	"github.com/ProtonMail":                                {"internal/signing"},
	"github.com/spf13/pflag":                               {"internal/cli"},
	"golang.org/x/term":                                    {"internal/cli"},
	"github.com/creack/pty":                                {},
	"go.yaml.in/yaml":                                      {"internal/access", "internal/lock", "internal/migrate", "internal/pin", "internal/render"},
	"github.com/prometheus/client_golang":                  {"cmd/digestlock", "cmd/digestlock-companion", "internal/cache", "internal/companion", "internal/daemon", "internal/door", "internal/fanout", "internal/registry", "internal/shared"},
	"github.com/cenkalti/backoff":                          {"cmd/digestlock", "cmd/digestlock-companion", "internal/companion", "internal/registry", "internal/rest"},
	"k8s.io/client-go":                                     {"internal/argocd"},
	"k8s.io/api":                                           {"internal/argocd"},
	"k8s.io/apimachinery":                                  {"internal/argocd"},
	"k8s.io/klog":                                          {"internal/argocd"},
	"k8s.io/utils":                                         {"internal/argocd"},
	"github.com/go-logr":                                   {"internal/argocd"},
	"github.com/gobwas/glob":                               {"internal/argocd"},
	"testing":                                              {"internal/gittest"},
}

func TestImports(t *testing.T) {
	t.Parallel()
	packages := list(t)
	if len(packages) < len(ours) {
		t.Fatalf("%d packages listed, %d in the table: the table or the listing is wrong", len(packages), len(ours))
	}
	for name, imports := range packages {
		for _, imp := range imports {
			if short, ok := strings.CutPrefix(imp, module); ok {
				if short != forAll && !slices.Contains(ours[name], short) {
					t.Errorf("%s imports %s, which the table does not allow", name, short)
				}
				continue
			}
			for prefix, allowed := range theirs {
				if (imp == prefix || strings.HasPrefix(imp, prefix+"/")) && !slices.Contains(allowed, name) {
					t.Errorf("%s imports %s, which is for %v", name, imp, allowed)
				}
			}
		}
	}
	for name, arrows := range ours {
		for _, a := range arrows {
			if !slices.Contains(packages[name], module+a) {
				t.Errorf("the table allows %s → %s, which nobody uses", name, a)
			}
		}
	}
}

// list returns the imports of every package, tests aside, by its path in this module.
func list(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	packages := map[string][]string{}
	dec := json.NewDecoder(out)
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module)] = p.Imports
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v", err)
	}
	return packages
}

// TestStart: every render starts digestlock, so no package of ours does work before main. Memory is counted and not time: what
// initialisation makes is the same on every machine.
func TestStart(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "digestlock")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, module+"cmd/digestlock").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), program, "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var trace strings.Builder
	cmd.Stderr = &trace
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	const most = 2048 // bytes: room for a few small tables
	seen := 0
	for _, m := range regexp.MustCompile(`(?m)^init `+module+`(\S+) @.* (\d+) bytes`).FindAllStringSubmatch(trace.String(), -1) {
		seen++
		if n, err := strconv.Atoi(m[2]); err != nil || n > most {
			t.Errorf("%s makes %s bytes before main, want at most %d: see internal/lazy", m[1], m[2], most)
		}
	}
	if seen < 5 {
		t.Errorf("%d packages of ours in the trace:\n%s", seen, trace.String())
	}
}

// TestLean: what digestlock must not link, by whatever way, because each render starts it. text/template and its kin look
// methods up by name, which makes the linker keep every exported method of every package: 10 MB and 3 ms.
func TestLean(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"cmd/digestlock").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module+"internal/render") {
		t.Fatal("not the dependencies of digestlock")
	}
	for _, d := range deps {
		for _, heavy := range []string{"text/template", "html/template", "k8s.io/client-go", "github.com/aws", "github.com/Azure", "cloud.google.com"} {
			if d == heavy || strings.HasPrefix(d, heavy+"/") && heavy != "text/template" {
				t.Errorf("digestlock links %s", d)
			}
		}
	}
}
