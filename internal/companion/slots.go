package companion

import (
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// parallel bounds how much is under way at once with one Git server, and in all else. A server that hangs holds that
	// many of the slots that there are for all, so that it takes four of them to hold up the others.
	parallel   = 8
	everywhere = 4 * parallel
)

// each calls f for all items, some at a time, and returns when all calls have.
func each[T any](items []T, f func(i int, item T)) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, item := range items {
		g.Go(func() error {
			f(i, item)
			return nil
		})
	}
	_ = g.Wait() // f returns no error
}

// slots are those of one Git server, and those of all, of which it needs one too.
type slots struct{ own, all chan struct{} }

// eachAt is each for what is done at one Git server, whoever else does something there.
func eachAt[T any](s slots, items []T, f func(i int, item T)) {
	each(items, func(i int, item T) {
		s.own <- struct{}{}
		defer func() { <-s.own }()
		s.all <- struct{}{}
		defer func() { <-s.all }()
		f(i, item)
	})
}

// servers are the slots of each Git server, by host. It is safe for concurrent use.
type servers struct {
	all chan struct{}

	mu     sync.Mutex
	byHost map[string]chan struct{}
}

func newSlots() *servers {
	return &servers{all: make(chan struct{}, everywhere), byHost: map[string]chan struct{}{}}
}

// of returns the slots of a repository's server.
func (s *servers) of(repoURL string) slots {
	_, rest, _ := strings.Cut(normalise(repoURL), "://")
	host, _, _ := strings.Cut(rest, "/")
	host = host[strings.LastIndexByte(host, '@')+1:]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byHost[host] == nil {
		s.byHost[host] = make(chan struct{}, parallel)
	}
	return slots{s.byHost[host], s.all}
}
