package gitrepo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/digestlock/digestlock/internal/fault"
)

const (
	// maxPack bounds what one answer may weigh on the wire, and maxInflated in memory. With blob:none a repository of
	// 50,000 files needs a few MiB; the bounds are for servers without filters, and for those who mean harm.
	maxPack     = 512 << 20
	maxInflated = 1 << 30
)

// load fetches the commit and its trees, and the contents too from a server that cannot leave them out.
func (s *Snapshot) load(ctx context.Context, session transport.UploadPackSession) error {
	req := s.request(s.commit)
	s.shallow(req, 1)
	s.lean(req)
	if err := s.fetch(ctx, session, req, s.maxBytes); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := object.GetCommit(s.objects, s.commit)
	if err != nil {
		return fmt.Errorf("commit %s: %w", s.commit, err)
	}
	s.tree = c.TreeHash
	return nil
}

// below asks for so many generations from root down, less what load brought.
func (s *Snapshot) below(root plumbing.Hash, generations int) *packp.UploadPackRequest {
	req := s.request(root)
	s.shallow(req, generations)
	s.lean(req)
	if req.Capabilities.Supports(capability.MultiACK) {
		return req // go-git does not understand what it is answered with once there are haves
	}
	req.Haves = []plumbing.Hash{s.commit}
	if s.caps.Supports(capability.Shallow) {
		req.Shallows = req.Haves
	}
	return req
}

// fetchBlobs gets contents that load left out. A server may offer that and still refuse to, so the second try asks
// for all that the commit came with.
func (s *Snapshot) fetchBlobs(ctx context.Context, blobs []plumbing.Hash) error {
	err := s.fetchAnew(ctx, s.request(blobs...), maxFile)
	if err == nil || errors.Is(err, errTooLarge) || ctx.Err() != nil {
		return err
	}
	req := s.request(s.root)
	s.shallow(req, s.generations)
	if again := s.fetchAnew(ctx, req, s.maxBytes); again != nil {
		return err
	}
	return nil
}

func (s *Snapshot) fetchAnew(ctx context.Context, req *packp.UploadPackRequest, maxObject int64) error {
	ep := s.endpoint
	session, err := s.remote.uploadPack(ctx, &ep, s.names)
	if err != nil {
		return err
	}
	defer session.Close()
	return s.fetch(ctx, session, req, maxObject)
}

func (s *Snapshot) request(wants ...plumbing.Hash) *packp.UploadPackRequest {
	req := packp.NewUploadPackRequestFromCapabilities(s.caps)
	req.Wants = wants
	if s.caps.Supports(capability.NoProgress) {
		must(req.Capabilities.Set(capability.NoProgress))
	}
	// Azure DevOps answers nobody who does not ask for multi_ack. Without haves the answer is the same as without it.
	if host := s.endpoint.Host; host == "dev.azure.com" || strings.HasSuffix(host, ".visualstudio.com") {
		must(req.Capabilities.Set(capability.MultiACK))
	}
	return req
}

func (s *Snapshot) shallow(req *packp.UploadPackRequest, generations int) {
	if s.caps.Supports(capability.Shallow) {
		must(req.Capabilities.Set(capability.Shallow))
		req.Depth = packp.DepthCommits(generations)
	}
}

func (s *Snapshot) lean(req *packp.UploadPackRequest) {
	if s.partial {
		must(req.Capabilities.Set(capability.Filter))
		req.Filter = packp.FilterBlobNone()
	}
}

// fetch adds the answer to req to s's objects.
func (s *Snapshot) fetch(ctx context.Context, session transport.UploadPackSession, req *packp.UploadPackRequest, maxObject int64) error {
	if s.byGit() {
		return s.fetchByGit(ctx, req, maxObject)
	}
	res, err := session.UploadPack(ctx, req)
	if err != nil {
		return err
	}
	defer res.Close()
	var r io.Reader = res
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		r = sideband.NewDemuxer(sideband.Sideband64k, res)
	case req.Capabilities.Supports(capability.Sideband):
		r = sideband.NewDemuxer(sideband.Sideband, res)
	}
	pack, err := io.ReadAll(io.LimitReader(r, maxPack))
	if err != nil {
		return err
	}
	if len(pack) == maxPack {
		return fault.New(fault.TooLarge, "let the Git server offer filters (uploadpack.allowFilter)", "the repository weighs more than %d MiB", maxPack>>20)
	}
	if err := weigh(pack, maxObject, s.maxBytes); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := packfile.NewParserWithStorage(packfile.NewScanner(bytes.NewReader(pack)), s.objects)
	if err != nil {
		return err
	}
	_, err = p.Parse()
	return err
}

// weigh refuses a pack that would not fit in memory once inflated: a few MiB of it can hold many GiB of zeros, and
// anybody who may commit to the repository can put them there. It returns errTooLarge for a single object, unless one may
// be as large as all together.
func weigh(pack []byte, maxObject, maxTotal int64) error {
	sc := packfile.NewScanner(bytes.NewReader(pack))
	_, n, err := sc.Header()
	if err != nil {
		return err
	}
	var total int64
	for range n {
		h, err := sc.NextObjectHeader()
		if err != nil {
			return err
		}
		start := prefix{left: h.Length}
		if h.Length <= maxObject && total+h.Length <= maxTotal {
			if _, _, err := sc.NextObject(&start); err != nil {
				return err
			}
		}
		size := h.Length
		if h.Type.IsDelta() {
			size = max(size, start.target())
		}
		if err := bounded(size, &total, maxObject, maxTotal); err != nil {
			return err
		}
	}
	return nil
}

// bounded adds an object's size to total. It returns an error where weigh does.
func bounded(size int64, total *int64, maxObject, maxTotal int64) error {
	*total += size
	if maxObject < maxTotal && size > maxObject {
		return errTooLarge
	}
	if *total > maxTotal {
		return fault.New(fault.TooLarge, "let the Git server offer filters (uploadpack.allowFilter), or use a smaller repository",
			"the repository inflates to more than %d bytes", maxTotal)
	}
	return nil
}

// prefix keeps the start of what is written to it, the two sizes that a delta begins with, and takes no more than it
// was promised.
type prefix struct {
	left int64
	buf  [2 * binary.MaxVarintLen64]byte
	n    int
}

func (p *prefix) Write(b []byte) (int, error) {
	if p.left -= int64(len(b)); p.left < 0 {
		return 0, errors.New("an object is longer than its pack says")
	}
	p.n += copy(p.buf[p.n:], b)
	return len(b), nil
}

// target returns the size of what the delta makes; no more than the most that anything may be, and a little.
func (p *prefix) target() int64 {
	_, n := binary.Uvarint(p.buf[:p.n])
	size, _ := binary.Uvarint(p.buf[max(n, 0):p.n]) // 0 for a malformed one, which the parser refuses
	return int64(min(size, maxInflated+1))
}

// must panics on capabilities that are constants of ours.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
