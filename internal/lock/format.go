package lock

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

const header = "# Maintained by digestlock: the digest behind each mutable tag this overlay renders.\n"

const version = "apiVersion: " + apiVersion + "\nkind: " + kind + "\n"

// Format returns the canonical bytes of d: pins sorted by image, one field a line, times in UTC to the millisecond, a
// trailing newline. Equal documents have equal bytes, and [Parse] of them is d again.
func (d *Document) Format() []byte {
	var b bytes.Buffer
	if d.Source == nil {
		b.WriteString(header)
	}
	b.WriteString(version)
	if s := d.Source; s != nil {
		b.WriteString("source:\n")
		for _, f := range []struct{ key, value string }{
			{"project", s.Project},
			{"application", s.Application},
			{"repoURL", s.Repository},
			{"targetRevision", s.TargetRevision},
			{"path", s.Path},
			{"mode", s.Mode},
			{"revision", s.Revision},
			{"renderedAt", stamp(s.RenderedAt)},
		} {
			if f.key == "mode" && f.value == "" {
				continue
			}
			b.WriteString("  " + f.key + ": " + quote(f.value) + "\n")
		}
	}
	if len(d.Pins) == 0 {
		b.WriteString("pins: []\n")
		return b.Bytes()
	}
	b.WriteString("pins:\n")
	pins := slices.Clone(d.Pins)
	sortPins(pins)
	for _, p := range pins {
		b.WriteString("  - image: " + plain(p.Image) + "\n    digest: " + p.Digest + "\n    resolvedAt: " +
			quote(stamp(p.ResolvedAt)) + "\n")
		p.Hold.format(&b)
	}
	return b.Bytes()
}

func (h *Hold) format(b *bytes.Buffer) {
	if h == nil {
		return
	}
	b.WriteString("    hold:\n")
	if h.Rejected != "" {
		b.WriteString("      rejected: " + h.Rejected + "\n")
	}
	b.WriteString("      reason: " + quote(h.Reason) + "\n")
	if !h.Until.IsZero() {
		b.WriteString("      until: " + quote(stamp(h.Until)) + "\n")
	}
}

// stamp writes whole seconds without a fraction, as they were always written. Without the fraction, of two looks within
// one second the older would move a pin back that the newer had moved.
func stamp(t time.Time) string { return t.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano) }

// plain leaves a reference unquoted, as people write it, unless it starts like a YAML flow sequence ("[::1]:5000/x").
func plain(s string) string {
	if strings.HasPrefix(s, "[") {
		return quote(s)
	}
	return s
}

// quote returns s as a YAML double-quoted scalar. JSON strings are that, once HTML escaping is off and the C1
// controls and U+FEFF, which JSON leaves bare and YAML does not print, are escaped.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	var out strings.Builder
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0xfeff || r == 0xfffe || r == 0xffff {
			out.WriteString(`\u` + hex4(r))
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}

func hex4(r rune) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15]})
}
