package history

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/lock"
)

// git runs the git binary in one directory.
type git struct {
	path, dir string
	env       []string
}

// newGit finds the binary. Of the environment it gets what it needs to find its configuration, so that no variable of a hook
// or a shell leads it to another repository, and it fetches nothing: what a partial clone lacks is an error.
func newGit(dir string, getenv func(string) string) (*git, error) {
	path, err := exec.LookPath("git")
	if err != nil {
		return nil, fault.New(fault.GitHistory, "install git: it is what the history is read with", "%w", err)
	}
	g := &git{path: path, dir: dir, env: []string{"LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=none"}}
	for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME"} {
		if v := getenv(name); v != "" {
			g.env = append(g.env, name+"="+v)
		}
	}
	return g, nil
}

func (g *git) command(ctx context.Context, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, g.path, append([]string{"--no-pager", "-C", g.dir}, args...)...)
	cmd.Env = g.env
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	return cmd, stderr
}

func (g *git) output(ctx context.Context, args ...string) (string, error) {
	cmd, stderr := g.command(ctx, args...)
	out, err := cmd.Output()
	if err != nil {
		return "", g.fail(args[0], err, stderr)
	}
	return string(out), nil
}

// fail is the error of a git that failed, in its own words.
func (g *git) fail(command string, err error, stderr *bytes.Buffer) error {
	hint := fmt.Sprintf("see what \"git -C %s log\" says; in a partial clone, which lacks old files, fetch them: git fetch --refetch --no-filter", g.dir)
	if _, text, found := strings.Cut("\n"+stderr.String(), "\nfatal: "); found {
		text, _, _ = strings.Cut(text, "\n")
		err = errors.New(text)
	}
	return fault.New(fault.GitHistory, hint, "git %s: %w", command, err)
}

// shallow reports whether the history is cut off. The error is about a directory that is in no checkout.
func (g *git) shallow(ctx context.Context) (bool, error) {
	out, err := g.output(ctx, "rev-parse", "--is-inside-work-tree", "--is-shallow-repository")
	inside, rest, _ := strings.Cut(out, "\n")
	if err == nil && inside != "true" {
		err = fault.New(fault.GitHistory, "", "not in a work tree")
	}
	if err != nil {
		return false, fault.New(fault.GitHistory, "give the directory of an overlay in a checkout, with its .git", "%s: %w", g.dir, err)
	}
	return strings.TrimSpace(rest) == "true", nil
}

// change is what one commit did to the file.
type change struct {
	commit *Commit
	root   bool   // the commit has no parents here
	blob   string // what the file is after it, "" when it is gone
	file   bool   // whether that is a regular file
}

// fields of a commit, one line each: none of them can have a NUL or a line feed in it.
const fields = "%H%x00%P%x00%ct%x00%an%x00%ae%x00%(trailers:key=" + lock.Trailer + ",valueonly,unfold,separator=%x2C)%x00%s"

// log returns the commits that changed the file name in the directory, oldest first, each with what it changed against its
// first parent.
func (g *git) log(ctx context.Context, name string) ([]change, error) {
	out, err := g.output(ctx, "log", "--first-parent", "--reverse", "--raw", "--no-abbrev", "--no-renames",
		"--no-show-signature", "--encoding=UTF-8", "--format="+fields, "--", name)
	if err != nil {
		return nil, err
	}
	var all []change
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		raw, isRaw := strings.CutPrefix(line, ":")
		switch {
		case line == "":
		case !isRaw:
			c, err := parseCommit(line)
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		default:
			// old mode, new mode, old blob, new blob, status and path
			f := strings.Fields(raw)
			if len(f) < 5 || len(all) == 0 {
				return nil, fmt.Errorf("git log: unexpected line %q", line)
			}
			c := &all[len(all)-1]
			c.file = strings.HasPrefix(f[1], "100")
			if strings.Trim(f[3], "0") != "" {
				c.blob = f[3]
			}
		}
	}
	return all, nil
}

func parseCommit(line string) (change, error) {
	f := strings.SplitN(line, "\x00", 7)
	if len(f) != 7 {
		return change{}, fmt.Errorf("git log: unexpected line %q", line)
	}
	seconds, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return change{}, fmt.Errorf("git log: %w", err)
	}
	return change{root: f[1] == "", commit: &Commit{
		Hash: f[0], Merge: strings.Contains(f[1], " "), When: time.Unix(seconds, 0).UTC(), Author: f[3], Email: f[4], Companion: f[5], Subject: f[6],
	}}, nil
}

// blobs reads blobs from one process, one after the other.
type blobs struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	in     io.WriteCloser
	out    *bufio.Reader
	git    *git
}

func (g *git) blobs(ctx context.Context) (*blobs, error) {
	cmd, stderr := g.command(ctx, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, g.fail("cat-file", err, stderr)
	}
	return &blobs{cmd: cmd, stderr: stderr, in: in, out: bufio.NewReader(out), git: g}, nil
}

// close ends the process and waits for it.
func (b *blobs) close() {
	_ = b.in.Close()
	_ = b.cmd.Wait()
}

// errMissing is what read returns for a blob that is not there, and may be asked for the next after.
var errMissing = errors.New("git has lost this version of the file")

// read returns a blob. Of one that is larger than a lock may be, it returns as much as shows that.
func (b *blobs) read(hash string) ([]byte, error) {
	data, err := b.next(hash)
	if err == nil || errors.Is(err, errMissing) {
		return data, err
	}
	b.close() // so that stderr is complete
	return nil, b.git.fail("cat-file", err, b.stderr)
}

func (b *blobs) next(hash string) ([]byte, error) {
	if _, err := io.WriteString(b.in, hash+"\n"); err != nil {
		return nil, err
	}
	header, err := b.out.ReadString('\n')
	if err != nil {
		return nil, err
	}
	f := strings.Fields(header) // hash, type, size
	if len(f) == 2 && f[1] == "missing" {
		return nil, errMissing
	}
	if len(f) != 3 {
		return nil, fmt.Errorf("unexpected answer %q", header)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(size, lock.MaxSize+1))
	if _, err := io.ReadFull(b.out, data); err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.Discard, b.out, size-int64(len(data))+1) // the rest, and a line feed
	return data, err
}
