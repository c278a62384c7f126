package remotebase

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/fault"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const sha = "0123456789abcdef0123456789abcdef01234567"
	for _, tt := range []struct{ entry, repo, path, ref string }{
		{"https://git.example.com/org/repo//a/b?ref=v1", "https://git.example.com/org/repo", "a/b", "v1"},
		{"https://git.example.com/org/repo//a/b/?ref=v1", "https://git.example.com/org/repo", "a/b", "v1"},
		{"https://git.example.com/org/repo?ref=v1", "https://git.example.com/org/repo", ".", "v1"},
		{"https://git.example.com/org/repo/a/b?ref=v1", "https://git.example.com/org/repo", "a/b", "v1"},
		{"https://git.example.com/org/repo.git/a/b?ref=" + sha, "https://git.example.com/org/repo.git", "a/b", sha},
		{"https://git.example.com:8443/group/sub/repo.git//a?version=v1.2.3", "https://git.example.com:8443/group/sub/repo.git", "a", "v1.2.3"},
		{"https://git.example.com/org/repo//a?version=v1&ref=v2&timeout=90s", "https://git.example.com/org/repo", "a", "v2"},
		{"https://git.example.com/org/repo//a?ref=v1&submodules=false", "https://git.example.com/org/repo", "a", "v1"},
		{"https://dev.azure.com/org/my%20project/_git/repo/a/b?ref=v1", "https://dev.azure.com/org/my%20project/_git/repo", "a/b", "v1"},
		{"github.com/org/repo/a?ref=v1", "https://github.com/org/repo", "a", "v1"},
		{"GitHub.com/org/repo?ref=release/v1", "https://github.com/org/repo", ".", "release/v1"},
		{"github.com:org/repo//a?ref=v1", "https://github.com/org/repo", "a", "v1"},
		{"git::https://git.example.com/org/repo//a?ref=v1", "https://git.example.com/org/repo", "a", "v1"},
		{"HTTPS://git.example.com/org/repo//a?ref=v1", "https://git.example.com/org/repo", "a", "v1"},
	} {
		s, ok, err := parse(tt.entry)
		if err != nil || !ok {
			t.Errorf("parse(%s): %v, %v", tt.entry, ok, err)
			continue
		}
		if got := [3]string{s.repo.String(), s.path, s.ref}; got != [3]string{tt.repo, tt.path, tt.ref} {
			t.Errorf("parse(%s) = %q, want %q", tt.entry, got, [3]string{tt.repo, tt.path, tt.ref})
		}
	}
	for _, entry := range []string{
		"", ".", "../base", "a.yaml", "/abs", "apiVersion: v1\nkind: X", "ssh://git@git.example.com/org/repo//a?ref=v1",
		"git@git.example.com:org/repo.git?ref=v1", "git@github.com:org/repo?ref=v1", "file:///repo//a?ref=v1", "http://git.example.com/org/repo//a?ref=v1",
		"git::ssh://git.example.com/org/repo?ref=v1", "git::http://git.example.com/org/repo?ref=v1", "ftp://git.example.com/org/repo?ref=v1",
		"https://git.example.com/org/repo/raw/v1/a.yaml", "https://git.example.com/org/repo/a.yml?ref=v1", "https://git.example.com/org/repo/a.json?token=x",
		"https://git.example.com/install", "gitlab.example.com/org/repo?ref=v1",
	} {
		if s, ok, err := parse(entry); ok || err != nil {
			t.Errorf("parse(%q) = %+v, %v: a base", entry, s, err)
		}
	}
	for _, tt := range []struct{ entry, want string }{
		{"https://git.example.com/org/repo//a", "no ref"},
		{"https://git.example.com/org/repo.git/a?ref=", "no ref"},
		{"github.com/org/repo", "no ref"},
		{"github.com/org/repo/a", "no ref"},
		{"https://git.example.com/org/repo//a?ref=--upload-pack=touch%20x", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?version=-x", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?ref=v1..v2", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?ref=v1%0ax", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?ref=v1%20x", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?ref=HEAD~1", "is no name for a tag"},
		{"https://git.example.com/org/repo//a?ref=" + strings.Repeat("v", 300), "is no name for a tag"},
		{"https://git.example.com/org/repo//../a?ref=v1", "leads upwards"},
		{"https://git.example.com/org/repo//a/../../b?ref=v1", "leads upwards"},
		{"https://git.example.com/../repo//a?ref=v1", "leads upwards"},
		{"https://git.example.com/org/%2e%2e//a?ref=v1", "leads upwards"},
		{"https://git.example.com/-org/repo//a?ref=v1", "begins with -"},
		{"https://git.example.com/org/repo//-a?ref=v1", "begins with -"},
		{"https://git.example.com/org/repo//a\\b?ref=v1", "characters"},
		{"https://git.example.com/org/re%00po//a?ref=v1", "characters"},
		{"https://git.example.com///a?ref=v1", "no repository"},
		{"https://user@git.example.com/org/repo//a?ref=v1", "a user in the address"},
		{"https://user:hunter2@git.example.com/org/repo//a?ref=v1", "a user in the address"},
		{"https://git.example.com/org/repo//a?ref=v1&submodules=true", "submodules are not fetched"},
		{"https://git.exa\x01mple.com/org/repo//a?ref=v1", "not an address"},
	} {
		_, _, err := parse(tt.entry)
		if err == nil || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("parse(%q): %v, want %s and a hint", tt.entry, err, tt.want)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "*", "*.example.com", "https://example.com", "example.com/", "example.com/org", "user@example.com", "-x", "a b", "x:", "x:y", "x?y", "::1", "a,b"} {
		if _, err := New([]string{host}); err == nil || fault.Hint(err) == "" {
			t.Errorf("New(%q): %v", host, err)
		}
	}
	c, err := New([]string{"Git.Example.com", "forge.example.com:8443", "tls.example.com:443", "[2001:db8::1]:8443"})
	if err != nil {
		t.Fatal(err)
	}
	for entry, want := range map[string]bool{
		"https://git.example.com/o/r?ref=v1": true, "https://GIT.example.com:443/o/r?ref=v1": true, "https://git.example.com:8443/o/r?ref=v1": false,
		"https://forge.example.com:8443/o/r?ref=v1": true, "https://forge.example.com/o/r?ref=v1": false, "https://tls.example.com/o/r?ref=v1": true,
		"https://x.git.example.com/o/r?ref=v1": false, "https://git.example.com.evil.example/o/r?ref=v1": false, "https://git.example.com@evil.example/o/r?ref=v1": false,
		"https://git.example.com./o/r?ref=v1": false, "https://[2001:db8::1]:8443/o/r?ref=v1": true, "github.com/o/r?ref=v1": false,
	} {
		s, ok, _ := parse(entry)
		if got := ok && c.door.lists(s.repo); got != want {
			t.Errorf("%s listed: %v, want %v", entry, got, want)
		}
	}
	if c, err := New(nil); c != nil || err != nil {
		t.Errorf("New(nil) = %v, %v", c, err)
	}
}

// TestPublic: only what is meant for everybody is connected to, and what is private and listed.
func TestPublic(t *testing.T) {
	t.Parallel()
	c, err := New([]string{"git.example.com", "10.1.2.3", "127.0.0.1", "169.254.169.254", "[fd00::1]:8443"})
	if err != nil {
		t.Fatal(err)
	}
	if c.door.transport.Proxy != nil {
		t.Error("a proxy connects where it likes")
	}
	for address, want := range map[string]string{
		"93.184.215.14": "", "2606:2800:21f:cb07::1": "", "64:ff9b::5db8:d70e": "", "10.1.2.3": "", "fd00::1": "", "64:ff9b::a01:203": "private",
		"10.1.2.4": "private", "172.16.0.1": "private", "192.168.1.1": "private", "100.100.100.200": "never", "198.18.0.1": "private", "fd00:ec2::254": "never", "64:ff9b::a01:204": "private", "fec0::1": "never",
		"127.0.0.1": "never", "127.9.9.9": "never", "::1": "never", "0.0.0.0": "never", "0.1.2.3": "never", "::": "never", "169.254.169.254": "never", "fe80::1%eth0": "never",
		"224.0.0.1": "never", "ff02::1": "never", "255.255.255.255": "never", "240.0.0.1": "never", "::ffff:127.0.0.1": "never", "::ffff:10.1.2.4": "private", "::ffff:100.64.0.1": "private", "64:ff9b::7f00:1": "never",
		"2002:7f00:1::": "never", "::7f00:1": "never", "2001::1": "never",
	} {
		err := c.door.control("tcp", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String(), nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || fault.Hint(err) == "") {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
