package pin

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/digestlock/digestlock/internal/image"
)

// Draft is a Plan whose references carry stand-ins for their digests, so that the objects can be encoded while the digests
// are looked up. To an encoder a stand-in is a digest.
type Draft struct {
	images []string // by the number at the end of their stand-in
	prefix []byte   // of all stand-ins, and of nothing else in the world
}

// standInNumber is how many hex digits the number of a stand-in has.
const standInNumber = 8

// Draft writes a stand-in for each digest into the objects.
func (p *Plan) Draft(format Format) (*Draft, error) {
	random := make([]byte, (64-standInNumber)/2)
	_, _ = rand.Read(random) // cannot fail
	d := &Draft{prefix: []byte("sha256:" + hex.EncodeToString(random))}
	standIns := map[string]string{}
	for i, ref := range p.Images() {
		d.images = append(d.images, ref.String())
		standIns[ref.String()] = fmt.Sprintf("%s%0*x", d.prefix, standInNumber, i)
	}
	return d, p.Apply(standIns, format)
}

// Fill replaces the stand-ins in what the objects were encoded to by the digests, keyed by normalised reference, so that the
// bytes are those that [Plan.Apply] would have led to. When a digest is missing it changes nothing and returns an error.
func (d *Draft) Fill(encoded []byte, digests map[string]string) error {
	for _, i := range d.images {
		if !image.IsDigest(digests[i]) {
			return fmt.Errorf("no digest for %s", i)
		}
	}
	for rest := encoded; ; {
		at := bytes.Index(rest, d.prefix)
		if at < 0 {
			return nil
		}
		number := rest[at+len(d.prefix):]
		n, err := strconv.ParseUint(string(number[:min(standInNumber, len(number))]), 16, 32)
		if err != nil || n >= uint64(len(d.images)) {
			return fmt.Errorf("not the stand-in that was written: %s…", d.prefix)
		}
		copy(rest[at:], digests[d.images[n]]) // as long as its stand-in
		rest = number[standInNumber:]
	}
}
