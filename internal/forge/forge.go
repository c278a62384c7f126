// Package forge keeps one pull or merge request open from a branch to another, on GitHub, GitLab and Gitea or Forgejo.
//
// Three calls of each API are used: list, create, update. They differ in paths and names only, hence a table (kinds.go)
// and no SDK: each would bring all of its forge's API, and a way of its own to retry, to wait and to fail.
package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/rest"
)

const (
	// maxTitle is what GitLab and Gitea store of a title, in bytes to be on the safe side; GitHub takes one more.
	maxTitle = 255
	// maxText is a little less than the 65,536 characters of GitHub, the least of the three.
	maxText = 65000
	// maxPages bounds how long an own request is looked for among the others. Gitea alone needs more than one page.
	maxPages = 200
)

// Request asks for the commits of the branch Head to be taken into the branch Base of the same repository.
type Request struct {
	Head, Base  string // short names of branches
	Title, Body string // one line; Markdown
}

// Forge opens requests in one repository. It is safe for concurrent use.
type Forge struct {
	kind kind
	host string // of the repository
	path string // on it, "acme/k8s"
	api  *rest.Client
}

// New returns the forge of the repository at repoURL, an https or ssh address as Git takes it. The kind is one of "github",
// "gitlab" and "gitea", which is Forgejo too; "" goes by the host, which must be one that everybody knows. An apiURL of ""
// is the address that this kind of forge has its API at. Token is asked for the bearer token of each call; a nil client
// stands for [http.DefaultClient]. Nothing is sent yet.
func New(name, repoURL, apiURL string, token func(context.Context) (string, error), client *http.Client) (*Forge, error) {
	host, path, err := locate(repoURL)
	if err != nil {
		return nil, err
	}
	k, err := find(name, host)
	if err != nil {
		return nil, err
	}
	if apiURL == "" {
		apiURL = k.address(host, path)
	}
	if path = k.repository(apiURL, host, path); path == "" {
		return nil, fault.New(fault.GitURL, "use https://host/owner/repository", "repository URL on %s names no repository of a forge", host)
	}
	api, err := rest.New(apiURL, token, client)
	if err != nil {
		return nil, fmt.Errorf("forge at %s: %w", host, err)
	}
	return &Forge{kind: k, host: host, path: path, api: api}, nil
}

// Host returns the host of the repository, with its port for https: the API may be at another one.
func (f *Forge) Host() string { return f.host }

// Ensure sees to it that exactly one open request leads from r.Head to r.Base, and that it has r's title and body; a mark
// that it is a draft, which a person put before the title, stays. It returns the address of the request's page, and whether
// it was created by this call. One that was closed or merged is left as it is, and another one created.
//
// Both branches must be there and differ. The forge's refusal is an error with its reason.
func (f *Forge) Ensure(ctx context.Context, r Request) (page string, created bool, err error) {
	r.Title, r.Body = cut(firstLine(r.Title), maxTitle), cut(normal(r.Body), maxText)
	open, err := f.find(ctx, r)
	if err != nil {
		return "", false, fmt.Errorf("look for a request from %q to %q: %w", r.Head, r.Base, err)
	}
	if open == nil {
		page, err := f.create(ctx, r)
		if err == nil {
			return page, true, nil
		}
		err = fmt.Errorf("open a request from %q to %q: %w", r.Head, r.Base, err)
		if rest.Status(err) == http.StatusNotFound { // the repository was there a moment ago
			err = fault.New(fault.GitAccess, "check that both branches are there, and that the token may write", "%w", err)
		}
		// Somebody else may have been faster, which forges tell in different ways: what counts is what is there.
		if s := rest.Status(err); s != http.StatusConflict && s != http.StatusUnprocessableEntity {
			return "", false, err
		}
		if open, _ = f.find(ctx, r); open == nil {
			return "", false, err
		}
	}
	if err := f.update(ctx, *open, r); err != nil {
		return "", false, fmt.Errorf("update request %s: %w", open.page(), err)
	}
	return open.page(), false, nil
}

// find returns the open request from r.Head to r.Base, or nil.
func (f *Forge) find(ctx context.Context, r Request) (*answer, error) {
	query := f.kind.query(f.path, r)
	for page := range maxPages {
		query.Set("page", fmt.Sprint(page+1))
		var some []answer
		if err := f.api.Call(ctx, http.MethodGet, f.requests()+"?"+query.Encode(), nil, &some); err != nil {
			return nil, err
		}
		for _, a := range some {
			if a.leads(r.Head, r.Base) {
				return &a, nil
			}
		}
		if len(some) == 0 { // a page may be shorter than was asked for, and not be the last
			return nil, nil
		}
	}
	return nil, fault.New(fault.TooLarge, "close some", "more than %d pages of open requests", maxPages)
}

func (f *Forge) create(ctx context.Context, r Request) (string, error) {
	var a answer
	err := f.api.Call(ctx, http.MethodPost, f.requests(), map[string]string{
		f.kind.head: r.Head, f.kind.base: r.Base, "title": r.Title, f.kind.body: r.Body,
	}, &a)
	if err == nil && a.page() == "" {
		err = errors.New("the API answers without a request")
	}
	return a.page(), err
}

// update changes what differs, and nothing else.
func (f *Forge) update(ctx context.Context, open answer, r Request) error {
	change := map[string]string{}
	if title := cut(draft.FindString(open.Title)+r.Title, maxTitle); title != strings.TrimSpace(open.Title) {
		change["title"] = title
	}
	if r.Body != normal(open.text()) {
		change[f.kind.body] = r.Body
	}
	if len(change) == 0 {
		return nil
	}
	return f.api.Call(ctx, f.kind.update, fmt.Sprintf("%s/%d", f.requests(), open.number()), change, &answer{})
}

func (f *Forge) requests() string { return f.kind.project(f.path) + f.kind.requests }

// draft is how GitLab and Gitea know that a request is not ready: by its title.
var draft = regexp.MustCompile(`^(?i:(draft|wip): *|\[(draft|wip)\] *|\(draft\) *)`)

// normal is a text as it is compared: forges trim what they store, and a browser makes its line breaks \r\n.
func normal(text string) string {
	return strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(normal(text), "\n")
	return strings.TrimSpace(line)
}

// cut shortens a text to at most n bytes.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	const end = " …"
	for n -= len(end); !utf8.RuneStart(text[n]); n-- {
	}
	return strings.TrimSpace(text[:n]) + end
}

// scpLike matches git@host:path.
var scpLike = regexp.MustCompile(`^(?:[^@/:\s]+@)?([^@/:\s]+):([^\s:].*)$`)

// locate returns the host of the forge, with the port for https, and the path of the repository without its ending.
func locate(repoURL string) (host, path string, err error) {
	if m := scpLike.FindStringSubmatch(repoURL); m != nil && !strings.Contains(repoURL, "://") {
		host, path = m[1], m[2]
	} else if u, err := url.Parse(repoURL); err == nil {
		host, path = u.Host, u.Path
		if u.Scheme == "ssh" { // its port is ssh's
			host = u.Hostname()
		}
	}
	path = strings.TrimSuffix(strings.Trim(path, "/"), ".git")
	if host == "" || path == "" {
		return "", "", fault.New(fault.GitURL, "use https://host/path, ssh://git@host/path or git@host:path", "repository URL needs a host and a path")
	}
	return strings.ToLower(host), path, nil
}
