// Package image parses container image references and decides which of them are mutable.
//
// The grammar is the one of the distribution specification, checked strictly and here rather than by
// go-containerregistry, which accepts "..", "127.1" and similar as path components (measured, see docs/security.md).
package image

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/digestlock/digestlock/internal/lazy"
)

const (
	// DefaultRegistry is where a reference without a registry host lives. The lock uses the name that the registry
	// API itself answers under, as go-containerregistry does.
	DefaultRegistry = "index.docker.io"
	// DefaultTag is what a reference without tag and digest means.
	DefaultTag = "latest"

	maxName = 255 // distribution specification: registry and repository together
	maxTag  = 128

	digestLength = len("sha256:") + 64
	minDigest    = 32 // of another algorithm, in characters after the colon
)

// What every reference has is checked by hand: by patterns it was a quarter of what a companion of ten thousand images does
// in a cycle. What few have is left to patterns. Lengths are checked apart from those: a counted repetition costs a
// process that renders once more to compile than everything else in this package (measured: 1.2 ms).
var (
	ipv6Pattern = lazy.Regexp(`^\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?$`)
	globPattern = lazy.Regexp(`^[a-zA-Z0-9_.*?\[\]^\\-]+$`)
	// fixedPattern is any digest of the OCI image specification: somebody pinned it, and it passes through.
	fixedPattern = lazy.Regexp(`^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$`)
)

// Ref is one parsed reference. The zero Ref is not valid; make one with [Parse]. Two Refs are the same image exactly
// when their String is equal; Name is what the author wrote and takes no part in that.
type Ref struct {
	Registry   string // host, with port where given: "index.docker.io", "localhost:5000"
	Repository string // "library/nginx"
	Tag        string // "" only when Digest is set
	Digest     string // "sha256:…", or another algorithm's that its author wrote, or ""
	Name       string // registry and repository as the author wrote them: "nginx"
}

// String returns the normalised full reference, "registry/repository:tag", with "@digest" where the reference has
// one. It is the key of an image in the lock file, in the cache and on the wire.
func (r Ref) String() string {
	s := r.Registry + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Parse reads a reference as Kubernetes does: docker short names are completed ("nginx" is
// "index.docker.io/library/nginx:latest"). The error names the offending part, quoted.
func Parse(s string) (Ref, error) {
	rest, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest && !isFixed(digest) || strings.HasPrefix(digest, "sha256:") && !IsDigest(digest) {
		return Ref{}, fmt.Errorf("image %q: %q is not a digest", s, digest)
	}
	name, tag := splitTag(rest)
	if tag == "" && strings.HasSuffix(rest, ":") {
		return Ref{}, fmt.Errorf("image %q: empty tag", s)
	}
	if tag != "" && !isTag(tag) {
		return Ref{}, fmt.Errorf("image %q: %q is not a tag", s, tag)
	}
	if tag == "" && !hasDigest {
		tag = DefaultTag
	}
	registry, repository := splitRegistry(name)
	if !isHost(registry) {
		return Ref{}, fmt.Errorf("image %q: %q is not a registry host", s, registry)
	}
	for c := range strings.SplitSeq(repository, "/") {
		if !isComponent(c) {
			return Ref{}, fmt.Errorf("image %q: %q is not a repository path component", s, c)
		}
	}
	if len(registry)+1+len(repository) > maxName {
		return Ref{}, fmt.Errorf("image %q: name is longer than %d characters", s[:40]+"…", maxName)
	}
	return Ref{Registry: registry, Repository: repository, Tag: tag, Digest: digest, Name: name}, nil
}

// Target is what is to be looked up anew: one reference, or with EveryTag all tags of its repository.
type Target struct {
	Ref
	EveryTag bool
}

// String returns the reference, or the repository alone for all its tags.
func (t Target) String() string {
	if t.EveryTag {
		t.Tag = ""
	}
	return t.Ref.String()
}

// ParseTarget reads what somebody wants to have looked up anew. Without a tag it is all tags of the repository; one with
// a digest is an error.
func ParseTarget(s string) (Target, error) {
	r, err := Parse(s)
	if err == nil && r.Digest != "" {
		err = fmt.Errorf("image %q: a digest never changes, flush its tag", s)
	}
	return Target{Ref: r, EveryTag: !strings.HasSuffix(s, ":"+r.Tag)}, err
}

// ParseFull reads a reference in the form that String gives: with registry and tag, without digest.
func ParseFull(s string) (Ref, error) {
	r, err := Parse(s)
	if err == nil && (r.Digest != "" || r.String() != s) {
		err = fmt.Errorf("image %q is not a full reference with a tag, such as %s/%s:%s", s, r.Registry, r.Repository, DefaultTag)
	}
	return r, err
}

// IsDigest reports whether s is a digest as the lock and the registry protocol spell it: "sha256:" and 64 lower-case
// hexadecimal digits.
func IsDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(s) == digestLength && all(hex, func(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'f' })
}

// isHost reports whether s is a host, with or without a port. A name that ends in a number is an IPv4 address in one of
// the spellings that some resolvers know ("127.1", "0x7f.1"), and only the common one is meant to be one.
func isHost(s string) bool {
	name, port, hasPort := strings.Cut(s, ":")
	if hasPort && !isPort(port) || !isName(name) {
		return ipv6Pattern().MatchString(s)
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err != nil {
		return true
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

// isFixed reports whether s is a digest of any algorithm.
func isFixed(s string) bool {
	_, encoded, _ := strings.Cut(s, ":")
	return len(encoded) >= minDigest && fixedPattern().MatchString(s)
}

func isTag(s string) bool {
	return s != "" && len(s) <= maxTag && s[0] != '.' && s[0] != '-' &&
		all(s, func(c byte) bool { return isLower(c) || isUpper(c) || isDigit(c) || c == '_' || c == '.' || c == '-' })
}

// isName reports whether s is a name of labels with dots between them, each of letters, digits, and dashes inside.
func isName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' ||
			!all(label, func(c byte) bool { return isLower(c) || isUpper(c) || isDigit(c) || c == '-' }) {
			return false
		}
	}
	return true
}

func isPort(s string) bool { return s != "" && len(s) <= 5 && all(s, isDigit) }

// isComponent reports whether s is words of lower-case letters and digits, with one separator between them each: a dot,
// one or two underscores, or any number of dashes.
func isComponent(s string) bool {
	inWord := func(c byte) bool { return isLower(c) || isDigit(c) }
	for {
		word := 0
		for word < len(s) && inWord(s[word]) {
			word++
		}
		end := word
		for end < len(s) && !inWord(s[end]) {
			end++
		}
		separator := s[word:end]
		switch {
		case word == 0:
			return false
		case word == len(s):
			return true
		case separator != "." && separator != "_" && separator != "__" && strings.Trim(separator, "-") != "":
			return false
		}
		s = s[end:]
	}
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// all reports whether s has only bytes that are ok.
func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

// splitTag cuts a tag off; a colon before the last slash belongs to the host's port.
func splitTag(s string) (name, tag string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[i:], '/') >= 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// splitRegistry tells a host from a first path component the way docker does: a host has a dot, a colon or is
// "localhost".
func splitRegistry(name string) (registry, repository string) {
	host, rest, found := strings.Cut(name, "/")
	if !found || (!strings.ContainsAny(host, ".:") && host != "localhost") {
		host, rest = DefaultRegistry, name
	}
	switch host {
	case "docker.io", "registry-1.docker.io":
		host = DefaultRegistry
	}
	if host == DefaultRegistry && rest != "" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	return strings.ToLower(host), rest
}

// Tags is a list of globs, in the syntax of [path.Match], that say which tags are mutable.
type Tags []string

// Check returns an error for the first pattern that is not a glob.
func (t Tags) Check() error {
	for _, p := range t {
		if !globPattern().MatchString(p) {
			return fmt.Errorf("tag pattern %q can match no tag: one pattern an item, of letters, digits, _ . - and * ? [ ]", p)
		}
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("tag pattern %q: %w", p, err)
		}
	}
	return nil
}

// Mutable reports whether r names a tag that moves: no digest, and a tag that matches one of the globs.
func (t Tags) Mutable(r Ref) bool {
	if r.Digest != "" {
		return false
	}
	for _, p := range t {
		if ok, _ := path.Match(p, r.Tag); ok {
			return true
		}
	}
	return false
}
