package main

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"text/template"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/forge"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

// forgeFlags say how commits get to branches that nobody may push to. It is safe for concurrent use once parsed.
type forgeFlags struct {
	pushBranch           string
	kind, url, tokenFile string

	mu   sync.Mutex
	host string // the one whose repositories --forge-url and --forge-token-file are for
}

// ensure is [companion.Repository.Ensure].
type ensure func(context.Context, companion.Request) (page string, created bool, err error)

func (f *forgeFlags) register(flags *cli.Flags) {
	flags.StringVar(&f.pushBranch, "push-branch", "", "for protected branches: commit to a branch of this name, such as digestlock/{{.Branch}}, and keep one pull or merge request open from there; empty to commit to the followed branch")
	flags.StringVar(&f.kind, "forge", "", "where the request is opened: github, gitlab or gitea (Forgejo is gitea); empty to go by the host, for github.com and gitlab.com")
	flags.StringVar(&f.url, "forge-url", "", "address of its API, such as https://ghe.example.com/api/v3; empty for where this kind of forge has it")
	flags.StringVar(&f.tokenFile, "forge-token-file", "", "file with a token for its API; empty for the password or token that Git is given, and needed for ssh")
}

func (f *forgeFlags) parse(o *companion.Options) (err error) {
	if f.pushBranch == "" {
		if f.kind+f.url+f.tokenFile != "" {
			return cli.Usage("give it too, as in --push-branch 'digestlock/{{.Branch}}'", "--forge, --forge-url and --forge-token-file are for --push-branch")
		}
		return nil
	}
	if o.PushBranch, err = parseBranch(f.pushBranch); err != nil {
		return cli.Usage("for example: --push-branch 'digestlock/{{.Branch}}'", "--push-branch: %w", err)
	}
	if f.tokenFile != "" {
		if _, err := secret("forge-token-file", f.tokenFile); err != nil {
			return err
		}
	}
	if f.kind != "" { // repositories may come later, and they all need a forge
		_, err = forge.New(f.kind, "https://forge.invalid/owner/repository", "", nil, nil)
	}
	return misused(err)
}

// parseBranch parses a template of branches beside others, which is given the followed branch as .Branch.
func parseBranch(text string) (func(string) (string, error), error) {
	t, err := template.New("branch").Parse(text)
	if err != nil {
		return nil, err
	}
	name := func(branch string) (string, error) {
		var b strings.Builder
		err := t.Execute(&b, struct{ Branch string }{branch})
		return b.String(), err
	}
	return name, companion.CheckBranchName(name)
}

// misused makes what is wrong with --forge wrong usage, and leaves other errors as they are.
func misused(err error) error {
	if fault.CodeOf(err) != fault.Usage {
		return err
	}
	return cli.Usage(fault.Hint(err), "--forge: %w", err)
}

// open returns how to open requests in a repository that Git reaches with auth: nil without --push-branch.
func (f *forgeFlags) open(repoURL string, auth gitrepo.Auth) (ensure, error) {
	if f.pushBranch == "" {
		return nil, nil
	}
	token, err := f.token(auth)
	if err != nil {
		return nil, err
	}
	client, err := auth.Client()
	if err != nil {
		return nil, err
	}
	api, err := forge.New(f.kind, repoURL, f.url, token, client)
	if err != nil {
		return nil, misused(err)
	}
	if f.url != "" || !provesHTTPS(auth) {
		if err := f.bind(api.Host()); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, r companion.Request) (string, bool, error) {
		return api.Ensure(ctx, forge.Request(r))
	}, nil
}

// token returns what the API is asked with. A file is read anew each time, so that it may be rotated.
func (f *forgeFlags) token(auth gitrepo.Auth) (func(context.Context) (string, error), error) {
	switch {
	case auth.TokenSource != nil:
		return func(ctx context.Context) (string, error) {
			_, token, err := auth.TokenSource(ctx)
			return token, err
		}, nil
	case provesHTTPS(auth):
		return func(context.Context) (string, error) { return cmp.Or(auth.Token, auth.Password), nil }, nil
	case f.tokenFile != "":
		return func(context.Context) (string, error) { return secret("forge-token-file", f.tokenFile) }, nil
	}
	return nil, fault.New(fault.GitCredentials, "give --forge-token-file, a key opens no request", "no token for the forge's API")
}

func provesHTTPS(a gitrepo.Auth) bool {
	return a.TokenSource != nil || cmp.Or(a.Token, a.Password) != ""
}

// bind refuses a second host: what is for one must not be sent to another.
func (f *forgeFlags) bind(host string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.host != "" && f.host != host {
		return cli.Usage("run a companion for each host", "--forge-url and --forge-token-file are for one host, not for %s and %s", f.host, host)
	}
	f.host = host
	return nil
}

// apiAuth is auth without what Git proves itself by, where the API has a token of its own.
func (f *forgeFlags) apiAuth(auth gitrepo.Auth) gitrepo.Auth {
	if f.tokenFile != "" {
		auth.Token, auth.Password, auth.TokenSource = "", "", nil
	}
	return auth
}
