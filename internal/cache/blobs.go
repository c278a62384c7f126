package cache

import (
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Blobs keeps bytes by key, those used last, up to a sum. It is safe for concurrent use.
type Blobs struct {
	mu    sync.Mutex
	known *simplelru.LRU[string, []byte]
	size  int // of all, with their keys
	most  int
}

// NewBlobs returns an empty one that keeps at most that many bytes.
func NewBlobs(most int) *Blobs {
	b := &Blobs{most: most}
	known, err := simplelru.NewLRU(math.MaxInt, func(key string, blob []byte) { b.size -= len(key) + len(blob) })
	if err != nil {
		panic(err) // only for a size below 1
	}
	b.known = known
	return b
}

// Get returns what was kept last, which nobody may change, and nil for nothing.
func (b *Blobs) Get(key string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	blob, _ := b.known.Get(key)
	return blob
}

// Put keeps a blob in place of the one before. One that is larger than a quarter of all is not kept.
func (b *Blobs) Put(key string, blob []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known.Remove(key)
	size := len(key) + len(blob)
	if size > b.most/4 {
		return
	}
	for b.size += size; b.size > b.most; {
		b.known.RemoveOldest()
	}
	b.known.Add(key, blob)
}

// Size returns how many bytes are kept.
func (b *Blobs) Size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}
