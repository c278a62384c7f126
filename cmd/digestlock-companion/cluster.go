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

	"github.com/cenkalti/backoff/v5"

	"github.com/digestlock/digestlock/internal/argocd"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/githubapp"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

// syncTimeout is how long the first reading of Applications and secrets may take.
const syncTimeout = 30 * time.Second

const (
	// tellTimeout bounds one word to Argo CD, and againTimeout the same where it is busy, after which it polls by itself.
	tellTimeout  = 10 * time.Second
	againTimeout = time.Minute
	// staleTimeout bounds a refresh and the sync that follows it, which has to wait for one that is under way: nobody syncs
	// an Application of mode live later. A run with --once waits onceTimeout for it.
	staleTimeout = 30 * time.Minute
	onceTimeout  = 2 * time.Minute
	// staleTries is how often that is tried where the API server fails, in some 4 minutes.
	staleTries = 10
)

// argo is the companion's cluster in terms of package argocd.
type argo struct {
	*argocd.Cluster
	log    *slog.Logger
	silent bool            // asks Argo CD for no refresh and no sync
	life   context.Context // of what is done in the background, with syncs
	syncs  sync.WaitGroup
	once   bool // somebody waits for the end of syncs

	forges *forgeFlags
	binary gitrepo.Binary

	mu   sync.Mutex        // guards the rest
	open map[string]opened // by URL and project
	owed map[debt]int      // see owe
}

// debt is what Argo CD may forget of an Application, and so is told again: a commit, or with stale that a tag has moved.
type debt struct {
	app   companion.Application
	stale bool
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
	if again {
		a.settle(debt{app: app}, againTimeout, func(ctx context.Context) {
			a.told(app, a.RefreshAgain(ctx, argocd.Application(app), false))
		})
	}
}

// settle calls do in the background, once for all that is owed meanwhile, each time with so much time.
func (a *argo) settle(d debt, timeout time.Duration, do func(context.Context)) {
	if a.owe(d) > 1 {
		return
	}
	a.syncs.Go(func() {
		for owed := 1; owed > 0; owed = a.paid(d, owed) {
			ctx, cancel := context.WithTimeout(a.life, timeout)
			do(ctx)
			cancel()
		}
	})
}

// owe counts a debt.
func (a *argo) owe(d debt) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.owed == nil {
		a.owed = map[debt]int{}
	}
	a.owed[d]++
	return a.owed[d]
}

// paid forgets what is owed, unless that is more than n by now.
func (a *argo) paid(d debt, n int) (owed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if owed = a.owed[d]; owed > n {
		return owed
	}
	delete(a.owed, d)
	return 0
}

func (a *argo) told(app companion.Application, err error) {
	if err != nil {
		a.log.Warn("cannot tell of a commit, it will be found by polling", "application", app.Name, "error", err)
	}
}

// Stale does not wait: a sync has to wait itself, until Argo CD has rendered anew and is done with what it does.
func (a *argo) Stale(_ context.Context, app companion.Application) {
	if a.silent {
		return
	}
	timeout := staleTimeout
	if a.once {
		timeout = onceTimeout
	}
	a.settle(debt{app, true}, timeout, func(ctx context.Context) {
		if err := a.renew(ctx, app); err != nil {
			a.log.Warn("cannot tell that a tag has moved", "application", app.Name, "error", err)
		}
	})
}

// renew has Argo CD render an Application again, and sync it where it syncs by itself.
func (a *argo) renew(ctx context.Context, app companion.Application) error {
	err := insist(ctx, func() error {
		again, err := a.Refresh(ctx, argocd.Application(app), true)
		if again {
			err = a.RefreshAgain(ctx, argocd.Application(app), true)
		}
		return err
	})
	if err != nil || !app.AutoSync {
		return err
	}
	return insist(ctx, func() error { return a.Sync(ctx, argocd.Application(app)) })
}

// insist calls f until it does not fail, staleTries times at most and with growing pauses, and returns its last error.
func insist(ctx context.Context, f func() error) (err error) {
	_, _ = backoff.Retry(ctx, func() (struct{}, error) {
		err = f()
		return struct{}{}, err
	}, backoff.WithMaxTries(staleTries), backoff.WithMaxElapsedTime(0),
		backoff.WithBackOff(&backoff.ExponentialBackOff{InitialInterval: time.Second, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: time.Minute}))
	return err
}

func (a *argo) Event(ctx context.Context, app companion.Application, warning bool, reason, message string) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	a.Cluster.Event(ctx, argocd.Application(app), warning, reason, message)
}
