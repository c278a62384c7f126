package door

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/hook"
)

// TokensHint is the way out for a token file that holds none.
const TokensHint = "put at least one token into the file, for example with: openssl rand -hex 32"

// Keys are what callers prove with who they are. The zero Keys let nobody in.
type Keys struct {
	TokenFile string       // one bearer token a line, read again for each request; "" closes the protected routes
	OIDC      *access.File // whose tokens open /flush as well; nil for nobody's

	// WebhookSecrets is a directory with a file for each sender of webhooks, named like it, with one secret a line, read
	// again for each event. "" or a file that is not there closes the route.
	WebhookSecrets string
	// GoogleEmail returns the verified email address of whom an identity token of Google's stands for. It checks issuer
	// and audience. nil closes the routes whose senders bear one; their secrets are the addresses that may send.
	GoogleEmail func(ctx context.Context, token string) (string, error)
}

// None reports whether the keys let nobody in.
func (k Keys) None() bool { return k.TokenFile == "" && k.OIDC == nil && k.WebhookSecrets == "" }

// KeyFlags adds the flags that name keys, and returns what reads them once the flags are parsed. Its error carries a hint.
func KeyFlags(flags interface {
	StringVar(p *string, name, value, usage string)
},
) func() (Keys, error) {
	var k Keys
	var oidcConfig, audience string
	flags.StringVar(&k.TokenFile, "token-file", "", "file with the bearer tokens that open what is below /v1 and /flush, one a line, read again for each request; without it they are closed, but for what --oidc-config opens")
	flags.StringVar(&oidcConfig, "oidc-config", "", "file with OIDC issuers and rules that say what their tokens may flush, read again when it changes (docs/flush.md)")
	flags.StringVar(&k.WebhookSecrets, "webhook-secrets", "", "directory with a file for each registry that sends webhooks, named like its sender, with secrets, one a line, read again for each event; a sender without one is refused")
	flags.StringVar(&audience, "webhook-audience", "", "audience of the identity tokens that Google's push subscriptions send, for the senders gar and gcr; without it they are refused")
	return func() (Keys, error) { return k.open(oidcConfig, audience) }
}

// open reads what the keys name, so that what is wrong with it is known before anybody comes.
func (k Keys) open(oidcConfig, audience string) (Keys, error) {
	if k.TokenFile != "" {
		if _, err := api.Tokens(k.TokenFile); err != nil {
			return Keys{}, fault.New(fault.SecretFile, TokensHint, "--token-file: %w", err)
		}
	}
	if k.WebhookSecrets != "" {
		if err := checkWebhookSecrets(k.WebhookSecrets); err != nil {
			return Keys{}, fault.New(fault.SecretFile, "name each file after a sender of docs/webhooks.md, with at least one secret in it", "--webhook-secrets: %w", err)
		}
	}
	if oidcConfig != "" {
		var err error
		if k.OIDC, err = access.Open(oidcConfig); err != nil {
			return Keys{}, fmt.Errorf("--oidc-config: %w", err)
		}
	}
	if audience != "" {
		v, err := access.NewVerifier(access.Issuer{URL: "https://accounts.google.com", Audience: audience})
		if err != nil {
			return Keys{}, err
		}
		k.GoogleEmail = v.Email
	}
	return k, nil
}

// checkWebhookSecrets returns an error for what makes a directory of webhook secrets useless: it is not there, a file
// in it is named after no sender, or holds nothing. Names with a dot in front are Kubernetes's own.
func checkWebhookSecrets(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			continue
		}
		if !hook.Known(f.Name()) {
			return fmt.Errorf("%s: no sender %q, only %s", dir, f.Name(), strings.Join(hook.Senders(), ", "))
		}
		if _, err := api.Tokens(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}
