package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds every wait for something to become ready or to end.
const startTimeout = 30 * time.Second

// process is a program that runs beside a test and is gone, at the latest, when the test ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
	err  error         // how it exited; read after done
}

// start runs cmd, appending what it prints to the file log.
func start(t *testing.T, cmd *exec.Cmd, log string) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		stdin.Close()
	})
	return p
}

// showLog prints the file log at the end of a failed test. Call it before start, so that the program has ended by then.
func showLog(t *testing.T, log string) string {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(log), readFile(t, log))
		}
	})
	return log
}

// kill ends the process the hard way and waits until it is gone.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// terminate asks the process to end and fails the test when it does not, or not cleanly.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(startTimeout):
		t.Fatalf("%s still runs %v after SIGTERM", p.cmd.Args[0], startTimeout)
	}
	if p.err != nil {
		t.Errorf("%s after SIGTERM: %v, want exit 0", p.cmd.Args[0], p.err)
	}
}

// waitReady polls ready until it returns nil, and fails the test when p exits first or startTimeout passes.
func (p *process) waitReady(t *testing.T, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-p.done:
			t.Fatalf("%s exited before it was ready: %v", p.cmd.Args[0], p.err)
		case <-ctx.Done():
			t.Fatalf("%s is not ready after %v: %v", p.cmd.Args[0], startTimeout, err)
		}
	}
}

// self is a command that runs the test binary as another program, see TestMain.
func self(t *testing.T, as string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &exec.Cmd{Path: exe, Args: append([]string{as}, args...)}
}

// freeAddr is a loopback address where nobody listens, for what is started there later, or again. Its port is none that the
// system gives to connections, or to listeners on port 0, so that nobody takes it meanwhile.
func freeAddr() string {
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(10_000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
}

// dial reports whether something accepts connections at the address.
func dial(ctx context.Context, network, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
