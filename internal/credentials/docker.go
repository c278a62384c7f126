package credentials

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	stores "github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

// dockerHub is the registry that docker config files know by other names than its own, the first of them in
// particular.
const dockerHub = "index.docker.io"

var dockerHubKeys = []string{"https://index.docker.io/v1/", dockerHub, "docker.io"}

// search looks into one docker config: the entry for just this repository, then the helper for the registry, then
// the entry for the registry. An empty entry, which "docker login" leaves beside a helper, is none.
func search(ctx context.Context, file, registry, repository string) (Login, error) {
	cf, err := read(file)
	if err != nil {
		return Login{}, broken("mend the file, or take it away for anonymous access", "read docker config "+quote(file), err)
	}
	if repository != "" {
		if auth := cf.AuthConfigs[registry+"/"+repository]; auth.Username != "" || auth.IdentityToken != "" || auth.RegistryToken != "" {
			return Login{Auth: toAuth(auth), Own: true, Source: entryFor(registry+"/"+repository, file)}.hinted(), nil
		}
	}
	keys := []string{registry}
	if registry == dockerHub {
		keys = dockerHubKeys
	}
	if program, key := helperFor(cf, keys); program != "" {
		auth, found, err := (&helper{}).get(ctx, program, key)
		if err != nil {
			return Login{}, broken(fmt.Sprintf("run %s get with %s on its stdin as this user, or take it out of the docker config %s", program, key, quote(file)),
				fmt.Sprintf("credential helper %s for %s", quote(program), key), err)
		}
		if found {
			return Login{Auth: auth, Source: fmt.Sprintf("what %s, named in the docker config %s, has for %s", program, quote(file), key)}.hinted(), nil
		}
	}
	for _, key := range keys {
		if auth, _ := stores.NewFileStore(cf).Get(key); toAuth(auth) != (authn.AuthConfig{}) { // it returns no error
			return Login{Auth: toAuth(auth), Source: entryFor(registry, file)}.hinted(), nil
		}
	}
	return Login{}, nil
}

// hinted returns l with the hint to check where it was found.
func (l Login) hinted() Login {
	l.Hint = "check " + l.Source
	return l
}

func entryFor(key, file string) string {
	return fmt.Sprintf("the entry for %s in the docker config %s", key, quote(file))
}

func read(file string) (*configfile.ConfigFile, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return config.LoadFromReader(f)
}

// helperFor returns the program that a docker config names for a registry, and what the registry is called there.
func helperFor(cf *configfile.ConfigFile, keys []string) (program, key string) {
	for _, key := range keys {
		if name := cf.CredentialHelpers[key]; name != "" {
			return helperPrefix + name, key
		}
	}
	if cf.CredentialsStore != "" {
		return helperPrefix + cf.CredentialsStore, keys[0]
	}
	return "", ""
}

func toAuth(a types.AuthConfig) authn.AuthConfig {
	return authn.AuthConfig{
		Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
}

// dockerConfigFile returns the first file that exists of those that docker and podman keep credentials in, or "".
//
// Never does it look into the working directory, as go-containerregistry does with neither HOME nor an XDG folder set:
// that is a checkout by somebody else, who could name a credential helper to run.
//
// The environment, which the house leaves to main, is read here because the variables are docker's and not ours.
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
