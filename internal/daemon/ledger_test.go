package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
)

var (
	d1 = "sha256:" + strings.Repeat("1", 64)
	d2 = "sha256:" + strings.Repeat("2", 64)
	t0 = time.Date(2026, 11, 22, 20, 57, 0, 0, time.UTC)
)

func rendered(app, revision, digest string) lock.Document {
	return lock.Document{
		Source: &lock.Source{
			Project: "default", Application: app, Repository: "https://git.example.com/k8s.git", TargetRevision: "main",
			Path: "overlays/" + app, Revision: revision, RenderedAt: t0,
		},
		Pins: []lock.Pin{{Image: "ghcr.io/acme/server:latest", Digest: digest, ResolvedAt: t0}},
	}
}

func openLedger(t *testing.T, dir string) *Ledger {
	t.Helper()
	return openLedgerOf(t, dir, maxPins)
}

func openLedgerOf(t *testing.T, dir string, maxPins int) *Ledger {
	t.Helper()
	l, err := openBounded(dir, maxPins, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func record(t *testing.T, l *Ledger, docs ...lock.Document) {
	t.Helper()
	for _, d := range docs {
		if err := l.Record(d, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLedgerSurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	l := openLedger(t, dir)
	record(t, l, rendered("two", "r1", d1), rendered("one", "r1", d1), rendered("two", "r2", d2))
	want := []lock.Document{rendered("one", "r1", d1), rendered("two", "r2", d2)}
	if diff := cmp.Diff(want, l.Pins()); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, openLedger(t, dir).Pins()); diff != "" {
		t.Errorf("pins after a restart (-want +got):\n%s", diff)
	}
}

// TestLedgerAfterKill: whatever a killed process left behind, the ledger opens, and loses nothing that was complete.
func TestLedgerAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	record(t, openLedger(t, dir), rendered("one", "r1", d1))
	for name, content := range map[string]string{".new-123": "apiVer", "broken.yaml": "<<<<<<<\n", "README": "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]lock.Document{rendered("one", "r1", d1)}, openLedger(t, dir).Pins()); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
	for name, kept := range map[string]bool{".new-123": false, "broken.yaml": true, "README": true, "probe": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != kept {
			t.Errorf("%s: kept = %v, want %v", name, err == nil, kept)
		}
	}
}

// TestLedgerWithoutDisk: a directory that can no longer be written costs durability, not pins, and heals.
func TestLedgerWithoutDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	l := openLedger(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(rendered("one", "r1", d1), false); err == nil {
		t.Fatal("Record into a directory that is gone: no error")
	}
	if diff := cmp.Diff([]lock.Document{rendered("one", "r1", d1)}, l.Pins()); diff != "" {
		t.Errorf("pins in memory (-want +got):\n%s", diff)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	record(t, l, rendered("one", "r1", d1)) // nothing new in it, but the disk does not have it yet
	if n := openLedger(t, dir).Len(); n != 1 {
		t.Errorf("%d sources after the disk came back, want 1", n)
	}
}

// TestLedgerForgets: what nobody renders any more is not written to for ever.
func TestLedgerForgets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLedger(t, dir)
	at := func(app string, age time.Duration) lock.Document {
		d := rendered(app, "r1", d1)
		d.Source.RenderedAt = t0.Add(age)
		return d
	}
	record(t, l, at("old", 0), at("new", 24*time.Hour), at("old", 2*time.Hour))
	if got := openLedger(t, dir).Pins(); len(got) != 2 || !got[1].Source.RenderedAt.Equal(t0.Add(2*time.Hour)) {
		t.Errorf("the time of the last render is not on disk: %+v", got)
	}
	record(t, l, at("new", retention+3*time.Hour))
	for name, pins := range map[string][]lock.Document{"memory": l.Pins(), "disk": openLedger(t, dir).Pins()} {
		if len(pins) != 1 || pins[0].Source.Application != "new" {
			t.Errorf("%s: %+v, want only the source that is still rendered", name, pins)
		}
	}
}

// TestLedgerIsBoundedInPins: whatever is reported and however much of it lies on disk, the newest renders are kept and the
// rest is not held.
func TestLedgerIsBoundedInPins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pins := make([]lock.Pin, 30)
	for i := range pins {
		pins[i] = lock.Pin{Image: fmt.Sprintf("registry.example.com/team/service-%04d:latest", i), Digest: d1, ResolvedAt: t0}
	}
	const full = 7
	maxPins := full*len(pins) + 1
	l := openLedgerOf(t, dir, maxPins)
	at := func(i int) lock.Document {
		d := rendered(fmt.Sprintf("app-%03d", i), "r1", d1)
		d.Source.RenderedAt, d.Pins = t0.Add(time.Duration(i)*time.Second), pins
		return d
	}
	check := func(l *Ledger, oldest, n int) {
		t.Helper()
		docs := l.Pins()
		if len(docs) != n || l.pins != n*len(pins) || docs[0].Source.Application != at(oldest).Source.Application {
			t.Errorf("%d sources with %d pins are kept, from %s, want %d from app-%03d", len(docs), l.pins, docs[0].Source.Application, n, oldest)
		}
	}
	for i := range full + 2 {
		if err := l.Record(at(i), true); err != nil {
			t.Fatal(err)
		}
	}
	check(l, 2, full)
	record(t, l, at(full)) // again: it counts once
	check(l, 2, full)
	for i := range 2 { // as a version without this bound has left them
		d := at(i)
		if err := l.write(keyOf(d.Source)+entrySuffix, d.Format(), false); err != nil {
			t.Fatal(err)
		}
	}
	check(openLedgerOf(t, dir, maxPins), 2, full)
	if files, err := os.ReadDir(dir); err != nil || len(files) != full {
		t.Errorf("%d files, %v, want %d", len(files), err, full)
	}
}

func TestLedgerDirectoryUnusable(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "x"), "/proc/nowhere"} {
		if _, err := OpenLedger(dir, slog.New(slog.DiscardHandler)); err == nil || fault.Hint(err) == "" {
			t.Errorf("OpenLedger(%s) = %v, want an error with a hint", dir, err)
		}
	}
}

// TestCheckLedger: a look at a ledger that is in use changes nothing in it.
func TestCheckLedger(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLedger(t, dir)
	record(t, l, rendered("one", "c1", d1), rendered("two", "c1", d2))
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(".new-1", "half an ent") // of the other process, which is about to rename it
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := CheckLedger(dir); n != 2 || err != nil {
		t.Errorf("CheckLedger = %d, %v, want 2", n, err)
	}
	after, err := os.ReadDir(dir)
	if err != nil || len(after) != len(before) {
		t.Errorf("%d files before, %d after, %v", len(before), len(after), err)
	}
	write("bad.yaml", "pins: [")
	if _, err := CheckLedger(dir); err == nil || !strings.Contains(err.Error(), "bad.yaml") || !strings.HasPrefix(fault.Hint(err), "delete it") {
		t.Errorf("unreadable entry: %v", err)
	}
	nowhere := filepath.Join(dir, "nowhere")
	if _, err := CheckLedger(nowhere); fault.CodeOf(err) != fault.StateDir {
		t.Errorf("no directory: %v", err)
	}
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("the directory was made")
	}
}
