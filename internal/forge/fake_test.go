package forge_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/digestlock/digestlock/internal/forge"
)

// pull is a pull or merge request on a fake.
type pull struct {
	Number                  int
	Title, Body, Head, Base string
	Closed, Fork            bool
}

// fake is one make of forge with one repository, group/sub/k8s on GitLab and acme/k8s elsewhere. Its answers have the
// shape that the vendor documents, in the fields that matter and in those that mislead.
type fake struct {
	kind   string
	server *httptest.Server

	mu     sync.Mutex
	pulls  []*pull
	writes []string // "POST title=…" in order
	race   *pull    // appears between a listing and a creation
}

func start(t *testing.T, kind string) *fake {
	t.Helper()
	f := &fake{kind: kind}
	mux := http.NewServeMux()
	list, update := "/api/v3/repos/acme/k8s/pulls", "PATCH "
	switch kind {
	case "gitlab":
		list, update = "/api/v4/projects/group%2Fsub%2Fk8s/merge_requests", "PUT "
	case "gitea":
		list = "/api/v1/repos/acme/k8s/pulls"
	}
	mux.HandleFunc("GET "+list, f.list)
	mux.HandleFunc("POST "+list, f.create)
	mux.HandleFunc(update+list+"/{number}", f.update)
	f.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer t0ken" {
			f.refuse(w, http.StatusUnauthorized, "401 Unauthorized")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.server.Close)
	return f
}

func (f *fake) url() string {
	if f.kind == "gitlab" {
		return f.server.URL + "/group/sub/k8s.git"
	}
	return f.server.URL + "/acme/k8s.git"
}

func (f *fake) open(t *testing.T) *forge.Forge {
	t.Helper()
	forge, err := forge.New(f.kind, f.url(), "", token, f.server.Client())
	if err != nil {
		t.Fatal(err)
	}
	return forge
}

func (f *fake) page(number int) string {
	if f.kind == "gitlab" {
		return fmt.Sprintf("https://forge.example.com/group/sub/k8s/-/merge_requests/%d", number)
	}
	return fmt.Sprintf("https://forge.example.com/acme/k8s/pull/%d", number)
}

func (f *fake) add(p pull) int {
	p.Number = len(f.pulls) + 1
	f.pulls = append(f.pulls, &p)
	return p.Number
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	page, _ := strconv.Atoi(q.Get("page"))
	size, _ := strconv.Atoi(q.Get("per_page") + q.Get("limit"))
	if want := map[string]string{"github": "open", "gitlab": "opened", "gitea": "open"}[f.kind]; q.Get("state") != want || page < 1 || size < 1 {
		f.refuse(w, http.StatusBadRequest, "state, page or size is wrong: "+r.URL.RawQuery)
		return
	}
	if f.kind == "gitea" {
		size = min(size, 30) // its operator may allow less than is asked for
	}
	some := []any{}
	var n int
	for _, p := range f.pulls {
		owner := "acme"
		if p.Fork {
			owner = "stranger"
		}
		switch {
		case p.Closed,
			f.kind == "github" && (q.Get("head") != owner+":"+p.Head || q.Get("base") != p.Base),
			f.kind == "gitlab" && (q.Get("source_branch") != p.Head || q.Get("target_branch") != p.Base):
			continue
		}
		if n++; n > (page-1)*size && n <= page*size {
			some = append(some, f.show(p))
		}
	}
	_ = json.NewEncoder(w).Encode(some)
}

func (f *fake) show(p *pull) map[string]any {
	state, own := "open", map[string]any{"id": 1296269, "full_name": "acme/k8s"}
	if p.Closed {
		state = "closed"
	}
	if f.kind == "gitlab" {
		source := 3
		if p.Fork {
			source = 4
		}
		return map[string]any{
			"id": 900000 + p.Number, "iid": p.Number, "project_id": 3, "title": p.Title, "description": p.Body, "state": strings.Replace(state, "open", "opened", 1),
			"source_branch": p.Head, "target_branch": p.Base, "source_project_id": source, "target_project_id": 3, "web_url": f.page(p.Number),
			"author": map[string]any{"id": 1, "web_url": "https://forge.example.com/robot"}, "labels": []string{}, "draft": false,
		}
	}
	head := map[string]any{"label": "acme:" + p.Head, "ref": p.Head, "repo": own}
	if p.Fork {
		head["repo"] = nil // it is gone
	}
	answer := map[string]any{
		"id": 900000 + p.Number, "number": p.Number, "title": p.Title, "body": p.Body, "state": state, "html_url": f.page(p.Number),
		"url":  f.server.URL + "/api/…",
		"head": head, "base": map[string]any{"label": "acme:" + p.Base, "ref": p.Base, "repo": own},
		"user": map[string]any{"login": "robot", "html_url": "https://forge.example.com/robot"},
	}
	if f.kind == "github" && p.Body == "" {
		answer["body"] = nil
	}
	return answer
}

func (f *fake) create(w http.ResponseWriter, r *http.Request) {
	in := f.read(r)
	names := map[string][3]string{"github": {"head", "base", "body"}, "gitea": {"head", "base", "body"}, "gitlab": {"source_branch", "target_branch", "description"}}[f.kind]
	p := pull{Title: in["title"], Head: in[names[0]], Base: in[names[1]], Body: in[names[2]]}
	if f.race != nil {
		f.add(*f.race)
		f.race = nil
	}
	for _, other := range f.pulls {
		if !other.Closed && !other.Fork && other.Head == p.Head && other.Base == p.Base {
			f.exists(w, p, other)
			return
		}
	}
	if p.Head == "none" { // as Gitea answers; GitHub does when the token may only read
		f.refuse(w, http.StatusNotFound, "not found")
		return
	}
	if p.Head == "same" {
		f.empty(w, p)
		return
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(f.show(f.pulls[f.add(p)-1]))
}

// exists refuses a second request, in each vendor's words.
func (f *fake) exists(w http.ResponseWriter, p pull, other *pull) {
	switch f.kind {
	case "github":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprintf(w, `{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom","message":"A pull request already exists for acme:%s."}],"documentation_url":"https://docs.github.com/rest","status":"422"}`, p.Head)
	case "gitlab":
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, `{"message":["Another open merge request already exists for this source branch: !%d"]}`, other.Number)
	case "gitea":
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, `{"message":"pull request already exists for these targets [id: 1, issue_id: %d, head_repo_id: 1, base_repo_id: 1, head_branch: %s, base_branch: %s]","url":"https://x/api/swagger"}`, other.Number, p.Head, p.Base)
	}
}

// empty refuses a request of no commits.
func (f *fake) empty(w http.ResponseWriter, p pull) {
	w.WriteHeader(http.StatusUnprocessableEntity)
	if f.kind == "github" {
		fmt.Fprintf(w, `{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom","message":"No commits between %s and %s"}]}`, p.Base, p.Head)
		return
	}
	fmt.Fprintf(w, `{"message":"No commits between %s and %s"}`, p.Base, p.Head)
}

func (f *fake) update(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.PathValue("number"))
	if n < 1 || n > len(f.pulls) {
		f.refuse(w, http.StatusNotFound, "404 Not found")
		return
	}
	in, p := f.read(r), f.pulls[n-1]
	for name, field := range map[string]*string{"title": &p.Title, "body": &p.Body, "description": &p.Body} {
		if v, ok := in[name]; ok {
			*field = v
		}
	}
	_ = json.NewEncoder(w).Encode(f.show(p))
}

// read decodes what is to be written, and writes it down.
func (f *fake) read(r *http.Request) map[string]string {
	in := map[string]string{}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return nil
	}
	line := r.Method
	for _, name := range []string{"head", "source_branch", "base", "target_branch", "title", "body", "description"} {
		if v, ok := in[name]; ok {
			line += " " + name + "=" + v
		}
	}
	f.writes = append(f.writes, line)
	return in
}

func (f *fake) refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}
