package registrytest

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func get(t *testing.T, url string) (status int, body []byte) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// A pushed image can be pulled: its digest is that of its manifest and its blobs are there.
func TestPushedImageIsWhole(t *testing.T) {
	t.Parallel()
	s := Start(t)
	digest := s.Push("team/app", "latest")
	base := "http://" + s.Host + "/v2/team/app/"
	_, raw := get(t, base+"manifests/"+digest)
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != 1 {
		t.Fatalf("manifest %s: %v", raw, err)
	}
	for _, d := range append(m.Layers, m.Config) {
		if status, body := get(t, base+"blobs/"+d.Digest.String()); status != http.StatusOK || int64(len(body)) != d.Size {
			t.Errorf("blob %s: %d, %d bytes, want %d", d.Digest, status, len(body), d.Size)
		}
	}
}

func TestPushMovesTheTag(t *testing.T) {
	t.Parallel()
	s := Start(t)
	if a, b := s.Push("a", "latest"), s.Push("a", "latest"); a == b {
		t.Errorf("both pushes have digest %s", a)
	}
	s.Delete("a", "latest")
	if status, _ := get(t, "http://"+s.Host+"/v2/a/manifests/latest"); status != http.StatusNotFound {
		t.Errorf("deleted tag answers %d", status)
	}
}
