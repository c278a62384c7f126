// Package checkout reads what the .git directory that Argo CD ships with a render says about its branch.
//
// It reads two kinds of small files and no objects, which is why it needs no Git library in the process of a render.
package checkout

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/digestlock/digestlock/internal/lazy"
)

var hashPattern = lazy.Regexp(`^[0-9a-f]+$`)

const (
	gitDir = ".git"
	// maxPackedRefs bounds packed-refs: some hundred thousand refs.
	maxPackedRefs = 32 << 20
	maxSymlinks   = 5
)

// Tip returns the commit at which the checkout that dir lies in last saw the remote's branch, by its short or full
// name; "" and "HEAD" mean the remote's default branch. It returns "" when the checkout does not say: there is no .git,
// because Argo CD was told to leave it out, or the branch was not fetched, because the target revision is a tag.
//
// The repository is the one that Argo CD made: in it, refs/remotes/origin/<branch> is the tip also when HEAD, the
// commit that is rendered, is not (measured, v3.5.7: during a rollback).
func Tip(dir, branch string) (string, error) {
	root, err := open(dir)
	if root == nil || err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	branch = strings.TrimPrefix(branch, "refs/heads/")
	if branch == "" {
		branch = "HEAD"
	}
	ref := "refs/remotes/origin/" + branch
	for range maxSymlinks {
		value, err := lookup(root, ref)
		if err != nil {
			return "", err
		}
		target, symbolic := strings.CutPrefix(value, "ref: ")
		if !symbolic {
			return value, nil
		}
		ref = target
	}
	return "", nil
}

// open finds .git in dir or above. It returns nil where there is none.
func open(dir string) (*os.Root, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for {
		info, err := os.Lstat(filepath.Join(dir, gitDir))
		if err == nil && info.IsDir() {
			return os.OpenRoot(filepath.Join(dir, gitDir))
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil, nil
		}
		dir = parent
	}
}

// lookup returns the value of a ref, "" when there is none.
func lookup(root *os.Root, ref string) (string, error) {
	if !fs.ValidPath(ref) || strings.ContainsAny(ref, "\\\x00") {
		return "", nil // no name that Git accepts; a ref is named by whoever writes the Application
	}
	f, err := root.Open(ref)
	if err == nil {
		defer func() { _ = f.Close() }()
		data, err := io.ReadAll(io.LimitReader(f, 4096))
		if value := strings.TrimSpace(string(data)); err == nil && (isHash(value) || strings.HasPrefix(value, "ref: ")) {
			return value, nil
		}
		return "", nil // a directory of refs, or nothing that Git wrote
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return "", err
	}
	return packed(root, ref)
}

func packed(root *os.Root, ref string) (string, error) {
	f, err := root.Open("packed-refs")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxPackedRefs))
	for lines.Scan() {
		if hash, name, ok := strings.Cut(lines.Text(), " "); ok && name == ref && isHash(hash) {
			return hash, nil
		}
	}
	return "", lines.Err()
}

// isHash reports whether s is the name of a commit, in SHA-1 or SHA-256.
func isHash(s string) bool { return (len(s) == 40 || len(s) == 64) && hashPattern().MatchString(s) }
