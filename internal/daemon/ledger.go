package daemon

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
)

// Ledger remembers the pins of the last complete render of each source, in memory and, so that a restart loses
// nothing, as one digest-lock document per source in a directory. It is safe for concurrent use; the directory belongs
// to one Ledger at a time.
type Ledger struct {
	dir  string
	life string // names this Ledger and no other: one that a restart makes counts from 0 again

	mu      sync.Mutex // also serialises the writes, so that the newest document is the one on disk
	records int        // since it was opened; nothing else changes entries
	entries map[string]lock.Document
	pins    int // of all entries
	maxPins int
	saved   map[string]lock.Document // what is on disk
	swept   time.Time                // when forget last looked
}

const (
	// retention is how long a source is remembered that is not rendered any more. Argo CD renders a live Application
	// at least once a day, when its manifest cache expires (measured, v3.5.7: 24 h).
	retention = 7 * 24 * time.Hour
	// refresh is how old the time of the last render may be on disk: a render that says nothing new costs no write.
	refresh = time.Hour
	// maxSources bounds the ledger; the source that was not rendered for the longest time makes room.
	maxSources = 20_000
	// maxPins bounds what those weigh, for a full ledger has to fit the 256 MiB of manifests/sidecar, also after a restart. A pin
	// takes 0.2 KB (measured), twice once it is rendered again, as much again for the garbage collector, and 0.2 KB of JSON while
	// the companion reads: 150 MB at most, beside 60 MiB of all else.
	maxPins = 150_000

	entrySuffix = ".yaml"
	tempPattern = ".new-*" // never ends in entrySuffix
	probeName   = "probe"
	// probePattern is another one: who starts a ledger clears tempPattern away.
	probePattern = ".probe-*"
)

// OpenLedger makes dir if needed and reads what is in it. A document that cannot be read is logged and kept: the next
// render of its source replaces it. The error, about a directory that cannot be used, carries a hint.
func OpenLedger(dir string, log *slog.Logger) (*Ledger, error) { return openBounded(dir, maxPins, log) }

func openBounded(dir string, maxPins int, log *slog.Logger) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stateDirError(err)
	}
	l := &Ledger{dir: dir, life: rand.Text(), maxPins: maxPins, entries: map[string]lock.Document{}, saved: map[string]lock.Document{}}
	if err := l.Probe(); err != nil {
		return nil, stateDirError(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, stateDirError(err)
	}
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		key, isEntry := strings.CutSuffix(f.Name(), entrySuffix)
		if !isEntry {
			if old, _ := filepath.Match(tempPattern, f.Name()); old || f.Name() == probeName {
				_ = os.Remove(name) // left by a process that was killed while it wrote
			}
			continue
		}
		data, err := os.ReadFile(name)
		if err == nil {
			var doc *lock.Document
			if doc, err = lock.ParseEntry(f.Name(), data); err == nil {
				l.keep(key, *doc)
				l.saved[key] = *doc
				l.makeRoom()
				continue
			}
		}
		log.Warn("ledger entry not read", "file", f.Name(), "error", err)
	}
	return l, nil
}

// CheckLedger looks at a ledger without touching it, for a process may be using it: it returns the number of sources,
// or an error, with a hint, when a file cannot be written there or is no entry.
func CheckLedger(dir string) (sources int, err error) {
	f, err := os.CreateTemp(dir, probePattern)
	if err != nil {
		return 0, stateDirError(err)
	}
	_, err = f.Write([]byte{'\n'}) // a full disk gives a name, but no room
	if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name())); err != nil {
		return 0, stateDirError(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"+entrySuffix))
	if err != nil {
		return 0, stateDirError(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // forgotten meanwhile
		}
		if err == nil {
			_, err = lock.ParseEntry(filepath.Base(name), data)
		}
		if err != nil {
			return 0, fault.New(fault.StateDir, "delete it: the next render of its source writes it anew", "ledger in --state-dir: %w", err)
		}
		sources++
	}
	return sources, nil
}

func stateDirError(err error) error {
	return fault.New(fault.StateDir, "give --state-dir a directory that this user may write, in Kubernetes an emptyDir or a volume",
		"state directory: %w", err)
}

// Record keeps doc, which must have a source and sorted pins, as the newest render of that source. An error means that
// a restart would forget it; in memory it is kept all the same. What is in Git, because the lock of the render has all of
// it, outlives this process and not the machine: a commit has every other Application of its repository render again, and
// waiting for the disk took longer than such a render.
func (l *Ledger) Record(doc lock.Document, inGit bool) error {
	key := keyOf(doc.Source)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records++
	l.keep(key, doc)
	l.forget(doc.Source.RenderedAt)
	if _, kept := l.entries[key]; !kept {
		return nil // rendered before all others
	}
	if old, ok := l.saved[key]; ok && sameRender(old, doc) {
		return nil
	}
	delete(l.saved, key)
	if err := l.write(key+entrySuffix, doc.Format(), !inGit); err != nil {
		return fmt.Errorf("keep pins of %s: %w", doc.Source.Application, err)
	}
	l.saved[key] = doc
	return nil
}

// sameRender reports whether cur says nothing that is worth a write when old is on disk.
func sameRender(old, cur lock.Document) bool {
	return old.Source.Revision == cur.Source.Revision && cur.Source.RenderedAt.Sub(old.Source.RenderedAt) < refresh &&
		slices.EqualFunc(old.Pins, cur.Pins, samePin)
}

// keep replaces an entry.
func (l *Ledger) keep(key string, doc lock.Document) {
	l.pins += len(doc.Pins) - len(l.entries[key].Pins)
	l.entries[key] = doc
}

// forget drops sources that were not rendered for too long, seen from now, and makes room. The caller holds mu.
func (l *Ledger) forget(now time.Time) {
	if now.Sub(l.swept) >= refresh {
		l.swept = now
		for key, d := range l.entries {
			if now.Sub(d.Source.RenderedAt) > retention {
				l.drop(key)
			}
		}
	}
	l.makeRoom()
}

// makeRoom drops the sources that were not rendered for the longest time, as long as there is too much.
func (l *Ledger) makeRoom() {
	for len(l.entries) > maxSources || l.pins > l.maxPins {
		oldest := ""
		for key, d := range l.entries {
			if oldest == "" || d.Source.RenderedAt.Before(l.entries[oldest].Source.RenderedAt) {
				oldest = key
			}
		}
		l.drop(oldest)
	}
}

// drop removes an entry. A file that cannot be removed comes back at the next start, and is dropped again.
func (l *Ledger) drop(key string) {
	l.pins -= len(l.entries[key].Pins)
	delete(l.entries, key)
	delete(l.saved, key)
	_ = os.Remove(filepath.Join(l.dir, key+entrySuffix))
}

// samePin compares what a render decided; when it asked is not worth a write.
func samePin(a, b lock.Pin) bool { return a.Image == b.Image && a.Digest == b.Digest }

// Pins returns all documents, sorted by source.
func (l *Ledger) Pins() []lock.Document {
	l.mu.Lock()
	defer l.mu.Unlock()
	docs := slices.Collect(maps.Values(l.entries))
	slices.SortFunc(docs, func(a, b lock.Document) int { return slices.Compare(fields(a.Source), fields(b.Source)) })
	return docs
}

// Version is another text whenever Pins returns something else, also of another Ledger.
func (l *Ledger) Version() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.life + "-" + strconv.Itoa(l.records)
}

// Applications returns which Applications' last render has each image, as "project/application", sorted.
func (l *Ledger) Applications(images []string) map[string][]string {
	out := make(map[string][]string, len(images))
	for _, i := range images {
		out[i] = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.entries {
		for _, p := range d.Pins {
			if apps, asked := out[p.Image]; asked {
				out[p.Image] = append(apps, d.Source.Project+"/"+d.Source.Application)
			}
		}
	}
	for i, apps := range out {
		slices.Sort(apps)
		out[i] = slices.Compact(apps)
	}
	return out
}

// Len returns the number of sources.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// Probe returns why the directory cannot be written, or nil. It writes to it, and takes no lock.
func (l *Ledger) Probe() error { return l.write(probeName, []byte("probe\n"), true) }

// write replaces a file of the ledger as a whole: whoever reads it, whenever this process dies, finds the old bytes or
// the new ones; with sync also when the machine does.
func (l *Ledger) write(name string, data []byte, sync bool) error {
	f, err := os.CreateTemp(l.dir, tempPattern)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(l.dir, name))
	}
	if err != nil {
		if rm := os.Remove(f.Name()); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, rm)
		}
	}
	return err
}

// keyOf names the entry of a source. Two Applications, or one Application at two paths, never share an entry; the
// revision takes no part.
func keyOf(s *lock.Source) string {
	sum := sha256.Sum256([]byte(strings.Join(fields(s), "\x00")))
	return hex.EncodeToString(sum[:16])
}

func fields(s *lock.Source) []string {
	return []string{s.Repository, s.TargetRevision, s.Path, s.Project, s.Application}
}
