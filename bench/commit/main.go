// Commit changes one file of a branch, as the companion does: a process for the benchmark to look at. It says when it is
// ready, begins at the first byte of its input, says how many milliseconds it took, and waits for the end of the input.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/digestlock/digestlock/internal/gitrepo"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url, path, content string) error {
	r, err := gitrepo.Open(url, gitrepo.Auth{})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	start := time.Now()
	if err := commit(ctx, r, path, content); err != nil {
		return err
	}
	fmt.Println(float64(time.Since(start).Microseconds()) / 1000)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func commit(ctx context.Context, r *gitrepo.Remote, path, content string) error {
	s, err := r.Read(ctx, "main")
	if err != nil {
		return err
	}
	if _, err := s.Files(ctx, []string{path}); err != nil {
		return err
	}
	_, err = s.Push(ctx, gitrepo.Change{
		Files: map[string][]byte{path: []byte(content)}, Message: "build: update", Mark: true,
		Author: gitrepo.Signature{Name: "bench", Email: "bench@example.com"}, When: time.Now(),
	})
	return err
}
