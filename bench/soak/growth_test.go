package soak

import (
	"bufio"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// warm is how long the programs are given before growth is looked for: shorter runs print what they measured.
const warm = 10 * time.Minute

// measures are what is compared, by the name in /metrics. What a program holds on to is in the least that it had at any
// time of a third, when the garbage of the last cycles had just been collected and no request was under way; RSS, which
// follows the most that was ever used and falls slowly, is compared by its median.
//
// More than the tolerance is growth. A third of 20 minutes is some 500 cycles, so that a goroutine or a file of each would be
// hundreds; ten are connections, of which there are more when the machine has more to do. The collector first runs at
// 4 MiB, so that below that the heap says when it last ran: 3 MiB more are 6 KiB kept of each cycle. What may grow is the
// history that is read after a revert, up to 500 commits, and 2,000 remembered origins.
var measures = map[string]struct {
	name           string
	unit           float64
	median         bool
	factor, beside float64
}{
	"go_memstats_heap_alloc_bytes":  {"heap, MiB", 1 << 20, false, 1.1, 3},
	"process_resident_memory_bytes": {"RSS, MiB", 1 << 20, true, 1.1, 4},
	"go_goroutines":                 {"goroutines", 1, false, 1, 10},
	"process_open_fds":              {"open files", 1, false, 1, 10},
	temporaryFiles:                  {"temporary files", 1, false, 1, 0},
}

const temporaryFiles = "temporary"

// series is what was measured, one number a second.
type series struct {
	of     string // program
	metric string
	values []float64
}

// growth are the series of the programs that are not restarted in the thirds that are compared.
type growth map[string]*series

func (g growth) add(of, metric string, value float64) {
	s := g[of+metric]
	if s == nil {
		s = &series{of: of, metric: metric}
		g[of+metric] = s
	}
	s.values = append(s.values, value)
}

// sample measures once.
func (g growth) sample(t *testing.T, w *world) {
	t.Helper()
	g.add("all", temporaryFiles, float64(w.temporary()))
	for _, p := range slices.Concat(w.resolvers[:], w.companions[:1]) {
		res, err := http.Get("http://" + p.address + "/metrics") //nolint:noctx // next door
		if err != nil {
			if !slices.Contains(w.resolvers[:], p) {
				t.Errorf("%s, which nobody killed: %v", p.name, err)
			}
			continue // started a moment ago
		}
		for lines := bufio.NewScanner(res.Body); lines.Scan(); {
			metric, text, _ := strings.Cut(lines.Text(), " ")
			if _, ok := measures[metric]; !ok {
				continue
			}
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			g.add(p.name, metric, value)
		}
		_ = res.Body.Close()
	}
}

// judge compares the last third with the one before it.
func (g growth) judge(t *testing.T) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(g)) {
		s := g[key]
		m := measures[s.metric]
		of := func(third int) float64 {
			values := slices.Sorted(slices.Values(s.values[len(s.values)*third/3 : len(s.values)*(third+1)/3]))
			if m.median {
				return values[len(values)/2] / m.unit
			}
			return values[0] / m.unit
		}
		if len(s.values) < 3 {
			continue
		}
		text := fmt.Sprintf("%s: %s %.1f in the first third, %.1f in the second, %.1f in the last", s.of, m.name, of(0), of(1), of(2))
		t.Log(text)
		if *length >= warm && of(2) > of(1)*m.factor+m.beside {
			t.Errorf("growth: %s", text)
		}
	}
}
