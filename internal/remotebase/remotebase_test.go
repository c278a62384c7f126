package remotebase_test

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/remotebase"
)

// forge is a Git server that everybody may read, and a client that may fetch from it.
type forge struct {
	*gittest.Server
	host string
}

func newForge(t *testing.T, options ...gittest.Option) forge {
	t.Helper()
	s := gittest.HTTPS(t, append(options, gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				t.Error("a request with credentials")
			}
			if strings.HasPrefix(r.URL.Path, "/private/") {
				next.ServeHTTP(w, r)
				return
			}
			r.SetBasicAuth("robot", "correct horse")
			next.ServeHTTP(w, r)
		})
	}))...)
	return forge{s, strings.Trim(strings.TrimPrefix(s.URL(""), "https://"), "/")}
}

func (f forge) client(t *testing.T) *remotebase.Client {
	t.Helper()
	c := client(t, f.host)
	c.Reach(f.Auth.CA)
	return c
}

func client(t *testing.T, hosts ...string) *remotebase.Client {
	t.Helper()
	c, err := remotebase.New(hosts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused wants an error with this text and code, with a hint, and nothing that is secret.
func refused(t *testing.T, what string, err error, code fault.Code, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || fault.CodeOf(err) != code || fault.Hint(err) == "" ||
		strings.Contains(err.Error()+fault.Hint(err), "hunter2") {
		t.Errorf("%s: %v [%s] (hint %q), want %s [%s]", what, err, fault.CodeOf(err), fault.Hint(err), want, code)
	}
}

func TestBase(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	repo := f.Create(t, "acme/base.git", map[string]string{"dev/kustomization.yaml": "first"})
	first := repo.Git(t, "rev-parse", "main")
	repo.Git(t, "tag", "v1", "main")
	repo.Commit(t, "main", map[string]string{"dev/kustomization.yaml": "second", "top.yaml": "x"})
	repo.Git(t, "tag", "-a", "-m", "annotated", "v2", "main")
	repo.Commit(t, "main", map[string]string{"dev/kustomization.yaml": "third"})
	c, dir := f.client(t), t.TempDir()
	before := f.Requests()
	for i, tt := range []struct{ entry, want string }{
		{"//dev?ref=v1", "first"}, {"//dev?ref=v2", "second"}, {"//dev?ref=refs/tags/v2", "second"}, {"/dev?ref=" + first, "first"},
	} {
		b, err := c.Base(t.Context(), repo.URL+tt.entry, dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(b.Root, b.Path, "kustomization.yaml"))
		if err != nil || string(got) != tt.want || b.Repository != repo.URL || filepath.Dir(b.Root) != dir {
			t.Errorf("%d: %s = %+v: %q, %v, want %s", i, tt.entry, b, got, err, tt.want)
		}
	}
	// One commit each: a listing and a pack, and no more for what is there.
	if n := f.Requests() - before; n != 8 {
		t.Errorf("%d requests for 4 bases, want 8", n)
	}
	b, err := c.Base(t.Context(), repo.URL+"?ref=v2", dir)
	if n := f.Requests() - before; err != nil || n != 8 || b.Path != "." {
		t.Errorf("%d requests after one of them again (%+v, %v), want 8", n, b, err)
	}
	// A tag by the name of a commit does not stand for it, and a branch by the name of a tag neither.
	repo.Git(t, "update-ref", "refs/tags/"+first, "main")
	repo.Git(t, "update-ref", "refs/heads/v1", "main")
	for _, ref := range []string{first, "v1"} {
		b, err := f.client(t).Base(t.Context(), repo.URL+"//dev?ref="+ref, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(b.Root, "dev", "kustomization.yaml")); err != nil || string(got) != "first" {
			t.Errorf("%s is %q, %v", ref, got, err)
		}
	}
	for _, tt := range []struct{ entry, want string }{
		{repo.URL + "//dev?ref=main", `"main" is a branch`},
		{repo.URL + "//dev?ref=refs/heads/main", `"refs/heads/main" is a branch`},
		{repo.URL + "//dev?ref=HEAD", `"HEAD" is a branch`},
		{repo.URL + "//dev?ref=v3", `no tag "v3"`},
		{repo.URL + "//dev?ref=0123456789abcdef0123456789abcdef01234567", "not our ref"},
		{f.URL("acme/nowhere.git") + "//dev?ref=v1&token=hunter2", "repository not found"},
		{f.URL("private/base.git") + "//dev?ref=v1", "access denied"},
	} {
		_, err := c.Base(t.Context(), tt.entry, dir)
		refused(t, tt.entry, err, fault.RemoteFetch, tt.want)
	}
	for _, entry := range []string{"../dev", "https://other.example.com/acme/base.git//dev?ref=v1", repo.URL + "/x.yaml", "ssh://" + f.host + "/acme/base.git//dev?ref=v1"} {
		if _, err := c.Base(t.Context(), entry, dir); !errors.Is(err, remotebase.ErrNotListed) {
			t.Errorf("%s: %v, want %v", entry, err, remotebase.ErrNotListed)
		}
	}
}

// TestNoWant: a server that hands out tips only, asked for something else, says so before it is asked.
func TestNoWant(t *testing.T) {
	t.Parallel()
	f := newForge(t, gittest.NoWant())
	repo := f.Create(t, "acme/base.git", map[string]string{"a": "1"})
	first := repo.Git(t, "rev-parse", "main")
	c := f.client(t)
	if _, err := c.Base(t.Context(), repo.URL+"?ref="+first, t.TempDir()); err != nil {
		t.Error(err)
	}
	repo.Commit(t, "main", map[string]string{"a": "2"})
	_, err := f.client(t).Base(t.Context(), repo.URL+"?ref="+first, t.TempDir())
	refused(t, "old commit", err, fault.RemoteFetch, "hands out only what its branches and tags point to")
}

// TestRoom: a tree that takes too much is not unpacked, and one small on the wire neither.
func TestRoom(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	repo := f.Create(t, "acme/base.git", map[string]string{"zeros": strings.Repeat("\x00", 1<<20), "a": "1"})
	repo.Git(t, "tag", "zeros", "main")
	// One of them ten times.
	clone := repo.Clone(t, "main")
	zeros := clone.Git(t, "rev-parse", "HEAD:zeros")
	var entries []string
	for i := range 10 {
		entries = append(entries, fmt.Sprintf("100644 n%d %s", i, zeros))
	}
	clone.Git(t, "tag", "copies", clone.Git(t, "commit-tree", "-m", "copies", mktree(t, clone, entries...)))
	// Ten trees that hold the one below ten times: 10^10 files in a KiB.
	hash, mode := clone.Git(t, "hash-object", "-w", os.DevNull), "100644"
	for range 10 {
		var entries []string
		for i := range 10 {
			entries = append(entries, fmt.Sprintf("%s n%d %s", mode, i, hash))
		}
		hash, mode = mktree(t, clone, entries...), "40000"
	}
	clone.Git(t, "tag", "bomb", clone.Git(t, "commit-tree", "-m", "bomb", hash))
	clone.Git(t, "push", "--quiet", "origin", "bomb", "copies")
	for _, tt := range []struct {
		ref     string
		bytes   int64
		entries int
		want    string
	}{
		{"zeros", 1 << 20, 100, "inflates to more than"},
		{"zeros", 1 << 22, 1, "unpacks to too much"},
		{"copies", 1 << 22, 100, "unpacks to too much"},
		{"bomb", 1 << 20, 1000, "unpacks to too much"},
	} {
		c, dir := f.client(t), t.TempDir()
		c.Shrink(tt.bytes, tt.entries, 10, time.Minute)
		_, err := c.Base(t.Context(), repo.URL+"?ref="+tt.ref, dir)
		refused(t, tt.ref, err, fault.TooLarge, tt.want)
		if n := count(t, dir); n > tt.entries+2 {
			t.Errorf("%s: %d files and directories", tt.ref, n)
		}
	}
	c, dir := f.client(t), t.TempDir()
	c.Shrink(3<<19, 100, 10, time.Minute)
	if _, err := c.Base(t.Context(), repo.URL+"?ref=zeros", dir); err != nil {
		t.Error(err)
	}
	repo.Git(t, "tag", "again", "main")
	_, err := c.Base(t.Context(), repo.URL+"?ref=again", dir)
	refused(t, "the sum of two", err, fault.TooLarge, "inflates to more than")
}

// mktree writes a tree, which need not be one that git would make, from entries "mode name hash".
func mktree(t *testing.T, c *gittest.Clone, entries ...string) string {
	t.Helper()
	var tree []byte
	for _, e := range entries {
		f := strings.Fields(e)
		hash, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		tree = append(append(tree, f[0]+" "+f[1]+"\x00"...), hash...)
	}
	name := filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(name, tree, 0o600); err != nil {
		t.Fatal(err)
	}
	return c.Git(t, "hash-object", "-t", "tree", "-w", "--literally", name)
}

func count(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	if err := filepath.WalkDir(dir, func(string, os.DirEntry, error) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// web is an https server and its certificate.
func web(t *testing.T, handler http.HandlerFunc) (host string, ca []byte) {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return strings.TrimPrefix(s.URL, "https://"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func TestFile(t *testing.T) {
	t.Parallel()
	elsewhere, _ := web(t, func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was fetched from a host that is not listed", r.URL)
	})
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was fetched by http", r.URL) }))
	defer plain.Close()
	var loops atomic.Int32
	host, ca := web(t, func(w http.ResponseWriter, r *http.Request) {
		to := map[string]string{
			"/moved": "/a.yaml?x", "/elsewhere": "https://" + elsewhere + "/a.yaml", "/plain": plain.URL + "/a.yaml",
			"/user": "https://u:hunter2@" + r.Host + "/a.yaml", "/loop": "/loop?token=hunter2",
		}[r.URL.Path]
		switch {
		case r.URL.Path == "/loop" && loops.Add(1) > 6:
			t.Error("redirected too often")
		case to != "":
			http.Redirect(w, r, to, http.StatusFound)
		case r.URL.Path == "/a.yaml" && r.Referer() == "":
			_, _ = io.WriteString(w, "data")
		case r.URL.Path == "/silent":
			gittest.Silent().ServeHTTP(w, r)
		case r.URL.Path == "/slow":
			_, _ = io.WriteString(w, "da")
			_ = http.NewResponseController(w).Flush()
			gittest.Silent().ServeHTTP(w, r)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	c := client(t, host)
	c.Reach(ca)
	for _, at := range []string{"/a.yaml", "/moved?token=hunter2"} {
		if got, err := c.File(t.Context(), "https://"+host+at, 4); err != nil || string(got) != "data" {
			t.Errorf("%s = %q, %v", at, got, err)
		}
	}
	for _, tt := range []struct {
		address string
		code    fault.Code
		want    string
	}{
		{"https://" + host + "/nowhere?token=hunter2", fault.RemoteFetch, "404 Not Found"},
		{"https://" + host + "/elsewhere", fault.RemoteBase, fmt.Sprintf("redirects to %q", elsewhere)},
		{"https://" + host + "/plain", fault.RemoteBase, "http is refused"},
		{"https://" + host + "/user", fault.RemoteBase, "a user in the address"},
		{"https://" + host + "/loop", fault.RemoteFetch, "more than 5 redirects"},
		{"https://u:hunter2@" + host + "/a.yaml", fault.RemoteBase, "a user in the address"},
		{"http://" + host + "/a.yaml", fault.RemoteBase, "http is refused"},
	} {
		_, err := c.File(t.Context(), tt.address, 4)
		refused(t, tt.address, err, tt.code, tt.want)
	}
	_, err := c.File(t.Context(), "https://"+host+"/a.yaml", 3)
	refused(t, "size", err, fault.TooLarge, "larger than 3 bytes")
	if _, err := c.File(t.Context(), "https://"+elsewhere+"/a.yaml", 4); !errors.Is(err, remotebase.ErrNotListed) {
		t.Errorf("%v, want %v", err, remotebase.ErrNotListed)
	}
	c.Shrink(0, 0, 9, 50*time.Millisecond)
	for _, at := range []string{"/silent", "/slow"} {
		_, err := c.File(t.Context(), "https://"+host+at, 4)
		refused(t, at, err, fault.RemoteFetch, "no answer within 50ms")
	}
	c.Shrink(0, 0, 1, time.Minute)
	cause := errors.New("no result within --timeout")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err = c.File(ctx, "https://"+host+"/silent", 4)
	refused(t, "cancelled", err, fault.RemoteFetch, cause.Error())
	_, err = c.File(t.Context(), "https://"+host+"/a.yaml", 4)
	refused(t, "one too many", err, fault.TooLarge, "more than 100 remote bases and files")
}

// TestClosed: without the tests' hole this machine is not reached, listed or not, and nor is a stranger's certificate
// trusted. There is no proxy that could be.
func TestClosed(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	requests := 0
	host, ca := web(t, func(http.ResponseWriter, *http.Request) { requests++ })
	c := client(t, host, "127.0.0.1")
	c.Trust(ca)
	_, err := c.File(t.Context(), "https://"+host+"/a.yaml", 4)
	refused(t, "loopback", err, fault.RemoteFetch, "its address is 127.0.0.1, which is never connected to")
	_, err = c.Base(t.Context(), "https://"+host+"/o/r?ref=v1", t.TempDir())
	refused(t, "loopback by Git", err, fault.RemoteFetch, "its address is 127.0.0.1, which is never connected to")
	c.Reach(nil)
	_, err = c.File(t.Context(), "https://"+host+"/a.yaml", 4)
	refused(t, "certificate", err, fault.RemoteFetch, "certificate signed by unknown authority")
	_, err = c.Base(t.Context(), "https://"+host+"/o/r?ref=v1", t.TempDir())
	refused(t, "certificate by Git", err, fault.RemoteFetch, "certificate signed by unknown authority")
	if requests != 0 {
		t.Errorf("%d requests", requests)
	}
}

// TestEndless: an answer that does not end is not read to its end, whoever reads it.
func TestEndless(t *testing.T) {
	t.Parallel()
	host, ca := web(t, func(w http.ResponseWriter, _ *http.Request) {
		zeros := make([]byte, 1<<20)
		for range 2 * remotebase.MaxBody / len(zeros) {
			if _, err := w.Write(zeros); err != nil {
				return
			}
		}
	})
	c := client(t, host)
	c.Reach(ca)
	_, err := c.File(t.Context(), "https://"+host+"/a.yaml", 1<<40)
	refused(t, "endless", err, fault.RemoteFetch, "the answer is too long")
}

// TestSilentGit: the listing, or the pack, never comes.
func TestSilentGit(t *testing.T) {
	t.Parallel()
	host, ca := web(t, gittest.Silent().ServeHTTP)
	c := client(t, host)
	c.Reach(ca)
	c.Shrink(1<<20, 100, 10, 50*time.Millisecond)
	_, err := c.Base(t.Context(), "https://"+host+"/o/r?ref=v1", t.TempDir())
	refused(t, "silent", err, fault.RemoteFetch, "no answer within 50ms")
}
