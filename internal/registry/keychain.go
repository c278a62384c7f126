package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/fault"
)

// dockerConfig is authn.DefaultKeychain, which reads the docker config anew each time, without its one danger: with
// neither HOME nor an XDG folder set it opens containers/auth.json in the working directory, and that is a checkout
// by somebody else who could name a credential helper to run.
//
// The file is looked for here with os.Getenv, which the house leaves to main, because the library does.
type dockerConfig struct{}

func (dockerConfig) Resolve(target authn.Resource) (authn.Authenticator, error) {
	file := dockerConfigFile()
	if file == "" {
		return authn.Anonymous, nil
	}
	credentials, err := authn.DefaultKeychain.Resolve(target)
	if err != nil {
		// What a helper printed, which docker's message ends in, may be anything.
		text, _, _ := strings.Cut(err.Error(), ", out:")
		return nil, fault.New(fault.RegistryCredentials, "mend the file, or take it away for anonymous access",
			"read docker config %s: %s", quote(file), quote(text))
	}
	return credentials, nil
}

// dockerConfigFile returns the first file that exists of those that authn.DefaultKeychain looks at, or "".
func dockerConfigFile() string {
	home, _ := os.UserHomeDir()
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" && home != "" {
		config = filepath.Join(home, ".config")
	}
	docker := os.Getenv("DOCKER_CONFIG")
	if docker == "" && home != "" {
		docker = filepath.Join(home, ".docker")
	}
	files := []string{
		under(docker, "config.json"),
		os.Getenv("REGISTRY_AUTH_FILE"),
		under(os.Getenv("XDG_RUNTIME_DIR"), "containers/auth.json"),
		under(config, "containers/auth.json"),
	}
	for _, f := range files {
		if fi, err := os.Stat(f); f != "" && err == nil && !fi.IsDir() {
			return f
		}
	}
	return ""
}

func under(dir, file string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, file)
}

// loginHint says how to get into a registry.
func (h *host) loginHint() string {
	if _, ok := h.keychain.(dockerConfig); !ok {
		return "check the credentials for " + h.name
	}
	if file := dockerConfigFile(); file != "" {
		return fmt.Sprintf("check the entry for %s in the docker config %s", h.name, quote(file))
	}
	return "no docker config was found: mount a config.json with an entry for " + h.name +
		" and set DOCKER_CONFIG to its folder"
}
