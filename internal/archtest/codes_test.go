package archtest

import (
	"os"
	"regexp"
	"testing"

	"github.com/digestlock/digestlock/internal/fault"
)

const root = "../../"

// TestCodes: each code of an error has its entry in docs/troubleshooting.md and a script that shows it, and neither
// knows a code that is not there.
func TestCodes(t *testing.T) {
	t.Parallel()
	codes := names(t, read(t, "internal/fault/codes.go"), `Code = "([a-z-]+)"`)
	documented := names(t, read(t, "docs/troubleshooting.md"), "(?m)^\\| `\\[([a-z-]+)\\]`")
	shown := names(t, readAll(t, scripts(t)), `(?m)(?:^oneline |\\\[|"code":")([a-z-]+)(?:$|\\\](?:\$|;)|")`)
	shown[string(fault.Unexpected)] = true // only a bug could show it
	for code := range codes {
		if !documented[code] {
			t.Errorf("docs/troubleshooting.md has no row for [%s]", code)
		}
		if !shown[code] {
			t.Errorf("no script shows [%s]", code)
		}
	}
	for code := range documented {
		if !codes[code] {
			t.Errorf("docs/troubleshooting.md has a row for [%s], which is no code", code)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(root + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// names returns what the pattern's group matches in text, which is something.
func names(t *testing.T, text, pattern string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found[m[1]] = true
	}
	if len(found) == 0 {
		t.Fatalf("nothing matches %s", pattern)
	}
	return found
}
