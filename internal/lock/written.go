package lock

import (
	"strings"
	"time"
)

// written reads what [Document.Format] writes of a lock without holds, as most are, byte for byte and nothing else, without
// YAML, which is most of what a companion of a thousand locks would do. Of anything else it returns nil: whoever parses
// YAML says whether that is a lock, too, and if not, why.
func written(data []byte) *Document {
	rest, ok := strings.CutPrefix(string(data), header+version+"pins:\n")
	if !ok || rest == "" {
		return nil
	}
	d := &Document{Pins: make([]Pin, 0, strings.Count(rest, "\n")/3)}
	last := ""
	for rest != "" {
		var p Pin
		var at string
		p.Image, rest = field(rest, "  - image: ", "\n")
		p.Digest, rest = field(rest, "    digest: ", "\n")
		at, rest = field(rest, "    resolvedAt: \"", "\"\n")
		t, err := time.Parse(time.RFC3339, at)
		p.ResolvedAt = t.UTC()
		if err != nil || stamp(t) != at || p.Image <= last || plain(p.Image) != p.Image || p.Check() != nil {
			return nil
		}
		last = p.Image
		d.Pins = append(d.Pins, p)
	}
	return d
}

// field cuts a key off text, its value, and what ends that. Where text begins with no such thing both results are empty.
func field(text, key, end string) (value, rest string) {
	text, begins := strings.CutPrefix(text, key)
	value, rest, ends := strings.Cut(text, end)
	if !begins || !ends {
		return "", ""
	}
	return value, rest
}
