package gitrepo_test

import (
	"testing"
)

// TestMarkOfNoCommit: a mark that somebody set to something else counts for nothing, and the next push sets it right.
func TestMarkOfNoCommit(t *testing.T) {
	t.Parallel()
	for name, start := range kinds() {
		for _, object := range []string{"main:README.md", "main:apps", "refs/tags/v1"} {
			t.Run(name+" "+object, func(t *testing.T) {
				t.Parallel()
				server := start(t)
				repo := server.Create(t, "repo.git", seed())
				repo.Git(t, "-c", "user.name=x", "-c", "user.email=x@example.com", "tag", "-a", "-m", "v1", "v1", "main:README.md")
				repo.Git(t, "update-ref", "refs/digestlock/main", repo.Git(t, "rev-parse", object))
				s := read(t, open(t, repo.URL, server.Auth), "main")
				if c, err := s.Marked(t.Context()); c != nil || err != nil {
					t.Errorf("Marked() = %v, %v, want nothing", c, err)
				}
				commit := push(t, s, marking("a: 2\n"))
				if got := repo.Git(t, "rev-parse", "main", "refs/digestlock/main"); got != commit+"\n"+commit {
					t.Errorf("main and its mark are\n%s\nwant %s", got, commit)
				}
			})
		}
	}
}
