package daemon

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cache"
)

func TestRenders(t *testing.T) {
	t.Parallel()
	key, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	r := run(t, func(o *Options) { o.Renders = cache.NewBlobs(1000) })
	plugin := r.client(t, "unix://"+r.socket, "")
	for _, want := range []string{"", "manifests", "others"} {
		if want != "" {
			plugin.Remember(t.Context(), key, []byte(want))
		}
		if got, ok := plugin.Recall(t.Context(), key); string(got) != want || !ok {
			t.Errorf("recalled %q, %v, want %q", got, ok, want)
		}
		if got, ok := plugin.Recall(t.Context(), other); got != nil || !ok {
			t.Errorf("recalled %q of another key", got)
		}
	}
	network := r.client(t, r.address, "two")
	if _, ok := network.Recall(t.Context(), key); ok {
		t.Error("the network may ask for renders")
	}
	network.Remember(t.Context(), key, []byte("poison"))
	if got, _ := plugin.Recall(t.Context(), key); string(got) != "others" {
		t.Errorf("the network changed a render to %q", got)
	}
	plugin.Remember(t.Context(), other, make([]byte, api.MaxBody+1))
	if _, ok := plugin.Recall(t.Context(), other); !ok {
		t.Error("too large a render broke the client")
	}
	if _, ok := r.client(t, "unix://"+run(t).socket, "").Recall(t.Context(), key); ok {
		t.Error("a resolver that remembers nothing says that it does")
	}
}

// TestRenderRefused: a body or key that no program of ours sends.
func TestRenderRefused(t *testing.T) {
	t.Parallel()
	s := serverFor(t, &syncBuffer{}, func(o *Options) { o.Renders = cache.NewBlobs(1000) })
	for path, size := range map[string]int{"/v1/renders/short": 1, "/v1/renders/" + strings.Repeat("a", 64): api.MaxBody + 1} {
		w := httptest.NewRecorder()
		s.local().ServeHTTP(w, httptest.NewRequest(http.MethodPut, path, bytes.NewReader(make([]byte, size))))
		if w.Code != http.StatusBadRequest || s.o.Renders.Size() != 0 {
			t.Errorf("PUT %s of %d bytes: %d, %d bytes kept, want 400 and none", path, size, w.Code, s.o.Renders.Size())
		}
	}
}
