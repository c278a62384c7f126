package companion

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/lock"
)

// Request asks for the commits of the branch Head to be taken into the branch Base of the same repository: a pull or merge
// request.
type Request struct {
	Head, Base  string
	Title, Body string // one line; Markdown
}

// CheckBranchName says why a name for branches beside others is of no use: it makes the branch itself of one, or the same of all, or
// what Git takes for no branch.
func CheckBranchName(name func(branch string) (string, error)) error {
	one, err := branchBeside(name, "main")
	if err != nil {
		return err
	}
	if other, err := branchBeside(name, "release"); err != nil || one == other {
		return cmp.Or(err, fmt.Errorf("it is %q for every branch", one))
	}
	return nil
}

func branchBeside(name func(string) (string, error), branch string) (string, error) {
	beside, err := name(branch)
	switch {
	case err != nil:
		return "", err
	case beside == branch:
		return "", fmt.Errorf("%q is the branch itself", beside)
	case !gitrepo.ValidBranch(beside):
		return "", fmt.Errorf("%q is no name of a branch", beside)
	}
	return beside, nil
}

// heads sets which branch each target's commits go to. It must be that one target's alone: two would undo each other's
// work, and what is followed itself is not for the companion to move sideways.
func (c *Companion) heads(targets []*target) {
	if c.o.PushBranch == nil {
		return
	}
	taken := map[string]int{}
	for _, t := range targets {
		taken[t.key()]++
		if t.records == nil {
			t.head, t.refused = branchBeside(c.o.PushBranch, t.branch)
			taken[t.at(t.head)]++
		}
	}
	for _, t := range targets {
		if t.head != "" && taken[t.at(t.head)] > 1 {
			t.refused = fmt.Errorf("%q is followed by an Application, a lock branch, or the push branch of two", t.head)
		}
		if t.refused != nil {
			t.refused = fault.New(fault.Usage, "mend the template of --push-branch, as in digestlock/{{.Branch}}", "push branch: %w", t.refused)
		}
	}
}

// proposal is what the companion last opened a request for. The page is "" when that was another process.
type proposal struct{ commit, page string }

// propose brings the push branch up to date, which is one commit on top of tip, and has a request lead from there to the
// branch. The push branch stays where it is as long as it says what the locks are to be and can be merged: to follow each
// commit to the branch would throw reviews away.
func (u *updater) propose(ctx context.Context, tip *gitrepo.Snapshot, change gitrepo.Change, moves []move, after map[string]*lock.Document) error {
	log := history{tip: tip}
	head, err := u.head(ctx, &log)
	if err != nil {
		return fmt.Errorf("push branch %s: %w", u.target.head, err)
	}
	change.Onto, change.Mark = u.target.head, false
	var commit string
	if head != nil {
		change.OntoAt = head.Commit()
		said, err := u.says(ctx, &log, head, after)
		if err != nil {
			return err
		}
		if said {
			commit = head.Commit()
		}
	}
	if commit == "" {
		if u.waits = u.branch.pause.wait(u.quiet, change.Message, change.When); u.waits {
			return nil
		}
		if commit, err = tip.Push(ctx, change); err != nil {
			return err
		}
		u.committed(commit, change)
	} else if head.MarkIsHere() && u.branch.proposed.commit != commit { // by another process
		u.branch.proposed = proposal{commit: commit}
	}
	u.branch.pause.settled(u.branch.at)
	u.request(ctx, commit, change.Message, moves)
	return nil
}

// head returns the push branch, nil when there is no such branch. A last commit that would be lost, because no companion
// made it, is an error.
func (u *updater) head(ctx context.Context, log *history) (*gitrepo.Snapshot, error) {
	s, err := u.target.repository.Remote.Read(ctx, u.target.head)
	if errors.Is(err, gitrepo.ErrBranch) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	last, err := s.Log(ctx, 1)
	if err != nil {
		return nil, err
	}
	if byUs(last[0]) {
		return s, nil
	}
	if err := log.read(ctx); err != nil {
		return nil, err
	}
	if log.find(s.Commit()) == nil {
		return nil, fault.New(fault.GitBranch, "merge it, or delete the branch: the companion makes it anew, and throws nobody's commit away",
			"its last commit, %s by %s, was made by no companion", last[0].Hash[:7], oneLine(last[0].Author.Name))
	}
	return s, nil
}

// says reports whether the push branch has the locks as they are to be and can be merged: what it was made from is in the
// branch's history, and the locks there have not changed since.
func (u *updater) says(ctx context.Context, log *history, pushed *gitrepo.Snapshot, after map[string]*lock.Document) (bool, error) {
	last, err := pushed.Log(ctx, 1)
	if err != nil {
		return false, err
	}
	if err := log.read(ctx); err != nil {
		return false, err
	}
	head := last[0]
	if len(head.Parents) != 1 {
		return false, nil
	}
	base := log.find(head.Parents[0])
	if base == nil {
		return false, nil
	}
	files := lockFiles(after)
	before, err := base.Files(ctx, files)
	if err != nil {
		return false, err
	}
	now, err := log.tip.Files(ctx, files)
	if err != nil || !maps.EqualFunc(before, now, bytes.Equal) {
		return false, err
	}
	if _, err := head.Files(ctx, files); err != nil { // all in one round trip
		return false, err
	}
	for dir, doc := range after {
		if said, err := lockAt(ctx, head, dir); err != nil || !agree(doc, said) {
			return false, err
		}
	}
	return true, nil
}

func lockFiles(locks map[string]*lock.Document) []string {
	var files []string
	for dir := range locks {
		files = append(files, lockFile(dir))
	}
	slices.Sort(files)
	return files
}

// agree reports whether two locks, nil for none, have the same images at the same digests under the same holds. When each
// was looked up does not matter: it changes with every cycle.
func agree(a, b *lock.Document) bool {
	if a == nil || b == nil {
		return a == b
	}
	return len(lock.Diff(a, b)) == 0 && !slices.ContainsFunc(a.Pins, func(p lock.Pin) bool {
		q, _ := b.Find(p.Image)
		return !reflect.DeepEqual(p.Hold, q.Hold)
	})
}

// request has a request lead from commit, where the push branch is, to the branch, once: a person who closes it has decided,
// until there is something else to decide. The mark of the push branch is where that is kept for the next process.
func (u *updater) request(ctx context.Context, commit, message string, moves []move) {
	ensure := u.target.repository.Ensure
	if ensure != nil && u.branch.proposed.commit != commit {
		title, body := requestText(message)
		page, created, err := ensure(ctx, Request{Head: u.target.head, Base: u.target.branch, Title: title, Body: body})
		if err != nil {
			u.leave(everyPath, err)
			return
		}
		u.c.o.Log.Info("request is open", "repository", u.target.repository.URL, "branch", u.target.branch, "request", page, "created", created)
		u.branch.proposed = proposal{commit, page}
		u.mark(ctx, commit)
		u.announce(ctx, page, moves)
	}
	u.page = u.branch.proposed.page
}

// mark notes in Git that a request was opened for commit. Without, one that is closed comes back after a restart, once.
func (u *updater) mark(ctx context.Context, commit string) {
	head, err := u.target.repository.Remote.Read(ctx, u.target.head)
	if err == nil && head.Commit() == commit {
		err = cmp.Or(head.Mark(ctx), u.target.repository.Remote.MarkRefused(u.target.head))
	}
	if err != nil {
		u.c.o.Log.Warn("cannot mark the push branch, a request that is closed comes back after a restart", "branch", u.target.head, "error", err,
			"code", fault.CodeOf(err), "hint", fault.Hint(err))
	}
}

// requestText returns what a request says of a commit with that message. Foreign words are kept from being Markdown, that
// they mention nobody. The trailer is a line of its own, because forges make the message of a squashed commit of this text.
func requestText(message string) (title, body string) {
	title, rest, _ := strings.Cut(message, "\n")
	text, version, _ := strings.Cut(rest, "\n"+trailer)
	if text = strings.Trim(text, "\n"); text != "" {
		body = "```text\n" + text + "\n```\n\n"
	}
	return title, body + "Kept up to date by digestlock-companion. Merge it to adopt this; once closed, it comes back when there is something new.\n\n" +
		trailer + " " + strings.TrimSpace(version) + "\n"
}
