package soak

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/digestlock/digestlock/internal/lock"
)

var deployed = regexp.MustCompile(`image: (\S+)@(sha256:\S+)`)

// render renders a path at the tip of its branch, as Argo CD would for one of the two Applications that it has, and
// reports to a resolver. What is in the lock comes out, whoever is dead.
func (w *world) render(r *repo, path string, resolver int) {
	commit := r.Git(w.t, "rev-parse", "main")
	dir, err := os.MkdirTemp(filepath.Join(w.dir, "_cmp_server"), "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range strings.Fields(r.Git(w.t, "ls-tree", "--name-only", commit+":"+path)) {
		content := r.Git(w.t, "show", commit+":"+path+"/"+name) + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), settle)
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "digestlock"), "generate", //nolint:gosec // ours
		"--server=unix://"+w.socket(resolver), dir)
	cmd.Env = w.environ("ARGOCD_APP_NAME="+fmt.Sprintf("%s-%d", strings.ReplaceAll(path, "/", "-"), rand.IntN(2)), "ARGOCD_APP_PROJECT_NAME=default",
		"ARGOCD_APP_SOURCE_REPO_URL="+r.URL, "ARGOCD_APP_SOURCE_TARGET_REVISION=main", "ARGOCD_APP_SOURCE_PATH="+path, "ARGOCD_APP_REVISION="+commit)
	w.busy.Go(func() {
		defer cancel()
		defer func() { _ = os.RemoveAll(dir) }()
		w.rendered(cmd, dir)
	})
}

func (w *world) rendered(cmd *exec.Cmd, dir string) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var doc *lock.Document
	if data, missing := os.ReadFile(filepath.Join(dir, lock.FileName)); missing == nil {
		if doc, missing = lock.Parse(lock.FileName, data); missing != nil {
			w.t.Errorf("render of a broken lock: %v", missing)
			return
		}
	}
	if err != nil {
		w.count("render failed")
		if doc != nil || len(out) > 0 {
			w.t.Errorf("render with everything in the lock: %v, with %d bytes of output\n%s", err, len(out), &stderr)
		}
		return
	}
	w.count("render")
	found := deployed.FindAllStringSubmatch(string(out), -1)
	if len(found) != strings.Count(string(out), "image: ") || len(found) == 0 {
		w.t.Errorf("not every image has a digest:\n%s", out)
	}
	for _, m := range found {
		image, digest := m[1], m[2]
		p, locked := doc.Find(image)
		if n, _ := w.pushed(image, digest); locked && p.Digest != digest || n == 0 {
			w.t.Errorf("%s is rendered with %s, the lock has %q, and it is push %d", image, digest, p.Digest, n)
		}
	}
}

// person has somebody do something to the branch, from a checkout that may be out of date by the time of the push.
func (w *world) person(r *repo) {
	r.person.Git(w.t, "fetch", "--quiet", "origin", "main")
	r.person.Git(w.t, "reset", "--quiet", "--hard", "FETCH_HEAD")
	tip := r.person.Git(w.t, "rev-parse", "HEAD")
	actions := []struct {
		name string
		do   func(r *repo) bool
	}{{"commit", w.note}, {"revert", w.revert}, {"edit", w.edit}, {"reset", w.reset}, {"hold", w.hold}, {"release", w.release}, {"release", w.release}}
	a := actions[rand.IntN(len(actions))]
	if !a.do(r) {
		return
	}
	now := r.person.Git(w.t, "rev-parse", "HEAD")
	if a.name == "reset" {
		r.judge.resets[tip+now] = true
	}
	if err := r.try("push", "--quiet", "--force-with-lease=main:"+tip, "origin", "HEAD:main"); err != nil {
		w.count("a person's " + a.name + " came too late")
		return
	}
	w.count("a person's " + a.name)
}

// try runs git in the person's checkout.
func (r *repo) try(args ...string) error {
	cmd := exec.Command("git", args...) //nolint:noctx // it ends by itself
	cmd.Dir = r.person.Dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.person.Dir, "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=A Person", "GIT_AUTHOR_EMAIL=person@example.com", "GIT_COMMITTER_NAME=A Person", "GIT_COMMITTER_EMAIL=person@example.com",
	}
	return cmd.Run()
}

func (r *repo) commit(w *world, message string) bool {
	r.person.Git(w.t, "add", "--all")
	return r.try("commit", "--quiet", "--message", message) == nil
}

// note has the branch move for a reason of its own.
func (w *world) note(r *repo) bool {
	r.person.Write(w.t, "README.md", fmt.Sprint(rand.Int64()))
	return r.commit(w, "say something")
}

// revert reverts one of the companion's last commits that moved a pin.
func (w *world) revert(r *repo) bool {
	commits := strings.Fields(r.person.Git(w.t, "log", "-5", "--format=%H", "--grep=^"+lock.Trailer+":", "--diff-filter=M", "--", "apps"))
	if len(commits) == 0 {
		return false
	}
	commit := commits[rand.IntN(len(commits))]
	if r.person.Git(w.t, "log", "-1", "--format=%H", "--diff-filter=A", commit) == commit {
		return false // a first lock: nobody had decided anything
	}
	if r.try("revert", "--no-edit", commit) != nil {
		_ = r.try("revert", "--abort")
		return false
	}
	return true
}

// reset takes the companion's last commit off the branch, if that is the last.
func (w *world) reset(r *repo) bool {
	if !strings.Contains(r.person.Git(w.t, "log", "-1", "--format=%B"), lock.Trailer+":") ||
		r.person.Git(w.t, "log", "-1", "--format=%H", "--diff-filter=A") == r.person.Git(w.t, "rev-parse", "HEAD") {
		return false
	}
	r.person.Git(w.t, "reset", "--quiet", "--hard", "HEAD~1")
	return true
}

// some returns a pin of a lock, false where there is none yet.
func (w *world) some(r *repo) (path string, p lock.Pin, ok bool) {
	path = r.paths[rand.IntN(len(r.paths))]
	data, err := os.ReadFile(filepath.Join(r.person.Dir, path, lock.FileName))
	if err != nil {
		return "", lock.Pin{}, false
	}
	doc, err := lock.Parse(lock.FileName, data)
	if err != nil {
		w.t.Fatal(err)
	}
	return path, doc.Pins[rand.IntN(len(doc.Pins))], true
}

// edit puts an older digest into a lock by hand.
func (w *world) edit(r *repo) bool {
	path, p, ok := w.some(r)
	if !ok {
		return false
	}
	older := w.older(p.Image, p.Digest)
	if older == "" || p.Hold != nil && p.Hold.Rejected == older {
		return false
	}
	file := filepath.Join(path, lock.FileName)
	data, err := os.ReadFile(filepath.Join(r.person.Dir, file))
	if err != nil {
		w.t.Fatal(err)
	}
	r.person.Write(w.t, file, strings.Replace(string(data), "digest: "+p.Digest, "digest: "+older, 1))
	return r.commit(w, "go back")
}

func (w *world) hold(r *repo) bool {
	path, p, ok := w.some(r)
	if !ok {
		return false
	}
	args := []string{p.Image, filepath.Join(r.person.Dir, path), "--reason=soak"}
	if older := w.older(p.Image, p.Digest); older != "" && rand.IntN(2) == 0 {
		args = append(args, "--digest="+older)
	}
	w.digestlock("hold", args...)
	return r.commit(w, "hold")
}

func (w *world) release(r *repo) bool {
	path, p, ok := w.some(r)
	if !ok || p.Hold == nil {
		return false
	}
	w.digestlock("release", p.Image, filepath.Join(r.person.Dir, path))
	return r.commit(w, "release")
}

// digestlock runs what must not fail.
func (w *world) digestlock(command string, args ...string) {
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(w.bin, "digestlock"), append([]string{command}, args...)...) //nolint:gosec // ours
	cmd.Env = w.environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Errorf("digestlock %s: %v\n%s", command, err, out)
	}
}
