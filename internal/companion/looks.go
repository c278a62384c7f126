package companion

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	// maxAsk is how many images one question holds, all of one registry, and maxQuestions how many questions about a
	// registry are under way at once. A resolver asks a registry for 50 images a second by default, and gives a question
	// 15 s: all that is asked at once is answered in that time.
	maxAsk       = 100
	maxQuestions = 4
	// maxAtOnce is how many questions are under way in all: whoever can write an Application can invent registries.
	maxAtOnce = 64

	// patience is how long a cycle of Run waits for looks. What comes later is for the next one, so that no number of images
	// and no registry that does not answer makes anybody's push late.
	patience = 2 * time.Second
	// grace is what is left of it when somebody waits for this cycle or the next. A resolver that knows where a tag stands
	// says so within it.
	grace = 250 * time.Millisecond
)

// maxSkew is how far a resolver's clock may be ahead of ours. A pin from the future would not move before it is past.
const maxSkew = 5 * time.Minute

// look is an image as the credentials of one project see it: a lock must never learn what only another project may
// read.
type look struct{ project, image string }

// sights are where the tags stood when they were last looked at. They outlive a cycle, as questions do that it does not wait
// for. It is safe for concurrent use.
type sights struct {
	changed func() // is called when an answer that no cycle waits for is news

	questions sync.WaitGroup // under way
	atOnce    chan struct{}  // those that are not urgent

	mu       sync.Mutex               // guards the rest
	newest   map[look]lock.Pin        // of all replicas' looks; none when the image cannot be resolved
	asked    map[look]*question       // and not answered
	wanted   map[look]bool            // since keep
	missing  map[look]bool            // of those wanted, that cannot be resolved, once told
	turns    map[string]chan struct{} // of questions that are not urgent, by registry
	problems []error                  // of replicas
}

// question is what the replicas are asked about images of one project and registry.
type question struct {
	looks    *looks // of the cycle that asks
	project  string
	refs     []image.Ref
	urgent   bool
	answered chan struct{} // closed when newest has what they said
	left     bool          // guarded by sights.mu: a cycle has given up waiting
}

// newLooks returns those of a cycle that has as long as it takes.
func (s *sights) newLooks(life context.Context, replicas []Replica, log *slog.Logger) *looks {
	return &looks{
		sights: s, log: log, replicas: replicas, life: life, flushed: func(string) bool { return false }, mine: map[look]*question{}, failed: map[int]bool{},
	}
}

// hasten has a cycle wait for what was flushed, and not long for the rest.
func (l *looks) hasten(r *rings) {
	l.patience, l.hurry, l.flushed = patience, r.next, r.flushed.covers
	if len(r.flushed) > 0 {
		l.patience = grace
	}
}

func newSights(changed func()) *sights {
	return &sights{changed: changed, atOnce: make(chan struct{}, maxAtOnce), newest: map[look]lock.Pin{}, asked: map[look]*question{}, wanted: map[look]bool{}, missing: map[look]bool{}, turns: map[string]chan struct{}{}}
}

// keep forgets what nobody has asked for since it was last called, and returns what replicas failed at since.
func (s *sights) keep() (problems []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.newest, func(w look, _ lock.Pin) bool { return !s.wanted[w] })
	maps.DeleteFunc(s.missing, func(w look, _ bool) bool { return !s.wanted[w] })
	s.wanted = map[look]bool{}
	maps.DeleteFunc(s.turns, func(_ string, turns chan struct{}) bool { return len(turns) == 0 })
	problems, s.problems = s.problems, nil
	return problems
}

// looks are what a cycle asks the replicas for. Each image is asked for once, however many branches and attempts need it,
// and a replica that fails is asked no more. It is safe for concurrent use.
type looks struct {
	*sights

	log      *slog.Logger
	replicas []Replica
	life     context.Context // of questions, which outlive the cycle; not of those who wait
	flushed  func(image string) bool
	patience time.Duration   // 0 for as long as it takes
	hurry    <-chan struct{} // closed when somebody waits for the next cycle

	mine   map[look]*question // guarded by sights.mu
	failed map[int]bool       // of replicas, by index; guarded by sights.mu
}

// at returns where the tags stand, without those that cannot be resolved: their pins stay. What was flushed is waited for,
// the rest for as long as there is patience; then what is known counts.
func (l *looks) at(ctx context.Context, wanted map[look]bool) map[look]lock.Pin {
	flushed, others := l.ask(wanted, l.flushed)
	l.await(ctx, flushed)
	l.awaitPatiently(ctx, others)
	l.mu.Lock()
	defer l.mu.Unlock()
	pins := map[look]lock.Pin{}
	for w := range wanted {
		if p, ok := l.newest[w]; ok {
			pins[w] = p
		}
	}
	return pins
}

// stands returns where the tag of an image stands as those projects see it, and since when that is known; the zero Pin when
// it is not.
func (l *looks) stands(projects []string, image string) lock.Pin {
	l.mu.Lock()
	defer l.mu.Unlock()
	var newest lock.Pin
	for _, project := range projects {
		if p := l.newest[look{project, image}]; p.ResolvedAt.After(newest.ResolvedAt) {
			newest = p
		}
	}
	return newest
}

// surely is stands for what is to be decided for good: it waits for an answer.
func (l *looks) surely(ctx context.Context, projects []string, image string) lock.Pin {
	wanted := map[look]bool{}
	for _, project := range projects {
		wanted[look{project, image}] = true
	}
	asked, _ := l.ask(wanted, func(string) bool { return true })
	l.await(ctx, asked)
	return l.stands(projects, image)
}

// ahead asks for all images of a repository that were rendered before the time of any branch runs: what only a lock names
// is asked for by its branch.
func (l *looks) ahead(ctx context.Context, targets []*target) {
	wanted := map[look]bool{}
	for _, t := range targets {
		for _, o := range t.paths {
			for _, project := range o.projects() {
				for _, p := range o.pins {
					wanted[look{project, p.Image}] = true
				}
			}
		}
	}
	l.at(ctx, wanted)
}

// ask begins to ask for what this cycle has not asked for, unless the cycle before has and it is not urgent. It returns the
// questions that are not answered yet.
func (l *looks) ask(wanted map[look]bool, isUrgent func(image string) bool) (urgent, others []*question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	type batch struct {
		project, registry string
		urgent            bool
	}
	batches := map[batch][]image.Ref{}
	found := map[*question]bool{}
	for w := range wanted {
		ref, err := image.Parse(w.image)
		if err != nil || ref.String() != w.image {
			continue // a pin is checked when it is read
		}
		l.wanted[w] = true
		hasty := isUrgent(w.image)
		q := l.mine[w]
		if pending := l.asked[w]; q == nil && pending != nil && !hasty {
			q = pending
			l.mine[w] = q
		}
		if q == nil || hasty && !q.urgent && !closed(q.answered) {
			b := batch{w.project, ref.Registry, hasty}
			batches[b] = append(batches[b], ref)
		} else if !closed(q.answered) {
			found[q] = true
		}
	}
	for b, refs := range batches {
		slices.SortFunc(refs, func(a, b image.Ref) int {
			return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Tag, b.Tag))
		})
		for some := range slices.Chunk(refs, maxAsk) {
			q := &question{looks: l, project: b.project, refs: some, urgent: b.urgent, answered: make(chan struct{})}
			for _, ref := range some {
				w := look{b.project, ref.String()}
				l.mine[w], l.asked[w] = q, q
			}
			found[q] = true
			turns := l.turns[b.registry]
			if turns == nil {
				turns = make(chan struct{}, maxQuestions)
				l.turns[b.registry] = turns
			}
			l.questions.Go(func() { q.run(turns) })
		}
	}
	for q := range found {
		if q.urgent {
			urgent = append(urgent, q)
		} else {
			others = append(others, q)
		}
	}
	return urgent, others
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (l *looks) await(ctx context.Context, questions []*question) {
	for _, q := range questions {
		select {
		case <-q.answered:
		case <-ctx.Done():
		}
	}
}

// awaitPatiently gives up when patience is over.
func (l *looks) awaitPatiently(ctx context.Context, questions []*question) {
	var over <-chan time.Time
	if l.patience > 0 {
		over = time.After(l.patience)
	}
	hurry := l.hurry
	for _, q := range questions {
		for !closed(q.answered) {
			select {
			case <-q.answered:
			case <-hurry:
				hurry, over = nil, time.After(grace)
			case <-over:
				l.leave(questions)
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

func (s *sights) leave(questions []*question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range questions {
		q.left = true
	}
}

// run asks, in its turn unless it is urgent, and keeps what the replicas say.
func (q *question) run(turns chan struct{}) {
	defer close(q.answered)
	l := q.looks
	if !q.urgent {
		for _, turns := range []chan struct{}{turns, l.atOnce} {
			select {
			case turns <- struct{}{}:
				defer func() { <-turns }()
			case <-l.life.Done():
			}
		}
	}
	began := time.Now()
	results, errs := q.ask()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range q.refs {
		if w := (look{q.project, ref.String()}); l.asked[w] == q {
			delete(l.asked, w)
		}
	}
	if l.life.Err() != nil {
		return // it was not the replicas that failed
	}
	for i, err := range errs {
		if err == nil {
			continue
		}
		results[i] = nil
		if !l.failed[i] {
			l.failed[i] = true
			l.problems = append(l.problems, err)
		}
	}
	if q.keep(results, began) && q.left {
		l.changed()
	}
}

// ask returns what each replica says, or why it does not.
func (q *question) ask() ([][]image.Resolution, []error) {
	l := q.looks
	results, errs := make([][]image.Resolution, len(l.replicas)), make([]error, len(l.replicas))
	alive := l.alive()
	each(l.replicas, func(i int, r Replica) {
		if alive[i] {
			ctx, cancel := within(l.life, askTimeout)
			defer cancel()
			results[i], errs[i] = r.Resolve(ctx, &lock.Source{Project: q.project}, nil, q.refs)
		}
	})
	return results, errs
}

// keep keeps the newest look at each image, and none at one that replicas refuse to resolve. It reports whether any of that
// is another digest than was known. The caller holds mu.
func (q *question) keep(results [][]image.Resolution, began time.Time) (news bool) {
	l := q.looks
	for n, ref := range q.refs {
		w := look{q.project, ref.String()}
		var refused error
		seen := false
		for _, of := range results {
			if n >= len(of) {
				continue // a replica that failed
			}
			switch res := of[n]; {
			case res.Err != nil:
				refused = res.Err
			case future(res.At):
				refused = fmt.Errorf("the resolver's clock is ahead: it asked the registry at %v", res.At.UTC())
			default:
				seen = true
				delete(l.missing, w)
				if old := l.newest[w]; res.At.After(old.ResolvedAt) {
					news = news || res.Digest != old.Digest
					l.newest[w] = lock.Pin{Image: w.image, Digest: res.Digest, ResolvedAt: res.At}
				}
			}
		}
		if refused != nil && !seen && !l.newest[w].ResolvedAt.After(began) {
			delete(l.newest, w)
			if l.missing[w] {
				continue
			}
			l.missing[w] = true
			l.log.Warn("image not resolved, its pin stays", "image", w.image, "error", refused, "project", w.project)
		}
	}
	return news
}

func future(t time.Time) bool { return t.After(time.Now().Add(maxSkew)) }

func (l *looks) alive() []bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	alive := make([]bool, len(l.replicas))
	for i := range alive {
		alive[i] = !l.failed[i]
	}
	return alive
}
