package lock

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/fault"
)

var (
	d1 = "sha256:" + strings.Repeat("1", 64)
	d2 = "sha256:" + strings.Repeat("2", 64)
	d3 = "sha256:" + strings.Repeat("3", 64)
	t0 = time.Date(2026, 11, 22, 20, 57, 0, 0, time.UTC)
)

const canonical = `# Maintained by digestlock: the digest behind each mutable tag this overlay renders.
apiVersion: digestlock.dev/v1
kind: DigestLock
pins:
  - image: ghcr.io/acme/worker:latest
    digest: sha256:1111111111111111111111111111111111111111111111111111111111111111
    resolvedAt: "2026-11-22T20:57:00Z"
    hold:
      rejected: sha256:2222222222222222222222222222222222222222222222222222222222222222
      reason: "reverted in 3f2c1ab: \"too <slow>\""
  - image: index.docker.io/library/nginx:latest
    digest: sha256:3333333333333333333333333333333333333333333333333333333333333333
    resolvedAt: "2026-11-22T20:57:00Z"
`

// held is a lock with the other forms of a hold.
const held = `# Maintained by digestlock: the digest behind each mutable tag this overlay renders.
apiVersion: digestlock.dev/v1
kind: DigestLock
pins:
  - image: a.io/a:latest
    digest: sha256:1111111111111111111111111111111111111111111111111111111111111111
    resolvedAt: "2026-11-22T20:57:00Z"
    hold:
      reason: "freeze"
      until: "2026-12-01T00:00:00Z"
  - image: a.io/b:latest
    digest: sha256:1111111111111111111111111111111111111111111111111111111111111111
    resolvedAt: "2026-11-22T20:57:00Z"
    hold:
      rejected: sha256:2222222222222222222222222222222222222222222222222222222222222222
      reason: ""
      until: "2026-12-01T00:00:00Z"
`

func sample() *Document {
	return &Document{Pins: []Pin{
		{
			Image: "ghcr.io/acme/worker:latest", Digest: d1, ResolvedAt: t0,
			Hold: &Hold{Rejected: d2, Reason: `reverted in 3f2c1ab: "too <slow>"`},
		},
		{Image: "index.docker.io/library/nginx:latest", Digest: d3, ResolvedAt: t0},
	}}
}

func sampleHeld() *Document {
	until := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	return &Document{Pins: []Pin{
		{Image: "a.io/a:latest", Digest: d1, ResolvedAt: t0, Hold: &Hold{Reason: "freeze", Until: until}},
		{Image: "a.io/b:latest", Digest: d1, ResolvedAt: t0, Hold: &Hold{Rejected: d2, Until: until}},
	}}
}

func TestFormatAndParse(t *testing.T) {
	t.Parallel()
	for text, d := range map[string]*Document{canonical: sample(), held: sampleHeld()} {
		if diff := cmp.Diff(text, string(d.Format())); diff != "" {
			t.Errorf("Format (-want +got):\n%s", diff)
		}
		got, err := Parse(FileName, []byte(text))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("Parse (-want +got):\n%s", diff)
		}
	}
	// What a person may write, and nothing else means: held whatever the tag does.
	got, err := Parse(FileName, []byte(strings.Replace(held, "\n      reason: \"freeze\"\n      until: \"2026-12-01T00:00:00Z\"", " {}", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Hold{}, got.Pins[0].Hold); diff != "" {
		t.Errorf("an empty hold (-want +got):\n%s", diff)
	}
}

func TestParseEntry(t *testing.T) {
	t.Parallel()
	want := sample()
	want.Source = &Source{
		Project: "default", Application: "backend", Repository: "https://git.example.com/k8s.git",
		TargetRevision: "main", Path: "overlays/dev", Revision: "3f2c1ab", RenderedAt: t0,
	}
	got, err := ParseEntry("entry", want.Format())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ParseEntry(Format) (-want +got):\n%s", diff)
	}
	if _, err := Parse(FileName, want.Format()); err == nil {
		t.Error("Parse accepts a ledger entry as a lock file")
	}
	if _, err := ParseEntry("entry", []byte(canonical)); err == nil {
		t.Error("ParseEntry accepts a lock file as a ledger entry")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	edit := func(old, cur string) string {
		if !strings.Contains(canonical, old) {
			t.Fatalf("canonical lock has no %q", old)
		}
		return strings.Replace(canonical, old, cur, 1)
	}
	hold := func(text string) string { return edit("reason: \"reverted in 3f2c1ab: \\\"too <slow>\\\"\"", text) }
	tests := []struct{ name, in, want string }{
		{"empty", "", "digest-lock.yaml: empty"},
		{"conflict", "# x\n<<<<<<< HEAD\n" + canonical, "digest-lock.yaml:2: merge conflict marker"},
		{"conflict middle", edit("  - image: index", "=======\n  - image: index"), "digest-lock.yaml:11: merge conflict marker"},
		{"newer version", edit("digestlock.dev/v1", "digestlock.dev/v2"), `digest-lock.yaml:2: apiVersion "digestlock.dev/v2", this digestlock reads digestlock.dev/v1`},
		{"newer version with new fields", edit("digestlock.dev/v1", "digestlock.dev/v2\nnew: 1"), `apiVersion "digestlock.dev/v2"`},
		{"kind", edit("kind: DigestLock", "kind: ConfigMap"), `digest-lock.yaml:3: kind "ConfigMap", want DigestLock`},
		{"unknown field", edit("pins:", "extra: 1\npins:"), `digest-lock.yaml:4: unknown field "extra"`},
		{"unknown pin field", edit("    digest: sha256:3", "    platform: x\n    digest: sha256:3"), `digest-lock.yaml:12: unknown field "platform"`},
		{"field twice", edit("kind: DigestLock", "kind: DigestLock\nkind: DigestLock"), `digest-lock.yaml:4: field "kind" given twice`},
		{"image twice", edit("index.docker.io/library/nginx", "ghcr.io/acme/worker"), "digest-lock.yaml:11: image ghcr.io/acme/worker:latest is listed already in line 5"},
		{"short name", edit("index.docker.io/library/nginx", "nginx"), "is not a full reference with a tag, such as index.docker.io/library/nginx:latest"},
		{"digest", edit(d3, "sha256:33"), `digest-lock.yaml:12: digest "sha256:33" is not`},
		{"time", edit("2026-11-22T20:57:00Z", "yesterday"), `"yesterday" is not an RFC 3339 time`},
		{"hold without fields", "apiVersion: digestlock.dev/v1\nkind: DigestLock\npins:\n  - hold:\n", "digest-lock.yaml:4: want fields here (reason, rejected, until)"},
		{"hold of nothing", edit(d2, "\"\""), `digest-lock.yaml:9: digest "" is not`},
		{"hold until a day", hold("until: 2026-12-01"), `digest-lock.yaml:10: "2026-12-01" is not an RFC 3339 time`},
		{"hold until nothing", hold("until:"), `digest-lock.yaml:10: "" is not an RFC 3339 time`},
		{"hold until zero", hold("until: 0001-01-01T00:00:00Z"), `digest-lock.yaml:10: "0001-01-01T00:00:00Z" is out of range`},
		{"hold until twice", hold("until: 2026-12-01T00:00:00Z\n      until: 2026-12-01T00:00:00Z"), `digest-lock.yaml:11: field "until" given twice`},
		{"no pins", "apiVersion: digestlock.dev/v1\nkind: DigestLock\n", `no field "pins"`},
		{"pins not a list", "apiVersion: digestlock.dev/v1\nkind: DigestLock\npins: {}\n", "digest-lock.yaml:3: pins is not a list"},
		{"two documents", canonical + "---\n" + canonical, "more than one YAML document"},
		{"broken YAML", canonical + "  {", "line 14"},
		{"alias", "apiVersion: digestlock.dev/v1\nkind: DigestLock\npins: &a [*a]\n", "digest-lock.yaml"},
		{"too large", canonical + strings.Repeat("#", MaxSize), "more than the 1048576 a lock may have"},
	}
	for _, tt := range tests {
		_, err := Parse(FileName, []byte(tt.in))
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %q, want %q in it", tt.name, err, tt.want)
		}
		if fault.Hint(err) == "" {
			t.Errorf("%s: error without a hint", tt.name)
		}
	}
}

func TestAdvance(t *testing.T) {
	t.Parallel()
	later := t0.Add(time.Minute)
	held := &Hold{Rejected: d2, Reason: "r"}
	frozen := &Hold{Reason: "r"}
	until := func(h Hold, end time.Time) *Hold {
		h.Until = end
		return &h
	}
	tests := []struct {
		name   string
		pin    Pin
		digest string
		at     time.Time
		want   Pin
	}{
		{"moved", Pin{"i", d1, t0, nil}, d2, later, Pin{"i", d2, later, nil}},
		{"same", Pin{"i", d1, t0, nil}, d1, later, Pin{"i", d1, t0, nil}},
		{"older look", Pin{"i", d1, later, nil}, d2, t0, Pin{"i", d1, later, nil}},
		{"rejected", Pin{"i", d1, t0, held}, d2, later, Pin{"i", d1, t0, held}},
		{"past the rejected", Pin{"i", d1, t0, held}, d3, later, Pin{"i", d3, later, nil}},
		{"frozen", Pin{"i", d1, t0, frozen}, d2, later, Pin{"i", d1, t0, frozen}},
		{"rejected, later over", Pin{"i", d1, t0, until(*held, later.Add(1))}, d2, later, Pin{"i", d1, t0, until(*held, later.Add(1))}},
		{"rejected, over", Pin{"i", d1, t0, until(*held, later)}, d2, later, Pin{"i", d2, later, nil}},
		{"frozen, later over", Pin{"i", d1, t0, until(*frozen, later.Add(1))}, d3, later, Pin{"i", d1, t0, until(*frozen, later.Add(1))}},
		{"frozen, over", Pin{"i", d1, t0, until(*frozen, later)}, d3, later, Pin{"i", d3, later, nil}},
		{"frozen, over, same", Pin{"i", d1, t0, until(*frozen, t0)}, d1, later, Pin{"i", d1, t0, until(*frozen, t0)}},
		{"frozen, over, older look", Pin{"i", d1, later, until(*frozen, t0)}, d2, t0, Pin{"i", d1, later, until(*frozen, t0)}},
	}
	for _, tt := range tests {
		got, changed := tt.pin.Advance(tt.digest, tt.at)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if changed != (got.Digest != tt.pin.Digest) {
			t.Errorf("%s: changed = %v", tt.name, changed)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := Pin{Image: "a.io/b:c", Digest: d1, ResolvedAt: t0}
	tests := []struct {
		name string
		edit func(*Pin)
		want string
	}{
		{"good", func(*Pin) {}, ""},
		{"held", func(p *Pin) { p.Hold = &Hold{} }, ""},
		{"rejected", func(p *Pin) { p.Hold = &Hold{Rejected: d2, Until: t0} }, ""},
		{"short image", func(p *Pin) { p.Image = "b:c" }, "is not a full reference"},
		{"digest", func(p *Pin) { p.Digest = "latest" }, "is not a digest"},
		{"time", func(p *Pin) { p.ResolvedAt = t0.AddDate(9000, 0, 0) }, "resolvedAt is out of range"},
		{"rejects no digest", func(p *Pin) { p.Hold = &Hold{Rejected: "latest"} }, "which its hold rejects, is not a digest"},
		{"until", func(p *Pin) { p.Hold = &Hold{Until: t0.AddDate(9000, 0, 0)} }, "its hold's until is out of range"},
	}
	for _, tt := range tests {
		p := good
		tt.edit(&p)
		if err := p.Check(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Check = %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestWith(t *testing.T) {
	t.Parallel()
	base := sample()
	a, nginx := Pin{Image: "a.io/new:latest", Digest: d1, ResolvedAt: t0}, Pin{Image: "index.docker.io/library/nginx:latest", Digest: d1, ResolvedAt: t0}
	got := base.With(nginx).With(a)
	if diff := cmp.Diff(&Document{Pins: []Pin{a, base.Pins[0], nginx}}, got); diff != "" {
		t.Errorf("With (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(sample(), base); diff != "" {
		t.Errorf("With changed its receiver:\n%s", diff)
	}
	if diff := cmp.Diff(&Document{Pins: []Pin{a}}, (*Document)(nil).With(a)); diff != "" {
		t.Errorf("With of no lock (-want +got):\n%s", diff)
	}
}

func TestMergeAndDiff(t *testing.T) {
	t.Parallel()
	base := sample()
	later := t0.Add(time.Hour)
	got := Merge(base, []Pin{
		{Image: "a.io/new:latest", Digest: d1, ResolvedAt: later},
		{Image: "ghcr.io/acme/worker:latest", Digest: d2, ResolvedAt: later}, // held
		{Image: "index.docker.io/library/nginx:latest", Digest: d1, ResolvedAt: later},
	})
	want := &Document{Pins: []Pin{
		{Image: "a.io/new:latest", Digest: d1, ResolvedAt: later},
		base.Pins[0],
		{Image: "index.docker.io/library/nginx:latest", Digest: d1, ResolvedAt: later},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Merge (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(sample(), base); diff != "" {
		t.Errorf("Merge changed its base:\n%s", diff)
	}
	wantChanges := []Change{
		{Image: "a.io/new:latest", New: d1},
		{Image: "index.docker.io/library/nginx:latest", Old: d3, New: d1},
	}
	if diff := cmp.Diff(wantChanges, Diff(base, got)); diff != "" {
		t.Errorf("Diff (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Change{{"a.io/new:latest", d1, ""}}, Diff(&Document{Pins: got.Pins[:1]}, nil)); diff != "" {
		t.Errorf("Diff to nothing (-want +got):\n%s", diff)
	}
}

// FuzzParse: arbitrary bytes never panic, and what is accepted keeps its meaning through its canonical form.
func FuzzParse(f *testing.F) {
	f.Add([]byte(canonical))
	f.Add([]byte(held))
	f.Add([]byte("apiVersion: digestlock.dev/v1\nkind: DigestLock\npins: [{image: a.io/b:c, digest: " + d1 +
		", resolvedAt: 2026-12-01T00:00:00Z, hold: {until: 2026-12-01T00:00:00.9+02:00}}]\n"))
	f.Add([]byte("apiVersion: digestlock.dev/v1\nkind: DigestLock\npins: []\n"))
	f.Add((&Document{Pins: []Pin{{Image: "a.io/b:c", Digest: d1, ResolvedAt: t0}}}).Format())
	f.Fuzz(func(t *testing.T, data []byte) {
		checkWritten(t, data)
		d, err := Parse(FileName, data)
		if err != nil {
			return
		}
		out := d.Format()
		again, err := Parse(FileName, out)
		if err != nil {
			t.Fatalf("Parse(Format): %v\n%s", err, out)
		}
		if diff := cmp.Diff(d, again, cmp.Comparer(samePins)); diff != "" {
			t.Errorf("Parse(Format) differs (-first +again):\n%s", diff)
		}
		if string(again.Format()) != string(out) {
			t.Error("Format is not canonical")
		}
	})
}

// FuzzFormat: whatever text ends up in a hold or a source, the written document reads back equal.
func FuzzFormat(f *testing.F) {
	f.Add("reverted", "main", int64(0))
	f.Add("\u0085\ufeff\x7f\u2028\"\\\n", "<&>", int64(1<<33+1))
	f.Fuzz(func(t *testing.T, reason, path string, unix int64) {
		when := time.Unix(unix, 0).UTC()
		if y := when.Year(); y < 1 || y > 9999 {
			return
		}
		reason, path = strings.ToValidUTF8(reason, "?"), strings.ToValidUTF8(path, "?")
		d := &Document{
			Source: &Source{Project: path, Path: reason, RenderedAt: when},
			Pins:   []Pin{{Image: "a.io/b:c", Digest: d1, ResolvedAt: when, Hold: &Hold{Reason: reason, Until: when}}},
		}
		if unix%2 == 0 {
			d.Pins[0].Hold.Rejected = d2
		}
		got, err := ParseEntry("e", d.Format())
		if err != nil {
			t.Fatalf("ParseEntry(Format): %v\n%s", err, d.Format())
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("ParseEntry(Format) (-want +got):\n%s", diff)
		}
	})
}

// samePins lets an empty list equal no list: "pins: []" is both.
func samePins(a, b []Pin) bool {
	return len(a) == 0 && len(b) == 0 || cmp.Equal(a, b)
}

func BenchmarkParse(b *testing.B) {
	d := &Document{}
	for i := range 50 {
		d.Pins = append(d.Pins, Pin{Image: "ghcr.io/acme/app-" + string(rune('a'+i%26)) + strings.Repeat("x", i) + ":latest", Digest: d1, ResolvedAt: t0})
	}
	data := d.Format()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(FileName, data); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWithinASecond: a look that is older by less than a second moves nothing back, also after a way through a file.
func TestWithinASecond(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 600_000_000, time.UTC)
	d := &Document{Pins: []Pin{{Image: "ghcr.io/acme/server:latest", Digest: "sha256:" + strings.Repeat("2", 64), ResolvedAt: at}}}
	read, err := Parse("x", d.Format())
	if err != nil {
		t.Fatal(err)
	}
	older := "sha256:" + strings.Repeat("1", 64)
	if p, moved := read.Pins[0].Advance(older, at.Add(-300*time.Millisecond)); moved {
		t.Errorf("moved back to %s", p.Digest)
	}
	if _, moved := read.Pins[0].Advance(older, at.Add(300*time.Millisecond)); !moved {
		t.Error("not moved by a look that is newer")
	}
}

// checkWritten: what is read without YAML is what YAML has there, and canonical.
func checkWritten(t *testing.T, data []byte) bool {
	t.Helper()
	d := written(data)
	if d == nil {
		return false
	}
	want, err := parseYAML(FileName, data)
	if err != nil {
		t.Fatalf("parseYAML: %v\n%s", err, data)
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("by YAML (-), without (+):\n%s\n%s", diff, data)
	}
	if string(d.Format()) != string(data) {
		t.Errorf("read without YAML, and not canonical:\n%s", data)
	}
	return true
}

// TestWritten: of what Format writes, all without a hold is read without YAML. One byte more, fewer or other, and what is read
// is what YAML says, or nothing.
func TestWritten(t *testing.T) {
	t.Parallel()
	d := &Document{Pins: []Pin{
		{Image: "a.io/b:c", Digest: d1, ResolvedAt: t0},
		{Image: "ghcr.io/acme/worker:latest", Digest: d2, ResolvedAt: t0.Add(123 * time.Millisecond)},
		{Image: "localhost:5000/a/b__c-d:V1.2_x", Digest: d3},
	}}
	d.Pins[2].ResolvedAt = time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)
	data := d.Format()
	if !checkWritten(t, data) {
		t.Fatalf("not read without YAML:\n%s", data)
	}
	d.Pins[1].Hold = &Hold{Reason: "x"}
	for name, text := range map[string]string{
		"hold":   string(d.Format()),
		"no pin": string((&Document{}).Format()),
		"flow":   string((&Document{Pins: []Pin{{Image: "[::1]:5000/x:latest", Digest: d1, ResolvedAt: t0}}}).Format()),
		"entry":  string((&Document{Source: &Source{}, Pins: d.Pins[:1]}).Format()),
		"year 0": strings.Replace(string(data), "9999-12-31", "0000-12-31", 1),
		"order":  strings.Replace(string(data), "a.io/b:c", "z.io/b:c", 1),
		"twice":  strings.Replace(string(data), "a.io/b:c", "ghcr.io/acme/worker:latest", 1),
		"offset": strings.Replace(string(data), "20:57:00Z", "20:57:00+00:00", 1),
		"micros": strings.Replace(string(data), "00.123Z", "00.123456Z", 1),
		"digits": strings.Replace(string(data), "00.123Z", "00.120Z", 1),
		"name":   strings.Replace(string(data), "a.io/b:c", "b:c", 1),
	} {
		if text == string(data) || written([]byte(text)) != nil {
			t.Errorf("%s: read without YAML:\n%s", name, text)
		}
	}
	for i := range data {
		for _, c := range []byte("\n \"#a0") {
			other := slices.Clone(data)
			other[i] = c
			checkWritten(t, other)
			checkWritten(t, slices.Insert(slices.Clone(data), i, c))
		}
		checkWritten(t, slices.Delete(slices.Clone(data), i, i+1))
		checkWritten(t, data[:i])
	}
}

func TestWithoutUser(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://git.example.com/r.git":           "https://git.example.com/r.git",
		"https://u:p@git.example.com/r.git?a=b@c": "https://git.example.com/r.git?a=b@c",
		"https://u:p%zz@git.example.com/r":        "https://git.example.com/r",
		"https://u:p@x@git.example.com":           "https://git.example.com",
		"git@git.example.com:r.git":               "git@git.example.com:r.git",
		"":                                        "",
	} {
		if got := WithoutUser(url); got != want {
			t.Errorf("WithoutUser(%q) = %q, want %q", url, got, want)
		}
	}
}
