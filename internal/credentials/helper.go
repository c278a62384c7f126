package credentials

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	protocol "github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	helperPrefix = "docker-credential-"

	// helperTimeout leaves a session some of its own deadline, 10 s by default. The slow ones start a Python program.
	helperTimeout = 8 * time.Second

	// tokenUser is the user name by which a helper says that its secret is an identity token.
	tokenUser = "<token>"
)

// get runs a credential helper. That it has no credentials for the registry is an answer; all else that goes wrong is
// an error, without what the helper printed.
func (h *helper) get(ctx context.Context, program, registry string) (auth authn.AuthConfig, found bool, err error) {
	if strings.ContainsAny(program, `/\`) { // a path, where the program was to be found in PATH
		return authn.AuthConfig{}, false, errors.New("is not the name of a program")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, fmt.Errorf("no answer within %v", helperTimeout))
	defer cancel()
	creds, err := client.Get(func(args ...string) client.Program {
		h.cmd = exec.CommandContext(ctx, program, args...)
		h.cmd.WaitDelay = time.Second // a child of its own may hold its output open
		return h
	}, registry)
	switch {
	case protocol.IsErrCredentialsNotFound(err):
		return authn.AuthConfig{}, false, nil
	case err != nil:
		return authn.AuthConfig{}, false, cmp.Or(context.Cause(ctx), h.err, errors.New("answered something else than credentials"))
	case creds.Username == tokenUser:
		return authn.AuthConfig{IdentityToken: creds.Secret}, true, nil
	}
	return authn.AuthConfig{Username: creds.Username, Password: creds.Secret}, true, nil
}

// helper is one run of a helper, and how it went: the library's error holds what it printed.
type helper struct {
	cmd  *exec.Cmd
	said string // on its stdout
	err  error
}

func (h *helper) Input(in io.Reader) { h.cmd.Stdin = in }

func (h *helper) Output() ([]byte, error) {
	out, err := h.cmd.Output()
	h.said, h.err = string(out), err
	return out, err
}
