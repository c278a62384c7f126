package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/digestlock/digestlock/internal/accesstest"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/registrytest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"digestlock": func() { cli.Main(program()) }})
}

// TestScripts runs testdata/script. Each script has a registry of its own at $REGISTRY, in which acme/server:latest is
// $SERVER and acme/worker:latest is $WORKER, a free TCP address in $LISTEN, and no environment but what it sets.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push":     push,
			"fault":    misbehave,
			"registry": change,
			"requests": requests,
			"ready":    ready,
			"http":     request,
			"webhook":  webhook,
			"oneline":  oneline,
			"terminal": terminal,
			"expand":   expand,
			"flood":    flood,
			"front":    front,
			"issuer":   issue,
			"token":    token,
			"post":     post,
			"metrics":  metrics,
			"logs":     logs,
			"huge":     huge,
		},
	})
}

type registryKey struct{}

func setup(env *testscript.Env) error {
	s := registrytest.Listen(registrytest.New())
	env.Defer(s.Close)
	env.Values[registryKey{}] = s
	env.Values[issuerKey{}] = new(*accesstest.Issuer)
	env.Setenv("REGISTRY", s.Host)
	env.Setenv("SERVER", s.Push("acme/server", "latest"))
	env.Setenv("WORKER", s.Push("acme/worker", "latest"))
	for _, name := range []string{"LISTEN", "LISTEN2"} {
		env.Setenv(name, registrytest.FreeAddress())
	}
	env.Setenv("DOCKER_CONFIG", env.WorkDir)
	env.Setenv("DIGESTLOCK_INSECURE_REGISTRY", s.Host)
	// A socket's path has at most 108 bytes, so that it lies outside of the script's directory.
	short, err := os.MkdirTemp("", "dl")
	if err != nil {
		return err
	}
	env.Defer(func() { _ = os.RemoveAll(short) })
	env.Setenv("SOCKET", filepath.Join(short, "s"))
	return nil
}

func registryOf(ts *testscript.TestScript) *registrytest.Server {
	return ts.Value(registryKey{}).(*registrytest.Server)
}

// push REPOSITORY VARIABLE [SOURCE] pushes a new image under latest, with a label that says its source, and sets the variable
// to its digest.
func push(ts *testscript.TestScript, _ bool, args []string) {
	labels := map[string]string{}
	if len(args) > 2 {
		labels["org.opencontainers.image.source"] = args[2]
	}
	ts.Setenv(args[1], registryOf(ts).PushLabelled(args[0], "latest", labels))
}

// misbehave is fault TARGET hang|quota|STATUS|none makes the registry misbehave for a repository, say that 42 requests are
// left, or behave again.
func misbehave(ts *testscript.TestScript, _ bool, args []string) {
	var f registrytest.Fault
	switch args[1] {
	case "hang":
		f.Hang = true
	case "quota":
		f.Quota = "42;w=21600"
	case "none":
	default:
		status, err := strconv.Atoi(args[1])
		ts.Check(err)
		f.Status = status
	}
	registryOf(ts).Inject(args[0], f)
}

// change is registry stop|login|token|tls: it changes the registry as a whole, or starts another one at $TLS_REGISTRY whose
// certificate nobody trusts.
func change(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "stop":
		registryOf(ts).Close()
	case "login":
		registryOf(ts).RequireBasic("user", "correct-horse")
	case "token":
		registryOf(ts).RequireBearer("user", "correct-horse")
	case "tls":
		s := httptest.NewTLSServer(registryOf(ts))
		ts.Defer(s.Close)
		ts.Setenv("TLS_REGISTRY", s.Listener.Addr().String())
	default:
		ts.Fatalf("registry %s", args[0])
	}
}

// requests HEADS checks how many manifests were asked for so far; "3+" waits until there are three.
func requests(ts *testscript.TestScript, _ bool, args []string) {
	want, more := strings.CutSuffix(args[0], "+")
	n, err := strconv.Atoi(want)
	ts.Check(err)
	got := registryOf(ts).Counts().Head
	for range 400 {
		if !more || got >= n {
			break
		}
		time.Sleep(25 * time.Millisecond)
		got = registryOf(ts).Counts().Head
	}
	if got < n || got > n && !more {
		ts.Fatalf("%d manifest requests, want %s", got, args[0])
	}
}

// ready [ADDRESS] waits for the resolver at $LISTEN, or at the address.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	for range 400 {
		res, err := http.Get("http://" + append(args, ts.Getenv("LISTEN"))[0] + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("resolver not ready")
}

// request is http METHOD PATH STATUS [TOKEN [FILE]] asks the resolver at $LISTEN, with the file as body, and prints the answer into
// the file "answer". An image= query is escaped.
func request(ts *testscript.TestScript, _ bool, args []string) {
	path := args[1]
	if before, image, ok := strings.Cut(path, "image="); ok {
		path = before + "image=" + url.QueryEscape(image)
	}
	token, body := "", "{}"
	if len(args) > 3 {
		token = args[3]
	}
	if len(args) > 4 {
		body = ts.ReadFile(args[4])
	}
	if got := ask(ts, args[0], path, token, body); got != args[2] {
		ts.Fatalf("%s %s: %s, want %s: %s", args[0], path, got, args[2], ts.ReadFile("answer"))
	}
}

// ask returns the status of the answer.
func ask(ts *testscript.TestScript, method, path, token, body string) string {
	req, err := http.NewRequest(method, "http://"+ts.Getenv("LISTEN")+path, strings.NewReader(body))
	ts.Check(err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return send(ts, req)
}

func send(ts *testscript.TestScript, req *http.Request) string {
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("answer"), body, 0o600))
	return strconv.Itoa(res.StatusCode)
}

// webhook PATH STATUS SECRET FILE sends the event in the file to the resolver at $LISTEN, signed as GitHub signs, and prints
// the answer into the file "answer".
func webhook(ts *testscript.TestScript, _ bool, args []string) {
	event := ts.ReadFile(args[3])
	mac := hmac.New(sha256.New, []byte(args[2]))
	mac.Write([]byte(event))
	req, err := http.NewRequest(http.MethodPost, "http://"+ts.Getenv("LISTEN")+args[0], strings.NewReader(event))
	ts.Check(err)
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	if got := send(ts, req); got != args[1] {
		ts.Fatalf("%s: %s, want %s: %s", args[0], got, args[1], ts.ReadFile("answer"))
	}
}

// oneline CODE checks that the last command's stderr is exactly an error line with the code and a hint line, below 4 KiB
// together: what Argo CD shows to people.
func oneline(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile("stderr")
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "digestlock: error: ") || !strings.HasSuffix(lines[0], " ["+args[0]+"]") ||
		!strings.HasPrefix(lines[1], "digestlock: hint: ") ||
		len(text) > 4096 {
		ts.Fatalf("stderr is not an error line with [%s] and a hint line:\n%s", args[0], text)
	}
}

// huge FILE makes a file large, by a comment.
func huge(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), append([]byte(ts.ReadFile(args[0])), bytes.Repeat([]byte("# more\n"), 1<<20)...), 0o600))
}

// expand FILE... replaces $NAME in files by the environment's values.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), func(v string) string {
			if value := ts.Getenv(v); value != "" {
				return value
			}
			return fmt.Sprintf("${%s}", v)
		})
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}
