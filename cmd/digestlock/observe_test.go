package main

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rogpeppe/go-internal/testscript"
)

// post FILE STATUS TOKEN posts a file to /v1/resolve at $LISTEN.
func post(ts *testscript.TestScript, _ bool, args []string) {
	req, err := http.NewRequest(http.MethodPost, "http://"+ts.Getenv("LISTEN")+"/v1/resolve", strings.NewReader(ts.ReadFile(args[0])))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+args[2])
	if got := send(ts, req); got != args[1] {
		ts.Fatalf("POST %s: %s, want %s: %s", args[0], got, args[1], ts.ReadFile("answer"))
	}
}

var (
	// samples are the series of our own metrics, in the text format.
	samples = regexp.MustCompile(`(?m)^(digestlock_[a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? `)
	label   = regexp.MustCompile(`([a-z_]+)="`)
	// rows are the metrics in docs/metrics.md.
	rows = regexp.MustCompile("(?m)^\\| `(digestlock_[a-z_]+)(?:\\{([a-z,]*)\\})?`")
)

// metrics checks the scrape in the file "answer": names and help are as Prometheus wants them, and labels as
// docs/metrics.md says.
func metrics(ts *testscript.TestScript, _ bool, _ []string) {
	text := ts.ReadFile("answer")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	ts.Check(err)
	for _, p := range problems {
		ts.Logf("%s: %s", p.Metric, p.Text)
	}
	if len(problems) > 0 {
		ts.Fatalf("promlint")
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	ts.Check(err)
	documented := map[string]string{}
	for _, m := range rows.FindAllStringSubmatch(string(doc), -1) {
		names := strings.Split(m[2], ",")
		slices.Sort(names)
		documented[m[1]] = strings.Join(names, ",")
	}
	scraped := samples.FindAllStringSubmatch(text, -1)
	if len(scraped) == 0 {
		ts.Fatalf("no metrics of ours")
	}
	for _, m := range scraped {
		var names []string
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				names = append(names, l[1])
			}
		}
		slices.Sort(names)
		want, ok := documented[m[1]]
		if diff := cmp.Diff(want, strings.Join(names, ",")); !ok || diff != "" {
			ts.Fatalf("docs/metrics.md does not have %s with these labels:\n%s", m[1], diff)
		}
	}
}

// logs checks that the last command's stderr is a JSON document a line, each with a time, a level and a message that
// begins in lower case and holds nothing foreign: digits and quotes would tell of that.
func logs(ts *testscript.TestScript, _ bool, _ []string) {
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stderr"), "\n"), "\n")
	constant := regexp.MustCompile(`^[a-z][a-z ,]*$`)
	for _, line := range lines {
		var entry struct {
			Time  time.Time
			Level string
			Msg   string
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time.IsZero() || entry.Level == "" || !constant.MatchString(entry.Msg) {
			ts.Fatalf("not a log line (%v): %s", err, line)
		}
	}
}
