package forge

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
)

// kind is what one make of forge does differently.
type kind struct {
	name       string
	apiPath    string                                        // of a server of one's own
	project    func(path string) string                      // the API's path of a repository
	requests   string                                        // below that
	update     string                                        // the method
	head, base string                                        // fields
	body       string                                        // and the one of the text
	query      func(repository string, r Request) url.Values // of the listing
}

var kinds = []kind{github, gitlab, gitea}

// github is GitHub's REST API v3, also of GitHub Enterprise.
var github = kind{
	name:    "github",
	apiPath: "/api/v3",
	project: func(path string) string { return "/repos/" + escape(path) }, requests: "/pulls", update: http.MethodPatch,
	head: "head", base: "base", body: "body",
	query: func(repository string, r Request) url.Values {
		owner, _, _ := strings.Cut(repository, "/")
		return url.Values{"state": {"open"}, "head": {owner + ":" + r.Head}, "base": {r.Base}, "per_page": {"100"}}
	},
}

// gitlab is GitLab's API v4, where groups nest.
var gitlab = kind{
	name:    "gitlab",
	apiPath: "/api/v4",
	project: func(path string) string { return "/projects/" + url.PathEscape(path) }, requests: "/merge_requests", update: http.MethodPut,
	head: "source_branch", base: "target_branch", body: "description",
	query: func(_ string, r Request) url.Values {
		return url.Values{"state": {"opened"}, "source_branch": {r.Head}, "target_branch": {r.Base}, "per_page": {"100"}}
	},
}

// gitea is Gitea's and Forgejo's API v1, which cannot look for a head.
var gitea = kind{
	name:    "gitea",
	apiPath: "/api/v1",
	project: github.project, requests: "/pulls", update: http.MethodPatch,
	head: "head", base: "base", body: "body",
	query: func(string, Request) url.Values { return url.Values{"state": {"open"}, "limit": {"50"}} },
}

// public are the hosts that everybody knows, also by their other names for ssh, with the address of the API.
var public = map[string]struct {
	kind kind
	api  string
}{
	"github.com":        {github, "https://api.github.com"},
	"ssh.github.com":    {github, "https://api.github.com"},
	"gitlab.com":        {gitlab, "https://gitlab.com/api/v4"},
	"altssh.gitlab.com": {gitlab, "https://gitlab.com/api/v4"},
}

// find returns the kind of that name, or the one of the host for "".
func find(name, host string) (kind, error) {
	if known, ok := public[host]; ok && name == "" {
		return known.kind, nil
	}
	for _, k := range kinds {
		if name == k.name {
			return k, nil
		}
	}
	const hint = "say what it is with --forge: github, gitlab or gitea (Forgejo is gitea)"
	if name == "" {
		return kind{}, fault.New(fault.Usage, hint, "the host %s does not tell what kind of forge it is", host)
	}
	return kind{}, fault.New(fault.Usage, hint, "no forge is called %q", name)
}

// address returns where a forge of this kind on host has its API. A Gitea may live below a path; that a GitLab does
// cannot be told from groups.
func (k kind) address(host, path string) string {
	if known, ok := public[host]; ok && known.kind.name == k.name {
		return known.api
	}
	if k.name == github.name && strings.HasSuffix(host, ".ghe.com") { // GitHub Enterprise Cloud with data residency
		return "https://api." + host
	}
	prefix := ""
	if parts := strings.Split(path, "/"); k.name == gitea.name && len(parts) > 2 {
		prefix = "/" + strings.Join(parts[:len(parts)-2], "/")
	}
	return "https://" + host + prefix + k.apiPath
}

// repository returns the path of the repository as the forge knows it, without the path that the whole forge may live
// below; "" when there is none.
func (k kind) repository(apiURL, host, path string) string {
	parts := strings.Split(path, "/")
	switch k.name {
	case gitea.name:
		path = strings.Join(parts[max(0, len(parts)-2):], "/")
	case gitlab.name:
		if u, err := url.Parse(apiURL); err == nil && u.Host == host {
			root := strings.Trim(strings.TrimSuffix(strings.TrimRight(u.Path, "/"), k.apiPath), "/")
			path = strings.TrimPrefix(path, root+"/")
		}
	}
	if n := strings.Count(path, "/") + 1; n < 2 || n > 2 && k.name != gitlab.name {
		return ""
	}
	return path
}

// escape escapes a path but for its slashes.
func escape(path string) string { return (&url.URL{Path: path}).EscapedPath() }

// answer is a request as any of the three describes it.
type answer struct {
	Number      int64  `json:"number"`
	IID         int64  `json:"iid"` // GitLab's number; its "id" is another one
	HTMLURL     string `json:"html_url"`
	WebURL      string `json:"web_url"`
	Title       string `json:"title"`
	Body        string `json:"body"`
	Description string `json:"description"`

	Head, Base struct {
		Ref  string `json:"ref"`
		Repo struct {
			ID int64 `json:"id"`
		} `json:"repo"` // null for a fork that is gone
	}
	SourceBranch    string `json:"source_branch"`
	TargetBranch    string `json:"target_branch"`
	SourceProjectID int64  `json:"source_project_id"`
	TargetProjectID int64  `json:"target_project_id"`
}

func (a answer) number() int64 { return cmp.Or(a.Number, a.IID) }
func (a answer) page() string  { return cmp.Or(a.HTMLURL, a.WebURL) }
func (a answer) text() string  { return cmp.Or(a.Body, a.Description) }

// leads reports whether a is from head to base of one repository: a fork may have a branch of the same name.
func (a answer) leads(head, base string) bool {
	return cmp.Or(a.Head.Ref, a.SourceBranch) == head && cmp.Or(a.Base.Ref, a.TargetBranch) == base &&
		a.Head.Repo.ID == a.Base.Repo.ID && a.SourceProjectID == a.TargetProjectID
}
