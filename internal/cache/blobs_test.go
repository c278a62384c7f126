package cache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestBlobs(t *testing.T) {
	t.Parallel()
	b := NewBlobs(40)
	for _, key := range []string{"a", "b", "c"} {
		b.Put(key, make([]byte, 9))
	}
	b.Get("a")
	b.Put("d", make([]byte, 9)) // 40, all of it
	b.Put("e", make([]byte, 4)) // b has to go
	b.Put("f", make([]byte, 10))
	for key, want := range map[string]int{"a": 9, "b": -1, "c": 9, "d": 9, "e": 4, "f": -1} {
		got := -1
		if blob := b.Get(key); blob != nil {
			got = len(blob)
		}
		if got != want {
			t.Errorf("%s: %d bytes, want %d", key, got, want)
		}
	}
	b.Put("a", make([]byte, 10)) // too large, and the one before is not it any more
	if got := b.Get("a"); got != nil {
		t.Errorf("a: %d bytes of an older blob", len(got))
	}
}

// TestBlobsAreBounded: whatever is kept, its size is known, and within bounds.
func TestBlobsAreBounded(t *testing.T) {
	t.Parallel()
	const most = 1000
	random := rand.New(rand.NewPCG(1, 2))
	b := NewBlobs(most)
	for i := range 5000 {
		b.Put(fmt.Sprint(random.IntN(50)), make([]byte, random.IntN(most/3)))
		size := 0
		for _, key := range b.known.Keys() {
			blob, _ := b.known.Peek(key)
			size += len(key) + len(blob)
		}
		if size != b.Size() || size > most {
			t.Fatalf("after %d: %d bytes kept, said to be %d, at most %d wanted", i, size, b.Size(), most)
		}
	}
}
