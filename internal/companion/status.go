package companion

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/lock"
)

// Status is where everything stood at the end of the last cycle. It is made to be shown as JSON.
type Status struct {
	Began    time.Time      `json:"began,omitzero"` // of the last cycle
	Ended    time.Time      `json:"ended,omitzero"`
	Problems []string       `json:"problems,omitempty"` // what it could not do
	Branches []BranchStatus `json:"branches"`           // sorted by repository and branch
}

// BranchStatus is one branch of one repository that the companion writes to.
type BranchStatus struct {
	Repository string         `json:"repository"`
	Branch     string         `json:"branch"`
	Tip        string         `json:"tip"`
	Records    string         `json:"records,omitempty"`    // of a lock branch: the followed one, whose renders its pins are
	PushBranch string         `json:"pushBranch,omitempty"` // where commits go in place of Branch
	Request    string         `json:"request,omitempty"`    // the page of the one from there, while it has something to ask for
	LastCommit *CommitStatus  `json:"lastCommit,omitempty"` // of this process
	Waits      time.Time      `json:"waitsUntil,omitzero"`  // when what changed is committed at the latest that is known now
	Problems   []string       `json:"problems,omitempty"`
	Sources    []SourceStatus `json:"sources"` // sorted by path and Application
	Pins       []PinStatus    `json:"pins"`    // sorted by path and image
}

// CommitStatus is one commit that was pushed.
type CommitStatus struct {
	Hash    string    `json:"hash"`
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
}

// SourceStatus is one source of an Application.
type SourceStatus struct {
	Application string    `json:"application"`
	Project     string    `json:"project"`
	Path        string    `json:"path"`
	Mode        string    `json:"mode"`
	Revision    string    `json:"revision,omitempty"` // the commit of its last render; "" when no resolver knows of one
	RenderedAt  time.Time `json:"renderedAt,omitzero"`
}

// PinStatus is one pin of a lock, and where its tag stands.
type PinStatus struct {
	Path     string    `json:"path"`
	Image    string    `json:"image"`
	Digest   string    `json:"digest"`
	Since    time.Time `json:"resolvedAt"`
	Tag      string    `json:"tag,omitempty"` // the digest that the tag stands at; "" when that is not known
	Drift    bool      `json:"drift"`         // the two differ
	Rejected string    `json:"rejected,omitempty"`
	Reason   string    `json:"reason,omitempty"` // of the hold that keeps the pin
	Held     bool      `json:"held"`
}

// Status returns where everything stood at the end of the last cycle.
func (c *Companion) Status() Status {
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	s := c.board.status
	s.Branches = append([]BranchStatus{}, s.Branches...)
	return s
}

// board is where cycles write down what Status shows.
type board struct {
	mu     sync.Mutex
	status Status
}

func (b *board) branches(updates []*updater) {
	all := make([]BranchStatus, len(updates))
	for i := range updates {
		all[i] = updates[i].status()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Branches = all
}

func (b *board) ended(began time.Time, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Began, b.status.Ended, b.status.Problems = began.UTC(), time.Now().UTC(), texts(o.problems)
}

func texts(problems []error) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Error())
	}
	return all
}

func (u *updater) status() BranchStatus {
	s := BranchStatus{
		Repository: lock.WithoutUser(u.target.repository.URL), Branch: u.target.branch, Tip: u.tip.Commit(), PushBranch: u.target.head, Request: u.page,
		Problems: texts(u.problems), Sources: []SourceStatus{}, Pins: []PinStatus{},
	}
	if r := u.target.records; r != nil {
		s.Records = r.Branch()
	}
	if c := u.branch.last; c != nil {
		subject, _, _ := strings.Cut(c.Message, "\n")
		s.LastCommit = &CommitStatus{Hash: c.Hash, Subject: subject, At: u.branch.at.UTC()}
	}
	if u.commit != nil && u.target.head == "" {
		s.Tip = u.commit.Hash
	}
	if u.waits {
		s.Waits = u.branch.pause.due.UTC()
	}
	for _, dir := range slices.Sorted(maps.Keys(u.target.paths)) {
		for _, source := range u.target.paths[dir].sources {
			s.Sources = append(s.Sources, source.status())
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(u.locks)) {
		s.Pins = append(s.Pins, u.pins(dir, u.locks[dir])...)
	}
	return s
}

func (s source) status() SourceStatus {
	out := SourceStatus{Application: s.Name, Project: s.Project, Path: path.Clean(s.Path), Mode: s.Mode}
	if len(s.renders) > 0 {
		out.Revision, out.RenderedAt = s.renders[0].Source.Revision, s.renders[0].Source.RenderedAt
	}
	return out
}

func (u *updater) pins(dir string, doc *lock.Document) []PinStatus {
	if doc == nil {
		return nil
	}
	var all []PinStatus
	for _, p := range doc.Pins {
		s := PinStatus{Path: dir, Image: p.Image, Digest: p.Digest, Since: p.ResolvedAt.UTC(), Held: p.Hold != nil}
		if p.Hold != nil {
			s.Rejected, s.Reason = p.Hold.Rejected, p.Hold.Reason
		}
		s.Tag = u.looks.stands(u.target.paths[dir].projects(), p.Image).Digest
		s.Drift = s.Tag != "" && s.Tag != p.Digest
		all = append(all, s)
	}
	return all
}
