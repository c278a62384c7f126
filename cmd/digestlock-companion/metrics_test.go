package main

import (
	"io"
	"net/http"
	"os"
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

// ask METHOD PATH TOKEN STATUS [FILE] makes a request with a bearer token and the file's bytes. The answer must have the
// status, and is then in the file answer.
func ask(ts *testscript.TestScript, _ bool, args []string) {
	var body string
	if len(args) > 4 {
		body = ts.ReadFile(args[4])
	}
	req, err := http.NewRequest(args[0], "http://"+ts.Getenv("LISTEN")+args[1], strings.NewReader(body))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+args[2])
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	answer, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("answer"), answer, 0o600))
	if res.Status[:3] != args[3] {
		ts.Fatalf("%s %s: %s, want %s\n%s", args[0], args[1], res.Status, args[3], answer)
	}
}
