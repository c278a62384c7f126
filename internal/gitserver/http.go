package gitserver

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/server"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/memory"
)

// maxBody bounds a request, as sent and as inflated: what is pushed to a demonstration is small.
const maxBody = 32 << 20

// Handler serves the repository at the root of its path space: mount it with [http.StripPrefix] anywhere else. A
// branch moves by compare-and-swap only: of two pushes from the same tip one is rejected. Branches and tags can be
// created and moved, also by force, but not deleted.
func (r *Repo) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info/refs", r.refs)
	mux.HandleFunc("POST /git-upload-pack", r.post(r.uploadPack))
	mux.HandleFunc("POST /git-receive-pack", r.post(r.receivePack))
	return mux
}

// loader is where go-git's server finds its repository, whatever the path.
type loader struct{ st storer.Storer }

func (l loader) Load(*transport.Endpoint) (storer.Storer, error) { return l.st, nil }

func (r *Repo) refs(w http.ResponseWriter, req *http.Request) {
	service := req.FormValue("service")
	r.mu.RLock()
	defer r.mu.RUnlock()
	refs, err := r.advertise(req.Context(), service)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	var out bytes.Buffer
	pkt := pktline.NewEncoder(&out)
	err = errors.Join(pkt.Encodef("# service=%s\n", service), pkt.Flush(), refs.Encode(&out))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, service, "advertisement", out.Bytes())
}

// errService also tells a client of the dumb protocol that there is none.
var errService = errors.New("only git-upload-pack and git-receive-pack are served")

func (r *Repo) advertise(ctx context.Context, service string) (*packp.AdvRefs, error) {
	git := server.NewServer(loader{r.open()})
	switch service {
	case transport.UploadPackServiceName:
		session, err := git.NewUploadPackSession(&transport.Endpoint{}, nil)
		if err != nil {
			return nil, err
		}
		return session.AdvertisedReferencesContext(ctx)
	case transport.ReceivePackServiceName:
		session, err := git.NewReceivePackSession(&transport.Endpoint{}, nil)
		if err != nil {
			return nil, err
		}
		refs, err := session.AdvertisedReferencesContext(ctx)
		if err != nil {
			return nil, err
		}
		refs.Capabilities.Delete(capability.DeleteRefs)
		// A thin pack, git's default, refers to objects outside of it: it must not be stored as it is.
		return refs, refs.Capabilities.Set("no-thin")
	}
	return nil, errService
}

// post reads the whole request within bounds, so that no lock is ever held while waiting for a client.
func (r *Repo) post(serve func(context.Context, io.Reader) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		body, err := readBody(w, req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := serve(req.Context(), bytes.NewReader(body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, strings.TrimPrefix(req.URL.Path, "/"), "result", out)
	}
}

func readBody(w http.ResponseWriter, req *http.Request) ([]byte, error) {
	var r io.Reader = http.MaxBytesReader(w, req.Body, maxBody)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = io.LimitReader(z, maxBody+1)
	}
	body, err := io.ReadAll(r)
	if len(body) > maxBody {
		return nil, fmt.Errorf("request is larger than %d MiB", maxBody>>20)
	}
	return body, err
}

func answer(w http.ResponseWriter, service, kind string, body []byte) {
	w.Header().Set("Content-Type", "application/x-"+service+"-"+kind)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(body) // a client that has gone needs no answer
}

func (r *Repo) uploadPack(ctx context.Context, body io.Reader) ([]byte, error) {
	in := bufio.NewReader(body)
	req := packp.NewUploadPackRequest()
	if err := req.UploadRequest.Decode(in); err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	st := r.open()
	done, err := decodeHaves(in, req, st)
	if err != nil {
		return nil, err
	}
	if !done {
		// Never an early ACK: over http, git forgets what it said before and then takes the acknowledgement in front of
		// the pack for the pack (seen with git 2.39, "bad pack header"). At worst the pack is larger than need be.
		return acknowledge(nil)
	}
	session, err := server.NewServer(loader{st}).NewUploadPackSession(&transport.Endpoint{}, nil)
	if err != nil {
		return nil, err
	}
	return pack(ctx, session, req)
}

// decodeHaves reads what go-git's decoder leaves: which commits the client has. Those that are known here are put
// into req. It reports whether the client wants its pack now.
func decodeHaves(in io.Reader, req *packp.UploadPackRequest, st storer.EncodedObjectStorer) (done bool, err error) {
	lines := pktline.NewScanner(in)
	for lines.Scan() {
		line := strings.TrimSuffix(string(lines.Bytes()), "\n")
		if line == "done" {
			return true, nil
		}
		if hash, ok := strings.CutPrefix(line, "have "); ok {
			if h := plumbing.NewHash(hash); st.HasEncodedObject(h) == nil {
				req.Haves = append(req.Haves, h)
			}
		}
	}
	return false, lines.Err()
}

// acknowledge tells the client which commit is known here, and with none that it should go on.
func acknowledge(common []plumbing.Hash) ([]byte, error) {
	var out bytes.Buffer
	var res packp.ServerResponse
	if len(common) > 0 {
		res.ACKs = common[:1]
	}
	err := res.Encode(&out, false)
	return out.Bytes(), err
}

func pack(ctx context.Context, session transport.UploadPackSession, req *packp.UploadPackRequest) ([]byte, error) {
	var out bytes.Buffer
	// A client that has everything still wants an answer; go-git has none for it.
	if req.IsEmpty() {
		err := errors.Join(encodeAck(&out, req.Haves), emptyPack(&out))
		return out.Bytes(), err
	}
	res, err := session.UploadPack(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(req.Haves) > 0 {
		res.ACKs = req.Haves[:1]
	}
	err = res.Encode(&out)
	return out.Bytes(), err
}

func encodeAck(w io.Writer, common []plumbing.Hash) error {
	ack, err := acknowledge(common)
	if err != nil {
		return err
	}
	_, err = w.Write(ack)
	return err
}

func emptyPack(w io.Writer) error {
	_, err := packfile.NewEncoder(w, memory.NewStorage(), false).Encode(nil, 0)
	return err
}

func (r *Repo) receivePack(_ context.Context, body io.Reader) ([]byte, error) {
	req := packp.NewReferenceUpdateRequest()
	if err := req.Decode(body); err != nil {
		return nil, err
	}
	// go-git's own receive-pack ignores the old hash of an update, so this one does without it.
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.open()
	report := packp.NewReportStatus()
	report.UnpackStatus = "ok"
	if err := unpack(st, req.Packfile); err != nil {
		report.UnpackStatus = err.Error()
	}
	for _, c := range req.Commands {
		status := "ok"
		if err := update(st, c); err != nil {
			status = err.Error()
		}
		report.CommandStatuses = append(report.CommandStatuses, &packp.CommandStatus{ReferenceName: c.Name, Status: status})
	}
	var out bytes.Buffer
	err := report.Encode(&out)
	return out.Bytes(), err
}

// unpack adds the objects of a pack, which may have none, or not be there at all.
func unpack(st *filesystem.Storage, r io.Reader) error {
	const header = 12 // "PACK", version, number of objects
	in := bufio.NewReader(r)
	head, err := in.Peek(header)
	if errors.Is(err, io.EOF) && len(head) == 0 || err == nil && binary.BigEndian.Uint32(head[8:]) == 0 {
		return nil
	}
	return packfile.UpdateObjectStorage(st, in)
}

// update moves one ref from where the client saw it. The caller holds the lock.
func update(st *filesystem.Storage, c *packp.Command) error {
	if c.Action() == packp.Delete {
		return errors.New("deletion prohibited")
	}
	mark := strings.HasPrefix(c.Name.String(), "refs/digestlock/") // the companion's own, see its design
	if !c.Name.IsBranch() && !c.Name.IsTag() && !mark || c.Name.Validate() != nil {
		return errors.New("funny refname")
	}
	old, err := st.Reference(c.Name)
	if errors.Is(err, plumbing.ErrReferenceNotFound) {
		old, err = plumbing.NewHashReference(c.Name, plumbing.ZeroHash), nil
	}
	if err != nil {
		return err
	}
	if old.Hash() != c.Old {
		return errors.New("fetch first")
	}
	if err := complete(st, c); err != nil {
		return fmt.Errorf("missing necessary objects: %w", err)
	}
	return st.SetReference(plumbing.NewHashReference(c.Name, c.New))
}

// complete checks that what a ref is to point to is here, down to the commit's files.
func complete(st *filesystem.Storage, c *packp.Command) error {
	if c.Name.IsTag() {
		return st.HasEncodedObject(c.New)
	}
	commit, err := object.GetCommit(st, c.New)
	if err != nil {
		return err
	}
	for _, parent := range commit.ParentHashes {
		if err := st.HasEncodedObject(parent); err != nil {
			return err
		}
	}
	files, err := list(st, c.New)
	if err != nil {
		return err
	}
	for p, e := range files {
		if err := st.HasEncodedObject(e.Hash); err != nil && e.Mode.IsFile() {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}
