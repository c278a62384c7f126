package gitrepo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
)

// names are what the objects of one repository are called. go-git's names have the 20 bytes of SHA-1, those of a SHA-256
// repository 32. So in this package an object goes by the first 20 bytes of its name, commits and trees in memory name
// others that way, and names has the rest: what the server, the git binary, a signature or a caller sees is whole. 160 bits
// of SHA-256 tell objects apart no worse than SHA-1 does. In a SHA-1 repository both are the same. It is safe for
// concurrent use once sha256 is set.
type names struct {
	sha256 bool

	mu   sync.Mutex // guards what follows
	long map[plumbing.Hash][sha256.Size]byte
}

// short returns what an object goes by here, and remembers the whole of its name.
func (n *names) short(name []byte) plumbing.Hash {
	h := plumbing.Hash(name[:len(plumbing.ZeroHash)])
	if len(name) == sha256.Size && !h.IsZero() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.long == nil {
			n.long = map[plumbing.Hash][sha256.Size]byte{}
		}
		n.long[h] = [sha256.Size]byte(name)
	}
	return h
}

// parse is short for hex. What is no name is the zero hash.
func (n *names) parse(text string) plumbing.Hash {
	if !isName(text) {
		return plumbing.ZeroHash
	}
	name, _ := hex.DecodeString(text)
	return n.short(name)
}

// whole returns the name of an object that short was called for.
func (n *names) whole(h plumbing.Hash) []byte {
	if !n.sha256 {
		return h[:]
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	long := n.long[h]
	return long[:]
}

func (n *names) hex(h plumbing.Hash) string { return hex.EncodeToString(n.whole(h)) }

// isName reports whether text is a whole name, of either kind.
func isName(text string) bool {
	name, err := hex.DecodeString(text)
	return err == nil && (len(name) == len(plumbing.ZeroHash) || len(name) == sha256.Size)
}

// renamed is an object that goes by a name that its content here does not add up to.
type renamed struct {
	*plumbing.MemoryObject
	name plumbing.Hash
}

func (o renamed) Hash() plumbing.Hash { return o.name }

// named returns a new object, which names others as we do, by the name that it has in the repository.
func (n *names) named(o *plumbing.MemoryObject) (plumbing.EncodedObject, error) {
	if !n.sha256 {
		return o, nil
	}
	content, err := n.lengthen(o)
	sum := sha256.Sum256(append(header(o.Type(), len(content)), content...))
	return renamed{o, n.short(sum[:])}, err
}

// header is what Git puts before an object's content, in a file and to compute its name.
func header(kind plumbing.ObjectType, size int) []byte {
	return fmt.Appendf(nil, "%s %d\x00", kind, size)
}

// shorten returns an object of the repository as it is kept here.
func (n *names) shorten(kind plumbing.ObjectType, name plumbing.Hash, content []byte) (plumbing.EncodedObject, error) {
	var err error
	switch {
	case !n.sha256:
	case kind == plumbing.TreeObject:
		content, err = renameTree(content, sha256.Size, func(name []byte) []byte { h := n.short(name); return h[:] })
	case kind == plumbing.CommitObject:
		content = renameCommit(content, func(name string) string { return n.parse(name).String() })
	}
	o := &plumbing.MemoryObject{}
	o.SetType(kind)
	_, _ = o.Write(content) // into memory
	return renamed{o, name}, err
}

// lengthen returns the content of an object as the repository has it.
func (n *names) lengthen(o plumbing.EncodedObject) ([]byte, error) {
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	switch {
	case err != nil || !n.sha256:
		return content, err
	case o.Type() == plumbing.TreeObject:
		return renameTree(content, len(plumbing.ZeroHash), func(short []byte) []byte { return n.whole(plumbing.Hash(short)) })
	case o.Type() == plumbing.CommitObject:
		return renameCommit(content, func(short string) string { return n.hex(plumbing.NewHash(short)) }), nil
	}
	return content, nil
}

func renameTree(tree []byte, size int, name func([]byte) []byte) ([]byte, error) {
	var out []byte
	for len(tree) > 0 {
		end := bytes.IndexByte(tree, 0) + 1
		if end == 0 || len(tree) < end+size {
			return nil, errors.New("malformed tree")
		}
		out = append(append(out, tree[:end]...), name(tree[end:end+size])...)
		tree = tree[end+size:]
	}
	return out, nil
}

// renameCommit changes the names in a commit's header. It is for SHA-256 repositories, where a signature has another header
// than the one that go-git writes.
func renameCommit(commit []byte, name func(string) string) []byte {
	head, message, _ := strings.Cut(string(commit), "\n\n")
	lines := strings.Split(head, "\n")
	for i, line := range lines {
		switch key, value, _ := strings.Cut(line, " "); key { // "" in the second line of a long header
		case "tree", "parent":
			lines[i] = key + " " + name(value)
		case "gpgsig":
			lines[i] = "gpgsig-sha256 " + value
		}
	}
	return []byte(strings.Join(lines, "\n") + "\n\n" + message)
}

// listing passes a server's list of refs on, with the names that go-git can read. It reads from r what it has to, and
// nothing behind the list.
func (n *names) listing(r io.Reader) io.Reader {
	var read, short bytes.Buffer
	in := pktline.NewScanner(io.TeeReader(r, &read))
	for service := false; in.Scan() && bytes.IndexByte(in.Bytes(), 0) < 0; { // what comes before the first ref
		if len(in.Bytes()) == 0 && !service { // there is none
			break
		}
		service = bytes.HasPrefix(in.Bytes(), []byte("# service="))
	}
	rest := io.MultiReader(&read, r)
	if !bytes.Contains(read.Bytes(), []byte("object-format=sha256")) {
		return rest
	}
	in, out := pktline.NewScanner(rest), pktline.NewEncoder(&short)
	for begun := false; in.Scan(); {
		line := in.Bytes()
		if err := out.Encode(n.line(line)); err != nil {
			break // what is missing is an error to go-git
		}
		begun = begun || bytes.IndexByte(line, 0) >= 0
		if begun && len(line) == 0 {
			break
		}
	}
	return io.MultiReader(&short, rest)
}

// line shortens the name that a line of a list begins with.
func (n *names) line(line []byte) []byte {
	rest, shallow := bytes.CutPrefix(line, []byte("shallow "))
	if len(rest) < hex.EncodedLen(sha256.Size) || !isName(string(rest[:hex.EncodedLen(sha256.Size)])) {
		return line
	}
	short := n.parse(string(rest[:hex.EncodedLen(sha256.Size)])).String() + string(rest[hex.EncodedLen(sha256.Size):])
	if shallow {
		short = "shallow " + short
	}
	return []byte(short)
}

// listings has the lists that come over http pass through names.
type listings struct {
	next  http.RoundTripper
	names *names
}

func (l listings) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := l.next.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusOK && strings.HasSuffix(req.URL.Path, "/info/refs") {
		res.Body = struct {
			io.Reader
			io.Closer
		}{l.names.listing(res.Body), res.Body}
	}
	return res, err
}
