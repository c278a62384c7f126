package argocd

import (
	"bytes"
	stdcmp "cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/digestlock/digestlock/internal/fault"
)

// TestNormalize: testdata/urls.txt has what Argo CD makes of each, which e2e asks it.
func TestNormalize(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile("testdata/urls.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var in, want string
		if _, err := fmt.Sscanf(line, "%q %q", &in, &want); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got := normalize(in); got != want {
			t.Errorf("normalize(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		template, repo string
		want           bool
	}{
		{"https://git.example.com/org", "https://git.example.com/org/web", true},
		{"https://git.example.com/org/", "https://git.example.com/org/web", true},
		{"https://git.example.com/org", "https://git.example.com/org", true},
		{"https://git.example.com/org", "https://git.example.com/org.git", true},
		{"https://git.example.com/ORG", "https://GIT.example.com/org/a/b/c.git", true},
		{"https://git.example.com", "https://git.example.com/org/web", true},
		{"git@git.example.com:org", "git@git.example.com:org/web.git", true},
		{"git@git.example.com:org/", "ssh://git@git.example.com/org/web", true},
		{"git@git.example.com", "git@git.example.com:org/web", true},
		{"https://git.example.com/org", "https://git.example.com/org-evil/web", false},
		{"https://git.example.com/org", "https://git.example.com/organisation", false},
		{"https://git.example.com/org/", "https://git.example.com/org-evil/web", false},
		{"https://git.example.com", "https://git.example.com.evil.example/org/web", false},
		{"https://git.example.com", "https://git.example.com@evil.example/org/web", false},
		{"https://git.example.com", "https://git.example.com:8443/org/web", false},
		{"https://git.example.com", "http://git.example.com/org/web", false},
		{"git@git.example.com:org", "git@git.example.com:org-evil/web", false},
		{"git@git.example.com", "git@git.example.com.evil.example:org/web", false},
		{"https://git.example.com/org", "https://git.example.com/org/../evil/web", false},
		{"https://git.example.com/org", "https://git.example.com/org/%2e%2e/evil/web", false},
		{"https://git.example.com/org", "https://git.example.com/org/..%2Fevil/web", false},
		{"https://git.example.com/org", `https://git.example.com/org/..\evil/web`, false},
		{"https://git.example.com/org", "https://git.example.com/org/./web", false},
		{"", "https://git.example.com/org/web", false},
		{"https://exa mple.com", "https://exa mple.com/org", false},
	} {
		if got := covers(normalize(tt.template), normalize(tt.repo)) > 0; got != tt.want {
			t.Errorf("template %q covers %q: %v, want %v", tt.template, tt.repo, got, tt.want)
		}
	}
}

// repositorySecret is one of Argo CD's, from keys and values by turns.
func repositorySecret(name, secretType string, data ...string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: name, Labels: map[string]string{secretLabel: secretType}}, Data: map[string][]byte{}}
	for i := 0; i+1 < len(data); i += 2 {
		s.Data[data[i]] = []byte(data[i+1])
	}
	return s
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	const repo = "https://git.example.com/org/web"
	const org = "https://git.example.com/org"
	secret := repositorySecret
	tests := []struct {
		name    string
		secrets []runtime.Object
		repo    string // "" is repo
		project string
		read    bool
		want    string // secret and password, "" for none
	}{
		{name: "none"},
		{name: "of the repository", secrets: []runtime.Object{secret("a", "repository-write", "url", "https://GIT.example.com/org/web.git", "password", "1")}, want: "a 1"},
		{name: "of another", secrets: []runtime.Object{secret("a", "repository-write", "url", repo+"2", "password", "1")}},
		{name: "short form of ssh", repo: "ssh://git@git.example.com/org/web", secrets: []runtime.Object{secret("a", "repository-write", "url", "git@git.example.com:org/web.git", "password", "1")}, want: "a 1"},
		{name: "without an address", repo: "https://exa mple.com", secrets: []runtime.Object{secret("a", "repository-write", "url", "https://exa mple.com", "password", "1"), secret("b", "repo-write-creds", "password", "1")}},
		{name: "template", secrets: []runtime.Object{secret("a", "repo-write-creds", "url", org, "password", "1")}, want: "a 1"},
		{name: "template of a like name", secrets: []runtime.Object{secret("a", "repo-write-creds", "url", org[:len(org)-1], "password", "1")}},
		{
			name:    "longest template",
			secrets: []runtime.Object{secret("a", "repo-write-creds", "url", "https://git.example.com", "password", "1"), secret("b", "repo-write-creds", "url", org, "password", "2")},
			want:    "b 2",
		},
		{
			name:    "template that ends with a slash is no longer",
			secrets: []runtime.Object{secret("b", "repo-write-creds", "url", org+"/", "password", "1"), secret("a", "repo-write-creds", "url", org, "password", "2")},
			want:    "a 2",
		},
		{
			name:    "repository before template",
			secrets: []runtime.Object{secret("a", "repo-write-creds", "url", repo, "password", "1"), secret("b", "repository-write", "url", repo, "password", "2")},
			want:    "b 2",
		},
		{
			name:    "inherited",
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo), secret("b", "repo-write-creds", "url", org, "password", "2")},
			want:    "b 2",
		},
		{
			name:    "not inherited from the wrong template",
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo), secret("b", "repo-creds", "url", org, "password", "2")},
		},
		{
			name:    "a user alone is credentials, as in Argo CD",
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "username", "x"), secret("b", "repo-write-creds", "url", org, "password", "2")},
			want:    "a ",
		},
		{name: "for reading", secrets: []runtime.Object{secret("a", "repository", "url", repo, "password", "1"), secret("b", "repo-creds", "url", org, "password", "2")}},
		{name: "for reading, allowed", read: true, secrets: []runtime.Object{secret("a", "repository", "url", repo, "password", "1")}, want: "a 1"},
		{name: "template for reading, allowed", read: true, secrets: []runtime.Object{secret("b", "repo-creds", "url", org, "password", "2")}, want: "b 2"},
		{
			name: "a template for writing before the repository's for reading", read: true,
			secrets: []runtime.Object{secret("a", "repository", "url", repo, "password", "1"), secret("b", "repo-write-creds", "url", "https://git.example.com", "password", "2")},
			want:    "b 2",
		},
		{
			name: "one for writing that has nothing is passed over", read: true,
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo), secret("b", "repository", "url", repo, "password", "2")},
			want:    "b 2",
		},
		{name: "of the project", project: "web", secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "project", "web", "password", "1")}, want: "a 1"},
		{name: "of another project", project: "web", secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "project", "payments", "password", "1")}},
		{name: "of a project, for none", secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "project", "payments", "password", "1")}},
		{name: "template of another project", project: "web", secrets: []runtime.Object{secret("a", "repo-write-creds", "url", org, "project", "payments", "password", "1")}},
		{
			name: "of the project before everybody's", project: "web",
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "password", "1"), secret("b", "repository-write", "url", repo, "project", "web", "password", "2")},
			want:    "b 2",
		},
		{
			name: "everybody's beside another project's", project: "web",
			secrets: []runtime.Object{secret("a", "repository-write", "url", repo, "project", "payments", "password", "1"), secret("b", "repository-write", "url", repo, "password", "2")},
			want:    "b 2",
		},
		{
			name:    "two of a kind: the first by name",
			secrets: []runtime.Object{secret("b", "repository-write", "url", repo, "password", "2"), secret("a", "repository-write", "url", repo, "password", "1")},
			want:    "a 1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, _ := started(t, Options{ReadCredentials: tt.read}, tt.secrets...)
			creds, ok, err := c.Credentials(stdcmp.Or(tt.repo, repo), tt.project)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if ok {
				got = creds.Source + " " + creds.Password
			}
			if got != tt.want {
				t.Errorf("Credentials() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCredentialKeys(t *testing.T) {
	t.Parallel()
	knownHosts := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: knownHostsMap}, Data: map[string]string{knownHostsKey: "git.example.com ssh-ed25519 AAAA\n"}}
	certificates := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "argocd", Name: certificatesMap}, Data: map[string]string{"git.example.com": "PEM", "example.com": "other"}}
	c, _ := started(
		t, Options{}, knownHosts, certificates,
		repositorySecret(
			"all", "repository-write", "url", "https://git.example.com:8443/all", "username", "u", "password", "p", "bearerToken", "b",
			"sshPrivateKey", "k", "tlsClientCertData", "cc", "tlsClientCertKey", "ck", "githubAppID", "12", "githubAppInstallationID", "34", "githubAppPrivateKey", "gk",
			"githubAppEnterpriseBaseUrl", "https://ghe.example.com/api/v3", "proxy", "http://proxy:3128", "noProxy", "a,b", "insecure", "true", "enableLfs", "true",
		),
		repositorySecret("proxied", "repository-write", "url", "https://git.example.com/proxied", "proxy", "http://own:3128", "insecureIgnoreHostKey", "true"),
		repositorySecret("template", "repo-write-creds", "url", "https://git.example.com/proxied", "githubAppID", "12", "githubAppPrivateKey", "gk", "proxy", "http://proxy:3128", "noProxy", "a", "insecure", "true"),
		repositorySecret("open", "repository-write", "url", "git@git.example.com:open", "proxy", "socks5://proxy"),
	)
	known := []byte("git.example.com ssh-ed25519 AAAA\n")
	tests := []struct {
		repo string
		want Credentials
		ok   bool
	}{
		{"https://git.example.com:8443/all", Credentials{
			Source: "all", Username: "u", Password: "p", BearerToken: "b", SSHPrivateKey: []byte("k"), ClientCert: []byte("cc"), ClientKey: []byte("ck"),
			GitHubAppID: 12, GitHubAppInstallationID: 34, GitHubAppPrivateKey: []byte("gk"), GitHubAppBaseURL: "https://ghe.example.com/api/v3",
			Proxy: "http://proxy:3128", NoProxy: "a,b", Insecure: true, KnownHosts: known, CA: []byte("PEM"),
		}, true},
		{"https://git.example.com/proxied", Credentials{
			Source: "template", GitHubAppID: 12, GitHubAppPrivateKey: []byte("gk"), Proxy: "http://own:3128", NoProxy: "a", Insecure: true, KnownHosts: known, CA: []byte("PEM"),
		}, true},
		{"git@git.example.com:open", Credentials{Source: "open", Proxy: "socks5://proxy", KnownHosts: known}, false},
		{"https://Example.com/other", Credentials{KnownHosts: known, CA: []byte("other")}, false},
	}
	for _, tt := range tests {
		got, ok, err := c.Credentials(tt.repo, "")
		if err != nil || ok != tt.ok {
			t.Errorf("Credentials(%q) = %v, %v, want %v", tt.repo, ok, err, tt.ok)
		}
		type plain Credentials // which has no methods, and shows
		if diff := cmp.Diff(plain(tt.want), plain(got), cmp.AllowUnexported(plain{})); diff != "" {
			t.Errorf("Credentials(%q) (-want +got):\n%s", tt.repo, diff)
		}
	}
}

// TestCredentialErrors: secrets that cannot be used are named, with the key and never a value.
func TestCredentialErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		data []string
		want string
	}{
		{"boolean", []string{"password", "hunter2", "insecure", "hunter2"}, `read secret "web": the value of insecure is not true or false`},
		{"empty boolean, as in Argo CD", []string{"password", "hunter2", "insecure", ""}, `read secret "web": the value of insecure is not true or false`},
		{"number", []string{"githubAppID", "hunter2"}, `read secret "web": the value of githubAppID is not a whole number`},
		{"Google", []string{"gcpServiceAccountKey", "hunter2"}, `read secret "web": cannot log in to Git by means of its gcpServiceAccountKey`},
		{"Azure", []string{"azureServicePrincipalClientSecret", "hunter2"}, `read secret "web": cannot log in to Git by means of its azureServicePrincipalClientSecret`},
		{"Azure's workload identity", []string{"useAzureWorkloadIdentity", "true"}, `read secret "web": cannot log in to Git by means of its useAzureWorkloadIdentity`},
		{"Azure beside a password", []string{"useAzureWorkloadIdentity", "true", "password", "hunter2"}, ""},
	} {
		for _, secretType := range []string{"repository-write", "repo-write-creds"} {
			c, _ := started(t, Options{}, repositorySecret("web", secretType, append(tt.data, "url", "https://git.example.com/web")...))
			_, ok, err := c.Credentials("https://git.example.com/web", "")
			switch {
			case tt.want == "" && (err != nil || !ok):
				t.Errorf("%s in %s: %v, %v, want credentials", tt.name, secretType, ok, err)
			case tt.want != "" && (err == nil || err.Error() != tt.want || ok || fault.CodeOf(err) != fault.GitCredentials):
				t.Errorf("%s in %s: %v, %v, want %s", tt.name, secretType, ok, err, tt.want)
			}
		}
	}
}

// TestCredentialsAreNotPrinted, however somebody tries.
func TestCredentialsAreNotPrinted(t *testing.T) {
	t.Parallel()
	creds := Credentials{Source: "web", Username: "hunter2", Password: "hunter2", BearerToken: "hunter2", SSHPrivateKey: []byte("hunter2"), ClientKey: []byte("hunter2"), GitHubAppPrivateKey: []byte("hunter2")}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", creds, &creds, struct{ C Credentials }{creds})
	}
	fmt.Fprintln(&out, creds.String())
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "creds", creds, "pointer", &creds, "struct", struct{ C Credentials }{creds})
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"c": creds, "p": &creds}); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprint([]byte("hunter2")), "aHVudGVyMg"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in\n%s", secret, out.String())
		}
	}
	if want := `credentials of secret "web"`; creds.String() != want {
		t.Errorf("String() = %s, want %s", creds, want)
	}
}
