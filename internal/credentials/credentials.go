// Package credentials finds what to log in to a registry with: in docker config files, a project's own before
// everybody's, through the credential helpers that they name, and as the identity that a cloud gives this process.
//
// Everything is read anew each time it is asked for, so that credentials may be rotated; the sessions of package
// registry decide how often that is. Whatever cannot be read is an error that names the place, never an anonymous
// request: that would turn a broken helper into "not found". No error holds a value.
package credentials

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lazy"
)

// fallback is the directory, and the Argo CD project, whose credentials are everybody's.
const fallback = "default"

// maxProject is how long the name of a Kubernetes object may be.
const maxProject = 253

// projectPattern is what Kubernetes takes as the name of an AppProject. It has no room for "..", "/" or the "..data"
// of a mounted Secret.
var projectPattern = lazy.Regexp(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// Options say where to look. The zero value is the docker config alone.
type Options struct {
	Dir    string   // holds PROJECT/config.json and default/config.json, in place of the docker config
	Clouds []string // of [Clouds], asked for their own registries when no file has an entry
}

// Login is what to log in with.
type Login struct {
	Auth   authn.AuthConfig
	Own    bool   // for the repository that was asked for, not for its whole registry
	Source string // where it was found, for people; "" when it is anonymous
	Hint   string // what to look at when the registry refuses it
}

// Anonymous reports whether there is nothing to log in with.
func (l Login) Anonymous() bool { return l.Auth == authn.AuthConfig{} }

// Keychain finds credentials. The zero value looks into the docker config; make another one with [New]; it is safe for concurrent use.
type Keychain struct {
	dir    string
	clouds []string
}

// New returns a keychain. The error is about the names of clouds.
func New(o Options) (*Keychain, error) {
	for _, name := range o.Clouds {
		if !slices.Contains(Clouds(), name) {
			return nil, fmt.Errorf("%q is none of %s", name, strings.Join(Clouds(), ", "))
		}
	}
	return &Keychain{dir: o.Dir, clouds: o.Clouds}, nil
}

// Scope returns the name under which a project's answers may be remembered: its own when it has credentials of its
// own, and otherwise "", so that all who look with the same credentials share one look.
func (k *Keychain) Scope(project string) string {
	if k.dir == "" || project == fallback || len(project) > maxProject || !projectPattern().MatchString(project) {
		return ""
	}
	if _, err := os.Stat(k.file(project)); missing(err) {
		return ""
	}
	return project // also when the file cannot be read, which Find will say
}

// Find returns the credentials of a scope for a repository, or for the registry as a whole with repository "". One
// that nobody has credentials for is anonymous.
func (k *Keychain) Find(ctx context.Context, scope, registry, repository string) (Login, error) {
	files := k.files(scope)
	for _, file := range files {
		login, err := search(ctx, file, registry, repository)
		if err != nil || !login.Anonymous() {
			return login, err
		}
	}
	if login, err := k.cloud(ctx, registry); err != nil || !login.Anonymous() {
		return login, err
	}
	return Login{Hint: k.missingHint(files, registry)}, nil
}

// files returns the docker configs to look at, in this order.
func (k *Keychain) files(scope string) []string {
	var all []string
	switch {
	case k.dir == "":
		all = append(all, dockerConfigFile())
	case scope != "":
		all = append(all, k.file(scope), k.file(fallback))
	default:
		all = append(all, k.file(fallback))
	}
	var found []string
	for _, f := range all {
		if _, err := os.Stat(f); f != "" && !missing(err) {
			found = append(found, f)
		}
	}
	return found
}

func (k *Keychain) file(project string) string { return filepath.Join(k.dir, project, "config.json") }

// missing reports whether an error says that there is no such file, rather than that it cannot be read.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func (k *Keychain) missingHint(files []string, registry string) string {
	switch {
	case len(files) > 0:
		for i, f := range files {
			files[i] = quote(f)
		}
		return fmt.Sprintf("add an entry for %s to the docker config %s", registry, strings.Join(files, " or "))
	case k.dir != "":
		return fmt.Sprintf("mount a docker config with an entry for %s at %s, or in the folder of the project", registry, quote(k.file(fallback)))
	}
	return "no docker config was found: mount a config.json with an entry for " + registry +
		" and set DOCKER_CONFIG to its folder"
}

// broken is the error for credentials that cannot be had. The cause is cut, for it may be anything.
func broken(hint, what string, cause error) error {
	return fault.New(fault.RegistryCredentials, hint, "%s: %s", what, quote(cause.Error()))
}

// maxForeign bounds a string from outside in an error.
const maxForeign = 200

func quote(s string) string {
	if len(s) > maxForeign {
		s = s[:maxForeign] + "…"
	}
	return strconv.Quote(s)
}
