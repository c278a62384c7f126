package soak

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/lock"
)

// judge reads how a branch moved, in the order in which the server did it, and knows from that alone what may come next.
type judge struct {
	w      *world
	repo   *gittest.Repo
	paths  int             // that are to have a lock
	resets map[string]bool // that people may have pushed, as both commits
	read   int             // bytes of the reflog
	locks  map[string]*lock.Document
	pins   map[string]*past // by path and image
	seen   map[string]int
}

// past is what people decided about a pin: the digests that they moved it away from, ever, and since they last let it go.
type past struct{ ever, now map[string]bool }

func newJudge(w *world, r *gittest.Repo, paths int) *judge {
	return &judge{w: w, repo: r, paths: paths, resets: map[string]bool{}, locks: map[string]*lock.Document{}, pins: map[string]*past{}, seen: map[string]int{}}
}

// look judges what happened since the last look.
func (j *judge) look(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(j.repo.Dir, "logs/refs/heads/main"))
	if err != nil {
		t.Fatal(err)
	}
	end := strings.LastIndexByte(string(data), '\n') + 1
	for line := range strings.Lines(string(data[j.read:end])) {
		from, rest, _ := strings.Cut(line, " ")
		to, _, _ := strings.Cut(rest, " ")
		j.move(t, from, to)
	}
	j.read = end
}

// move judges one move of the branch.
func (j *judge) move(t *testing.T, from, to string) {
	t.Helper()
	if strings.Trim(from, "0") == "" {
		return // the first commit
	}
	parents, message, _ := strings.Cut(j.repo.Git(t, "log", "-1", "--format=%P%n%B", to), "\n")
	message = strings.TrimSpace(message)
	ours := strings.HasPrefix(message[strings.LastIndexByte(message, '\n')+1:], lock.Trailer+":")
	switch {
	case parents == from && ours:
		j.seen["commits of companions"]++
	case parents == from:
		j.seen["commits of people"]++
	case j.resets[from+to]:
		ours = false
		j.seen["resets"]++
	default:
		t.Errorf("the branch moved from %s to %s, whose parents are %q: something is lost", from, to, parents)
	}
	differ := false
	for line := range strings.Lines(j.repo.Git(t, "diff-tree", "-r", "--no-renames", from, to)) {
		fields := strings.Fields(line) // :mode mode hash hash status path
		file := fields[5]
		if path.Base(file) == lock.FileName {
			differ = j.lock(t, to, file, fields[3], ours) || differ
		} else if ours {
			t.Errorf("commit %s of a companion changes %s", to, file)
		}
	}
	if ours && !differ {
		t.Errorf("commit %s of a companion changes no pin", to)
	}
}

// lock judges how a commit changed a lock, and says whether any pin differs.
func (j *judge) lock(t *testing.T, commit, file, blob string, ours bool) bool {
	t.Helper()
	text := j.repo.Git(t, "cat-file", "blob", blob)
	doc, err := lock.Parse(file, []byte(text))
	if err != nil {
		t.Errorf("commit %s: %v", commit, err)
		return true
	}
	if ours && strings.TrimSpace(string(doc.Format())) != text {
		t.Errorf("commit %s: %s is not canonical:\n%s", commit, file, text)
	}
	before := j.locks[file]
	j.locks[file] = doc
	if before != nil && len(before.Pins) != len(doc.Pins) {
		t.Errorf("commit %s: %s had %d pins and has %d", commit, file, len(before.Pins), len(doc.Pins))
	}
	differ := false
	for _, p := range doc.Pins {
		q, _ := before.Find(p.Image)
		if q.Digest == p.Digest && rejected(q) == rejected(p) {
			continue
		}
		differ = true
		key := file + " " + p.Image
		if j.pins[key] == nil {
			j.pins[key] = &past{map[string]bool{}, map[string]bool{}}
		}
		if ours {
			j.companion(t, commit, file, q, p)
		} else {
			j.pins[key].person(q, p)
		}
	}
	return differ
}

// rejected is what tells holds apart.
func rejected(p lock.Pin) string {
	if p.Hold == nil {
		return "nothing"
	}
	return p.Hold.Rejected
}

// person notes what somebody decided: a digest is taken away, put back, or let go with the hold that kept it out.
func (x *past) person(from, to lock.Pin) {
	switch {
	case rejected(from) == rejected(to):
	case to.Hold == nil, rejected(from) == "":
		clear(x.now)
	default:
		delete(x.now, rejected(from))
	}
	if from.Digest != to.Digest {
		x.ever[from.Digest], x.now[from.Digest] = true, true
		delete(x.now, to.Digest)
	}
}

// companion judges what a companion did to one pin.
func (j *judge) companion(t *testing.T, commit, file string, from, to lock.Pin) {
	t.Helper()
	bad := func(what string) {
		t.Helper()
		t.Errorf("commit %s of a companion: %s: %s\nfrom %s\nto   %s\nafter\n%s", commit, file, what, j.text(from), j.text(to),
			j.repo.Git(t, "log", "-20", "--format=%h %cd %an: %s", "--date=iso", "--name-only", commit))
	}
	x := j.pins[file+" "+to.Image]
	n, _ := j.w.pushed(to.Image, to.Digest)
	before, _ := j.w.pushed(from.Image, from.Digest)
	switch {
	case n == 0:
		bad("a digest that was never pushed")
	case from.Digest != to.Digest && x.now[to.Digest]:
		bad("a digest again that a person took away")
	case from.Digest != to.Digest && n <= before:
		bad("back to an older push")
	case from.Digest != to.Digest && from.Hold.Keeps(to.Digest, time.Now()):
		bad("moved in spite of a hold")
	case from.Digest != to.Digest && to.Hold != nil:
		bad("moved and held at once")
	case from.Digest == to.Digest && to.Hold == nil:
		bad("a hold taken away")
	case from.Digest == to.Digest && !x.ever[to.Hold.Rejected]:
		bad("a hold for what nobody did")
	}
	if to.Hold != nil {
		j.seen["holds of companions"]++
	}
}

// text is what a failure says of a pin.
func (j *judge) text(p lock.Pin) string {
	n, _ := j.w.pushed(p.Image, p.Digest)
	text := fmt.Sprintf("%s at push %d, %s, seen %v", p.Image, n, p.Digest, p.ResolvedAt)
	if p.Hold != nil {
		n, _ = j.w.pushed(p.Image, p.Hold.Rejected)
		text += fmt.Sprintf(", held against push %d, %s: %s", n, p.Hold.Rejected, p.Hold.Reason)
	}
	return text
}

// open returns the pins that are not where they belong: at the last push, unless a hold keeps them.
func (j *judge) open() []string {
	var open []string
	if len(j.locks) != j.paths {
		open = append(open, "not every path has a lock")
	}
	for file, doc := range j.locks {
		for _, p := range doc.Pins {
			if _, last := j.w.pushed(p.Image, p.Digest); !last && !p.Hold.Keeps(j.w.last(p.Image), time.Now()) {
				open = append(open, file+": "+p.Image+" at "+p.Digest)
			}
		}
	}
	return open
}
