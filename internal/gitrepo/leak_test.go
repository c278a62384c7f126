package gitrepo_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/gittest"
)

// TestNoLeaks is not parallel, so that what it counts is its own: ssh connections end with the call that made them,
// whether it went well, was refused, or was cut short.
func TestNoLeaks(t *testing.T) {
	server := gittest.SSH(t)
	repo := server.Create(t, "repo.git", seed())
	r := open(t, repo.URL, server.Auth)
	s := read(t, r, "")
	read(t, r, "")
	readFiles(t, s, "README.md")
	push(t, s, change("m", map[string]string{"README.md": "x"}))
	if _, err := open(t, server.URL("none.git"), server.Auth).Read(t.Context(), ""); err == nil {
		t.Error("missing repository: no error")
	}
	a := server.Auth
	a.SSHKey = gittest.NewSSHKey(t)
	if _, err := open(t, repo.URL, a).Read(t.Context(), ""); err == nil {
		t.Error("wrong key: no error")
	}
	repo.Hook(t, "pre-receive", "exec sleep 1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := read(t, r, "").Push(ctx, change("m", map[string]string{"README.md": "y"})); err == nil {
		t.Error("silent server: no error")
	}
	deadline := time.After(10 * time.Second)
	for {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !strings.Contains(string(stacks), "crypto/ssh.") {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("still running:\n%s", stacks)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
