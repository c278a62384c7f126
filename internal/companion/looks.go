package companion

import (
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

// maxAsk is how many images one question holds; the resolver refuses more than 1500.
const maxAsk = 1000

// maxSkew is how far a resolver's clock may be ahead of ours. A pin from the future would not move before it is past.
const maxSkew = 5 * time.Minute

// look is an image as the credentials of one project see it: a lock must never learn what only another project may
// read.
type look struct{ project, image string }

// maxQuestions is how many questions are with the resolvers at once: one about a registry that does not answer holds up no
// other.
const maxQuestions = 8

// looks are what the replicas see at the registries within one cycle. Each is asked for once, however many branches and
// attempts need it, and a replica that fails is asked no more. It is safe for concurrent use.
type looks struct {
	log       *slog.Logger
	replicas  []Replica
	questions chan struct{}

	mu       sync.Mutex             // guards the rest
	asked    map[look]chan struct{} // closed when there is an answer, or taken out and closed when nobody waited for it
	newest   map[look]lock.Pin      // of several replicas' looks the newest; none when it cannot be resolved
	failed   map[int]bool           // of replicas, by index
	problems []error
}

func newLooks(replicas []Replica, log *slog.Logger) *looks {
	return &looks{
		replicas: replicas, log: log, questions: make(chan struct{}, maxQuestions), asked: map[look]chan struct{}{}, newest: map[look]lock.Pin{}, failed: map[int]bool{},
	}
}

// at returns where the tags stand, without those that cannot be resolved: their pins stay. All projects are asked for at
// once, or a registry that does not answer would cost its time once for each of them.
func (l *looks) at(ctx context.Context, wanted map[look]bool) map[look]lock.Pin {
	for ctx.Err() == nil {
		mine, others := l.open(wanted)
		if len(mine)+len(others) == 0 {
			break
		}
		l.askAll(ctx, mine)
		for _, answered := range others {
			select {
			case <-answered:
			case <-ctx.Done():
			}
		}
	}
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

// askAll asks for what open has claimed, all projects at once.
func (l *looks) askAll(ctx context.Context, mine map[string][]image.Ref) {
	var wg sync.WaitGroup
	for project, refs := range mine {
		wg.Go(func() {
			for some := range slices.Chunk(refs, maxAsk) {
				l.ask(ctx, project, some)
			}
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for project, refs := range mine {
		for _, ref := range refs {
			w := look{project, ref.String()}
			close(l.asked[w])
			if ctx.Err() != nil {
				delete(l.asked, w) // whoever else wants it asks
			}
		}
	}
}

// ahead asks for all images of a repository that were rendered, in one question, before the time of any branch runs: what
// only a lock names is asked for by its branch.
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

// open returns, by project and sorted, what was not asked for yet, which is now the caller's to ask, and for what others
// are about to have answers.
func (l *looks) open(wanted map[look]bool) (mine map[string][]image.Ref, others []<-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mine = map[string][]image.Ref{}
	claimed := map[look]image.Ref{}
	for w := range wanted {
		answered, ok := l.asked[w]
		if !ok {
			ref, err := image.Parse(w.image)
			if err != nil {
				continue
			}
			w.image = ref.String()
			if answered, ok = l.asked[w]; !ok {
				l.asked[w] = make(chan struct{})
				claimed[w] = ref
				continue
			}
		}
		if _, own := claimed[w]; !own && !closed(answered) {
			others = append(others, answered)
		}
	}
	for _, w := range slices.SortedFunc(maps.Keys(claimed), func(a, b look) int { return strings.Compare(a.image, b.image) }) {
		mine[w.project] = append(mine[w.project], claimed[w])
	}
	return mine, others
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (l *looks) ask(ctx context.Context, project string, refs []image.Ref) {
	select {
	case l.questions <- struct{}{}:
		defer func() { <-l.questions }()
	case <-ctx.Done():
		return
	}
	results, errs := make([][]image.Resolution, len(l.replicas)), make([]error, len(l.replicas))
	alive := l.alive()
	each(l.replicas, func(i int, r Replica) {
		if alive[i] {
			ctx, cancel := within(ctx, askTimeout)
			defer cancel()
			results[i], errs[i] = r.Resolve(ctx, &lock.Source{Project: project}, nil, refs)
		}
	})
	if ctx.Err() != nil {
		return // it was not the replicas that failed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	refused := map[look]error{}
	for i, err := range errs {
		if err != nil && !l.failed[i] {
			l.failed[i] = true
			l.problems = append(l.problems, err)
		}
		if err == nil {
			l.learn(project, results[i], refused)
		}
	}
	for _, ref := range refs {
		w := look{project, ref.String()}
		if _, ok := l.newest[w]; !ok && refused[w] != nil {
			l.log.Warn("image not resolved, its pin stays", "image", w.image, "error", refused[w], "project", project)
		}
	}
}

// learn keeps one replica's looks where they are the newest, and the errors of the others. The caller holds mu.
func (l *looks) learn(project string, results []image.Resolution, refused map[look]error) {
	for _, res := range results {
		w := look{project, res.Ref.String()}
		switch {
		case res.Err != nil:
			refused[w] = res.Err
		case future(res.At):
			refused[w] = fmt.Errorf("the resolver's clock is ahead: it asked the registry at %v", res.At.UTC())
		case res.At.After(l.newest[w].ResolvedAt):
			l.newest[w] = lock.Pin{Image: w.image, Digest: res.Digest, ResolvedAt: res.At}
		}
	}
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
