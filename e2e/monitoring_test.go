package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const monitoring = "../manifests/monitoring/"

// TestMonitoring: Prometheus's own promtool takes the alert rules and the expressions of the dashboard, and the rules fire
// when they should. That the metrics exist is archtest's to see.
func TestMonitoring(t *testing.T) {
	promtool := buildPromtool(t)
	dir := t.TempDir()
	var rule struct {
		Kind string
		Spec json.RawMessage
	}
	readYAML(t, monitoring+"alerts.yaml", &rule)
	if rule.Kind != "PrometheusRule" {
		t.Fatalf("kind %q, want PrometheusRule", rule.Kind)
	}
	writeFile(t, filepath.Join(dir, "rules.yaml"), string(rule.Spec)) // JSON is YAML
	tests, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "alerts_test.yaml"), string(tests))
	check(t, promtool, dir, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
	check(t, promtool, dir, "test", "rules", "alerts_test.yaml")
	check(t, promtool, dir, "check", "rules", panels(t, dir))
}

// panels writes the dashboard's expressions as recording rules, which is what promtool can check, and returns the file.
func panels(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(monitoring + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		SchemaVersion int
		Panels        []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.SchemaVersion == 0 || len(dashboard.Panels) == 0 {
		t.Fatal("no schema version, or no panels")
	}
	type recording struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []recording
	variable := regexp.MustCompile(`\$__\w+`) // an interval
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			expr := variable.ReplaceAllString(target.Expr, "5m")
			rules = append(rules, recording{fmt.Sprintf("panel_%d", len(rules)), expr})
		}
	}
	out, err := json.Marshal(map[string]any{"groups": []map[string]any{{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "panels.yaml")
	writeFile(t, name, string(out))
	return name
}

// buildPromtool takes minutes when the build cache knows nothing of it. The tag leaves service discovery out, which is
// most of Prometheus.
func buildPromtool(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "promtool")
	build := exec.Command("go", "build", "-tags", "remove_all_sd", "-o", name, "github.com/prometheus/prometheus/cmd/promtool")
	build.Dir = "promtool"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build promtool: %v\n%s", err, out)
	}
	return name
}

func check(t *testing.T, promtool, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(promtool, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func readYAML(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
