package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registry"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// The SDKs read the environment, so that these tests cannot be parallel.

// keychain logs in with the identity of this process, as the helper does for the resolver.
type keychain struct{}

func (keychain) Find(ctx context.Context, _, host, _ string) (credentials.Login, error) {
	user, password, err := Login(ctx, host)
	return credentials.Login{Auth: authn.AuthConfig{Username: user, Password: password}}, err
}

// resolve looks up an image of a registry that wants these credentials and is reached under the name host.
func resolve(t *testing.T, host, user, password string) error {
	t.Helper()
	s := registrytest.Start(t)
	s.RequireBasic(user, password)
	want := s.Push("acme/server", "latest")
	c := registry.New(registry.Options{
		Insecure: []string{host},
		Keychain: keychain{},
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Host)
		}},
	})
	ref, err := image.Parse(host + "/acme/server:latest")
	if err != nil {
		t.Fatal(err)
	}
	r := c.Resolve(t.Context(), "", []image.Ref{ref})[0]
	if r.Err == nil && r.Digest != want {
		t.Errorf("digest %s, want %s", r.Digest, want)
	}
	return r.Err
}

// serve answers with f, and returns host and port.
func serve(t *testing.T, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// TestGoogleMetadata: a metadata server that is late is asked again, and its token opens the registry.
func TestGoogleMetadata(t *testing.T) {
	var ready atomic.Bool
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("GCE_METADATA_HOST", serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !ready.Load():
			http.Error(w, "no such account yet", http.StatusNotFound)
		case r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/token" ||
			r.URL.Query().Get("scopes") != googleScope:
			http.Error(w, r.URL.String(), http.StatusBadRequest)
		default:
			_, _ = io.WriteString(w, `{"access_token":"ya29.secret","expires_in":3599,"token_type":"Bearer"}`)
		}
	}))
	const host = "asia-northeast2-docker.pkg.dev"
	if err := resolve(t, host, "oauth2accesstoken", "ya29.secret"); err == nil || !strings.Contains(err.Error(), "not defined") {
		t.Errorf("before the metadata server is ready = %v, want its error", err)
	}
	ready.Store(true)
	if err := resolve(t, host, "oauth2accesstoken", "ya29.secret"); err != nil {
		t.Errorf("after that = %v, want a digest", err)
	}
}

// TestSilentMetadata: the caller's deadline counts.
func TestSilentMetadata(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("GCE_METADATA_HOST", serve(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Login(ctx, "gcr.io"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Login = %v, want the deadline", err)
	}
}

// TestGoogleFederation: the file of a workload identity federation is honoured before the metadata server.
func TestGoogleFederation(t *testing.T) {
	sts := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("subject_token") != "jwt" {
			http.Error(w, "{}", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"federated","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":3600}`)
	})
	dir := t.TempDir()
	write(t, dir+"/token", "jwt")
	write(t, dir+"/adc.json", fmt.Sprintf(`{"type":"external_account","audience":"//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
"subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"http://%s/v1/token","credential_source":{"file":%q}}`, sts, dir+"/token"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", dir+"/adc.json")
	if err := resolve(t, "gcr.io", "oauth2accesstoken", "federated"); err != nil {
		t.Errorf("federated identity = %v, want a digest", err)
	}
}

// TestECR: the token of the registry's own region, for the identity of the environment.
func TestECR(t *testing.T) {
	refuse := false
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	t.Setenv("AWS_REGION", "us-west-2")
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ENDPOINT_URL_ECR", "http://"+serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		target := r.Header.Get("X-Amz-Target")
		if refuse || !strings.HasSuffix(target, ".GetAuthorizationToken") || !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/ecr/aws4_request") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"__type":"AccessDeniedException","message":"not you"}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":%q}]}`, base64.StdEncoding.EncodeToString([]byte("AWS:s3cret")))
	}))
	const host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
	if err := resolve(t, host, "AWS", "s3cret"); err != nil {
		t.Errorf("ECR = %v, want a digest", err)
	}
	refuse = true
	if err := resolve(t, host, "AWS", "s3cret"); err == nil || !strings.Contains(err.Error(), "AccessDeniedException") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("refused = %v, want AWS's error without the key", err)
	}
}

// TestEntra: a managed identity's token, as it is asked for inside of Azure.
func TestEntra(t *testing.T) {
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
	t.Setenv("IDENTITY_HEADER", "h")
	t.Setenv("IDENTITY_ENDPOINT", "http://"+serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-IDENTITY-HEADER") != "h" || r.URL.Query().Get("resource")+"/.default" != acrScope {
			http.Error(w, r.URL.String(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"entra","expires_on":"4102444800","resource":"r","token_type":"Bearer"}`)
	}))
	if got, err := entraToken(t.Context()); err != nil || got != "entra" {
		t.Errorf("entraToken = %q, %v, want entra", got, err)
	}
}

func TestExchange(t *testing.T) {
	const host = "acme.azurecr.io"
	tests := []struct {
		name, answer string
		status       int
		want, err    string
	}{
		{"token", `{"refresh_token":"refresh"}`, 200, "refresh", ""},
		{"refused", `{"refresh_token":"refresh"}`, 401, "", "acme.azurecr.io exchanges no token (401)"},
		{"redirect", "", 302, "", "acme.azurecr.io exchanges no token (302)"},
		{"nonsense", "<html>", 200, "", "acme.azurecr.io answered something else than a token"},
		{"nothing", "{}", 200, "", "acme.azurecr.io answered something else than a token"},
	}
	for _, tt := range tests {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Host != host || r.Method != http.MethodPost || r.URL.Path != "/oauth2/exchange" || r.FormValue("service") != host ||
				r.FormValue("grant_type") != "access_token" || r.FormValue("access_token") != "entra" {
				t.Errorf("%s: %s %s%s %v", tt.name, r.Method, r.Host, r.URL, r.Form)
			}
			if tt.status == http.StatusFound {
				w.Header().Set("Location", "https://evil.example.com/")
			}
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.answer)
		}))
		transport := s.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.InsecureSkipVerify = true //nolint:gosec // its certificate is for another name
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
		}
		got, err := exchange(t.Context(), transport, host, "entra")
		if got != tt.want || (tt.err == "") != (err == nil) || (err != nil && err.Error() != tt.err) {
			t.Errorf("%s: exchange = %q, %v, want %q, %q", tt.name, got, err, tt.want, tt.err)
		}
		transport.CloseIdleConnections()
		s.Close()
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
