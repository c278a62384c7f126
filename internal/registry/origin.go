package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/digestlock/digestlock/internal/image"
)

const (
	revisionKey = "org.opencontainers.image.revision"
	sourceKey   = "org.opencontainers.image.source"

	// maxConfig bounds an image's config. Long histories and many labels come to some 100 KB.
	maxConfig = 1 << 20
	// maxValue bounds what is kept of an annotation or a label, so that many can be.
	maxValue = 1 << 10
)

// Origins reads what images say of their source, concurrently, with the credentials of a scope. Each reference has a
// digest, which everything that is read is held against; its tag does not matter. There is one Origin per reference, in
// the same order. The errors are those of [Client.Resolve].
//
// What comes first of these decides, both values together, because a config inherits labels from the image that it was
// built from: the annotations of the index, those of its first image, the labels in that image's config. So it takes up
// to three requests a reference, which registries may count as a pull. Nothing else that a manifest names is followed.
func (c *Client) Origins(ctx context.Context, scope string, refs []image.Ref) []image.Origin {
	origins := make([]image.Origin, len(refs))
	tasks := make([]*task, len(refs))
	for i, ref := range refs {
		tasks[i] = &task{
			ref: ref,
			ask: func(ctx context.Context, h *host, s *session) (err error) {
				origins[i], err = h.origin(ctx, s, ref)
				return err
			},
			done: func(_ *host, err error) { origins[i].Err = err },
		}
	}
	c.do(ctx, scope, tasks)
	return origins
}

// manifest is what origin reads of an index or the manifest of an image.
type manifest struct {
	Annotations map[string]string `json:"annotations"`
	Manifests   []descriptor      `json:"manifests"` // of an index
	Config      descriptor        `json:"config"`    // of an image
}

type descriptor struct {
	MediaType   types.MediaType   `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    struct {
		OS string `json:"os"`
	} `json:"platform"`
}

// isImage reports whether an index means an image by d, and no attestation about one, as BuildKit adds them.
func (d descriptor) isImage() bool {
	return d.MediaType.IsImage() && d.Annotations["vnd.docker.reference.type"] == "" && d.Platform.OS != "unknown"
}

// isConfig reports whether d can have an image's labels: charts and other artifacts have configs of their own.
func (d descriptor) isConfig() bool {
	return d.MediaType == types.OCIConfigJSON || d.MediaType == types.DockerConfigJSON
}

func (h *host) origin(ctx context.Context, s *session, ref image.Ref) (image.Origin, error) {
	m, err := h.manifest(ctx, s, ref.Repository, ref.Digest)
	if err != nil {
		return image.Origin{}, err
	}
	o, err := h.follow(ctx, s, ref.Repository, m)
	if denied(err) {
		// The session is good, it has read the manifest. That somebody, perhaps a store that the registry redirects to,
		// refuses what is below it must not cost sessions.
		err = errors.New(err.Error())
	}
	return o, err
}

// follow looks for the origin in m and, where it is not there, in what m names.
func (h *host) follow(ctx context.Context, s *session, repo string, m manifest) (image.Origin, error) {
	if o := originIn(m.Annotations); o != (image.Origin{}) {
		return o, nil
	}
	if i := slices.IndexFunc(m.Manifests, descriptor.isImage); i >= 0 {
		below, err := h.manifest(ctx, s, repo, m.Manifests[i].Digest)
		if err != nil {
			return image.Origin{}, err
		}
		if o := originIn(below.Annotations); o != (image.Origin{}) {
			return o, nil
		}
		m = below
	}
	if !m.Config.isConfig() {
		return image.Origin{}, nil
	}
	return h.labels(ctx, s, repo, m.Config)
}

func (h *host) manifest(ctx context.Context, s *session, repo, digest string) (m manifest, err error) {
	body, err := h.content(ctx, s, manifestPath(repo, digest), "manifest", digest, maxManifest)
	if err == nil && json.Unmarshal(body, &m) != nil {
		err = fmt.Errorf("%s: answered a malformed manifest", h.name)
	}
	return m, err
}

func (h *host) labels(ctx context.Context, s *session, repo string, d descriptor) (image.Origin, error) {
	if d.Size > maxConfig {
		return image.Origin{}, h.tooLarge("config", maxConfig)
	}
	body, err := h.content(ctx, s, "/v2/"+repo+"/blobs/"+d.Digest, "config", d.Digest, maxConfig)
	if err != nil {
		return image.Origin{}, err
	}
	var file struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if err := json.Unmarshal(body, &file); err != nil {
		return image.Origin{}, fmt.Errorf("%s: answered a malformed config", h.name)
	}
	return originIn(file.Config.Labels), nil
}

// content reads what has that digest, and nothing else.
func (h *host) content(ctx context.Context, s *session, path, what, digest string, limit int64) ([]byte, error) {
	if !image.IsDigest(digest) { // of a descriptor; it must not lead to another path
		return nil, fmt.Errorf("%s: %s has %s, which is not a sha256 digest", h.name, what, quote(digest))
	}
	resp, err := h.request(ctx, s, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := h.read(ctx, resp, what, limit)
	if err != nil {
		return nil, err
	}
	if got := digestOf(body); got != digest {
		return nil, fmt.Errorf("%s: %s is %s but %s was asked for", h.name, what, got, digest)
	}
	return body, nil
}

func originIn(values map[string]string) image.Origin {
	return image.Origin{Revision: kept(values[revisionKey]), Source: kept(values[sourceKey])}
}

func kept(value string) string {
	if len(value) > maxValue {
		return ""
	}
	return value
}
