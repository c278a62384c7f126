package companion

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
)

// maxAsk is how many images one question holds; the resolver refuses more than 5000.
const maxAsk = 1000

// looks are what the replicas see at the registries within one cycle. Each image is asked for once, however many
// branches and attempts need it, and a replica that fails is asked no more. It is safe for concurrent use.
type looks struct {
	log *slog.Logger

	mu       sync.Mutex // held while asking: who needs the same image waits for the answer
	replicas []Replica
	asked    map[string]bool
	newest   map[string]lock.Pin // of several replicas' looks at an image the newest; none when it cannot be resolved
	problems []error
}

// at returns where the tags of images stand, sorted by image, without those that cannot be resolved: their pins stay.
func (l *looks) at(ctx context.Context, images map[string]bool) []lock.Pin {
	l.mu.Lock()
	defer l.mu.Unlock()
	var refs []image.Ref
	for _, name := range slices.Sorted(maps.Keys(images)) {
		if ref, err := image.Parse(name); err == nil && !l.asked[name] {
			refs = append(refs, ref)
		}
	}
	for some := range slices.Chunk(refs, maxAsk) {
		l.ask(ctx, some)
	}
	var pins []lock.Pin
	for _, name := range slices.Sorted(maps.Keys(images)) {
		if p, ok := l.newest[name]; ok {
			pins = append(pins, p)
		}
	}
	return pins
}

func (l *looks) ask(ctx context.Context, refs []image.Ref) {
	results, errs := make([][]image.Resolution, len(l.replicas)), make([]error, len(l.replicas))
	each(l.replicas, func(i int, r Replica) {
		ctx, cancel := within(ctx, askTimeout)
		defer cancel()
		results[i], errs[i] = r.Resolve(ctx, nil, nil, refs)
	})
	if ctx.Err() != nil {
		return // it was not the replicas that failed
	}
	failed := map[string]error{}
	var alive []Replica
	for i, r := range l.replicas {
		if errs[i] != nil {
			l.problems = append(l.problems, errs[i])
			continue
		}
		alive = append(alive, r)
		for _, res := range results[i] {
			name := res.Ref.String()
			switch {
			case res.Err != nil:
				failed[name] = res.Err
			case res.At.After(l.newest[name].ResolvedAt):
				l.newest[name] = lock.Pin{Image: name, Digest: res.Digest, ResolvedAt: res.At}
			}
		}
	}
	l.replicas = alive
	for _, ref := range refs {
		name := ref.String()
		l.asked[name] = true
		if _, ok := l.newest[name]; !ok && failed[name] != nil {
			l.log.Warn("image not resolved, its pin stays", "image", name, "error", failed[name])
		}
	}
}
