package history

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
)

var (
	d1 = "sha256:" + strings.Repeat("1", 64)
	d2 = "sha256:" + strings.Repeat("2", 64)
	d3 = "sha256:" + strings.Repeat("3", 64)
	t0 = time.Date(2026, 11, 22, 20, 57, 0, 0, time.UTC)
)

const (
	a = "a.io/a:latest"
	b = "a.io/b:latest"
)

// repo is a checkout whose overlay is in the directory app.
type repo struct {
	t     *testing.T
	dir   string
	clock time.Time
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	r := &repo{t: t, dir: t.TempDir(), clock: t0}
	r.git("init", "-q", "-b", "main")
	// What people set, and what would change the output of git log.
	for _, setting := range []string{
		"log.showSignature=true", "log.diffMerges=combined", "log.follow=true", "log.decorate=full", "log.date=relative", "color.ui=always",
		"format.pretty=oneline", "diff.renames=copies", "diff.external=false", "core.pager=false", "core.abbrev=4", "log.abbrevCommit=true",
	} {
		key, value, _ := strings.Cut(setting, "=")
		r.git("config", key, value)
	}
	return r
}

// git runs git a minute after the last one, and returns what it printed.
func (r *repo) git(args ...string) string {
	r.t.Helper()
	r.clock = r.clock.Add(time.Minute)
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	date := fmt.Sprintf("%d +0200", r.clock.Unix())
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_DATE=" + date, "GIT_COMMITTER_DATE=" + date,
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.com",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit commits the lock with these pins, or removes it for none, and returns the commit.
func (r *repo) commit(message string, pins ...lock.Pin) string {
	r.t.Helper()
	if len(pins) == 0 {
		r.git("rm", "-q", "app/"+lock.FileName)
	} else {
		r.write("app/"+lock.FileName, string((&lock.Document{Pins: pins}).Format()))
	}
	return r.commitAll(message)
}

func (r *repo) write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o750), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) commitAll(message string) string {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", message)
	return r.git("rev-parse", "HEAD")
}

// sign gives the last commit a signature, which git log may be configured to check.
func (r *repo) sign() {
	r.t.Helper()
	text := r.git("cat-file", "commit", "HEAD") + "\n"
	r.write(".git/signed", strings.Replace(text, "\n\n", "\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\n", 1))
	r.git("reset", "-q", "--soft", r.git("hash-object", "-t", "commit", "-w", ".git/signed"))
}

func (r *repo) read() (History, error) {
	return Read(r.t.Context(), filepath.Join(r.dir, "app"), func(string) string { return "" })
}

func pin(image, digest string) lock.Pin {
	return lock.Pin{Image: image, Digest: digest, ResolvedAt: t0}
}

func held(image, digest string, h lock.Hold) lock.Pin {
	p := pin(image, digest)
	p.Hold = &h
	return p
}

// line is an event as the tests compare it: "subject: moved a 1>2".
func line(e Event) string {
	digit := func(digest string) string { return strings.TrimPrefix(digest, "sha256:")[:min(1, len(digest))] }
	text := fmt.Sprintf("%s: %s %s %s>%s", e.Commit.Subject, e.Kind, strings.TrimSuffix(strings.TrimPrefix(e.Image, "a.io/"), ":latest"), digit(e.Old), digit(e.New))
	return strings.TrimSuffix(text, "  >")
}

// TestRead: a life of a lock, with what people and the companion do to it.
func TestRead(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	const companion = "\n\nDigestlock-Companion: v1.2.3"
	r.write("app/kustomization.yaml", "resources: []\n")
	r.commitAll("nothing yet")
	r.commit("build: first"+companion, pin(a, d1), pin(b, d1))
	moved := r.commit("build: second\n\nSome text."+companion, pin(a, d2), pin(b, d1))
	r.write("other", "x")
	r.commitAll("something else")
	hold := lock.Hold{Rejected: d2, Reason: "reverted", Until: t0}
	reverted := r.commit("back", held(a, d1, hold), pin(b, d1))
	r.write("app/"+lock.FileName, "<<<<<<< HEAD\n")
	r.commitAll("oops")
	r.commit("mend", held(a, d1, lock.Hold{Reason: "frozen"}), pin(b, d1))
	r.commit("drop\n\n"+strings.TrimSpace(companion)+"\n\nnot a trailer there", held(a, d1, lock.Hold{Reason: "frozen"}))
	r.git("checkout", "-q", "-b", "side")
	r.commit("on the side", pin(a, d1))
	r.commit("on the side again", pin(a, d3))
	r.git("checkout", "-q", "main")
	r.git("merge", "-q", "--no-ff", "-m", "merge it", "side")
	r.git("checkout", "-q", "-b", "idle", "HEAD^")
	r.write("more", "x")
	r.commitAll("not about locks")
	r.git("checkout", "-q", "main")
	r.git("merge", "-q", "--no-ff", "-m", "merge another", "idle")
	r.commit("gone")
	if err := os.Symlink("kustomization.yaml", filepath.Join(r.dir, "app", lock.FileName)); err != nil {
		t.Fatal(err)
	}
	r.commitAll("a link")
	if err := os.Remove(filepath.Join(r.dir, "app", lock.FileName)); err != nil {
		t.Fatal(err)
	}
	r.commit("again", pin(a, d2))
	r.write("app/"+lock.FileName, strings.Repeat("#", lock.MaxSize+100))
	r.commitAll("too large")
	r.commit("small", pin(a, d1))
	r.sign()
	r.write("app/"+lock.FileName, "not committed")

	got, err := r.read()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range got.Events {
		lines = append(lines, line(e))
	}
	want := []string{
		"small: reverted a 2>1",
		"too large: unreadable",
		"again: added a >2",
		"a link: unreadable",
		"gone: dropped a 3>",
		"merge it: moved a 1>3",
		"merge it: released a >3",
		"drop: dropped b 1>",
		"mend: held a >1",
		"oops: unreadable",
		"back: reverted a 2>1",
		"back: held a >1",
		"build: second: moved a 1>2",
		"build: first: added a >1",
		"build: first: added b >1",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Fatalf("events (-want +got):\n%s", diff)
	}
	if got.CutOff {
		t.Error("a whole history is cut off")
	}
	wantBack := []Event{
		{
			Commit: &Commit{Hash: reverted, Author: "Ada", Email: "ada@example.com", Subject: "back"},
			Kind:   Reverted, Image: a, Old: d2, New: d1, Undoes: moved,
		},
		{
			Commit: &Commit{Hash: reverted, Author: "Ada", Email: "ada@example.com", Subject: "back"},
			Kind:   Held, Image: a, New: d1, Hold: &hold,
		},
		{
			Commit: &Commit{Hash: moved, Author: "Ada", Email: "ada@example.com", Subject: "build: second", Companion: "v1.2.3"},
			Kind:   Moved, Image: a, Old: d1, New: d2,
		},
	}
	if diff := cmp.Diff(wantBack, got.Events[10:13], cmpopts.IgnoreFields(Commit{}, "When")); diff != "" {
		t.Errorf("the revert (-want +got):\n%s", diff)
	}
	if when := got.Events[12].Commit.When; !when.After(t0) || when.After(r.clock) {
		t.Errorf("committed at %v, not between %v and %v", when, t0, r.clock)
	}
	for i, want := range map[int]string{1: "more than the 1048576 a lock may have", 3: "is not a regular file", 9: "merge conflict marker"} {
		if e := got.Events[i]; !strings.Contains(e.Error, want) {
			t.Errorf("%s: error %q, want %q in it", line(e), e.Error, want)
		}
	}
	for i, e := range got.Events {
		if e.Commit.Merge != strings.HasPrefix(e.Commit.Subject, "merge") || (e.Commit.Companion != "") != (i >= 12) {
			t.Errorf("%s: merge %v, companion %q", line(e), e.Commit.Merge, e.Commit.Companion)
		}
	}
}

// TestShallow: what the first commit of a shallow clone did is not known, and the clone says that it is one.
func TestShallow(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.commit("one", pin(a, d1))
	r.commit("two", pin(a, d2))
	three := r.commit("three", held(a, d3, lock.Hold{Reason: "frozen"}))
	r.commit("four", pin(a, d2))
	clone := *r
	clone.dir = t.TempDir()
	r.git("clone", "-q", "--depth=3", "file://"+r.dir, clone.dir)
	got, err := clone.read()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range got.Events {
		lines = append(lines, line(e))
	}
	want := []string{"four: reverted a 3>2", "four: released a >2", "three: moved a 2>3", "three: held a >3", "two: known a >2"}
	if diff := cmp.Diff(want, lines); diff != "" || !got.CutOff || got.Events[0].Undoes != three {
		t.Errorf("cut off %v, undoes %s, events (-want +got):\n%s", got.CutOff, got.Events[0].Undoes, diff)
	}
	// Nor is it where that lock cannot be read; but what came after it is.
	r.write("app/"+lock.FileName, "?")
	r.commitAll("five")
	r.commit("six", pin(a, d1))
	r.write("other/"+lock.FileName, string((&lock.Document{Pins: []lock.Pin{pin(b, d1)}}).Format()))
	r.commitAll("seven")
	clone.dir = t.TempDir()
	r.git("clone", "-q", "--depth=3", "file://"+r.dir, clone.dir)
	for app, want := range map[string]string{"app": "six: known a >1", "other": "seven: added b >1"} {
		got, err := Read(t.Context(), filepath.Join(clone.dir, app), func(string) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		if line(got.Events[0]) != want {
			t.Errorf("%s: the newest event is %q, want %q", app, line(got.Events[0]), want)
		}
	}
}

// TestPartial: what a partial clone lacks is an error, and is not fetched.
func TestPartial(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.git("config", "uploadpack.allowFilter", "true")
	r.commit("one", pin(a, d1))
	r.commit("two", pin(a, d2))
	clone := *r
	clone.dir = t.TempDir()
	r.git("clone", "-q", "--filter=blob:none", "file://"+r.dir, clone.dir)
	_, err := clone.read()
	if fault.CodeOf(err) != fault.GitHistory || !strings.Contains(fault.Hint(err), "partial clone") {
		t.Errorf("Read = %v (%s), want an error about a partial clone", err, fault.Hint(err))
	}
	if missing := clone.git("rev-list", "--objects", "--missing=print", "HEAD"); !strings.Contains(missing, "\n?") {
		t.Errorf("the old lock was fetched:\n%s", missing)
	}
}

// TestOtherRepository: variables that lead git elsewhere, as in a hook, do not.
func TestOtherRepository(t *testing.T) {
	r, other := newRepo(t), newRepo(t)
	r.commit("one", pin(a, d1))
	other.commit("other", pin(b, d1))
	t.Setenv("GIT_DIR", filepath.Join(other.dir, ".git"))
	t.Setenv("GIT_WORK_TREE", other.dir)
	t.Setenv("GIT_TRACE", "1")
	got, err := Read(t.Context(), filepath.Join(r.dir, "app"), os.Getenv)
	if err != nil || len(got.Events) != 1 || line(got.Events[0]) != "one: added a >1" {
		t.Errorf("Read = %+v, %v, want what is in the directory", got, err)
	}
}

// TestErrors: each has its code, and says what to do.
func TestErrors(t *testing.T) {
	r := newRepo(t)
	tests := []struct {
		name, dir, path, want, hint string
	}{
		{"no checkout", t.TempDir(), "", "not a git repository", "give the directory of an overlay in a checkout"},
		{"no directory", filepath.Join(r.dir, "nope"), "", "No such file or directory", "give the directory of an overlay in a checkout"},
		{"the .git", filepath.Join(r.dir, ".git"), "", "not in a work tree", "give the directory of an overlay in a checkout"},
		{"no commit", r.dir, "", "does not have any commits yet", "see what \"git -C"},
		{"no git", r.dir, t.TempDir(), "executable file not found in $PATH", "install git"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.path != "" {
				t.Setenv("PATH", tt.path)
			}
			_, err := Read(t.Context(), tt.dir, func(string) string { return "" })
			if fault.CodeOf(err) != fault.GitHistory || !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(err), tt.hint) {
				t.Errorf("Read = %v (%s), want %q (%q)", err, fault.Hint(err), tt.want, tt.hint)
			}
		})
	}
}

// TestUntouched: no commit, no event, and no error.
func TestUntouched(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.write("app/kustomization.yaml", "resources: []\n")
	r.commitAll("one")
	got, err := r.read()
	if err != nil || got.Events == nil || len(got.Events) != 0 {
		t.Errorf("Read = %+v, %v, want an empty list", got, err)
	}
}
