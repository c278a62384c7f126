package archtest

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMetrics: each metric has its row in docs/metrics.md, a script that shows a value of it that is not 0, as is one
// that nobody fills, and a panel in the dashboard. None of these, and no alert, knows a metric that is not there.
func TestMetrics(t *testing.T) {
	t.Parallel()
	metrics := names(t, readAll(t, sources(t)), `Name: +"(digestlock_[a-z_]+)"`)
	for _, place := range []struct {
		name, text, pattern string
		all                 bool // it has all metrics
	}{
		{"docs/metrics.md", read(t, "docs/metrics.md"), "(?m)^\\| `(digestlock_[a-z_]+)", true},
		{"the scripts", readAll(t, scripts(t)), `(?m)^(?:grep|scrape) '\^(digestlock_[a-z_]+).*[1-9].*'`, true},
		{"dashboard.json", read(t, "manifests/monitoring/dashboard.json"), `(digestlock_[a-z_]+)`, true},
		{"alerts.yaml", read(t, "manifests/monitoring/alerts.yaml"), `(digestlock_[a-z_]+)`, false},
	} {
		found := map[string]bool{}
		for name := range names(t, place.text, place.pattern) {
			name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "") // the series of a histogram
			found[name] = true
			if !metrics[name] {
				t.Errorf("%s: %s is no metric", place.name, name)
			}
		}
		for name := range metrics {
			if place.all && !found[name] {
				t.Errorf("%s: nothing about %s", place.name, name)
			}
		}
	}
}

// sources returns the program's Go files, tests aside.
func sources(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, dir := range []string{"cmd", "internal", "plugin"} {
		err := filepath.WalkDir(root+dir, func(name string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				files = append(files, strings.TrimPrefix(name, root))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func scripts(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(root + "cmd/*/testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for i, f := range files {
		files[i] = strings.TrimPrefix(f, root)
	}
	return files
}

func readAll(t *testing.T, files []string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range files {
		all.WriteString(read(t, f))
	}
	return all.String()
}
