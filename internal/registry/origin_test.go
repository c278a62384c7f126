package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/registrytest"
)

var ours = image.Origin{Revision: "3f2c1ab", Source: "https://github.com/acme/server"}

// said is what an annotation or a label says of o.
func said(o image.Origin) map[string]string {
	return map[string]string{revisionKey: o.Revision, sourceKey: o.Source, "org.opencontainers.image.title": "server"}
}

func labelled(t *testing.T, labels map[string]string) v1.Image {
	t.Helper()
	img, err := mutate.Config(empty.Image, v1.Config{Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func annotated(img v1.Image, annotations map[string]string) v1.Image {
	return mutate.Annotations(img, annotations).(v1.Image)
}

// index is what BuildKit pushes: an attestation, here before what it is about, and an image.
func index(t *testing.T, img v1.Image) v1.ImageIndex {
	t.Helper()
	about := annotated(labelled(t, said(image.Origin{Revision: "of the attestation"})), map[string]string{"n": "1"})
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: about, Descriptor: v1.Descriptor{
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}, Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
		}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
}

func at(t *testing.T, host, digest string) image.Ref {
	t.Helper()
	return parse(t, host+"/a:latest@"+digest)
}

func origin(c *Client, scope string, ref image.Ref) image.Origin {
	return c.Origins(context.Background(), scope, []image.Ref{ref})[0]
}

// TestOrigins: where the two values are found, and what that costs.
func TestOrigins(t *testing.T) {
	t.Parallel()
	base := image.Origin{Revision: "0ldbase", Source: "https://github.com/acme/base"}
	long := strings.Repeat("x", maxValue+1)
	chart := mutate.ConfigMediaType(labelled(t, said(ours)), "application/vnd.cncf.helm.config.v1+json")
	for _, tt := range []struct {
		name string
		push func(s *registrytest.Server) string
		want image.Origin
		gets int
	}{
		{"labels", func(s *registrytest.Server) string { return s.PushImage("a", "latest", labelled(t, said(ours))) }, ours, 2},
		{"labels below an index", func(s *registrytest.Server) string {
			return s.PushImages("a", "latest", index(t, labelled(t, said(ours))))
		}, ours, 3},
		{"annotations before inherited labels", func(s *registrytest.Server) string {
			return s.PushImages("a", "latest", index(t, annotated(labelled(t, said(base)), said(ours))))
		}, ours, 2},
		{"annotations of an index", func(s *registrytest.Server) string {
			return s.PushImages("a", "latest", mutate.Annotations(index(t, annotated(labelled(t, said(base)), said(base))), said(ours)).(v1.ImageIndex))
		}, ours, 1},
		{"never mixed", func(s *registrytest.Server) string {
			return s.PushImage("a", "latest", annotated(labelled(t, said(base)), map[string]string{revisionKey: "3f2c1ab"}))
		}, image.Origin{Revision: "3f2c1ab"}, 1},
		{"none", func(s *registrytest.Server) string { return s.PushIndex("a", "latest") }, image.Origin{}, 3},
		{"empty index", func(s *registrytest.Server) string { return s.PushImages("a", "latest", empty.Index) }, image.Origin{}, 1},
		{"no image's config", func(s *registrytest.Server) string { return s.PushImage("a", "latest", chart) }, image.Origin{}, 1},
		{"too long", func(s *registrytest.Server) string {
			return s.PushImage("a", "latest", labelled(t, map[string]string{revisionKey: long, sourceKey: ours.Source}))
		}, image.Origin{Source: ours.Source}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := registrytest.Start(t)
			s.RequireBearer("", "")
			digest := tt.push(s)
			metrics := prometheus.NewRegistry()
			c := client(Options{Registerer: metrics}, s)
			if got := origin(c, "", at(t, s.Host, digest)); got != tt.want {
				t.Errorf("Origins = %+v, want %+v", got, tt.want)
			}
			wantCounts(t, s, registrytest.Counts{Ping: 1, Token: 1, Get: tt.gets})
			if n := testutil.CollectAndCount(c.metrics.lookups); n != 0 {
				t.Errorf("counted as %d look-ups of tags", n)
			}
			one(c, parse(t, s.Host+"/a:latest"))
			wantCounts(t, s, registrytest.Counts{Head: 1}) // in the session that is there
		})
	}
}

// TestOriginsOfAScope: who may not read an image learns nothing of it, and costs the others nothing.
func TestOriginsOfAScope(t *testing.T) {
	t.Parallel()
	s := registrytest.Start(t)
	s.RequireBearer("u", "p")
	ref := at(t, s.Host, s.PushImage("a", "latest", labelled(t, said(ours))))
	c := client(Options{Keychain: &scoped{passwords: map[string]string{"a": "p", "c": "wrong"}}}, s)
	for range 2 {
		if got := origin(c, "a", ref); got != ours {
			t.Errorf("of its own scope: %+v, want %+v", got, ours)
		}
		for _, scope := range []string{"b", "c", ""} {
			got := origin(c, scope, ref)
			if !errors.Is(got.Err, image.ErrUnauthorized) || got.Source != "" {
				t.Errorf("of scope %q: %+v, want unauthorized", scope, got)
			}
		}
	}
	if got := origin(client(Options{Allow: Hosts{"ghcr.io"}}), "", ref); got.Err == nil || !strings.Contains(got.Err.Error(), "not in the list of --allow-registry") {
		t.Errorf("not listed: %+v", got)
	}
}

// blobs serves a registry, with its blobs answered by f.
func blobs(t *testing.T, r http.Handler, f http.HandlerFunc) (host string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			f(w, req)
			return
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// TestUntrustworthyOrigin: what is read is what has the digest, and no more of it than fits.
func TestUntrustworthyOrigin(t *testing.T) {
	t.Parallel()
	r := registrytest.New()
	digest := r.PushImage("a", "latest", labelled(t, said(ours)))
	large := r.PushImage("a", "large", labelled(t, map[string]string{"x": strings.Repeat("x", maxConfig), sourceKey: ours.Source}))
	asked := false
	for _, tt := range []struct {
		name, digest string
		blob         http.HandlerFunc
		want         string
	}{
		{"another config", digest, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"config":{"Labels":{"`+sourceKey+`":"https://evil.example"}}}`)
		}, "config is sha256:"},
		{"endless config", digest, func(w http.ResponseWriter, _ *http.Request) {
			for range 2 * maxConfig / 1024 {
				fmt.Fprint(w, strings.Repeat("x", 1024))
			}
		}, "config is larger than 1048576 bytes"},
		{"large config", large, func(http.ResponseWriter, *http.Request) { asked = true }, "config is larger than 1048576 bytes"},
		{"refused", digest, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "unauthorized (403)"},
		{"gone", "sha256:" + strings.Repeat("0", 64), nil, "not found (404 MANIFEST_UNKNOWN)"},
		{"no such digest", "sha512:" + strings.Repeat("0", 128), nil, "which is not a sha256 digest"},
	} {
		r.ResetCounts()
		host := blobs(t, r, tt.blob)
		c := New(Options{Insecure: []string{host}, Keychain: &keychain{user: "u", password: "p"}})
		for range 2 { // in the session that the first has opened
			got := origin(c, "", at(t, host, tt.digest))
			if got.Err == nil || !strings.Contains(got.Err.Error(), tt.want) || got.Source != "" {
				t.Errorf("%s: %+v, want %q", tt.name, got, tt.want)
			}
		}
		if n := r.Counts().Ping; n != 1 {
			t.Errorf("%s: %d sessions, want one", tt.name, n)
		}
	}
	if asked {
		t.Error("a config was asked for whose manifest says that it is too large")
	}
	s := registrytest.Start(t)
	digest = s.Push("a", "latest")
	s.Inject("a", registrytest.Fault{Method: http.MethodGet, Body: `{"schemaVersion":2,"annotations":{"` + sourceKey + `":"https://evil.example"}}`})
	if got := origin(client(Options{}, s), "", at(t, s.Host, digest)); got.Err == nil || !strings.Contains(got.Err.Error(), "manifest is sha256:") {
		t.Errorf("another manifest: %+v", got)
	}
}

// TestBlobRedirect: a blob may be somewhere else, without credentials, and where registries are listed that is, too.
func TestBlobRedirect(t *testing.T) {
	t.Parallel()
	r, behind := registrytest.New(), registrytest.New()
	padding := strings.Repeat("x", 2*maxAnswer) // more than an answer that is no blob may have
	img := labelled(t, map[string]string{sourceKey: ours.Source, "x": padding})
	digest := r.PushImage("a", "latest", img)
	behind.PushImage("a", "latest", img)
	r.RequireBasic("u", "hunter2")
	told := make(chan string, 1)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		told <- req.Header.Get("Authorization")
		req.URL.Path = strings.Replace(req.URL.Path, "/store/", "/v2/a/blobs/", 1)
		behind.ServeHTTP(w, req)
	}))
	t.Cleanup(store.Close)
	host := blobs(t, r, func(w http.ResponseWriter, req *http.Request) {
		_, name, _ := strings.Cut(req.URL.Path, "/blobs/")
		http.Redirect(w, req, store.URL+"/store/"+name, http.StatusTemporaryRedirect)
	})
	storeHost := store.Listener.Addr().String()
	for name, tt := range map[string]struct {
		allow Hosts
		ok    bool
	}{"nothing listed": {nil, true}, "listed": {Hosts{host, storeHost}, true}, "not listed": {Hosts{host}, false}} {
		c := New(Options{Insecure: []string{host, storeHost}, Allow: tt.allow, Keychain: &keychain{user: "u", password: "hunter2"}})
		got := origin(c, "", at(t, host, digest))
		if !tt.ok {
			if got.Err == nil || !strings.Contains(got.Err.Error(), "redirect to another host") || len(told) > 0 {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if got != (image.Origin{Source: ours.Source}) {
			t.Errorf("%s: %+v", name, got)
		}
		select {
		case secret := <-told:
			if secret != "" {
				t.Errorf("%s: the store was told %q", name, secret)
			}
		default:
			t.Errorf("%s: the store was not asked", name)
		}
	}
}

// TestManifestLeadsNowhere: only what has a digest is read, from the same repository.
func TestManifestLeadsNowhere(t *testing.T) {
	t.Parallel()
	const oci = `"mediaType":"application/vnd.oci.image.`
	elsewhere := `,"urls":["http://evil.example/x"],"size":2`
	for name, tt := range map[string]struct {
		body string
		want []string // paths
	}{
		"config that is a path": {`{"config":{` + oci + `config.v1+json","digest":"../../../secret"` + elsewhere + `}}`, nil},
		"image that is a path":  {`{"manifests":[{` + oci + `manifest.v1+json","digest":"sha256:../b"` + elsewhere + `}]}`, nil},
		"config elsewhere": {`{"config":{` + oci + `config.v1+json","digest":"` + digestOf([]byte(`{}`)) + `"` + elsewhere + `}}`, []string{
			"/v2/a/blobs/" + digestOf([]byte(`{}`)),
		}},
		"layers": {`{"layers":[{` + oci + `layer.v1.tar+gzip","digest":"` + digestOf(nil) + `"` + elsewhere + `}]}`, nil},
	} {
		digest := digestOf([]byte(tt.body))
		var asked []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			switch req.URL.Path {
			case "/v2/":
			case "/v2/a/manifests/" + digest:
				fmt.Fprint(w, tt.body)
			default:
				asked = append(asked, req.Host+req.URL.Path)
				fmt.Fprint(w, `{}`)
			}
		}))
		host := srv.Listener.Addr().String()
		got := origin(New(Options{Insecure: []string{host, "evil.example"}, Keychain: &keychain{}}), "", at(t, host, digest))
		srv.Close()
		for i := range tt.want {
			tt.want[i] = host + tt.want[i]
		}
		if fmt.Sprint(asked) != fmt.Sprint(tt.want) || strings.Contains(name, "path") != (got.Err != nil) {
			t.Errorf("%s: %+v, asked for %v, want %v", name, got, asked, tt.want)
		}
	}
}
