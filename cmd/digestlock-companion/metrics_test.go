package main

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rogpeppe/go-internal/testscript"
)

// scrape REGEXP waits until a line of the companion's metrics matches, and checks that they are as Prometheus wants
// them.
func scrape(ts *testscript.TestScript, _ bool, args []string) {
	want, text := regexp.MustCompile("(?m)"+args[0]), ""
	for range 400 {
		if res, err := http.Get("http://" + ts.Getenv("LISTEN") + "/metrics"); err == nil {
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			ts.Check(err)
			if text = string(body); want.MatchString(text) {
				break
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	if !want.MatchString(text) {
		ts.Fatalf("no line like %s in\n%s", args[0], text)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	ts.Check(err)
	for _, p := range problems {
		ts.Fatalf("%s: %s", p.Metric, p.Text)
	}
}
