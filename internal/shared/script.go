package shared

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
)

// What is in Redis, each name beginning with digestlock:PREFIX:
//
//	answer:SCOPE:IMAGE     hash of the generation it belongs to, when the registry was asked, its kind, and its text
//	lease:SCOPE:IMAGE      who is asking the registry, and for which generation
//	generation:REPOSITORY  a name that every flush of the repository replaces
//	generation:IMAGE       the same for one tag
//	flushes                a channel: a message for each flush
//
// A generation is a random name and no number, so that none comes back after Redis lost it. The time is that of Redis,
// so that resolvers need no common clock.

// keepGeneration is how long a generation stays, at least, that no look-up uses. One that ends costs a look-up.
const keepGeneration = time.Hour

// keep is how long a generation stays: longer than any answer that belongs to it.
func (r *Resolver) keep() time.Duration { return max(keepGeneration, 2*r.o.TTL) }

// States of a reference, as claimScript returns them.
const (
	stateWait  = iota // another resolver is asking
	stateFresh        // answered
	stateLead         // this resolver is to ask
)

// Kinds of an answer.
const (
	kindNone    = ""  // a temporary error: nothing to remember
	kindDigest  = "d" // the text is the digest
	kindRefusal = "r" // the text is an api.Problem in JSON
)

// claimScript reads answers, and gives leases for those that are missing or too old.
//
//	KEYS  for each reference: answer, lease, generation of the repository, generation of the image
//	ARGV  a name never used before; in ms: lease, how old a digest and a refusal may be, how long generations stay
//
// It returns for each reference: state, generation, age in ms, kind, text; and the time in ms at the end.
const claimScript = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local name, lease, old, keep = ARGV[1], ARGV[2], {d = tonumber(ARGV[3]), r = tonumber(ARGV[4])}, ARGV[5]
local function generation(key)
  local g = redis.call('GET', key)
  if not g then
    redis.call('SET', key, name, 'PX', keep)
    g = name
  end
  return g
end
local out = {}
for i = 1, #KEYS, 4 do
  local gen = generation(KEYS[i + 2]) .. ' ' .. generation(KEYS[i + 3])
  local a = redis.call('HMGET', KEYS[i], 'generation', 'at', 'kind', 'text')
  local age = now - (tonumber(a[2]) or 0)
  local held = redis.call('GET', KEYS[i + 1])
  if a[1] == gen and old[a[3]] and age >= 0 and age < old[a[3]] then
    out[#out + 1] = {1, gen, age, a[3], a[4]}
  elseif held and string.sub(held, -#gen) == gen then
    out[#out + 1] = {0, gen, 0, '', ''}
  else
    redis.call('SET', KEYS[i + 1], name .. ' ' .. gen, 'PX', lease)
    redis.call('PEXPIRE', KEYS[i + 2], keep)
    redis.call('PEXPIRE', KEYS[i + 3], keep)
    out[#out + 1] = {2, gen, 0, '', ''}
  end
end
out[#out + 1] = now
return out
`

// landScript remembers answers whose generation is still that of the claim, and gives leases back.
//
//	KEYS  as for claimScript
//	ARGV  the name, how long answers stay in ms; for each reference: generation, time of the claim, kind, text
//
// It returns for each reference 0 where the generation has moved on, else 1.
const landScript = `
local out = {}
for i = 1, #KEYS, 4 do
  local gen, at, kind, text = ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  out[#out + 1] = 1
  if kind ~= '' then
    local a = redis.call('HMGET', KEYS[i], 'generation', 'at')
    if (redis.call('GET', KEYS[i + 2]) or '') .. ' ' .. (redis.call('GET', KEYS[i + 3]) or '') ~= gen then
      out[#out] = 0
    elseif a[1] ~= gen or (tonumber(a[2]) or 0) <= tonumber(at) then
      redis.call('HSET', KEYS[i], 'generation', gen, 'at', at, 'kind', kind, 'text', text)
      redis.call('PEXPIRE', KEYS[i], ARGV[2])
    end
  end
  if redis.call('GET', KEYS[i + 1]) == ARGV[1] .. ' ' .. gen then
    redis.call('DEL', KEYS[i + 1])
  end
end
return out
`

// forgetScript replaces generations and tells the others.
//
//	KEYS  generations; the channel at the end
//	ARGV  a name never used before, how long generations stay in ms, the message
const forgetScript = `
for i = 1, #KEYS - 1 do
  redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return redis.call('PUBLISH', KEYS[#KEYS], ARGV[3])
`

// claim is what claimScript says about one reference.
type claim struct {
	name       string // the script's call
	asked      int64  // when, in ms of Redis
	state      int64
	generation string
	at         time.Time // when the registry was asked, here
	kind, text string
}

// answer is what a fresh claim says about ref.
func (c claim) answer(ref image.Ref) image.Resolution {
	res := image.Resolution{Ref: ref, At: c.at, Cached: true}
	if c.kind == kindDigest {
		res.Digest = c.text
		return res
	}
	var p api.Problem
	_ = json.Unmarshal([]byte(c.text), &p) // it is usable
	res.Err = p.Err()
	return res
}

// usable reports whether a fresh claim has an answer that a resolver of this kind wrote.
func (c claim) usable() bool {
	if c.kind == kindDigest {
		return image.IsDigest(c.text)
	}
	var p api.Problem
	err := json.Unmarshal([]byte(c.text), &p)
	return err == nil && refusal(p.Err())
}

// refusal reports whether err is an answer, which is remembered, and no temporary error.
func refusal(err error) bool {
	return errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrUnauthorized)
}

var errForeign = errors.New("redis does not answer as the scripts do")

// claim returns a claim for each reference.
func (r *Resolver) claim(ctx context.Context, scope string, refs []image.Ref) ([]claim, error) {
	name, sent := rand.Text(), time.Now()
	limit := r.maxAge(sent)
	reply, err := r.run(ctx, claimScript, r.keys(scope, refs),
		name, lease.Milliseconds(), min(r.o.TTL, limit).Milliseconds(), min(r.o.NegativeTTL, limit).Milliseconds(), r.keep().Milliseconds())
	if err != nil {
		return nil, err
	}
	rows, _ := reply.([]any)
	if len(rows) != len(refs)+1 {
		return nil, errForeign
	}
	claims := make([]claim, len(refs))
	for i := range claims {
		v, _ := rows[i].([]any)
		if len(v) != 5 {
			return nil, errForeign
		}
		c := claim{name: name}
		c.asked, _ = rows[len(refs)].(int64)
		c.state, _ = v[0].(int64)
		c.generation, _ = v[1].(string)
		age, _ := v[2].(int64)
		c.at = sent.Add(-time.Duration(age) * time.Millisecond)
		c.kind, _ = v[3].(string)
		c.text, _ = v[4].(string)
		if c.state == stateFresh && !c.usable() {
			c.state = stateLead // what is asked now takes its place
		}
		claims[i] = c
	}
	return claims, nil
}

// land puts answers into Redis, one for each claim, and returns for each whether its reference was flushed since. It
// has a deadline of its own: a caller who has left must not keep the others waiting.
func (r *Resolver) land(scope string, answers []image.Resolution, claims []claim) (moved []bool, err error) {
	refs := make([]image.Ref, len(answers))
	args := []any{claims[0].name, r.o.TTL.Milliseconds()}
	for i, a := range answers {
		refs[i] = a.Ref
		kind, text := kindDigest, a.Digest
		switch {
		case refusal(a.Err):
			kind = kindRefusal
			if text, err = problem(a.Err); err != nil {
				return nil, fmt.Errorf("store %s: %w", a.Ref, err)
			}
		case a.Err != nil:
			kind, text = kindNone, ""
		}
		args = append(args, claims[i].generation, claims[i].asked, kind, text)
	}
	reply, err := r.run(r.ctx, landScript, r.keys(scope, refs), args...)
	if err != nil {
		return nil, err
	}
	rows, _ := reply.([]any)
	if len(rows) != len(answers) {
		return nil, errForeign
	}
	moved = make([]bool, len(rows))
	for i, row := range rows {
		moved[i] = row != int64(1)
	}
	return moved, nil
}

func (r *Resolver) forget(targets []image.Target, message string) error {
	var keys []string
	for _, t := range targets {
		if t.EveryTag {
			keys = append(keys, r.repositoryKey(t.Ref))
		} else {
			keys = append(keys, r.key("generation", t.Ref.String()))
		}
	}
	_, err := r.run(r.ctx, forgetScript, append(keys, r.key("flushes")), rand.Text(), r.keep().Milliseconds(), message)
	return err
}

// keys returns the four keys of each reference.
func (r *Resolver) keys(scope string, refs []image.Ref) []string {
	scope = url.QueryEscape(scope) // without colon
	keys := make([]string, 0, 4*len(refs))
	for _, ref := range refs {
		name := ref.String()
		keys = append(keys, r.key("answer", scope, name), r.key("lease", scope, name), r.repositoryKey(ref), r.key("generation", name))
	}
	return keys
}

func (r *Resolver) repositoryKey(ref image.Ref) string {
	return r.key("generation", ref.Registry+"/"+ref.Repository)
}

func (r *Resolver) key(parts ...string) string {
	key := "digestlock:" + r.o.Prefix
	for _, p := range parts {
		key += ":" + p
	}
	return key
}
