package gitrepo_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
)

// TestSameObjects: who moves the packs makes no difference to what is committed.
func TestSameObjects(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", seed())
	tip := repo.Git(t, "rev-parse", "main")
	c := change("subject\n\nbody\n", map[string]string{"apps/a/lock.yaml": "a: 2\n", "apps/new": "", "README.md": "hello\n"})
	c.Files["apps/deep/er/lock.yaml"] = nil
	c.Committer = gitrepo.Signature{Name: "Ü", Email: "u@example.com"}
	c.Sign = func([]byte) (string, error) {
		return "-----BEGIN SSH SIGNATURE-----\nabc\n-----END SSH SIGNATURE-----\n", nil
	}
	got := map[string]string{}
	for _, b := range []gitrepo.Binary{gitrepo.BinaryNever, gitrepo.BinaryAlways} {
		a := server.Auth
		a.Binary = b
		repo.Git(t, "update-ref", "refs/heads/main", tip)
		got[push(t, read(t, open(t, repo.URL, a), ""), c)] = repo.Git(t, "cat-file", "commit", "main")
	}
	if len(got) != 1 {
		t.Errorf("two commits: %q", got)
	}
}

// TestSign: what is signed is the commit as Git has it, and the signature is where Git looks for it.
func TestSign(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{"https": "gpgsig", "git, https": "gpgsig", "sha256": "gpgsig-sha256"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := servers[name](t)
			repo := server.Create(t, "repo.git", seed())
			c := change("m", map[string]string{"README.md": "x"})
			var signed string
			c.Sign = func(payload []byte) (string, error) { signed = string(payload); return "one\ntwo\n", nil }
			push(t, read(t, open(t, repo.URL, server.Auth), ""), c)
			want := strings.Replace(strings.TrimSpace(signed), "\n\nm", "\n"+header+" one\n two\n\nm", 1)
			if diff := cmp.Diff(want, repo.Git(t, "cat-file", "commit", "main")); diff != "" {
				t.Errorf("commit (-want +got):\n%s", diff)
			}
			repo.Git(t, "fsck", "--strict")
		})
	}
}

// watched puts a git on the PATH that writes down how it is called, and has somebody try the relay who saw that.
func watched(t *testing.T) (log string) {
	t.Helper()
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	script := `#!/bin/sh
{ echo "git $*"; env; } >> ` + log + `
case "$*" in fetch*|push*)
  chmod=$(stat -c %a "$GIT_DIR" "$GIT_DIR/config" | tr '\n' ' '); echo "modes $chmod" >> ` + log + `
  url=$(sed -n 's/.*url = //p' "$GIT_DIR/config")
  case "$url" in http*) cd /; env -i PATH=/usr/bin:/bin GIT_TERMINAL_PROMPT=0 ` + real + ` ls-remote "$url" >> ` + log + ` 2>&1 < /dev/null; cd "$GIT_DIR";; esac;;
esac
exec ` + real + ` "$@"
`
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return log
}

// TestGitLearnsNothing: credentials stay in this process, whichever way git is looked at, and so does its environment.
// Nothing stays behind.
func TestGitLearnsNothing(t *testing.T) {
	for name, start := range map[string]func(testing.TB, ...gittest.Option) *gittest.Server{"https": gittest.HTTPS, "ssh": gittest.SSH} {
		t.Run(name, func(t *testing.T) {
			server := start(t, gittest.ByGit())
			repo := server.Create(t, "repo.git", seed())
			log, tmp := watched(t), t.TempDir()
			t.Setenv("TMPDIR", tmp)
			t.Setenv("DIGESTLOCK_SECRET", "s3cret")
			t.Setenv("GIT_TRACE", "1")
			s := read(t, open(t, repo.URL, server.Auth), "")
			readFiles(t, s, "README.md")
			push(t, s, change("m", map[string]string{"README.md": "x"}))

			written, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			seen := string(written)
			for _, secret := range []string{"horse", "s3cret", "GIT_TRACE", "Digestlock-Relay", "PRIVATE KEY", "Authorization", "\trefs/heads/main"} {
				if strings.Contains(seen, secret) {
					t.Errorf("git has seen %q:\n%s", secret, seen)
				}
			}
			for _, want := range []string{"git fetch ", "git push ", "--force-with-lease=refs/heads/main:" + s.Commit(), "modes 700 600 "} {
				if !strings.Contains(seen, want) {
					t.Errorf("no %q in\n%s", want, seen)
				}
			}
			if name == "https" && !strings.Contains(seen, "not found") {
				t.Errorf("a stranger was not turned away:\n%s", seen)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestNoGit(t *testing.T) {
	server := gittest.HTTPS(t, gittest.SHA256())
	repo := server.Create(t, "repo.git", seed())
	t.Setenv("PATH", t.TempDir())
	// The server runs git by its full path.
	_, err := open(t, repo.URL, server.Auth).Read(t.Context(), "")
	check(t, "no git", err, "read "+repo.URL+": git is needed and cannot be run: exec: \"git\"", "use an image that has git")
}

// TestGitFails: what git says of itself is passed on, and a git that hangs ends with the caller's patience, and all that
// it started.
func TestGitFails(t *testing.T) {
	server := gittest.HTTPS(t, gittest.ByGit())
	repo := server.Create(t, "repo.git", seed())
	bin := t.TempDir()
	fake := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "git"), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r := open(t, repo.URL, server.Auth)
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	fake("echo 'fatal: too old' >&2; exit 3")
	_, err := r.Read(t.Context(), "")
	check(t, "fails", err, "git fetch: exit status 3: fatal: too old", "")
	fake(`case "$1" in cat-file) echo nonsense;; esac`)
	_, err = r.Read(t.Context(), "")
	check(t, "nonsense", err, `git cat-file says "nonsense`, "")

	pid := filepath.Join(bin, "pid")
	fake("sleep 600 & echo $! > " + pid + "; wait")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := r.Read(ctx, ""); done <- err }()
	for {
		if text, err := os.ReadFile(pid); err == nil && strings.HasSuffix(string(text), "\n") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("hangs: %v, want context.Canceled", err)
	}
	child, _ := os.ReadFile(pid)
	for exec.Command("kill", "-0", strings.TrimSpace(string(child))).Run() == nil && !zombie(strings.TrimSpace(string(child))) {
		time.Sleep(10 * time.Millisecond) // until the test's own deadline
	}
}

// TestGitGivesUp: a part of git dies in the middle of a push, and leaves nobody waiting for anybody.
func TestGitGivesUp(t *testing.T) {
	for name, start := range map[string]func(testing.TB, ...gittest.Option) *gittest.Server{"https": gittest.HTTPS, "ssh": gittest.SSH} {
		t.Run(name, func(t *testing.T) {
			server := start(t, gittest.ByGit())
			repo := server.Create(t, "repo.git", seed())
			s := read(t, open(t, repo.URL, server.Auth), "")
			real, err := exec.LookPath("git")
			if err != nil {
				t.Fatal(err)
			}
			bin := t.TempDir()
			script := "#!/bin/sh\ntest -z \"$GIT_DIR\" || printf '[pack]\\nwindow = nonsense\\n' >> \"$GIT_DIR/config\"; exec " + real + ` "$@"`
			if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
			_, err = s.Push(t.Context(), change("m", map[string]string{"README.md": "x"}))
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Push: %v, want what git says of itself", err)
			}
			if got := repo.Git(t, "rev-parse", "main"); got != s.Commit() {
				t.Errorf("main is at %s", got)
			}
		})
	}
}

// zombie reports whether a process has ended and nobody has asked how.
func zombie(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && strings.Contains(string(stat), ") Z ")
}

// TestGitCannotPush: the server breaks while git talks to it, and says why to us alone.
func TestGitCannotPush(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t, gittest.SHA256(), gittest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
				http.Error(w, "not with "+r.Header.Get("Authorization"), http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	}))
	repo := server.Create(t, "repo.git", seed())
	_, err := read(t, open(t, repo.URL, server.Auth), "").Push(t.Context(), change("m", map[string]string{"README.md": "x"}))
	check(t, "push", err, "access denied", "allow these credentials to read and write")
}

// TestTokenSourceByGit: git's requests carry what expires, too.
func TestTokenSourceByGit(t *testing.T) {
	t.Parallel()
	server := gittest.HTTPS(t, gittest.SHA256())
	repo := server.Create(t, "repo.git", seed())
	a := gitrepo.Auth{CA: server.Auth.CA, TokenSource: func(context.Context) (string, string, error) {
		return server.Auth.Username, server.Auth.Password, nil
	}}
	push(t, read(t, open(t, repo.URL, a), ""), change("m", map[string]string{"README.md": "x"}))
}

// TestResetMeanwhile: the branch is set back after we have looked and before git has. A plain push would take that back.
func TestResetMeanwhile(t *testing.T) {
	t.Parallel()
	for name, option := range map[string]gittest.Option{"git": gittest.ByGit(), "sha256": gittest.SHA256()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var (
				repo  *gittest.Repo
				looks atomic.Int64
			)
			server := gittest.HTTPS(t, option, gittest.Wrap(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Query().Get("service") == "git-receive-pack" && looks.Add(1) == 2 {
						repo.Git(t, "update-ref", "refs/heads/main", "main~1")
					}
					next.ServeHTTP(w, r)
				})
			}))
			repo = server.Create(t, "repo.git", seed())
			first := repo.Git(t, "rev-parse", "main")
			repo.Commit(t, "main", map[string]string{"README.md": "bad\n"})
			s := read(t, open(t, repo.URL, server.Auth), "")
			if _, err := s.Push(t.Context(), change("m", map[string]string{"README.md": "x"})); !errors.Is(err, gitrepo.ErrMoved) {
				t.Errorf("Push: %v, want ErrMoved", err)
			}
			if got := repo.Git(t, "rev-parse", "main"); got != first {
				t.Errorf("main is at %s, want it where it was set back to, %s", got, first)
			}
		})
	}
}

// TestOntoMovedBase: the new commit stands on one that no branch stands at any more.
func TestOntoMovedBase(t *testing.T) {
	t.Parallel()
	eachServer(t, kinds(), func(t *testing.T, server *gittest.Server) {
		repo := server.Create(t, "repo.git", seed())
		s := read(t, open(t, repo.URL, server.Auth), "main")
		repo.Commit(t, "main", map[string]string{"README.md": "theirs\n"})
		if strings.Contains(t.Name(), "no_") {
			repo.Git(t, "update-ref", "refs/heads/main", repo.Git(t, "commit-tree", "-m", "rewritten", "main^{tree}"))
		}
		got := push(t, s, onto("", "a: 2\n"))
		if parent := repo.Git(t, "rev-parse", got+"~1"); parent != s.Commit() {
			t.Errorf("stands on %s, want %s", parent, s.Commit())
		}
		if err := s.Mark(t.Context()); err != nil {
			t.Error(err)
		}
		if at := repo.Git(t, "rev-parse", mark); at != s.Commit() {
			t.Errorf("the mark is at %s, want %s", at, s.Commit())
		}
	})
}
