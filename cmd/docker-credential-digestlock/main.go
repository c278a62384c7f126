// Command docker-credential-digestlock is a docker credential helper for the registries of Google, AWS and Azure, with
// the identity that the cloud gives this process. "digestlock serve --cloud-credentials" runs it; so does anything that
// reads a docker config. See docs/credentials.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/digestlock/digestlock/internal/cloud"
)

// timeout ends before the one that whoever started this has, who would learn nothing but that.
const timeout = 7 * time.Second

func main() { credentials.Serve(helper{}) }

// helper answers "get" and nothing else: there is nothing to store.
type helper struct{}

func (helper) Get(registry string) (user, secret string, err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	user, secret, err = cloud.Login(ctx, registry)
	switch {
	case ctx.Err() != nil:
		return "", "", context.Cause(ctx)
	case err != nil:
		return "", "", err
	case secret == "":
		return "", "", credentials.NewErrCredentialsNotFound()
	}
	return user, secret, nil
}

var errReadOnly = errors.New("a cloud's identity is neither stored nor erased")

func (helper) Add(*credentials.Credentials) error { return errReadOnly }

func (helper) Delete(string) error { return errReadOnly }

func (helper) List() (map[string]string, error) { return map[string]string{}, nil }
