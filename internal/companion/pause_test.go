package companion

import (
	"testing"
	"time"
)

func TestPause(t *testing.T) {
	t.Parallel()
	const second = time.Second
	q := Quiet{Window: 10 * second, Longest: 30 * second}
	type step struct {
		at    time.Duration // since the start
		what  string        // that is to be committed; "" for nothing
		waits bool
		due   time.Duration // when it waits
	}
	for name, steps := range map[string][]step{
		"at once after a quiet spell": {{0, "a", false, 0}, {10 * second, "b", false, 0}, {20 * second, "c", false, 0}},
		"what follows waits":          {{0, "a", false, 0}, {3 * second, "b", true, 13 * second}, {13 * second, "b", false, 0}},
		"anew with each change": {
			{0, "a", false, 0},
			{3 * second, "b", true, 13 * second},
			{9 * second, "bc", true, 19 * second},
			{13 * second, "bc", true, 19 * second},
			{19 * second, "bc", false, 0},
		},
		"but not for ever": {
			{0, "a", false, 0},
			{3 * second, "b", true, 13 * second},
			{12 * second, "c", true, 22 * second},
			{21 * second, "d", true, 31 * second},
			{29 * second, "e", true, 33 * second},
			{33 * second, "f", false, 0},
		},
		"what was taken back waits no more": {
			{0, "a", false, 0}, {3 * second, "b", true, 13 * second}, {5 * second, "", false, 0}, {6 * second, "c", true, 16 * second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
			var p pause
			for _, s := range steps {
				now := start.Add(s.at)
				if s.what == "" {
					p.settled(time.Time{})
					continue
				}
				waits := p.wait(q, s.what, now)
				if waits != s.waits || waits && !p.due.Equal(start.Add(s.due)) {
					t.Errorf("at %v: wait = %t until %v, want %t until %v", s.at, waits, p.due.Sub(start), s.waits, s.due)
				}
				if !waits {
					p.settled(now)
				}
			}
		})
	}
	var p pause
	if p.wait(Quiet{}, "a", time.Now()) || p.wait(Quiet{}, "b", time.Now()) {
		t.Error("the zero value waits")
	}
}
