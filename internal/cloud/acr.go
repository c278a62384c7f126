package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const (
	acrScope     = "https://containerregistry.azure.net/.default"
	maxACRAnswer = 64 << 10
)

// acrToken exchanges the Azure identity of this process for the registry's own token.
func acrToken(ctx context.Context, registry string) (string, error) {
	token, err := entraToken(ctx)
	if err != nil {
		return "", err
	}
	transport := newTransport()
	defer transport.CloseIdleConnections()
	return exchange(ctx, transport, registry, token)
}

// entraToken returns an access token of a workload's identity, a managed one, or that of the environment.
func entraToken(ctx context.Context) (string, error) {
	identity, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return "", err
	}
	token, err := identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{acrScope}})
	return token.Token, err
}

// exchange is POST /oauth2/exchange, which every registry of Azure has beside its token server. It follows no redirect.
func exchange(ctx context.Context, transport http.RoundTripper, registry, token string) (string, error) {
	form := url.Values{"grant_type": {"access_token"}, "service": {registry}, "access_token": {token}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+registry+"/oauth2/exchange", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s exchanges no token (%d)", registry, resp.StatusCode)
	}
	var answer struct {
		Token string `json:"refresh_token"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxACRAnswer)).Decode(&answer) != nil || answer.Token == "" {
		return "", fmt.Errorf("%s answered something else than a token", registry)
	}
	return answer.Token, nil
}
