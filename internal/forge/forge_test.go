package forge_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/forge"
)

func token(context.Context) (string, error) { return "t0ken", nil }

var request = forge.Request{Head: "digestlock/main", Base: "main", Title: "build: auto-update 2 images", Body: "a\n\nb"}

// kindsOf runs a test against each kind of forge.
func kindsOf(t *testing.T, test func(t *testing.T, f *fake)) {
	for _, kind := range []string{"github", "gitlab", "gitea"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, start(t, kind))
		})
	}
}

// ensure calls Ensure and compares what came of it.
func (f *fake) ensure(t *testing.T, r forge.Request, number int, created bool) {
	t.Helper()
	page, got, err := f.open(t).Ensure(t.Context(), r)
	if err != nil || page != f.page(number) || got != created {
		t.Errorf("Ensure = %q, %v, %v; want %q, %v", page, got, err, f.page(number), created)
	}
}

// wrote compares what was written since the last call; "GH" are the names of GitHub's fields.
func (f *fake) wrote(t *testing.T, want ...string) {
	t.Helper()
	if f.kind == "gitlab" {
		names := strings.NewReplacer(" head=", " source_branch=", " base=", " target_branch=", " body=", " description=", "PATCH", "PUT")
		for i := range want {
			want[i] = names.Replace(want[i])
		}
	}
	if d := cmp.Diff(want, f.writes); d != "" {
		t.Errorf("written (-want +got):\n%s", d)
	}
	f.writes = nil
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	kindsOf(t, func(t *testing.T, f *fake) {
		f.ensure(t, request, 1, true)
		f.wrote(t, "POST head=digestlock/main base=main title=build: auto-update 2 images body=a\n\nb")
		f.ensure(t, request, 1, false)
		f.wrote(t)
		other := request
		other.Body = "c"
		f.ensure(t, other, 1, false)
		f.wrote(t, "PATCH body=c")
		other.Title = "build: auto-update 3 images"
		f.ensure(t, other, 1, false)
		f.wrote(t, "PATCH title=build: auto-update 3 images")
		if n := len(f.pulls); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}

		f.pulls[0].Closed = true // merged, or not wanted
		f.ensure(t, request, 2, true)
		f.wrote(t, "POST head=digestlock/main base=main title=build: auto-update 2 images body=a\n\nb")
		if !f.pulls[0].Closed || f.pulls[0].Body != "c" {
			t.Errorf("the closed one was touched: %+v", f.pulls[0])
		}
	})
}

// TestOthers: requests that are not ours, though each of them looks a little like it.
func TestOthers(t *testing.T) {
	t.Parallel()
	kindsOf(t, func(t *testing.T, f *fake) {
		f.add(pull{Title: "fork", Head: request.Head, Base: request.Base, Fork: true})
		f.add(pull{Title: "other base", Head: request.Head, Base: "release"})
		f.add(pull{Title: "other head", Head: "digestlock/main2", Base: request.Base})
		f.ensure(t, request, 4, true)
		f.writes = nil
		f.ensure(t, request, 4, false)
		f.wrote(t)
	})
}

// TestManyOthers: Gitea lists all open requests, a page at a time.
func TestManyOthers(t *testing.T) {
	t.Parallel()
	f := start(t, "gitea")
	for i := range 120 {
		f.add(pull{Title: "other", Head: fmt.Sprintf("feature-%d", i), Base: "main"})
	}
	f.ensure(t, request, 121, true)
	f.writes = nil
	f.ensure(t, request, 121, false)
	f.wrote(t)
}

// TestFaster: somebody opens the same request between our look and our creation.
func TestFaster(t *testing.T) {
	t.Parallel()
	kindsOf(t, func(t *testing.T, f *fake) {
		f.race = &pull{Title: request.Title, Body: "theirs", Head: request.Head, Base: request.Base}
		f.ensure(t, request, 1, false)
		f.wrote(t, "POST head=digestlock/main base=main title=build: auto-update 2 images body=a\n\nb", "PATCH body=a\n\nb")
	})
}

// TestSettles: what a person or the forge does to the texts is not undone for ever.
func TestSettles(t *testing.T) {
	t.Parallel()
	long := request
	long.Title, long.Body = strings.Repeat("ü", 300), strings.Repeat("日本\n", 30000)
	for name, tt := range map[string]struct {
		r   forge.Request
		has pull
	}{
		"draft":       {request, pull{Title: "Draft: " + request.Title, Body: request.Body}},
		"WIP":         {request, pull{Title: "[WIP] " + request.Title, Body: request.Body}},
		"line breaks": {request, pull{Title: request.Title + " ", Body: "a\r\n\r\nb\r\n"}},
		"two lines":   {forge.Request{Head: request.Head, Base: request.Base, Title: "one\ntwo", Body: "b\n"}, pull{Title: "one", Body: "b"}},
		"no text":     {forge.Request{Head: request.Head, Base: request.Base, Title: "one"}, pull{Title: "one"}},
		"much too long": {long, pull{
			Title: strings.Repeat("ü", 125) + " …", Body: strings.TrimSpace(strings.Repeat("日本\n", 9285)) + " …",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kindsOf(t, func(t *testing.T, f *fake) {
				has := tt.has
				has.Head, has.Base = request.Head, request.Base
				f.add(has)
				f.ensure(t, tt.r, 1, false)
				f.wrote(t)
			})
		})
	}
	t.Run("a draft moves on", func(t *testing.T) {
		t.Parallel()
		f := start(t, "gitlab")
		f.add(pull{Title: "Draft: old", Body: request.Body, Head: request.Head, Base: request.Base})
		f.ensure(t, request, 1, false)
		f.wrote(t, "PUT title=Draft: "+request.Title)
	})
}

func check(t *testing.T, what string, err error, code fault.Code, want, hint string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	if fault.CodeOf(err) != code || !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), hint) {
		t.Errorf("%s:\n got %q [%s]\nhint %q\nwant %q [%s]\nhint %q", what, err, fault.CodeOf(err), fault.Hint(err), want, code, hint)
	}
	if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "t0ken") {
		t.Errorf("%s: %q gives a secret away", what, err)
	}
}

func TestEnsureFails(t *testing.T) {
	t.Parallel()
	kindsOf(t, func(t *testing.T, f *fake) {
		same := request
		same.Head = "same"
		_, _, err := f.open(t).Ensure(t.Context(), same)
		check(t, "no commits", err, fault.GitRefused, `open a request from "same" to "main": POST `, "satisfy the rule")
		check(t, "no commits", err, fault.GitRefused, "No commits between main and same", "satisfy the rule")

		none := request
		none.Head = "none"
		_, _, err = f.open(t).Ensure(t.Context(), none)
		check(t, "no branch", err, fault.GitAccess, `open a request from "none" to "main": POST `, "check that both branches are there")

		stranger := func(context.Context) (string, error) { return "s3cret", nil }
		wrong, err := forge.New(f.kind, f.url(), "", stranger, f.server.Client())
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = wrong.Ensure(t.Context(), request)
		check(t, "wrong token", err, fault.GitAccess, `look for a request from "digestlock/main" to "main": GET `, "check that the token is right")

		missing, err := forge.New(f.kind, strings.Replace(f.url(), "k8s", "none", 1), "", token, f.server.Client())
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = missing.Ensure(t.Context(), request)
		check(t, "no repository", err, fault.GitAccess, "404 Not Found", "check the repository's URL")
	})
}

// TestAddresses: where each repository's requests are asked for.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ kind, repo, api, want string }{
		{"", "https://github.com/acme/k8s.git", "", "https://api.github.com/repos/acme/k8s/pulls"},
		{"", "git@github.com:acme/k8s", "", "https://api.github.com/repos/acme/k8s/pulls"},
		{"", "ssh://git@ssh.github.com:443/acme/k8s.git", "", "https://api.github.com/repos/acme/k8s/pulls"},
		{"", "https://robot@GitHub.com/acme/k8s.git/", "", "https://api.github.com/repos/acme/k8s/pulls"},
		{"github", "https://ghe.example.com/acme/k8s", "", "https://ghe.example.com/api/v3/repos/acme/k8s/pulls"},
		{"github", "https://acme.ghe.com/acme/k8s", "", "https://api.acme.ghe.com/repos/acme/k8s/pulls"},
		{"github", "https://ghe.example.com/acme/k8s", "https://gateway.example.com/acme/api/v3/", "https://gateway.example.com/acme/api/v3/repos/acme/k8s/pulls"},
		{"", "https://gitlab.com/group/sub/team/k8s.git", "", "https://gitlab.com/api/v4/projects/group%2Fsub%2Fteam%2Fk8s/merge_requests"},
		{"", "ssh://git@altssh.gitlab.com:443/group/k8s.git", "", "https://gitlab.com/api/v4/projects/group%2Fk8s/merge_requests"},
		{"gitlab", "https://git.example.com:8443/group/k8s.git", "", "https://git.example.com:8443/api/v4/projects/group%2Fk8s/merge_requests"},
		{"gitlab", "ssh://git@git.example.com:2222/group/k8s.git", "", "https://git.example.com/api/v4/projects/group%2Fk8s/merge_requests"},
		{"gitlab", "https://example.com/gitlab/group/k8s.git", "https://example.com/gitlab/api/v4", "https://example.com/gitlab/api/v4/projects/group%2Fk8s/merge_requests"},
		{"gitlab", "https://git.example.com/gitlab/k8s.git", "https://api.example.com/gitlab/api/v4", "https://api.example.com/gitlab/api/v4/projects/gitlab%2Fk8s/merge_requests"},
		{"gitea", "https://git.example.com/acme/k8s.git", "", "https://git.example.com/api/v1/repos/acme/k8s/pulls"},
		{"gitea", "https://example.com/git/acme/k8s.git", "", "https://example.com/git/api/v1/repos/acme/k8s/pulls"},
		{"gitea", "git@git.example.com:acme/a b.git", "", "https://git.example.com/api/v1/repos/acme/a%20b/pulls"},
	} {
		var got string
		f, err := forge.New(tt.kind, tt.repo, tt.api, token, &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			got, _, _ = strings.Cut(r.URL.String(), "?")
			w := httptest.NewRecorder()
			_, _ = w.WriteString(`[{"number":1,"iid":1,"html_url":"u","head":{"ref":"h"},"base":{"ref":"b"}}]`)
			return w.Result(), nil
		})})
		if err != nil {
			t.Errorf("%s: %v", tt.repo, err)
			continue
		}
		if _, _, err := f.Ensure(t.Context(), forge.Request{Head: "h", Base: "b"}); err != nil || got != tt.want {
			t.Errorf("%s %s: asked %s, want %s (%v)", tt.kind, tt.repo, got, tt.want, err)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind, repo, api string
		code            fault.Code
		want, hint      string
	}{
		{"", "https://git.example.com/acme/k8s", "", fault.Usage, "the host git.example.com does not tell", "--forge"},
		{"", "https://github.com.evil.example/acme/k8s", "", fault.Usage, "the host github.com.evil.example does not tell", "--forge"},
		{"bitbucket", "https://github.com/acme/k8s", "", fault.Usage, `no forge is called "bitbucket"`, "--forge"},
		{"github", "https://github.com/k8s", "", fault.GitURL, "names no repository", "owner/repository"},
		{"github", "https://github.com/acme/k8s/tree", "", fault.GitURL, "names no repository", "owner/repository"},
		{"gitea", "https://git.example.com/k8s", "", fault.GitURL, "names no repository", "owner/repository"},
		{"github", "https://u:s3cret@github.com/%zz", "", fault.GitURL, "needs a host and a path", "use https"},
		{"github", "", "", fault.GitURL, "needs a host and a path", "use https"},
		{"gitea", "https://git.example.com/acme/k8s", "http://git.example.com/api/v1", fault.GitURL, "not plain https", "use https"},
		{"gitea", "https://git.example.com/acme/k8s", "https://u:s3cret@git.example.com/api/v1", fault.GitURL, "not plain https", "use https"},
	} {
		_, err := forge.New(tt.kind, tt.repo, tt.api, token, nil)
		check(t, tt.kind+" "+tt.repo, err, tt.code, tt.want, tt.hint)
	}
}
