package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const googleScope = "https://www.googleapis.com/auth/cloud-platform"

// fileToken returns an access token of the file that GOOGLE_APPLICATION_CREDENTIALS names: a workload identity
// federation's, or a service account's.
func fileToken(ctx context.Context) (string, error) {
	client := &http.Client{Transport: newTransport()}
	defer client.CloseIdleConnections()
	creds, err := google.FindDefaultCredentials(context.WithValue(ctx, oauth2.HTTPClient, client), googleScope)
	if err != nil {
		return "", err
	}
	token, err := creds.TokenSource.Token()
	if err != nil {
		return "", err
	}
	return token.AccessToken, nil
}

// metadataToken returns an access token of the metadata server: workload identity inside of Google Cloud. The library's
// own way there probes for the server first, and takes no context.
func metadataToken(ctx context.Context) (string, error) {
	text, err := metadata.GetWithContext(ctx, "instance/service-accounts/default/token?scopes="+url.QueryEscape(googleScope))
	if err != nil {
		return "", err
	}
	var token struct {
		Value string `json:"access_token"`
	}
	if json.Unmarshal([]byte(text), &token) != nil || token.Value == "" {
		return "", errors.New("the metadata server answered something else than a token")
	}
	return token.Value, nil
}
