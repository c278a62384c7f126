package argocd

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/digestlock/digestlock/internal/fault"
)

// Where Argo CD keeps what it needs for a repository.
const (
	secretLabel     = "argocd.argoproj.io/secret-type"
	knownHostsMap   = "argocd-ssh-known-hosts-cm"
	knownHostsKey   = "ssh_known_hosts"
	certificatesMap = "argocd-tls-certs-cm"
)

// kind is a pair of values of [secretLabel]: of the secrets of single repositories, and of their templates.
type kind struct{ repository, template string }

var (
	forWriting = kind{"repository-write", "repo-write-creds"}
	forReading = kind{"repository", "repo-creds"}
)

// Credentials are what to reach a repository with. Whichever way they are printed, logged or encoded, no value shows;
// in an unexported field of something else, package fmt would show them.
type Credentials struct {
	Source                  string // the secret's name, for people; "" when there is none
	Username, Password      string
	BearerToken             string
	SSHPrivateKey           []byte
	ClientCert, ClientKey   []byte // PEM
	GitHubAppID             int64
	GitHubAppInstallationID int64 // 0: to be discovered
	GitHubAppPrivateKey     []byte
	GitHubAppBaseURL        string // "" is github.com's
	Proxy, NoProxy          string
	Insecure                bool   // neither certificates nor host keys are to be verified
	KnownHosts              []byte // all that Argo CD knows
	CA                      []byte // PEM, for the URL's host alone; nil: the system's
	unsupported             string // a key that holds credentials of a kind that we cannot use
}

// Credentials returns Argo CD's own credentials for a repository, as Argo CD finds them for an Application of the
// project: those for writing first, and those for reading where there are none and [Options].ReadCredentials is set.
// Of each, the secret of the repository itself comes before the template with the longest URL, and gets from that what
// it lacks when it has no credentials of its own. Unlike Argo CD's, a template is for whole elements of the path, and
// one with a project is for that project only.
//
// It is false when there is nothing to log in with; what else is known (host keys, certificates, proxy) is there then
// too. Errors are faults that name the secret.
func (c *Cluster) Credentials(repoURL, project string) (Credentials, bool, error) {
	var creds Credentials
	for _, k := range c.kinds() {
		found, err := c.find(k, repoURL, project)
		if err != nil {
			return Credentials{}, false, err
		}
		if creds.Source == "" || found.any() {
			creds = found
		}
		if creds.any() {
			break
		}
	}
	creds.KnownHosts = c.configMap(knownHostsMap, knownHostsKey)
	if host := tlsHost(repoURL); host != "" {
		creds.CA = c.configMap(certificatesMap, host)
	}
	return creds, creds.any(), nil
}

func (c *Cluster) kinds() []kind {
	if c.readCredentials {
		return []kind{forWriting, forReading}
	}
	return []kind{forWriting}
}

// secretTypes are the values of [secretLabel] that matter, as a label selector has them. A repository that is of one
// project is permitted there by its secret, whether or not that is for us to log in with.
func (c *Cluster) secretTypes() string {
	types := []string{forReading.repository}
	for _, k := range c.kinds() {
		types = append(types, k.repository, k.template)
	}
	return strings.Join(types, ", ")
}

// find returns what the secrets of one kind have, nothing when none is for the repository.
func (c *Cluster) find(k kind, repoURL, project string) (Credentials, error) {
	var creds Credentials
	var err error
	repo := normalize(repoURL)
	if s := c.best(k.repository, project, func(s *corev1.Secret) int { return same(urlOf(s), repo) }); s != nil {
		if creds, err = parse(s); err != nil {
			return Credentials{}, err
		}
	}
	if s := c.best(k.template, project, func(s *corev1.Secret) int { return covers(urlOf(s), repo) }); s != nil && !creds.any() {
		template, err := parse(s)
		if err != nil {
			return Credentials{}, err
		}
		creds.inherit(template)
	}
	if creds.unsupported != "" && !creds.usable() {
		return Credentials{}, fault.New(fault.GitCredentials,
			"give the companion a password, token, SSH key or GitHub App in a secret labelled "+secretLabel+"="+forWriting.repository,
			"read secret %q: cannot log in to Git by means of its %s", creds.Source, creds.unsupported)
	}
	return creds, nil
}

// best returns the secret of a type that matches most, more than 0: one of the project before one of everybody's where
// they match alike, then the first by name. Those of other projects are nobody's business.
func (c *Cluster) best(secretType, project string, match func(*corev1.Secret) int) *corev1.Secret {
	var fit []*corev1.Secret
	for _, obj := range c.secrets.List() {
		s := obj.(*corev1.Secret)
		owner := string(s.Data["project"])
		if s.Labels[secretLabel] == secretType && (owner == "" || owner == project) && match(s) > 0 {
			fit = append(fit, s)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return slices.MinFunc(fit, func(a, b *corev1.Secret) int {
		return cmp.Or(
			-cmp.Compare(match(a), match(b)),
			-cmp.Compare(string(a.Data["project"]), string(b.Data["project"])), // one of them is ""
			cmp.Compare(a.Name, b.Name),
		)
	})
}

func urlOf(s *corev1.Secret) string { return normalize(string(s.Data["url"])) }

// any reports whether somebody meant these to be credentials, which keeps a secret from inheriting others.
func (c *Credentials) any() bool {
	return c.Username != "" || len(c.ClientCert) > 0 || c.unsupported != "" || c.usable()
}

// usable reports whether they can log in.
func (c *Credentials) usable() bool {
	return c.Password != "" || c.BearerToken != "" || len(c.SSHPrivateKey) > 0 || len(c.GitHubAppPrivateKey) > 0
}

// parse reads a secret of any kind. The error names the key, never the value.
func parse(s *corev1.Secret) (Credentials, error) {
	c := Credentials{
		Source:              s.Name,
		Username:            string(s.Data["username"]),
		Password:            string(s.Data["password"]),
		BearerToken:         string(s.Data["bearerToken"]),
		SSHPrivateKey:       s.Data["sshPrivateKey"],
		ClientCert:          s.Data["tlsClientCertData"],
		ClientKey:           s.Data["tlsClientCertKey"],
		GitHubAppPrivateKey: s.Data["githubAppPrivateKey"],
		GitHubAppBaseURL:    string(s.Data["githubAppEnterpriseBaseUrl"]),
		Proxy:               string(s.Data["proxy"]),
		NoProxy:             string(s.Data["noProxy"]),
	}
	p := parser{secret: s}
	c.GitHubAppID = p.number("githubAppID")
	c.GitHubAppInstallationID = p.number("githubAppInstallationID")
	insecure, old := p.boolean("insecure"), p.boolean("insecureIgnoreHostKey") // the second is how Argo CD 1 called it
	c.Insecure = insecure || old
	for _, key := range []string{"gcpServiceAccountKey", "azureServicePrincipalClientSecret"} {
		if len(s.Data[key]) > 0 {
			c.unsupported = key
		}
	}
	if p.boolean("useAzureWorkloadIdentity") {
		c.unsupported = "useAzureWorkloadIdentity"
	}
	return c, p.err
}

// parser reads values that are no text, and keeps the first error.
type parser struct {
	secret *corev1.Secret
	err    error
}

func (p *parser) number(key string) int64 {
	value, ok := p.secret.Data[key]
	n, err := strconv.ParseInt(string(value), 10, 64)
	if ok && err != nil {
		p.bad(key, "a whole number")
	}
	return n
}

func (p *parser) boolean(key string) bool {
	value, ok := p.secret.Data[key]
	b, err := strconv.ParseBool(string(value))
	if ok && err != nil {
		p.bad(key, "true or false")
	}
	return b
}

func (p *parser) bad(key, want string) {
	if p.err == nil {
		p.err = fault.New(fault.GitCredentials, fmt.Sprintf("write %s there, or remove the key", want),
			"read secret %q: the value of %s is not %s", p.secret.Name, key, want)
	}
}

// inherit takes what c lacks from a template.
func (c *Credentials) inherit(t Credentials) {
	c.Source = t.Source
	c.Username = cmp.Or(c.Username, t.Username)
	c.Password = cmp.Or(c.Password, t.Password)
	c.BearerToken = cmp.Or(c.BearerToken, t.BearerToken)
	c.SSHPrivateKey = orBytes(c.SSHPrivateKey, t.SSHPrivateKey)
	c.ClientCert = orBytes(c.ClientCert, t.ClientCert)
	c.ClientKey = orBytes(c.ClientKey, t.ClientKey)
	c.GitHubAppID = cmp.Or(c.GitHubAppID, t.GitHubAppID)
	c.GitHubAppInstallationID = cmp.Or(c.GitHubAppInstallationID, t.GitHubAppInstallationID)
	c.GitHubAppPrivateKey = orBytes(c.GitHubAppPrivateKey, t.GitHubAppPrivateKey)
	c.GitHubAppBaseURL = cmp.Or(c.GitHubAppBaseURL, t.GitHubAppBaseURL)
	c.Proxy = cmp.Or(c.Proxy, t.Proxy)
	c.NoProxy = cmp.Or(c.NoProxy, t.NoProxy)
	c.unsupported = cmp.Or(c.unsupported, t.unsupported)
}

func orBytes(a, b []byte) []byte {
	if len(a) > 0 {
		return a
	}
	return b
}

// configMap returns a value of one of Argo CD's config maps, nil when it is not there.
func (c *Cluster) configMap(name, key string) []byte {
	obj, ok, err := c.configMaps[name].GetByKey(c.namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	if value, ok := obj.(*corev1.ConfigMap).Data[key]; ok {
		return []byte(value)
	}
	return nil
}

// tlsHost returns the host whose certificate a client sees there, "" for ssh.
func tlsHost(repoURL string) string {
	if isSSH(repoURL) {
		return ""
	}
	u, err := url.Parse(strings.TrimSpace(repoURL))
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

// String names the secret.
func (c Credentials) String() string { return fmt.Sprintf("credentials of secret %q", c.Source) }

// Format writes what String does, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is what String returns.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText returns what String does, for encoding/json and its like.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
