// Package access says who may flush what without a token of the program's own: whoever bears a token of an OpenID
// Connect issuer that the operator trusts, such as a CI system's, with claims that a rule of the operator's names.
//
// [Verifier] checks tokens, rules are pure, and [File] is both as the operator wrote them down. It is the only importer
// of go-oidc.
package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// maxFile bounds the file of rules, in bytes.
const maxFile = 1 << 20

// File is a file of issuers and rules, read again when it changed. It is safe for concurrent use.
type File struct {
	path string

	mu     sync.Mutex
	data   []byte // what policy was made of
	policy *policy
}

// Open reads the file of rules. The error carries a hint.
func Open(path string) (*File, error) {
	f := &File{path: path}
	_, err := f.current()
	return f, err
}

// current returns what the file says now. A file that was broken lets nobody in until it is mended: what it said before
// may be what its author wanted to end.
func (f *File) current() (*policy, error) {
	data, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fault.New(fault.OIDCConfig, "mount the file there, readable for this user", "%w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.policy != nil && bytes.Equal(data, f.data) {
		return f.policy, nil
	}
	p, err := parse(data)
	if err != nil {
		return nil, fault.New(fault.OIDCConfig, "docs/flush.md has an example of the file", "%s: %w", f.path, err)
	}
	f.data, f.policy = data, p
	return p, nil
}

// Caller is somebody with a good token, and a rule that fits it.
type Caller struct {
	Name   string   // issuer and subject
	images []string // what the rules that fit allow
}

// Caller returns who bears the token. The error wraps [ErrNotJWT], [ErrUnavailable] or [ErrForbidden], or says what is
// wrong with the token.
func (f *File) Caller(ctx context.Context, token string) (Caller, error) {
	if _, err := issuerOf(token); err != nil {
		return Caller{}, err
	}
	p, err := f.current()
	if err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	t, err := p.verifier.Verify(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	images := allowed(p.rules[t.Issuer], t)
	if len(images) == 0 {
		return Caller{}, fault.New(fault.FlushForbidden, "add a rule for these claims to --oidc-config",
			"%w: no rule fits the token's claims: %s", ErrForbidden, describe(p.rules[t.Issuer], t))
	}
	return Caller{Name: t.Issuer + " " + t.Subject, images: images}, nil
}

// May returns an error that wraps [ErrForbidden] when no rule lets the caller flush ref's repository.
func (c Caller) May(ref image.Ref) error {
	for _, pattern := range c.images {
		if covers(pattern, ref) {
			return nil
		}
	}
	return fault.New(fault.FlushForbidden, "add the repository to the images of a rule in --oidc-config",
		"%w: image %s is not among what this token may flush: %s", ErrForbidden, ref, strings.Join(c.images, ", "))
}

// policy is the file's contents.
type policy struct {
	verifier *Verifier
	rules    map[string][]rule // by issuer
}

// document is the file's form.
type document struct {
	Issuers []entry `yaml:"issuers"`
}

type entry struct {
	Issuer `yaml:",inline"`
	Rules  []rule `yaml:"rules"`
}

func parse(data []byte) (*policy, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	var doc document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	if len(doc.Issuers) == 0 {
		return nil, errors.New("no issuers")
	}
	p := &policy{rules: map[string][]rule{}}
	issuers := make([]Issuer, len(doc.Issuers))
	for i, x := range doc.Issuers {
		issuers[i], p.rules[x.URL] = x.Issuer, x.Rules
		if len(x.Rules) == 0 {
			return nil, fmt.Errorf("issuer %s: no rules", x.URL)
		}
		for n, r := range x.Rules {
			if err := r.check(x.URL); err != nil {
				return nil, fmt.Errorf("issuer %s: rule %d: %w", x.URL, n+1, err)
			}
		}
	}
	var err error
	p.verifier, err = NewVerifier(issuers...)
	return p, err
}

// allowed returns the image patterns of the rules that fit t, sorted.
func allowed(rules []rule, t Token) []string {
	var out []string
	for _, r := range rules {
		if r.fits(t) {
			out = append(out, r.Images...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
