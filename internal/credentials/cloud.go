package credentials

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/lazy"
)

// Clouds whose identities can be used.
const (
	Google = "google"
	ECR    = "ecr"
	ACR    = "acr"
)

// ECRPublic is the registry of public images that ECR gives tokens for too.
const ECRPublic = "public.ecr.aws"

// cloudHelper is the helper of this project. The SDKs of three clouds are there and not here, because every render
// would pay for their initialisation.
const cloudHelper = helperPrefix + "digestlock"

// Clouds returns the names of the clouds whose identity can be used.
func Clouds() []string { return []string{ACR, ECR, Google} }

var ecrPattern = lazy.Regexp(`^[0-9]+\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$`)

// CloudOf returns the cloud that a registry is one of, or "".
func CloudOf(registry string) string {
	switch {
	case registry == "gcr.io", strings.HasSuffix(registry, ".gcr.io"), strings.HasSuffix(registry, ".pkg.dev"):
		return Google
	case registry == ECRPublic, ecrPattern().MatchString(registry):
		return ECR
	case strings.HasSuffix(registry, ".azurecr.io"):
		return ACR
	}
	return ""
}

// cloud returns credentials that the registry's cloud has just given to this process, anonymous ones for a registry of
// a cloud that the operator did not ask for: nobody wants to wait for a metadata server that is not there. Nothing is
// remembered: a session lives as long as they do, and a metadata server that was late is asked again.
func (k *Keychain) cloud(ctx context.Context, registry string) (Login, error) {
	name := CloudOf(registry)
	if !slices.Contains(k.clouds, name) {
		return Login{}, nil
	}
	h := &helper{}
	auth, found, err := h.get(ctx, cloudHelper, registry)
	if err == nil && !found {
		err = fmt.Errorf("%s does not know the registry, is it of another version?", cloudHelper)
	}
	if err != nil {
		if said := strings.TrimSpace(h.said); said != "" { // it is our own, and says no secrets
			err = fmt.Errorf("%w: %s", err, said)
		}
		return Login{}, broken("see that the resolver's pod has the identity and the program "+cloudHelper+
			", or take "+name+" out of --cloud-credentials", fmt.Sprintf("%s identity of this process for %s", name, registry), err)
	}
	return Login{Auth: auth, Source: fmt.Sprintf("the %s identity of this process", name), Hint: fmt.Sprintf("check that the %s identity of this process may read from %s", name, registry)}, nil
}
