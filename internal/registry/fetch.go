package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/digestlock/digestlock/internal/image"
)

// maxManifest is what registries commonly accept as the size of a manifest.
const maxManifest = 4 << 20

const digestHeader = "Docker-Content-Digest"

// mediaTypes are the manifests that can be pinned. Schema 1 is not among them: its digest is not that of its bytes.
var mediaTypes = []string{
	string(types.OCIImageIndex),
	string(types.DockerManifestList),
	string(types.OCIManifestSchema1),
	string(types.DockerManifestSchema2),
}

// fetch asks for the digest behind a tag with a HEAD. Only where HEAD is not allowed or does not tell does it read
// the manifest: registries count a GET as a pull, and repeating a failed HEAD as a GET would double the traffic
// exactly when a registry throttles.
func (h *host) fetch(ctx context.Context, s *session, ref image.Ref) (string, error) {
	resp, err := h.request(ctx, s, http.MethodHead, manifestPath(ref.Repository, ref.Tag))
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	digest := resp.Header.Get(digestHeader)
	if resp.StatusCode == http.StatusMethodNotAllowed || digest == "" {
		return h.hash(ctx, s, ref)
	}
	if !image.IsDigest(digest) {
		return "", fmt.Errorf("%s: answered %s, which is not a sha256 digest", h.name, quote(digest))
	}
	return digest, nil
}

// hash reads the manifest and returns the digest of its bytes.
func (h *host) hash(ctx context.Context, s *session, ref image.Ref) (string, error) {
	resp, err := h.request(ctx, s, http.MethodGet, manifestPath(ref.Repository, ref.Tag))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	// A proxy's login page is a 200 too.
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !slices.Contains(mediaTypes, mediaType) {
		return "", fmt.Errorf("%s: answered %s, which is not an image manifest", h.name, quote(mediaType))
	}
	body, err := h.read(ctx, resp, "manifest", maxManifest)
	if err != nil {
		return "", err
	}
	var manifest struct{ SchemaVersion int }
	if err := json.Unmarshal(body, &manifest); err != nil || manifest.SchemaVersion != 2 {
		return "", fmt.Errorf("%s: answered a malformed manifest", h.name)
	}
	digest := digestOf(body)
	if said := resp.Header.Get(digestHeader); said != "" && said != digest {
		return "", fmt.Errorf("%s: manifest is %s but the registry says %s", h.name, digest, quote(said))
	}
	return digest, nil
}

// read returns the body of an answer, unless it is larger than limit. what names it in errors.
func (h *host) read(ctx context.Context, resp *http.Response, what string, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, h.netError(ctx, err)
	}
	if int64(len(body)) > limit {
		return nil, h.tooLarge(what, limit)
	}
	return body, nil
}

func (h *host) tooLarge(what string, limit int64) error {
	return fmt.Errorf("%s: %s is larger than %d bytes", h.name, what, limit)
}

func digestOf(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// manifestPath is where a manifest is; reference is a tag or a digest.
func manifestPath(repo, reference string) string { return "/v2/" + repo + "/manifests/" + reference }

// request makes one request. The response is a 200 or the 405 to a HEAD; any other is an error.
func (h *host) request(ctx context.Context, s *session, method, path string) (*http.Response, error) {
	u := url.URL{Scheme: h.scheme, Host: h.name, Path: path}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, errNotHost(h.name)
	}
	if isManifest(req) {
		req.Header.Set("Accept", strings.Join(mediaTypes, ","))
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, h.netError(ctx, err)
	}
	ok := []int{http.StatusOK}
	if method == http.MethodHead {
		ok = append(ok, http.StatusMethodNotAllowed)
	}
	if err := transport.CheckError(resp, ok...); err != nil {
		resp.Body.Close()
		return nil, h.statusError(resp.StatusCode, s.hint, code(err))
	}
	return resp, nil
}
