package render

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Inputs are what a build asked its file system, and what it was told. Kustomize looks at nothing else, neither the
// environment nor a clock (read in v0.21.2), and can list no directory, so that a build with the same options that would
// be told the same renders the same.
type Inputs struct {
	Root  string `json:"root,omitempty"` // the directory that the build may not leave; "" for a copy by Argo CD, see [Inputs.Same]
	Dir   string `json:"dir"`            // the overlay, from there
	Facts []fact `json:"facts"`
}

// fact is one answer of the file system.
type fact struct {
	Name string `json:"n"`           // from the directory that the build may not leave
	At   string `json:"a,omitempty"` // where that is without links; "" when there is nothing
	Dir  bool   `json:"d,omitempty"`
	Sum  string `json:"s,omitempty"` // SHA-256 of the file's content, in hex, where it was read
}

// observed are the facts of one build so far.
type observed struct {
	facts  []fact
	known  map[fact]bool
	beyond bool // there is more to it than facts
}

// saw notes what the build was told of a name, and the content where it was read.
func (d *disk) saw(name, real string, info os.FileInfo, data []byte, err error) {
	f, ok := d.fact(name, real, info, data, err)
	if !ok {
		d.seen.beyond = true
	} else if !d.seen.known[f] {
		d.seen.known[f] = true
		d.seen.facts = append(d.seen.facts, f)
	}
}

// fact is not ok for a name outside of the repository, and when the answer is an error other than that there is nothing.
func (d *disk) fact(name, real string, info os.FileInfo, data []byte, err error) (f fact, ok bool) {
	f.Name, ok = d.within(name)
	if !ok || err != nil {
		return f, ok && errors.Is(err, fs.ErrNotExist)
	}
	if data != nil {
		f.Sum = sum(data)
	}
	f.Dir = info.IsDir()
	f.At, ok = d.within(real)
	return f, ok
}

// within returns the name from the directory that the build may not leave.
func (d *disk) within(name string) (string, bool) {
	abs, err := filepath.Abs(name)
	if err != nil || !holds(d.root, abs) {
		return "", false
	}
	rel, err := filepath.Rel(d.root.String(), abs)
	return rel, err == nil
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// Inputs returns what the build depended on beside its options, nil when that was not its repository alone: with remote
// bases or helm, and with components that parameters name, which may be patterns.
func (o *Output) Inputs() *Inputs { return o.inputs }

func (d *disk) inputs(dir string, o Options) *Inputs {
	in := d.place(dir)
	if d.seen.beyond || o.Helm.Command != "" || len(o.Edits.Components) > 0 {
		return nil
	}
	in.Facts = d.seen.facts
	return in
}

// place returns inputs of a build of dir without facts.
func (d *disk) place(dir string) *Inputs {
	in := &Inputs{Root: d.root.String()}
	in.Dir, _ = d.within(dir) // jail is above it
	if unpacked(in.Root) {
		in.Root = ""
	}
	return in
}

// Same reports whether a build of dir would be told the same, and so whether it would render the same. It reads each
// file once and builds nothing.
//
// A file may name the directory that it is in, by an absolute path, so that an overlay which has been moved is another
// one. But Argo CD unpacks each render into a directory of a new random name, which no file can know.
func (in *Inputs) Same(dir string) bool {
	dir, err := realPath(dir)
	if in == nil || err != nil {
		return false
	}
	d := newDisk(jail(dir), usual)
	if here := d.place(dir); here.Root != in.Root || here.Dir != in.Dir {
		return false
	}
	for _, f := range in.Facts {
		if now, ok := d.look(f); !ok || now != f {
			return false
		}
	}
	return true
}

// look returns what a build would be told now of what f is about.
func (d *disk) look(f fact) (now fact, ok bool) {
	name := filepath.Join(d.root.String(), f.Name)
	real, info, err := d.stat(name)
	var data []byte
	if err == nil && f.Sum != "" {
		if !info.Mode().IsRegular() || d.take(name, info.Size()) != nil {
			return fact{}, false
		}
		data, err = os.ReadFile(real)
	}
	return d.fact(name, real, info, data, err)
}
