package daemon

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

// TestOrigins: what can be read in time is answered, with the credentials of each image's project; a silent registry
// takes nothing away from the others.
func TestOrigins(t *testing.T) {
	t.Parallel()
	r := run(t)
	pinned := func(names ...string) []image.Ref {
		for i := range names {
			names[i] += ":latest@" + d1
		}
		return refs(t, names...)
	}
	c := r.client(t, r.address, "one")
	images := map[string][]image.Ref{"x": pinned("ghcr.io/a", "ghcr.io/gone"), "y": pinned("ghcr.io/b"), "z": pinned("quay.io/silent")}
	want := map[string]image.Origin{
		"ghcr.io/a:latest@" + d1: {Revision: "scope of x", Source: "https://a"},
		"ghcr.io/b:latest@" + d1: {Revision: "scope of y", Source: "https://b"},
	}
	for _, asked := range []int32{4, 6} { // what was read is remembered
		got, err := c.Origins(t.Context(), images)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Origins: %v (-want +got):\n%s", err, diff)
		}
		if n := r.registry.asked.Load(); n != asked {
			t.Errorf("%d images were read, want %d", n, asked)
		}
	}
	for _, text := range []string{"origin not read", "ghcr.io/gone:latest", "no answer within 2.5s"} {
		if !strings.Contains(r.log.String(), text) {
			t.Errorf("no %q in the log:\n%s", text, r.log)
		}
	}
	if _, err := r.client(t, r.address, "wrong").Origins(t.Context(), images); fault.CodeOf(err) != fault.ResolverToken {
		t.Errorf("wrong token: %v", err)
	}
}

// TestNoOrigins: a resolver that does not know the route is no error.
func TestNoOrigins(t *testing.T) {
	t.Parallel()
	r := run(t, func(o *Options) { o.Origins = nil })
	got, err := r.client(t, r.address, "one").Origins(t.Context(), map[string][]image.Ref{"": refs(t, "ghcr.io/a:latest@"+d1)})
	if err != nil || len(got) > 0 {
		t.Errorf("Origins = %v, %v, want nothing", got, err)
	}
}

func TestBadOriginRequests(t *testing.T) {
	t.Parallel()
	r := run(t)
	good := `"ghcr.io/a:latest@` + d1 + `"`
	for name, tt := range map[string]struct {
		body   string
		status int
	}{
		"good":      {`{"images":{"x":[` + good + `]}}`, 200},
		"nothing":   {`{}`, 200},
		"no JSON":   {`{`, 400},
		"no digest": {`{"images":{"x":["ghcr.io/a:latest"]}}`, 400},
		"sha512":    {`{"images":{"x":["ghcr.io/a:latest@sha512:` + strings.Repeat("0", 128) + `"]}}`, 400},
		"short":     {`{"images":{"x":["nginx:latest@` + d1 + `"]}}`, 400},
		"path":      {`{"images":{"x":["ghcr.io/../a:latest@` + d1 + `"]}}`, 400},
		"too many":  {`{"images":{"x":[` + good + `],"y":[` + good + strings.Repeat(`,`+good, api.MaxImages-1) + `]}}`, 400},
		"project":   {`{"images":{"` + strings.Repeat("x", maxField+1) + `":[` + good + `]}}`, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.address+"/v1/origins", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer one")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != tt.status {
			t.Errorf("%s: %s, want %d", name, res.Status, tt.status)
		}
	}
}
