package gitrepo

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/digestlock/digestlock/internal/fault"
)

// Binary says when git, the program, moves packs in place of go-git. This program lists the refs, decides, and writes the
// new objects all the same, and git reaches the server only through it: see link.
type Binary string

// The values of Binary; "" is BinaryAuto.
const (
	BinaryAuto   Binary = "auto"   // for what go-git cannot do: repositories with SHA-256 object names
	BinaryAlways Binary = "always" // for servers that do not understand go-git
	BinaryNever  Binary = "never"
)

// UnmarshalText takes the three values.
func (b *Binary) UnmarshalText(text []byte) error {
	switch v := Binary(text); v {
	case BinaryAuto, BinaryAlways, BinaryNever:
		*b = v
		return nil
	}
	return errors.New("must be auto, always or never")
}

// MarshalText is for the default of a flag.
func (b Binary) MarshalText() ([]byte, error) { return []byte(b), nil }

// FindGit returns an error when there is no git to run.
func FindGit() error {
	_, err := findGit()
	return err
}

func findGit() (string, error) {
	path, err := exec.LookPath("git")
	if err != nil {
		return "", fault.New(fault.GitBinary, "use an image that has git, 2.29 or newer, and its git-remote-http", "git is needed and cannot be run: %w", err)
	}
	return path, nil
}

// workspace is a bare repository, empty at first, for one fetch or push by git. It is gone when it is closed, and git's way
// to the server with it.
type workspace struct {
	git, dir string
	names    *names
	link     *link
}

// open makes a workspace from which git reaches the server's service.
func (s *Snapshot) open(ctx context.Context, service string) (*workspace, error) {
	git, err := findGit()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "digestlock-git-")
	if err != nil {
		return nil, fault.New(fault.GitBinary, "mount a writable directory for temporary files", "keep a repository: %w", err)
	}
	w := &workspace{git: git, dir: dir, names: s.names}
	if w.link, err = s.remote.bridge(ctx, service, s); err == nil {
		err = w.init()
	}
	if err != nil {
		_ = w.close()
		return nil, err
	}
	return w, nil
}

// close returns what went wrong between us and the server, if something did: git knows only that we hung up.
func (w *workspace) close() error {
	var err error
	if w.link != nil {
		err = w.link.close()
	}
	_ = os.RemoveAll(w.dir)
	return err
}

// init writes what makes a directory a repository. Its configuration is all that git gets to see, and nobody else does.
func (w *workspace) init() error {
	format := "sha1"
	if w.names.sha256 {
		format = "sha256"
	}
	config := `[core]
	repositoryFormatVersion = 1
	bare = true
	hooksPath = /dev/null
	bigFileThreshold = 1m
[extensions]
	objectFormat = ` + format + `
[remote "origin"]
	url = ` + w.link.url + `
[http]
	followRedirects = false
	extraHeader = ` + w.link.header + `
[transfer]
	unpackLimit = 1
[gc]
	auto = 0
[maintenance]
	auto = false
`
	return errors.Join(
		os.MkdirAll(filepath.Join(w.dir, "refs", "heads"), 0o700),
		os.MkdirAll(filepath.Join(w.dir, "objects"), 0o700),
		os.WriteFile(filepath.Join(w.dir, "HEAD"), []byte("ref: refs/heads/none\n"), 0o600),
		os.WriteFile(filepath.Join(w.dir, "config"), []byte(config), 0o600),
	)
}

// command is git, which sees nothing of this process but its PATH. It ends with ctx, and all that it started.
func (w *workspace) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.git, args...)
	cmd.Dir = w.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + w.dir, "GIT_DIR=" + w.dir,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=" + w.link.protocol,
	}
	cmd.WaitDelay = time.Second
	killGroup(cmd)
	return cmd
}

// talk runs a git that talks to the server, and returns what it says of itself.
func (w *workspace) talk(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	var out, words tail
	cmd := w.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &words
	if w.link.file != nil {
		cmd.ExtraFiles = []*os.File{w.link.file}
	}
	err = cmd.Start()
	if w.link.file != nil {
		w.link.file.Close() // git has it
	}
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), words.String(), err
}

// fetchByGit is fetch.
func (s *Snapshot) fetchByGit(ctx context.Context, req *packp.UploadPackRequest, maxObject int64) (err error) {
	w, err := s.open(ctx, transport.UploadPackServiceName)
	if err != nil {
		return err
	}
	defer func() {
		if closed := w.close(); err != nil && closed != nil {
			err = closed
		}
	}()
	args := []string{"fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no", "--stdin"}
	if depth, ok := req.Depth.(packp.DepthCommits); ok && depth > 0 {
		args = append(args, fmt.Sprintf("--depth=%d", depth))
	}
	if req.Filter != "" {
		args = append(args, "--filter="+string(req.Filter))
	}
	var wants strings.Builder
	for _, h := range req.Wants {
		wants.WriteString(s.names.hex(h) + "\n")
	}
	if _, words, err := w.talk(ctx, wants.String(), append(args, "origin")...); err != nil {
		return fmt.Errorf("git fetch: %w: %s", err, words)
	}
	return w.load(ctx, s, maxObject)
}

// load takes all objects over that git has fetched, within the bounds that weigh is for.
func (w *workspace) load(ctx context.Context, s *Snapshot, maxObject int64) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := w.command(ctx, "cat-file", "--batch", "--batch-all-objects", "--unordered", "--buffer")
	var words tail
	cmd.Stderr = &words
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	err = w.read(bufio.NewReader(stdout), s, maxObject)
	s.mu.Unlock()
	if err != nil {
		stop()
	}
	if ended := cmd.Wait(); err == nil && ended != nil {
		err = fmt.Errorf("git cat-file: %w: %s", ended, words.String())
	}
	return err
}

func (w *workspace) read(r *bufio.Reader, s *Snapshot, maxObject int64) error {
	for total := int64(0); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF && line == "" {
			return nil
		}
		var name, kind string
		var size int64
		if _, err := fmt.Sscanf(line, "%s %s %d\n", &name, &kind, &size); err != nil || !isName(name) {
			return fmt.Errorf("git cat-file says %q", line)
		}
		if err := bounded(size, &total, maxObject, s.maxBytes); err != nil {
			return err
		}
		content := make([]byte, size+1) // and a line break
		if _, err := io.ReadFull(r, content); err != nil {
			return err
		}
		t, err := plumbing.ParseObjectType(kind)
		if err != nil {
			return err
		}
		o, err := w.names.shorten(t, w.names.parse(name), content[:size])
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, name, err)
		}
		if _, err := s.objects.SetEncodedObject(o); err != nil {
			return err
		}
	}
}

// pushByGit is exchange. A lease moves a ref from where it was listed, and from nowhere else, sideways too.
func (s *Snapshot) pushByGit(ctx context.Context, req *packp.ReferenceUpdateRequest, objects *memory.Storage) (err error) {
	w, err := s.open(ctx, transport.ReceivePackServiceName)
	if err != nil {
		return err
	}
	if err := w.fill(s, objects); err != nil {
		return errors.Join(err, w.close())
	}
	args := []string{"push", "--porcelain", "--no-verify", "--no-thin", "--no-progress", "--recurse-submodules=no"}
	if req.Capabilities.Supports(capability.Atomic) {
		args = append(args, "--atomic")
	}
	var refs []string
	for _, c := range req.Commands {
		if err := c.Name.Validate(); err != nil {
			return errors.Join(err, w.close())
		}
		lease := "--force-with-lease=" + c.Name.String() + ":"
		if !c.Old.IsZero() {
			lease += s.names.hex(c.Old)
		}
		args = append(args, lease)
		ref := ":" + c.Name.String()
		if !c.New.IsZero() {
			ref = s.names.hex(c.New) + ref
		}
		refs = append(refs, ref)
	}
	report, words, err := w.talk(ctx, "", append(append(args, "origin"), refs...)...)
	closed := w.close()
	if err == nil {
		return nil
	}
	if closed != nil {
		return closed
	}
	if refused := refusedByGit(req.Commands, report, words); refused != nil {
		return refused
	}
	return fmt.Errorf("git push: %w: %s", err, words)
}

// fill writes the new objects, and those of the commit below them that git has to see to know what is new. It is told that
// the server has that commit (withHave), and so looks for nothing that it reaches. A shallow repository would know as much,
// but servers refuse pushes from one when the commit has left their branches.
func (w *workspace) fill(s *Snapshot, objects *memory.Storage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := slices.Collect(maps.Keys(s.parsed))
	if !s.commit.IsZero() {
		known = append(known, s.commit)
	}
	for _, h := range known {
		o, err := s.objects.EncodedObject(plumbing.AnyObject, h)
		if err == nil {
			err = w.write(o)
		}
		if err != nil {
			return err
		}
	}
	if objects == nil {
		return nil
	}
	for _, o := range objects.Objects {
		if err := w.write(o); err != nil {
			return err
		}
	}
	return nil
}

func (w *workspace) write(o plumbing.EncodedObject) error {
	content, err := w.names.lengthen(o)
	if err != nil {
		return err
	}
	var loose bytes.Buffer
	z := zlib.NewWriter(&loose)
	_, err = z.Write(append(header(o.Type(), len(content)), content...))
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	name := w.names.hex(o.Hash())
	dir := filepath.Join(w.dir, "objects", name[:2])
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name[2:]), loose.Bytes(), 0o600)
}

// refusedByGit finds in what git push says what the server said, as rejection does. It returns nil when the server refused
// nothing.
func refusedByGit(commands []*packp.Command, report, words string) error {
	reasons := map[string]string{}
	for line := range strings.Lines(report) { // "!", the refspec, and "[remote rejected] (reason)", with tabs between
		fields := strings.SplitN(strings.TrimSpace(line), "\t", 3)
		if len(fields) < 3 || fields[0] != "!" {
			continue
		}
		_, ref, _ := strings.Cut(fields[1], ":")
		_, reason, _ := strings.Cut(fields[2], "(")
		reasons[ref] = strings.TrimSuffix(reason, ")")
	}
	var reason string
	for _, c := range commands {
		if r, ok := reasons[c.Name.String()]; ok {
			reason = r
		}
	}
	if reason == "" {
		return nil
	}
	var said []string
	for line := range strings.Lines(words) {
		if line, ok := strings.CutPrefix(line, "remote: "); ok {
			said = append(said, line)
		}
	}
	if len(said) > 0 {
		reason += ": " + strings.Join(said, "")
	}
	return &refusal{reason}
}
