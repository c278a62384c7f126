package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digestlock/digestlock/internal/argocd"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

// TestArgoCredentials: what a repository's secret in Argo CD says opens a real Git server of its kind, and is needed there.
func TestArgoCredentials(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		server func(*testing.T) *gittest.Server
		secret func(gitrepo.Auth) argocd.Credentials
		needed func(*argocd.Credentials) // takes away what the server wants
	}{
		"password": {
			server: func(t *testing.T) *gittest.Server { return gittest.HTTPS(t) },
			secret: func(a gitrepo.Auth) argocd.Credentials {
				return argocd.Credentials{Username: a.Username, Password: a.Password, CA: a.CA}
			},
			needed: func(c *argocd.Credentials) { c.Password = "" },
		},
		"bearer token": {
			server: func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.Bearer("t0ken")) },
			secret: func(a gitrepo.Auth) argocd.Credentials { return argocd.Credentials{BearerToken: a.Token, CA: a.CA} },
			needed: func(c *argocd.Credentials) { c.BearerToken = "" },
		},
		"client certificate": {
			server: func(t *testing.T) *gittest.Server { return gittest.HTTPS(t, gittest.ClientCert()) },
			secret: func(a gitrepo.Auth) argocd.Credentials {
				return argocd.Credentials{Username: a.Username, Password: a.Password, CA: a.CA, ClientCert: a.ClientCert, ClientKey: a.ClientKey}
			},
			needed: func(c *argocd.Credentials) { c.ClientCert, c.ClientKey = nil, nil },
		},
		"insecure": {
			server: func(t *testing.T) *gittest.Server { return gittest.HTTPS(t) },
			secret: func(a gitrepo.Auth) argocd.Credentials {
				return argocd.Credentials{Username: a.Username, Password: a.Password, Insecure: true}
			},
			needed: func(c *argocd.Credentials) { c.Insecure = false },
		},
		"ssh key": {
			server: func(t *testing.T) *gittest.Server { return gittest.SSH(t) },
			secret: func(a gitrepo.Auth) argocd.Credentials {
				return argocd.Credentials{SSHPrivateKey: a.SSHKey, KnownHosts: a.KnownHosts}
			},
			needed: func(c *argocd.Credentials) { c.KnownHosts = nil },
		},
		"GitHub App": {
			server: func(t *testing.T) *gittest.Server {
				s := gittest.HTTPS(t)
				s.Auth.Username = "x-access-token" // GitHub's name for whoever has an app's token
				return s
			},
			secret: func(a gitrepo.Auth) argocd.Credentials { return appSecret(t, a) },
			needed: func(c *argocd.Credentials) { c.GitHubAppID = 0 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := tt.server(t)
			repo := server.Create(t, "team/k8s.git", map[string]string{"README.md": "text\n"})
			creds := tt.secret(server.Auth)
			if err := reads(t, creds, repo.URL); err != nil {
				t.Errorf("with the secret: %v", err)
			}
			tt.needed(&creds)
			if reads(t, creds, repo.URL) == nil {
				t.Error("without what the server wants it is read, too: the test shows nothing")
			}
		})
	}
}

func reads(t *testing.T, c argocd.Credentials, url string) error {
	t.Helper()
	auth, err := authOf(c, url)
	if err != nil {
		return err
	}
	remote, err := gitrepo.Open(url, auth)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = remote.Read(ctx, "main")
	return err
}

// appSecret is that of a GitHub App whose API hands out the password of a Git server as token of the one installation,
// which has to be looked for.
func appSecret(t *testing.T, git gitrepo.Auth) argocd.Credentials {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ey") {
				http.Error(w, "not a JWT", http.StatusUnauthorized)
				return
			}
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusCreated)
			}
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	answer("GET /repos/team/k8s/installation", map[string]any{"id": 7})
	answer("POST /app/installations/7/access_tokens", map[string]any{"token": git.Password, "expires_at": time.Now().Add(time.Hour)})
	api := httptest.NewTLSServer(mux)
	t.Cleanup(api.Close)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	return argocd.Credentials{
		GitHubAppID: 3, GitHubAppBaseURL: api.URL, CA: append(ca, git.CA...),
		GitHubAppPrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	}
}

// TestKeep: repositories of Applications that are gone are forgotten, those in use are not.
func TestKeep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a argo
		a.keep("preview", opened{})
		for range 3 {
			a.keep("main", opened{})
			time.Sleep(closeAfter)
		}
		if _, ok := a.open["main"]; !ok || len(a.open) != 1 {
			t.Errorf("%d repositories are open, want main", len(a.open))
		}
	})
}

// TestOwed: one waits for Argo CD to be done with an Application, and tells again what came meanwhile.
func TestOwed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := argo{life: t.Context()}
		web, api := debt{app: companion.Application{Name: "web"}}, debt{app: companion.Application{Name: "api"}, stale: true}
		var mu sync.Mutex
		told := map[debt]int{}
		for range 3 {
			for _, d := range []debt{web, api} {
				a.settle(d, time.Minute, func(ctx context.Context) {
					<-ctx.Done()
					mu.Lock()
					defer mu.Unlock()
					told[d]++
				})
			}
		}
		a.syncs.Wait()
		if told[web] != 2 || told[api] != 2 || len(a.owed) != 0 {
			t.Errorf("told %v, want each twice: for the first, and for what came meanwhile; owed %v", told, a.owed)
		}
	})
}

// TestInsist: what fails for a while is done in the end, and what fails for good ends.
func TestInsist(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for failures, want := range map[int]int{0: 1, 3: 4, 1000: staleTries} {
			calls := 0
			err := insist(t.Context(), func() error {
				if calls++; calls <= failures {
					return errors.New("connection refused")
				}
				return nil
			})
			if calls != want || (err == nil) != (failures < want) {
				t.Errorf("%d failures: %d calls, %v, want %d", failures, calls, err, want)
			}
		}
	})
}
