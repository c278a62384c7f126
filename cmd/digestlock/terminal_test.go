package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// readable spells what a terminal gets so that a script can match it.
var readable = strings.NewReplacer("\r\n", "\n", "\r", "<cr>", "\x1b[K", "<clear>", "\x1b[0m", "<>", "\x1b[31m", "<red>",
	"\x1b[32m", "<green>", "\x1b[33m", "<yellow>", "\x1b[36m", "<cyan>")

// terminal is terminal [-until TEXT] COMMAND ARG... runs a command on a terminal of its own and prints what that shows into
// the file "screen". Once TEXT is shown the command is interrupted.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	until := ""
	if args[0] == "-until" {
		until, args = args[1], args[2:]
	}
	cmd := exec.Command(lookPath(ts, args[0]), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TERM", "NO_COLOR", "DOCKER_CONFIG", "DIGESTLOCK_INSECURE_REGISTRY", "DIGESTLOCK_SERVER"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	tty, err := pty.Start(cmd)
	ts.Check(err)
	ts.Defer(func() { _, _ = cmd.Process.Kill(), tty.Close() })
	var screen bytes.Buffer
	for part := make([]byte, 4096); err == nil; {
		var n int
		n, err = tty.Read(part) // an error once the command has ended
		screen.Write(part[:n])
		if until != "" && strings.Contains(screen.String(), until) {
			ts.Check(cmd.Process.Signal(os.Interrupt))
			until = ""
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(readable.Replace(screen.String())), 0o600))
	if failed := cmd.Wait() != nil; failed != neg {
		ts.Fatalf("%q failed = %v:\n%s", args, failed, screen.String())
	}
}

// lookPath returns the path of a command of the script.
func lookPath(ts *testscript.TestScript, name string) string {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if path := filepath.Join(dir, name); dir != "" {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	ts.Fatalf("no %s in PATH", name)
	return ""
}
