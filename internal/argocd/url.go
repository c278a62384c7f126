package argocd

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

var sshURL = regexp.MustCompile(`^(ssh://)?[^/:]*@[^@]+$`)

// isSSH reports what Argo CD takes for an address of ssh: in the short form, or with a user.
func isSSH(repo string) bool { return sshURL.MatchString(strings.TrimSpace(repo)) }

// normalize returns the form in which Argo CD compares addresses of repositories: without regard to case, .git, and
// how ssh is written. "" is no address.
func normalize(repo string) string {
	repo = strings.ToLower(strings.TrimSpace(repo))
	if isSSH(repo) && !strings.HasPrefix(repo, "ssh://") {
		repo = "ssh://" + strings.Replace(repo, ":", "/", 1)
	}
	u, err := url.Parse(strings.TrimSuffix(repo, ".git"))
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.String(), "ssh://")
}

// same is 1 when two normalized addresses are one, else 0.
func same(a, b string) int {
	if a != "" && a == b {
		return 1
	}
	return 0
}

// covers is the length of a normalized template when that is the beginning of repo, and whole elements of it: …/org
// covers neither …/org-evil nor …/org/../evil. Else it is 0.
func covers(template, repo string) int {
	template = strings.TrimSuffix(template, "/")
	rest, ok := strings.CutPrefix(repo, template)
	if !ok || template == "" || rest != "" && rest[0] != '/' || leaves(rest) {
		return 0
	}
	return len(template)
}

// leaves reports whether a path has elements that may lead out of what is before them.
func leaves(p string) bool {
	if plain, err := url.PathUnescape(p); err == nil {
		p = plain
	}
	elements := strings.FieldsFunc(p, func(r rune) bool { return r == '/' || r == '\\' })
	return slices.Contains(elements, "..") || slices.Contains(elements, ".")
}
