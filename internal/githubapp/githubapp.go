// Package githubapp gets the tokens that a GitHub App uses Git and the API with.
package githubapp

import (
	"cmp"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/rest"
)

const (
	// username is what GitHub wants beside an installation's token.
	username = "x-access-token"
	// early is how long before its end a token is replaced, so that no session outlives it.
	early = 5 * time.Minute
	// skew is how wrong a clock may be: GitHub advises to date an app's token back by so much.
	skew = time.Minute
	// life is how long an app's own token is good for. GitHub allows ten minutes.
	life = 8 * time.Minute
)

// Source returns what gives the user name and the password for Git over https, of which the password is also good as
// token for the API. It is safe for concurrent use, keeps a token until five minutes before its end, asks for one at a
// time, and remembers no failure.
//
// With an installation of 0, the one for owner is looked up once: owner is an organisation, a user, or a repository as
// "owner/name". baseURL is the API's address, as Argo CD's githubAppEnterpriseBaseUrl; "" is github.com's. A nil client
// stands for [http.DefaultClient].
func Source(id, installation int64, privateKey []byte, baseURL, owner string, client *http.Client) (func(context.Context) (user, password string, err error), error) {
	key, err := jwt.ParseRSAPrivateKeyFromPEM(privateKey)
	if err != nil { // the cause is not shown: it has seen the key
		return nil, fault.New(fault.GitCredentials, "give the private key that GitHub made for the app, PEM without a passphrase",
			"private key of GitHub App %d cannot be used", id)
	}
	if id <= 0 || installation < 0 {
		return nil, fault.New(fault.GitCredentials, "give the number that the app's settings page shows", "GitHub App %d, installation %d: no such numbers", id, installation)
	}
	if installation == 0 && strings.Trim(owner, "/") == "" {
		return nil, fault.New(fault.GitCredentials, "give the installation's ID", "installation of GitHub App %d is neither given nor can it be looked up without an owner", id)
	}
	if baseURL == "" {
		baseURL = "https://api.github.com"
	}
	a := &app{id: id, key: key, owner: strings.Trim(owner, "/"), given: installation, turn: make(chan struct{}, 1)}
	if a.api, err = rest.New(baseURL, a.signed, client); err != nil {
		return nil, fmt.Errorf("GitHub App %d: %w", id, err)
	}
	return a.login, nil
}

type app struct {
	id    int64
	key   *rsa.PrivateKey
	given int64 // the installation, 0 for one that has to be looked up
	owner string
	api   *rest.Client

	turn    chan struct{} // held by who reads or writes what follows; a mutex would not see a context end
	found   int64         // the installation, 0 as long as it is not known
	token   string
	expires time.Time
}

func (a *app) login(ctx context.Context) (user, password string, err error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", "", fmt.Errorf("wait for a token of GitHub App %d: %w", a.id, context.Cause(ctx))
	}
	if time.Until(a.expires) < early {
		if err := a.renew(ctx); err != nil {
			return "", "", a.explain(err)
		}
	}
	return username, a.token, nil
}

// signed returns a token with which the app speaks for itself.
func (a *app) signed(context.Context) (string, error) {
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer:    strconv.FormatInt(a.id, 10),
		IssuedAt:  jwt.NewNumericDate(now.Add(-skew)),
		ExpiresAt: jwt.NewNumericDate(now.Add(life)),
	})
	s, err := token.SignedString(a.key)
	if err != nil {
		return "", fault.New(fault.GitCredentials, "give the private key that GitHub made for the app", "sign as GitHub App %d: the key is too small", a.id)
	}
	return s, nil
}

func (a *app) renew(ctx context.Context) error {
	installation := cmp.Or(a.given, a.found)
	if installation == 0 {
		id, err := a.find(ctx)
		if err != nil {
			return err
		}
		a.found, installation = id, id
	}
	var answer struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expires_at"`
	}
	err := a.api.Call(ctx, http.MethodPost, fmt.Sprintf("/app/installations/%d/access_tokens", installation), struct{}{}, &answer)
	if rest.Status(err) == http.StatusNotFound {
		a.found = 0 // it may have been installed anew, which gives it another number
	}
	if err == nil && answer.Token == "" {
		err = fault.New(fault.GitURL, "check the address of the API", "the API answers without a token")
	}
	if err != nil {
		return err
	}
	a.token, a.expires = answer.Token, answer.Expires
	return nil
}

// find looks the installation up. An owner may be an organisation or a user, which only GitHub knows.
func (a *app) find(ctx context.Context) (int64, error) {
	paths := []string{"/orgs/" + url.PathEscape(a.owner), "/users/" + url.PathEscape(a.owner)}
	if owner, name, ok := strings.Cut(a.owner, "/"); ok {
		paths = []string{"/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name)}
	}
	var answer struct {
		ID int64 `json:"id"`
	}
	var err error
	for _, path := range paths {
		if err = a.api.Call(ctx, http.MethodGet, path+"/installation", nil, &answer); rest.Status(err) != http.StatusNotFound {
			break
		}
	}
	if err == nil && answer.ID == 0 {
		err = fault.New(fault.GitURL, "check the address of the API", "the API answers without an installation")
	}
	return answer.ID, err
}

// explain says what an answer means for somebody who has set up an app.
func (a *app) explain(err error) error {
	doing := fmt.Sprintf("get a token of GitHub App %d", a.id)
	answer, ok := errors.AsType[*rest.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch answer.Status {
	case http.StatusUnauthorized:
		if off := time.Since(answer.Date).Round(time.Second); !answer.Date.IsZero() && off.Abs() > skew/2 {
			return fault.New(fault.GitCredentials, "set the clock of this machine, for example by NTP", "%s: this clock is off by %v: %w", doing, off, answer)
		}
		return fault.New(fault.GitCredentials, "check that the private key is one of this app, and the app's ID", "%s: %w", doing, answer)
	case http.StatusNotFound:
		if a.given != 0 {
			return fault.New(fault.GitCredentials, "check the IDs of the app and of the installation, or leave the latter out: then it is looked up",
				"%s: it has no installation %d: %w", doing, a.given, answer)
		}
		return fault.New(fault.GitCredentials, "install the app there, with access to the repository, or check the app's ID",
			"%s: it is not installed for %q: %w", doing, a.owner, answer)
	case http.StatusForbidden:
		if fault.CodeOf(err) != fault.RateLimited {
			return fault.New(fault.GitCredentials, "look at the app's settings: its installation may be suspended", "%s: %w", doing, answer)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}
