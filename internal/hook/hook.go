// Package hook reads what registries send when an image was pushed or deleted. It knows each sender's format and how
// it authenticates, and nothing of the network.
//
// An event is only ever a reason to ask the registry again: digests in it are not read.
package hook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/image"
)

const (
	// MaxTargets bounds one event. Registries send one event a push; the largest carries the tags of one image.
	MaxTargets = 100
	maxErrors  = 3   // of one event are told
	maxName    = 512 // host, repository and tag; the grammar allows 384
)

// ErrNoRegistry is in the error of [Parse] when the sender does not say which registry it is, and the URL does not
// either.
var ErrNoRegistry = errors.New("the event does not name its registry")

// Request is what a sender sent, and what the operator added to the URL.
type Request struct {
	Header http.Header
	Query  url.Values // registry=HOST overrides the event's; prefix=PATH overrides what stands before the image's name
	Body   []byte
	Secret string // the last element of the path, for senders that can authenticate by nothing else
}

// sender is one row of the table: how its events are read, and how it proves who it is.
type sender struct {
	parse func(Request) ([]change, error)
	proof proof
	// distribution: the sender is distribution or made of it, see Queues and Early.
	distribution bool
}

var senders = map[string]sender{
	"acr":          {parse: acr, proof: byAuthorization},
	"artifactory":  {parse: artifactory, proof: bySignature("X-JFrog-Event-Auth", sha256Sum)},
	"distribution": {parse: distribution, proof: byAuthorization, distribution: true},
	"dockerhub":    {parse: dockerHub, proof: byPath},
	"ecr":          {parse: ecr, proof: byAuthorization},
	"gar":          {parse: gar},
	"gcr":          {parse: gar},
	"ghcr":         {parse: ghcr, proof: bySignature("X-Hub-Signature-256", sha256Sum)},
	"gitea":        {parse: gitea, proof: bySignature("X-Gitea-Signature", sha256Sum)},
	"gitlab":       {parse: distribution, proof: byAuthorization, distribution: true},
	"harbor":       {parse: harbor, proof: byAuthorization},
	"nexus":        {parse: nexus, proof: bySignature("X-Nexus-Webhook-Signature", sha1Sum)},
	"quay":         {parse: quay, proof: byPath},
	"zot":          {parse: zot, proof: byAuthorization},
}

// Senders returns the names of all senders, sorted.
func Senders() []string { return slices.Sorted(maps.Keys(senders)) }

// Known reports whether name is a sender.
func Known(name string) bool { _, ok := senders[name]; return ok }

// ByGoogle reports whether the sender bears an identity token of Google's, which is not for [Verify] to check.
func ByGoogle(name string) bool { return Known(name) && senders[name].proof == nil }

// Queues reports whether the sender repeats what is refused until it is accepted, and sends nothing else meanwhile.
func Queues(name string) bool { return senders[name].distribution }

// Early reports whether the sender tells of a push before the tag has moved: distribution sends its event when the
// manifest is stored, and writes the tag after that (read and measured, v3.1.2).
func Early(name string) bool { return senders[name].distribution }

// change is one image of an event as its sender spells it.
type change struct {
	host, prefix, repository string
	tag                      string // a tag, or a digest where the sender puts one in its place, or ""
	every                    bool   // without a tag it may be any of the repository's, as when a manifest is deleted
}

// Parse returns what an event of the sender says has changed, sorted and without duplicates: nothing for an event of
// no interest, such as a ping, a pull, or the push of a manifest without a tag. Images that cannot be read are in the
// error, and the others are returned beside it. Parse may be called concurrently.
func Parse(name string, r Request) ([]image.Target, error) {
	s, ok := senders[name]
	if !ok {
		return nil, fmt.Errorf("no sender %q", name)
	}
	changes, err := s.parse(r)
	if err != nil {
		return nil, err
	}
	targets := map[string]image.Target{}
	var bad []error
	for _, c := range changes {
		if !c.tagged() && !c.every {
			continue // a push that names no tag moves none
		}
		t, err := c.target(r.Query)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		targets[t.String()] = t
	}
	if len(targets) > MaxTargets {
		return nil, fmt.Errorf("%d images in one event, more than %d", len(targets), MaxTargets)
	}
	var out []image.Target
	for _, key := range slices.Sorted(maps.Keys(targets)) {
		out = append(out, targets[key])
	}
	return out, errors.Join(bad[:min(len(bad), maxErrors)]...)
}

func (c change) tagged() bool { return c.tag != "" && !strings.Contains(c.tag, ":") }

// target checks a change against the grammar of references.
func (c change) target(query url.Values) (image.Target, error) {
	if query.Has("registry") {
		c.host = query.Get("registry")
	}
	if query.Has("prefix") {
		c.prefix = query.Get("prefix")
	}
	if c.host == "" {
		return image.Target{}, ErrNoRegistry
	}
	// A reference whose first element is no host is one to Docker Hub. No event means that.
	if !strings.ContainsAny(c.host, ".:") && c.host != "localhost" || strings.Contains(c.host, "/") {
		return image.Target{}, fmt.Errorf("%w: %.40q is no host that a reference can have", ErrNoRegistry, c.host)
	}
	repository := strings.TrimPrefix(strings.Trim(c.prefix, "/")+"/"+c.repository, "/")
	name := c.host + "/" + repository
	if c.tagged() {
		name += ":" + c.tag
	}
	if len(name) > maxName || strings.ContainsAny(repository, ":@") {
		return image.Target{}, fmt.Errorf("%.40q is no repository", repository)
	}
	ref, err := image.Parse(name)
	return image.Target{Ref: ref, EveryTag: !c.tagged()}, err
}
