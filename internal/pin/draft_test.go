package pin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDraft: encoded before its digests are known, a render is what it is encoded after.
func TestDraft(t *testing.T) {
	t.Parallel()
	text := manifests(t) + "---\nkind: Pod\nspec:\n  containers:\n  - image: 'quoted'\n  - image: \"double\"\n  - {image: flow}\n  - image: >-\n      folded\n"
	for _, format := range []Format{TagAndDigest, DigestOnly} {
		plan := func() (*Plan, func() string) {
			objects := decode(t, text)
			p, err := New(objects, Policy{Tags: latest})
			if err != nil {
				t.Fatal(err)
			}
			return p, func() string { return encode(t, objects) }
		}
		after, encoded := plan()
		digests := map[string]string{}
		for i, r := range after.Images() {
			digests[r.String()] = fmt.Sprintf("sha256:%064x", i)
		}
		if err := after.Apply(digests, format); err != nil {
			t.Fatal(err)
		}
		want := encoded()

		before, encoded := plan()
		draft, err := before.Draft(format)
		if err != nil {
			t.Fatal(err)
		}
		got := []byte(encoded())
		if strings.Contains(want, string(draft.prefix)) || !strings.Contains(string(got), string(draft.prefix)) {
			t.Fatalf("a draft without stand-ins:\n%s", got)
		}
		last := before.Images()[len(digests)-1].String()
		for name, missing := range map[string]string{"missing": "", "not a digest": "sha256:0123", "longer": digest + "0"} {
			some := map[string]string{last: missing}
			for i, d := range digests {
				if i != last {
					some[i] = d
				}
			}
			unfilled := string(got)
			if err := draft.Fill(got, some); err == nil || !strings.Contains(err.Error(), last) || string(got) != unfilled {
				t.Errorf("%s: Fill: %v, changed: %v, want an error about %s", name, err, string(got) != unfilled, last)
			}
		}
		if err := draft.Fill(got, digests); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("format %s (-after +before):\n%s", format, diff)
		}
		for _, broken := range []string{string(draft.prefix), string(draft.prefix) + "0000000x", string(draft.prefix) + "00ffffff"} {
			if err := draft.Fill([]byte(broken), digests); err == nil {
				t.Errorf("Fill(%s): no error", broken)
			}
		}
	}
}
