package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/image"
	"github.com/digestlock/digestlock/internal/lock"
	"github.com/digestlock/digestlock/internal/registrytest"
)

// TestServeKilled kills the resolver at random instants while renders report to it. Whatever it acknowledged must be
// in the ledger that the next one opens, and its state directory must be clean.
func TestServeKilled(t *testing.T) {
	t.Parallel()
	reg := registrytest.Start(t)
	digest := reg.Push("acme/server", "latest")
	ref, err := image.Parse(reg.Host + "/acme/server:latest")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]string{} // application → revision
	for round := range 12 {
		p := startServe(t, reg.Host, token, filepath.Join(dir, "state"))
		client, err := api.NewClient("http://"+p.address, "secret")
		if err != nil {
			t.Fatal(err)
		}
		docs, err := client.Pins(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, d := range docs {
			got[d.Source.Application] = d.Source.Revision
			if len(d.Pins) != 1 || d.Pins[0].Digest != digest {
				t.Errorf("round %d: %s has pins %+v", round, d.Source.Application, d.Pins)
			}
		}
		for app, revision := range acknowledged {
			if got[app] < revision {
				t.Errorf("round %d: %s is at %q, %q was acknowledged", round, app, got[app], revision)
			}
		}
		time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { _ = p.cmd.Process.Kill() })
		for i := 0; ; i++ {
			app, revision := fmt.Sprintf("app-%d", i%7), fmt.Sprintf("%04d-%06d", round, i)
			source := &lock.Source{Application: app, Repository: "https://git.example.com/r", TargetRevision: "main", Revision: revision}
			var locked []lock.Pin
			ask := []image.Ref{ref}
			if i%2 == 0 { // the report of what a lock decided
				locked, ask = []lock.Pin{{Image: ref.String(), Digest: digest}}, nil
			}
			if _, err := client.Resolve(t.Context(), source, locked, ask); err != nil {
				break
			}
			acknowledged[app] = revision
		}
		client.Close()
		_ = p.cmd.Wait() // killed
	}
	if len(acknowledged) == 0 {
		t.Error("nothing was acknowledged in any round: the test shows nothing")
	}
}

type served struct {
	cmd     *exec.Cmd
	address string
}

func startServe(t *testing.T, registry, token, state string) served {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "digestlock", "serve", "--socket=", "--listen=127.0.0.1:0",
		"--token-file", token, "--state-dir", state, "--insecure-registry", registry)
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	var seen strings.Builder
	for lines.Scan() {
		var entry struct{ Msg, Listen string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "serving" {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return served{cmd, entry.Listen}
		}
		seen.WriteString(lines.Text() + "\n")
	}
	t.Fatalf("resolver did not start:\n%s", seen.String())
	return served{}
}
