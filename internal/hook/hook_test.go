package hook

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
)

// texts shows targets as "registry/repository:tag", or with "*" for every tag.
func texts(targets []image.Target) []string {
	var out []string
	for _, t := range targets {
		s := t.String()
		if t.EveryTag {
			s = t.Registry + "/" + t.Repository + ":*"
		}
		out = append(out, s)
	}
	return out
}

// fixtures says of each file in testdata what its event means. They have the formats that the senders document, and
// invented contents.
var fixtures = map[string]struct {
	query  string
	ceType string
	want   string // targets, separated by blanks
	err    string
}{
	"acr/chart_push":                 {},
	"acr/delete":                     {want: "acme.azurecr.io/acme/server:*"},
	"acr/digest_push":                {},
	"acr/ping":                       {},
	"acr/push":                       {want: "acme.azurecr.io/acme/server:latest"},
	"artifactory/delete":             {want: "artifactory.example.com/docker-local/acme/server:latest"},
	"artifactory/deployed":           {},
	"artifactory/digest_push":        {},
	"artifactory/promoted":           {query: "registry=docker.example.com&prefix=", want: "docker.example.com/acme/server:stable"},
	"artifactory/push":               {want: "artifactory.example.com/docker-local/acme/server:latest"},
	"distribution/delete_digest":     {want: "registry.example.com:5000/acme/server:*"},
	"distribution/delete_tag":        {want: "registry.example.com:5000/acme/server:latest"},
	"distribution/digest_push":       {},
	"distribution/empty":             {},
	"distribution/many":              {err: "101 images in one event"},
	"distribution/multi":             {want: "registry.example.com:5000/acme/server:latest registry.example.com:5000/acme/server:main registry.example.com:5000/acme/worker:latest"},
	"distribution/no_host":           {err: "does not name its registry"},
	"distribution/one_bad":           {want: "registry.example.com:5000/acme/server:latest", err: `".." is not a repository path component`},
	"distribution/pull":              {},
	"distribution/push":              {query: "registry=images.example.com&prefix=/mirror/", want: "images.example.com/mirror/acme/server:latest"},
	"distribution/service_name":      {err: `"registry" is no host`}, // "registry/acme/server" is an image of Docker Hub's
	"dockerhub/no_tag":               {want: "index.docker.io/acme/server:*"},
	"dockerhub/official":             {want: "index.docker.io/library/nginx:stable"},
	"dockerhub/other":                {},
	"dockerhub/push":                 {want: "index.docker.io/acme/server:latest"},
	"ecr/china":                      {want: "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/acme/server:latest"},
	"ecr/delete":                     {want: "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/server:latest"},
	"ecr/delete_digest":              {want: "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/server:*"},
	"ecr/digest_push":                {},
	"ecr/failure":                    {},
	"ecr/push":                       {want: "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/server:latest"},
	"ecr/replicated":                 {want: "123456789012.dkr.ecr.eu-central-1.amazonaws.com/acme/server:latest"},
	"ecr/scan":                       {},
	"gar/delete":                     {want: "europe-west3-docker.pkg.dev/acme-prod/apps/server:*"},
	"gar/digest_push":                {},
	"gar/empty":                      {},
	"gar/not_json":                   {err: "invalid character"},
	"gar/other":                      {},
	"gar/push":                       {want: "europe-west3-docker.pkg.dev/acme-prod/apps/server:latest"},
	"gar/untag":                      {want: "europe-west3-docker.pkg.dev/acme-prod/apps/server:latest"},
	"gcr/delete":                     {want: "eu.gcr.io/acme-prod/server:*"},
	"gcr/digest_push":                {},
	"gcr/push":                       {want: "eu.gcr.io/acme-prod/server:latest"},
	"gcr/untag":                      {want: "eu.gcr.io/acme-prod/server:latest"},
	"ghcr/child":                     {},
	"ghcr/code_push":                 {},
	"ghcr/npm":                       {},
	"ghcr/ping":                      {},
	"ghcr/push":                      {want: "ghcr.io/acme/server:latest"},
	"ghcr/registry_package":          {want: "ghcr.io/acme/tools/worker:main"},
	"ghcr/updated":                   {query: "registry=containers.github.example.com", want: "containers.github.example.com/acme/server:v1"},
	"gitea/child":                    {},
	"gitea/code_push":                {},
	"gitea/delete":                   {want: "gitea.example.com:3000/acme/server:latest"},
	"gitea/delete_digest":            {want: "gitea.example.com:3000/acme/server:*"},
	"gitea/npm":                      {},
	"gitea/push":                     {want: "gitea.example.com:3000/acme/server:latest"},
	"gitlab/delete_digest":           {want: "registry.gitlab.example.com/acme/server:*"},
	"gitlab/delete_tag":              {want: "registry.gitlab.example.com/acme/server:latest"},
	"gitlab/multi":                   {want: "registry.gitlab.example.com/acme/server:latest registry.gitlab.example.com/acme/server:main registry.gitlab.example.com/acme/worker:latest"},
	"gitlab/pull":                    {},
	"gitlab/push":                    {want: "registry.gitlab.example.com/acme/server:latest"},
	"harbor/cloudevents_delete":      {want: "harbor.example.com/acme/server:*"},
	"harbor/cloudevents_digest_push": {},
	"harbor/cloudevents_push":        {want: "harbor.example.com/acme/server:latest"},
	"harbor/cloudevents_scan":        {},
	"harbor/delete":                  {want: "harbor.example.com/acme/server:latest"},
	"harbor/delete_digest":           {want: "harbor.example.com/acme/server:*"},
	"harbor/digest_push":             {},
	"harbor/multi":                   {want: "harbor.example.com/acme/server:latest harbor.example.com/acme/server:v1.2.3"},
	"harbor/pull":                    {},
	"harbor/push":                    {want: "harbor.example.com/acme/server:latest"},
	"nexus/asset":                    {query: "registry=nexus.example.com:8082"},
	"nexus/delete":                   {query: "registry=nexus.example.com:8082", want: "nexus.example.com:8082/acme/server:latest"},
	"nexus/digest_push":              {query: "registry=nexus.example.com:8082"},
	"nexus/maven":                    {},
	"nexus/push":                     {err: "does not name its registry"},
	"nexus/update":                   {query: "registry=nexus.example.com&prefix=docker-hosted", want: "nexus.example.com/docker-hosted/acme/server:latest"},
	"quay/multi":                     {want: "quay.io/acme/server:latest quay.io/acme/server:main quay.io/acme/server:v1.2.3"},
	"quay/no_tags":                   {},
	"quay/push":                      {want: "quay.io/acme/server:latest"},
	"quay/vulnerability":             {},
	"zot/delete":                     {query: "registry=zot.example.com", ceType: "zotregistry.image.deleted", want: "zot.example.com/acme/server:latest"},
	"zot/delete_digest":              {query: "registry=zot.example.com", ceType: "com.example.image.deleted", want: "zot.example.com/acme/server:*"},
	"zot/digest_push":                {query: "registry=zot.example.com", ceType: "zotregistry.image.updated"},
	"zot/push":                       {query: "registry=zot.example.com", ceType: "zotregistry.image.updated", want: "zot.example.com/acme/server:latest"},
	"zot/repository":                 {ceType: "zotregistry.repository.created"},
}

func TestParse(t *testing.T) {
	t.Parallel()
	for name, f := range fixtures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse(filepath.Dir(name), request(t, name))
			if diff := cmp.Diff(strings.Fields(f.want), texts(got), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
				t.Errorf("targets (-want +got):\n%s", diff)
			}
			if (err == nil) != (f.err == "") || err != nil && !strings.Contains(err.Error(), f.err) {
				t.Errorf("error = %v, want %q", err, f.err)
			}
		})
	}
}

// request is the one that brings a fixture.
func request(t testing.TB, name string) Request {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	f := fixtures[name]
	query, err := url.ParseQuery(f.query)
	if err != nil {
		t.Fatal(err)
	}
	return Request{Header: http.Header{"Ce-Type": {f.ceType}}, Query: query, Body: body}
}

// TestFixtures: no sender goes without, and none lies about unused.
func TestFixtures(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(fixtures) {
		t.Errorf("%d files, %d in the table", len(files), len(fixtures))
	}
	for _, s := range Senders() {
		if n, _ := filepath.Glob("testdata/" + s + "/*.json"); len(n) < 4 {
			t.Errorf("%s: %d fixtures", s, len(n))
		}
	}
}

// TestRegistryInURL: what the operator writes into the URL passes the same grammar as what senders say.
func TestRegistryInURL(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"registry=mirror.example.com":                   "mirror.example.com/acme/server:latest",
		"registry=MIRROR.example.com":                   "mirror.example.com/acme/server:latest",
		"registry=localhost":                            "localhost/acme/server:latest",
		"registry=docker.io":                            "index.docker.io/acme/server:latest",
		"registry=":                                     "error",
		"registry=mirror":                               "error",
		"registry=mirror.example.com/x":                 "error",
		"registry=evil.example.com:443%2f..":            "error",
		"registry=evil.example.com@mirror.example.com":  "error",
		"registry=mirror.example.com%0a":                "error",
		"registry=mirror.example.com&prefix=..":         "error",
		"registry=mirror.example.com&prefix=a:b":        "error",
		"registry=mirror.example.com&prefix=team%2fsub": "mirror.example.com/team/sub/acme/server:latest",
	} {
		r := request(t, "acr/push")
		r.Query, _ = url.ParseQuery(query)
		got, err := Parse("acr", r)
		if text := strings.Join(texts(got), " "); text != want && (want != "error" || err == nil || text != "") {
			t.Errorf("%s: %q, %v, want %s", query, text, err, want)
		}
	}
	if _, err := Parse("zot", Request{Header: http.Header{"Ce-Type": {"x.image.updated"}}, Body: []byte(`{"name":"a","reference":"b"}`)}); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("zot without ?registry= = %v, want ErrNoRegistry", err)
	}
}

// TestBadNames: nothing slips a tag or a digest into a repository's place, and no error repeats a whole event.
func TestBadNames(t *testing.T) {
	t.Parallel()
	for name, repository := range map[string]string{
		"tag":    "acme/server:latest",
		"digest": "acme/server@sha256:" + strings.Repeat("1", 64),
		"long":   strings.Repeat("a", 1<<20),
		"empty":  "",
	} {
		body := `{"action":"delete","target":{"repository":"` + repository + `"},"request":{"host":"r.example.com"}}`
		got, err := Parse("acr", Request{Body: []byte(body)})
		if err == nil || len(got) != 0 || len(err.Error()) > 1000 {
			t.Errorf("%s: %v, %.100v", name, texts(got), err)
		}
	}
}

func sign(newHash func() hash.Hash, secret, body string) string {
	mac := hmac.New(newHash, []byte(secret))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	const body = `{"a":1}`
	good := sign(sha256.New, "two", body)
	tests := map[string]struct {
		sender, header, value, path string
		want                        bool
	}{
		"github":                   {"ghcr", "X-Hub-Signature-256", "sha256=" + good, "", true},
		"github, other secret":     {"ghcr", "X-Hub-Signature-256", "sha256=" + sign(sha256.New, "three", body), "", false},
		"github, other body":       {"ghcr", "X-Hub-Signature-256", "sha256=" + sign(sha256.New, "two", body+" "), "", false},
		"github, empty secret":     {"ghcr", "X-Hub-Signature-256", "sha256=" + sign(sha256.New, "", body), "", false},
		"github, sha1":             {"ghcr", "X-Hub-Signature", "sha1=" + sign(sha1.New, "two", body), "", false},
		"github, half":             {"ghcr", "X-Hub-Signature-256", "sha256=" + good[:32], "", false},
		"github, no signature":     {"ghcr", "X-Hub-Signature-256", "", "", false},
		"github, bearer":           {"ghcr", "Authorization", "Bearer two", "", false},
		"gitea":                    {"gitea", "X-Gitea-Signature", good, "", true},
		"gitea, not hexadecimal":   {"gitea", "X-Gitea-Signature", "zz" + good[2:], "", false},
		"artifactory":              {"artifactory", "X-JFrog-Event-Auth", good, "", true},
		"artifactory, not signed":  {"artifactory", "X-JFrog-Event-Auth", "two", "", false},
		"nexus":                    {"nexus", "X-Nexus-Webhook-Signature", sign(sha1.New, "one", body), "", true},
		"nexus, sha256":            {"nexus", "X-Nexus-Webhook-Signature", good, "", false},
		"harbor, raw":              {"harbor", "Authorization", "one", "", true},
		"harbor, first letters":    {"harbor", "Authorization", "on", "", false},
		"distribution, bearer":     {"distribution", "Authorization", "Bearer two", "", true},
		"gitlab, wrong":            {"gitlab", "Authorization", "Bearer three", "", false},
		"acr, nothing":             {"acr", "Authorization", "", "", false},
		"acr, empty bearer":        {"acr", "Authorization", "Bearer ", "", false},
		"zot, basic":               {"zot", "Authorization", "Basic dXNlcjp0d28=", "", true}, // user:two
		"zot, basic, user only":    {"zot", "Authorization", "Basic dHdvOg==", "", false},    // two:
		"zot, basic, wrong":        {"zot", "Authorization", "Basic dXNlcjp4", "", false},
		"docker hub":               {"dockerhub", "", "", "one", true},
		"docker hub, wrong":        {"dockerhub", "", "", "three", false},
		"docker hub, no path":      {"dockerhub", "", "", "", false},
		"quay, header":             {"quay", "Authorization", "Bearer one", "", false},
		"harbor, path":             {"harbor", "", "", "one", false},
		"google's are not for it":  {"gar", "Authorization", "Bearer one", "one", false},
		"a sender nobody heard of": {"nobody", "Authorization", "Bearer one", "one", false},
	}
	for name, tt := range tests {
		r := Request{Header: http.Header{}, Body: []byte(body), Secret: tt.path}
		if tt.header != "" {
			r.Header.Set(tt.header, tt.value)
		}
		if got := Verify(tt.sender, r, []string{"one", "two"}); got != tt.want {
			t.Errorf("%s: Verify = %v, want %v", name, got, tt.want)
		}
		if Verify(tt.sender, r, nil) || Verify(tt.sender, r, []string{""}) {
			t.Errorf("%s: verified without a secret", name)
		}
	}
}

// FuzzParse: whatever a sender sends, nothing panics, and what comes out is a reference that passes the grammar.
func FuzzParse(f *testing.F) {
	for name := range fixtures {
		r := request(f, name)
		f.Add(filepath.Dir(name), fixtures[name].query, fixtures[name].ceType, r.Body)
	}
	f.Fuzz(func(t *testing.T, sender, query, ceType string, body []byte) {
		values, _ := url.ParseQuery(query)
		targets, err := Parse(sender, Request{Header: http.Header{"Ce-Type": {ceType}}, Query: values, Body: body})
		if len(targets) > MaxTargets {
			t.Errorf("%d targets", len(targets))
		}
		if err != nil && len(err.Error()) > 4<<10 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
		for _, target := range targets {
			again, err := image.ParseTarget(target.String())
			if err != nil || again.String() != target.String() || again.EveryTag != target.EveryTag {
				t.Errorf("%+v: parsed again %+v, %v", target, again, err)
			}
		}
	})
}
