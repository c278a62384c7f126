package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
)

// githubToken returns the id token that GitHub Actions makes for this job and an audience. The variables are those that
// a runner sets for a job that may have one.
func githubToken(ctx context.Context, env cli.Env, audience string) (string, error) {
	address, secret := env.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), env.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if address == "" || secret == "" {
		return "", fault.New(fault.IDToken, "give the job \"permissions: id-token: write\"; outside of GitHub Actions, put the token into DIGESTLOCK_TOKEN",
			"--oidc: ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN are not set")
	}
	token, err := fetchToken(ctx, address, secret, audience)
	if err != nil {
		return "", fault.New(fault.IDToken, "try again; see GitHub's status page", "--oidc: %w", err)
	}
	return token, nil
}

func fetchToken(ctx context.Context, address, secret, audience string) (string, error) {
	const maxAnswer = 64 << 10
	u, err := url.Parse(address)
	if err != nil {
		return "", errors.New("ACTIONS_ID_TOKEN_REQUEST_URL is not a URL")
	}
	query := u.Query()
	query.Set("audience", audience)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL is the runner's own
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the runner's token service answered %d", res.StatusCode)
	}
	var answer struct {
		Value string `json:"value"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&answer); err != nil {
		return "", fmt.Errorf("the runner's token service: %w", err)
	}
	if strings.Count(answer.Value, ".") != 2 {
		return "", errors.New("the runner's token service answered without a token")
	}
	return answer.Value, nil
}
