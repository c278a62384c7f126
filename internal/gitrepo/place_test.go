package gitrepo

import (
	"fmt"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// TestPlace: a name is where a look at all entries finds it, in trees of any width, misordered and doubled names included.
func TestPlace(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, wide - 1, wide, wide + 1, 1000} {
		var entries []object.TreeEntry
		for i := range n {
			entries = append(entries, object.TreeEntry{Name: fmt.Sprint(i * 7919 % 640)})
		}
		s := &Snapshot{store: &store{}}
		for range 2 {
			for i := -1; i <= 641; i++ {
				if got, want := s.place(plumbing.Hash{1}, entries, fmt.Sprint(i)), index(entries, fmt.Sprint(i)); got != want {
					t.Errorf("%d entries: %d is at %d, want %d", n, i, got, want)
				}
			}
		}
		if got := s.place(plumbing.Hash{2}, entries[:n/2], fmt.Sprint(7919%640)); n > 2 && got != 1 {
			t.Errorf("%d entries: another tree's second is at %d", n, got)
		}
	}
}
