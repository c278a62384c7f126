package companion

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/digestlock/digestlock/internal/fault"
)

// sum makes one error of all that could not be done, whose text and hint are a line each: several are numbered, so that
// a hint finds its problem. It returns nil for none.
func sum(all []error) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	var hints, numbered []string
	for i, p := range all {
		if h := fault.Hint(p); h != "" {
			hints = append(hints, h)
			numbered = append(numbered, fmt.Sprintf("(%d) %s", i+1, h))
		}
	}
	switch distinct := slices.Compact(slices.Sorted(slices.Values(hints))); len(distinct) {
	case 0:
		return problems(all)
	case 1:
		return fault.New(fault.CodeOf(problems(all)), distinct[0], "%w", problems(all))
	}
	return fault.New(fault.CodeOf(problems(all)), strings.Join(numbered, "; "), "%w", problems(all))
}

type problems []error

func (p problems) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems: ", len(p))
	for i, err := range p {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "(%d) %v", i+1, err)
	}
	return b.String()
}

func (p problems) Unwrap() []error { return p }

// said is what was said in the last cycle and the one under way: what stays so is said once. The zero value knows of nothing.
// It is safe for concurrent use.
type said struct {
	mu        sync.Mutex
	last, now map[string]bool
}

// fresh notes what there is to say, and reports whether it is new.
func (s *said) fresh(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		s.now = map[string]bool{}
	}
	known := s.last[what] || s.now[what]
	s.now[what] = true
	return !known
}

// ended ends a cycle, and forgets what it has not noted.
func (s *said) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.now = s.now, nil
}

// refuse notes that renders of a place are refused. It counts its sources, and reports whether to say so, once while that
// stays so: a resolver remembers for days what is no more.
func (c *Companion) refuse(sources int, place ...string) bool {
	fresh := c.said.fresh(fmt.Sprintf("%q", place))
	if fresh {
		c.metrics.refused.Add(float64(sources))
	}
	return fresh
}
