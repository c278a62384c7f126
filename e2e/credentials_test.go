package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"
)

// resolverFor is digestlock serve with a directory of credentials, in front of one registry.
type resolverFor struct {
	*stack
	socket, credentials string
}

func startResolverFor(t *testing.T, r *registryServer, flags ...string) *resolverFor {
	t.Helper()
	dir := t.TempDir()
	s := &resolverFor{stack: &stack{registry: r, tokenFile: filepath.Join(dir, "token")}, credentials: filepath.Join(dir, "credentials")}
	writeFile(t, s.tokenFile, "s3cret\n")
	s.socket = s.startResolver(t, shortDir(t), freeAddr(), append(flags, "--credentials-dir", s.credentials)...)
	return s
}

// login writes a project's docker config.
func (s *resolverFor) login(t *testing.T, project, user, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	writeFile(t, filepath.Join(s.credentials, project, "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, s.registry.addr, auth))
}

// generate renders a pod with one image for a project, and returns stdout and stderr together.
func (s *resolverFor) generate(t *testing.T, project, image string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "kustomization.yaml"), "resources: [pod.yaml]\n")
	writeFile(t, filepath.Join(dir, "pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: "+s.registry.image(image)+"}]}\n")
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock"), "generate", "--server", "unix://"+s.socket, dir)
	cmd.Env = []string{"HOME=" + dir, "ARGOCD_APP_PROJECT_NAME=" + project}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *resolverFor) wantDigest(t *testing.T, project, image, digest string) {
	t.Helper()
	if out, err := s.generate(t, project, image); err != nil || !strings.Contains(out, digest) {
		t.Errorf("%s renders %s: %v, want %s\n%s", project, image, err, digest, out)
	}
}

func (s *resolverFor) wantDenied(t *testing.T, project, image, hint string) {
	t.Helper()
	out, err := s.generate(t, project, image)
	if err == nil || !strings.Contains(out, "[registry-unauthorized]") || !strings.Contains(out, hint) || strings.Contains(out, "sha256") {
		t.Errorf("%s renders %s: %v, want unauthorized and a hint with %q\n%s", project, image, err, hint, out)
	}
}

// TestProjectsCredentials: at a registry with a token server, a project sees what its credentials open and no more,
// whoever asked before, and projects without credentials of their own share one look.
func TestProjectsCredentials(t *testing.T) {
	tokens := startTokenServer(t, map[string]string{"pusher": "", "team-a": "secret/app", "all": "backend/server"})
	registry := startRegistry(t, tokens.config(t))
	push := func(ref string) string {
		return pushImage(t, registry.image(ref), remote.WithAuth(&authn.Basic{Username: "pusher", Password: "pusher-pw"}))
	}
	secret, shared := push("secret/app:latest"), push("backend/server:latest")
	s := startResolverFor(t, registry, "--insecure-registry", tokens.addr, "--allow-realm", tokens.addr)
	s.login(t, "team-a", "team-a", "team-a-pw")
	s.login(t, "default", "all", "all-pw")

	s.wantDigest(t, "team-a", "secret/app:latest", secret)
	for _, project := range []string{"team-b", "default", "", "../team-a"} {
		s.wantDenied(t, project, "secret/app:latest", "credentials/default/config.json")
	}
	s.wantDenied(t, "team-a", "backend/server:latest", "credentials/team-a/config.json")

	before := len(registry.requests(t))
	for i := range 5 {
		s.wantDigest(t, fmt.Sprintf("team-%d", i), "backend/server:latest", shared)
	}
	heads := 0
	for _, r := range registry.requests(t)[before:] {
		if r == "HEAD /v2/backend/server/manifests/latest" {
			heads++
		}
	}
	if heads != 1 {
		t.Errorf("%d manifest requests for 5 projects without credentials of their own, want 1", heads)
	}

	// A flush forgets in every project, and answers once.
	pushed := push("secret/app:latest")
	if got := s.flush(t, registry.image("secret/app:latest")); len(got) != 1 || got[0].Old != secret || got[0].New != pushed {
		t.Errorf("flush = %+v, want %s → %s", got, secret, pushed)
	}
	s.wantDigest(t, "team-a", "secret/app:latest", pushed)
	s.wantDenied(t, "team-b", "secret/app:latest", "credentials/default/config.json")
}

// TestRotatedCredentials: a password that changes in the registry and in the mounted file while the resolver runs.
func TestRotatedCredentials(t *testing.T) {
	htpasswd := filepath.Join(t.TempDir(), "htpasswd")
	require := func(password string) {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, htpasswd, "ci:"+string(hash)+"\n")
	}
	require("old-pw")
	registry := startRegistry(t, fmt.Sprintf("auth: {htpasswd: {realm: e2e, path: %q}}\n", htpasswd))
	push := func() string {
		return pushImage(t, registry.image("backend/server:latest"), remote.WithAuth(&authn.Basic{Username: "ci", Password: "old-pw"}))
	}
	first := push()
	s := startResolverFor(t, registry)
	s.login(t, "default", "ci", "old-pw")
	s.wantDigest(t, "team", "backend/server:latest", first)

	// The registry goes first: the last answer is not lost, and a flush says what is wrong and where.
	second := push()
	require("new-pw-longer") // distribution notices by time, and the file system's clock may be coarse
	status, body := s.call(t, http.MethodPost, "/flush?image="+url.QueryEscape(registry.image("backend/server:latest")), "", "s3cret")
	if status != http.StatusOK || !strings.Contains(body, "unauthorized (401)") || !strings.Contains(body, "credentials/default/config.json") || strings.Contains(body, "old-pw") {
		t.Errorf("flush after the registry changed = %d %s", status, body)
	}
	s.login(t, "default", "ci", "new-pw-longer")
	if got := s.flush(t, registry.image("backend/server:latest")); len(got) != 1 || got[0].New != second {
		t.Errorf("flush after the file changed = %+v, want %s", got, second)
	}
	s.wantDigest(t, "team", "backend/server:latest", second)
}

// tokenServer gives tokens as distribution's token authentication wants them. The password of each user is its name
// and "-pw".
type tokenServer struct {
	addr   string
	key    *ecdsa.PrivateKey
	cert   []byte
	access map[string]string // by user, the one repository that it may pull; "" is all, to push too
}

func startTokenServer(t *testing.T, access map[string]string) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{key: key, cert: cert, access: access}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.addr = "localhost:" + port // go-containerregistry wants no address of the loopback in a realm
	return s
}

func (s *tokenServer) config(t *testing.T) string {
	t.Helper()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	writeFile(t, roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert})))
	return fmt.Sprintf("auth: {token: {realm: %q, service: e2e, issuer: e2e, rootcertbundle: %q}}\n", "http://"+s.addr+"/token", roots)
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	only, known := s.access[user]
	if ok && (!known || password != user+"-pw") {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	access := []map[string]any{}
	for _, scopes := range r.URL.Query()["scope"] {
		for scope := range strings.FieldsSeq(scopes) {
			part := strings.Split(scope, ":") // repository:NAME:ACTIONS
			if ok && (only == "" || part[1] == only) {
				access = append(access, map[string]any{"type": part[0], "name": part[1], "actions": strings.Split(part[2], ",")})
			}
		}
	}
	token, err := s.sign(user, access)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
}

// sign returns a JSON Web Token that carries its certificate.
func (s *tokenServer) sign(user string, access any) (string, error) {
	now := time.Now()
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": "e2e", "sub": user, "aud": "e2e", "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix() - 10, "exp": now.Unix() + 300, "access": access,
	})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
