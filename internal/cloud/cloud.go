// Package cloud turns the identity that a cloud gives to a process into what its registries are logged in to with.
//
// It is linked into the helper docker-credential-digestlock and into no other program: the SDKs would cost every render
// 1.4 ms of start-up (docs/decisions/0001-two-binaries.md).
package cloud

import (
	"context"
	"net/http"
	"os"
	"strings"

	"github.com/digestlock/digestlock/internal/credentials"
)

// Login returns a user name and password for a registry, freshly given. Nothing is remembered between two calls. It
// returns "" twice for a registry that is none of a cloud that it knows.
func Login(ctx context.Context, registry string) (user, password string, err error) {
	switch credentials.CloudOf(registry) {
	case credentials.Google:
		get := metadataToken
		if os.Getenv("GOOGLE_APPLICATION_CREDENTIALS") != "" {
			get = fileToken
		}
		password, err = get(ctx)
		return "oauth2accesstoken", password, err
	case credentials.ECR:
		token, err := ecrToken(ctx, registry)
		if err != nil {
			return "", "", err
		}
		user, password, _ = strings.Cut(token, ":")
		return user, password, nil
	case credentials.ACR:
		password, err = acrToken(ctx, registry)
		return "00000000-0000-0000-0000-000000000000", password, err // the user who has a refresh token for a password
	}
	return "", "", nil
}

// newTransport returns one whose connections the caller closes.
func newTransport() *http.Transport {
	return &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
}
