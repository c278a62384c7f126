package main

import (
	"context"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/argocd"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/githubapp"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

// syncTimeout is how long the first reading of Applications and secrets may take.
const syncTimeout = 30 * time.Second

const (
	// tellTimeout bounds one word to Argo CD, againTimeout the same where it is busy, after which it polls by itself, and
	// staleTimeout a refresh and the sync that follows it.
	tellTimeout  = 10 * time.Second
	againTimeout = time.Minute
	staleTimeout = 2 * time.Minute
)

// argo is the companion's cluster in terms of package argocd.
type argo struct {
	*argocd.Cluster
	log    *slog.Logger
	silent bool            // asks Argo CD for no refresh and no sync
	life   context.Context // of what is done in the background, with syncs
	syncs  sync.WaitGroup

	forges *forgeFlags
	binary gitrepo.Binary

	mu   sync.Mutex                    // guards the rest
	open map[string]opened             // by URL and project
	owed map[companion.Application]int // see owe
}

type opened struct {
	credentials argocd.Credentials
	repository  companion.Repository
	used        time.Time
}

// closeAfter is how long a repository stays open that no Application asks for: to open it again costs one fetch.
const closeAfter = time.Hour

// keep keeps a repository open, and forgets those that nobody asked for. The caller holds mu.
func (a *argo) keep(key string, o opened) companion.Repository {
	if a.open == nil {
		a.open = map[string]opened{}
	}
	o.used = time.Now()
	a.open[key] = o
	maps.DeleteFunc(a.open, func(_ string, o opened) bool { return time.Since(o.used) > closeAfter })
	return o.repository
}

func (a *argo) Applications() ([]companion.Application, error) {
	all := a.Cluster.Applications()
	out := make([]companion.Application, len(all))
	for i, app := range all {
		out[i] = companion.Application(app)
	}
	return out, nil
}

// Open keeps a repository open until its credentials change, so that what was read of it is read once.
func (a *argo) Open(_ context.Context, repoURL, project string) (companion.Repository, error) {
	var none companion.Repository
	creds, ok, err := a.Credentials(repoURL, project)
	if err != nil {
		return none, err
	}
	if !ok { // host keys and certificates alone write nowhere
		return none, fault.New(fault.GitCredentials, "give Argo CD a secret of type repository-write or repo-write-creds for it, or start the companion with --read-credentials",
			"no credentials to write to the repository")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := repoURL + " " + project
	if o, ok := a.open[key]; ok && reflect.DeepEqual(o.credentials, creds) {
		return a.keep(key, o), nil
	}
	auth, err := authOf(creds, repoURL)
	if err != nil {
		return none, err
	}
	if creds.Insecure {
		a.log.Warn("certificates and host keys of this repository are not verified, as its secret says", "secret", creds.Source)
	}
	auth.Binary = a.binary
	remote, err := gitrepo.Open(repoURL, auth)
	if err != nil {
		return none, err
	}
	ensure, err := a.forges.open(repoURL, auth)
	if err != nil {
		return none, err
	}
	return a.keep(key, opened{credentials: creds, repository: companion.Repository{Remote: remote, Ensure: ensure}}), nil
}

func authOf(c argocd.Credentials, repoURL string) (gitrepo.Auth, error) {
	auth := gitrepo.Auth{
		Username: c.Username, Password: c.Password, Token: c.BearerToken, SSHKey: c.SSHPrivateKey,
		KnownHosts: c.KnownHosts, CA: c.CA, ClientCert: c.ClientCert, ClientKey: c.ClientKey,
		Proxy: c.Proxy, NoProxy: c.NoProxy, Insecure: c.Insecure,
	}
	if c.GitHubAppID == 0 {
		return auth, nil
	}
	client, err := auth.Client()
	if err != nil {
		return auth, err
	}
	u, err := url.Parse(repoURL)
	if err != nil {
		return auth, fault.New(fault.GitURL, "use https://host/owner/repository", "repository URL cannot be parsed")
	}
	auth.TokenSource, err = githubapp.Source(c.GitHubAppID, c.GitHubAppInstallationID, c.GitHubAppPrivateKey, c.GitHubAppBaseURL,
		strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git"), client)
	return auth, err
}

// Tell does not wait where Argo CD is busy with the Application.
func (a *argo) Tell(ctx context.Context, app companion.Application) {
	if a.silent {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	again, err := a.Refresh(ctx, argocd.Application(app), false)
	a.told(app, err)
	if again && a.owe(app) == 1 {
		a.syncs.Go(func() { a.tellAgain(app) })
	}
}

// owe counts what Argo CD may forget of an Application.
func (a *argo) owe(app companion.Application) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.owed == nil {
		a.owed = map[companion.Application]int{}
	}
	a.owed[app]++
	return a.owed[app]
}

// paid forgets what is owed, unless that is more than n by now.
func (a *argo) paid(app companion.Application, n int) (owed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if owed = a.owed[app]; owed > n {
		return owed
	}
	delete(a.owed, app)
	return 0
}

// tellAgain waits for Argo CD, once for all that comes meanwhile.
func (a *argo) tellAgain(app companion.Application) {
	for owed := 1; owed > 0; owed = a.paid(app, owed) {
		ctx, cancel := context.WithTimeout(a.life, againTimeout)
		a.told(app, a.RefreshAgain(ctx, argocd.Application(app), false))
		cancel()
	}
}

func (a *argo) told(app companion.Application, err error) {
	if err != nil {
		a.log.Warn("cannot tell of a commit, it will be found by polling", "application", app.Name, "error", err)
	}
}

// Stale does not wait: a sync has to wait itself, until Argo CD has rendered anew.
func (a *argo) Stale(_ context.Context, app companion.Application) {
	if a.silent {
		return
	}
	a.syncs.Go(func() {
		ctx, cancel := context.WithTimeout(a.life, staleTimeout)
		defer cancel()
		again, err := a.Refresh(ctx, argocd.Application(app), true)
		if again {
			err = a.RefreshAgain(ctx, argocd.Application(app), true)
		}
		if err == nil && app.AutoSync {
			err = a.Sync(ctx, argocd.Application(app))
		}
		if err != nil {
			a.log.Warn("cannot tell that a tag has moved", "application", app.Name, "error", err)
		}
	})
}

func (a *argo) Event(ctx context.Context, app companion.Application, warning bool, reason, message string) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	a.Cluster.Event(ctx, argocd.Application(app), warning, reason, message)
}
